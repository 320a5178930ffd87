"""messages that come together -> an answer or an error each, with its id, of Stream

Each message is a byte with its length, in steps of 4 bytes, and so many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.message import DecodeError

from autoencoder.v1 import autoencoder_pb2 as pb
from service.errors import InvalidArgument
from tests.fuzz.serving import served
from tests.fuzz.targets.requests import check, requests

KINDS = {"encode": "Encode", "decode": "Decode", "reconstruct": "Reconstruct", "denoise": "Denoise"}


def split(data: bytes) -> list[bytes]:
    messages: list[bytes] = []
    while data and len(messages) < 16:
        stop = 1 + 4 * data[0]
        messages.append(data[1:stop])
        data = data[stop:]
    return messages


def join(*messages: bytes) -> bytes:
    """The opposite; the rest of four bytes is filled with a field that nobody knows."""
    joined = b""
    for message in messages:
        padded = message + b"\xf8\x01\x01\xf8\x01\x01\xf8\x01\x01"[: -len(message) % 4 * 3]
        padded += b"" if len(padded) % 4 == 0 else bytes(-len(padded) % 4)
        joined += bytes([len(padded) // 4]) + padded
    return joined


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    with served(folder) as subject:

        def one(data: bytes) -> None:
            messages = split(data)
            for message, call in zip(messages, subject.ask(subject.native["Stream"], *messages), strict=True):
                try:
                    sent = pb.StreamRequest.FromString(message)
                except DecodeError:
                    # Not even an id: the end of the stream.
                    assert isinstance(call.failed, InvalidArgument)
                    continue
                assert call.answered is not None, call.failed
                answer = pb.StreamResponse.FromString(call.answered)
                assert answer.id == sent.id
                kind, got = sent.WhichOneof("request"), answer.WhichOneof("response")
                assert got in (kind, "error")
                assert answer.error.code != 13, answer.error.message
                if got in KINDS:
                    whole = getattr(sent, got).SerializeToString()
                    check(KINDS[got], whole, getattr(answer, got).SerializeToString())

        yield one


def seeds() -> dict[str, bytes]:
    made = {
        name: pb.StreamRequest(id=number, **{rpc.lower(): request})
        for number, (name, (rpc, request)) in enumerate(requests().items())
        if not rpc.endswith(("Model", "Models"))
    }
    messages = {name: message.SerializeToString() for name, message in made.items()}
    late = pb.StreamRequest(id=2**64 - 1, timeout_seconds=1e-9, encode=made["encode"].encode).SerializeToString()
    return {name: join(message) for name, message in messages.items()} | {
        "all": join(*messages.values()),
        "late": join(late, messages["encode"]),
        "empty": join(b"", messages["decode"]),
    }
