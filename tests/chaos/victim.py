"""A client that is killed: python -m tests.chaos.victim ADDRESS. Writes a line when it is in the middle of its calls."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

from autoencoder.v1 import autoencoder_pb2 as pb
from autoencoder.v1.autoencoder_pb2_grpc import AutoencoderServiceStub
from tests import tiny
from tests.chaos.load import channel
from tests.integration.test_service import TINY, tensor

ROWS = 500


def main() -> None:
    encode = pb.EncodeRequest(model=TINY, rows=tensor(tiny.rows(ROWS)))

    def requests() -> Iterator[pb.StreamRequest]:
        return (pb.StreamRequest(id=number, encode=encode) for number in itertools.count())

    with channel(sys.argv[1]) as opened:
        stub = AutoencoderServiceStub(opened)
        answers = stub.Stream(requests())
        futures = [stub.Encode.future(encode) for _ in range(3)]
        futures[0].exception()
        next(answers)
        print("in the middle", flush=True)
        for _ in answers:
            stub.Encode.future(encode)


if __name__ == "__main__":
    main()
