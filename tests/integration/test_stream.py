"""The RPC Stream on the real service, on both transports."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from tests import tiny
from tests.integration.serving import ServerProcess
from tests.integration.test_service import TIMEOUT_S, TINY, array, assert_close, tensor


def encode(identity: int, rows: Any, **fields: Any) -> pb.StreamRequest:
    return pb.StreamRequest(id=identity, encode=pb.EncodeRequest(model=TINY, rows=tensor(rows)), **fields)


def test_requests_of_every_kind_are_answered_by_their_ids(stub: AutoencoderServiceStub) -> None:
    rows = tiny.rows(3)
    latents = tiny.encode(rows)
    requests = [
        encode(11, rows),
        pb.StreamRequest(id=12, decode=pb.DecodeRequest(model=TINY, latents=tensor(latents))),
        pb.StreamRequest(id=13, reconstruct=pb.ReconstructRequest(model=TINY, rows=tensor(rows))),
        pb.StreamRequest(id=14, denoise=pb.DenoiseRequest(model=TINY, rows=tensor(rows))),
        pb.StreamRequest(
            id=15,
            interpolate=pb.InterpolateRequest(
                model=TINY, latents=pb.TensorPair(start=tensor(latents), end=tensor(latents)), steps=2
            ),
        ),
    ]
    answers = {answer.id: answer for answer in stub.Stream(iter(requests), timeout=TIMEOUT_S)}
    assert set(answers) == {11, 12, 13, 14, 15}
    assert_close(array(answers[11].encode.latents), latents)
    for tensor_ in (answers[12].decode.rows, answers[13].reconstruct.rows, answers[14].denoise.rows):
        assert_close(array(tensor_), tiny.decode(latents))
    assert_close(array(answers[15].interpolate.rows)[:, 1], tiny.decode(latents))


def test_the_error_of_one_request_is_its_answer_and_the_stream_goes_on(
    stub: AutoencoderServiceStub, server: ServerProcess
) -> None:
    before = server.metric('autoencoder_stream_messages_total{code="INVALID_ARGUMENT"}')
    rows = tiny.rows(1)
    nowhere = pb.EncodeRequest(model=pb.ModelSelector(name="nowhere"), rows=tensor(rows))
    requests = [
        pb.StreamRequest(id=1),
        encode(2, rows, timeout_seconds=-1.0),
        encode(3, np.full((1, 4, 4), np.nan, np.float32)),
        pb.StreamRequest(id=4, encode=nowhere),
        encode(5, rows),
    ]
    answers = {answer.id: answer for answer in stub.Stream(iter(requests), timeout=TIMEOUT_S)}
    assert {number: answer.error.code for number, answer in answers.items()} == {1: 3, 2: 3, 3: 3, 4: 5, 5: 0}
    assert "row 0 holds NaN" in answers[3].error.message
    rich = status_pb2.Status.FromString(answers[4].error.SerializeToString())
    info = error_details_pb2.ErrorInfo()
    assert rich.details[0].Unpack(info)
    assert info.reason == "NO_SUCH_MODEL"
    assert_close(array(answers[5].encode.latents), tiny.encode(rows))
    assert server.metric('autoencoder_stream_messages_total{code="INVALID_ARGUMENT"}') == before + 3


def test_thousands_of_rows_on_several_streams_each_come_back_to_their_own(server: ServerProcess) -> None:
    wrong: list[str] = []

    def run(seed: int) -> None:
        batches = {number: tiny.rows(1 + number % 2, seed=seed * 10_000 + number) for number in range(400)}
        with server.channel() as channel:
            requests = (encode(number, rows) for number, rows in batches.items())
            answers = list(AutoencoderServiceStub(channel).Stream(requests, timeout=TIMEOUT_S))
        if sorted(answer.id for answer in answers) != list(batches):
            wrong.append(f"{seed}: {len(answers)} answers")
        wrong.extend(
            f"{seed}: {answer.id}"
            for answer in answers
            if not np.allclose(array(answer.encode.latents), tiny.encode(batches[answer.id]), atol=1e-4)
        )

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_request_that_cannot_be_answered_in_time_is_told_so(tiny_models: Path) -> None:
    """Batches of one row, and thousands of rows before the one that has a millisecond."""
    with ServerProcess(tiny_models, "--max-batch-rows", "1") as server, server.channel() as channel:
        bulk = [encode(number, tiny.rows(1000)) for number in range(4)]
        requests = [*bulk, encode(9, tiny.rows(1), timeout_seconds=0.001)]
        answers = {
            answer.id: answer for answer in AutoencoderServiceStub(channel).Stream(iter(requests), timeout=TIMEOUT_S)
        }
    assert answers[9].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert all(array(answers[number].encode.latents).shape == (1000, 3) for number in range(4))


def test_a_stop_answers_what_came_and_says_that_the_stream_must_go_elsewhere(tiny_models: Path) -> None:
    with ServerProcess(tiny_models) as server, server.channel() as channel:
        inbox: SimpleQueue[pb.StreamRequest | None] = SimpleQueue()
        rows = tiny.rows(2)
        answers = AutoencoderServiceStub(channel).Stream(iter(inbox.get, None), timeout=TIMEOUT_S)
        inbox.put(encode(1, rows))
        assert_close(array(next(answers).encode.latents), tiny.encode(rows))
        server.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        inbox.put(None)
        assert server.wait() == 0
