"""bytes of an ONNX graph -> one that stands alone and has the manifest's signature, or PackageError

onnxruntime itself, which is given the graph after that, is not fuzzed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from service.errors import PackageError
from service.graphs import check_graph
from tests import tiny


def one(data: bytes) -> None:
    try:
        check_graph("encoder.onnx", data, tiny.ROW_SHAPE, (tiny.LATENT,))
    except PackageError as error:
        assert error.file == "encoder.onnx"
        return
    model = onnx.load_model_from_string(data)
    assert len(model.graph.output) == 1
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    yield one


def seeds() -> dict[str, bytes]:
    good = tiny.encoder()
    outside, foreign, nested = tiny.encoder(), tiny.encoder(), tiny.encoder()
    tensor = outside.graph.initializer[1]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    foreign.graph.node[0].domain = "com.example"
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(20):
        inner = helper.make_graph([helper.make_node("If", [], [], then_branch=inner)], "inner", [], [])
    nested.graph.node.append(helper.make_node("If", [], [], then_branch=inner))
    named = {"good": good, "outside": outside, "foreign": foreign, "nested": nested}
    return {name: model.SerializeToString() for name, model in named.items()}
