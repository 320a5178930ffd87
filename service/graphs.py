"""What an ONNX graph must be before onnxruntime sees it: one input, one output, nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from service.errors import PackageError

_STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


def check_graph(file: str, content: bytes, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
    """Check that an ONNX graph stands alone and maps float32 [B, in_shape] to float32 [B, out_shape].

    Raises PackageError for bytes that are not ONNX, operators outside the standard, weights in another file (which
    onnxruntime would open, wherever they are), and any other signature.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the parser's errors have no common base
        raise PackageError(file, "is not an ONNX file, or a truncated one") from error
    foreign = {opset.domain for opset in model.opset_import} - _STANDARD_DOMAINS
    if foreign or model.functions:
        # What is not UTF-8 comes as bytes, which have no order with texts.
        named = sorted(map(str, foreign)) or "local functions"
        raise PackageError(file, f"uses operators outside the ONNX standard: {named}")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise PackageError(file, f"keeps the weights {tensor.name!r} in another file; they must be inside")
    for node in _nodes(model.graph):
        if node.domain not in _STANDARD_DOMAINS:
            raise PackageError(
                file, f"uses the operator {node.domain}.{node.op_type}, which is not in the ONNX standard"
            )
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for side, values, shape in (("input", inputs, in_shape), ("output", list(model.graph.output), out_shape)):
        if len(values) != 1:
            raise PackageError(file, f"must have one {side}, has {len(values)}")
        tensor_type = values[0].type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor_type.shape.dim]
        if tensor_type.elem_type != onnx.TensorProto.FLOAT or dims != [-1, *shape]:
            raise PackageError(
                file,
                f"{side} must be FLOAT [batch, {', '.join(map(str, shape))}] with a free batch dimension, is "
                f"{_type_name(tensor_type.elem_type)} {dims}",
            )


def _type_name(number: int) -> str:
    known = onnx.TensorProto.DataType
    return known.Name(number) if number in known.values() else f"unknown type {number}"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensors(subgraph)
