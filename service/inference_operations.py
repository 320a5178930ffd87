"""The operations of a model as the Open Inference Protocol sees them: each is a model with named inputs and outputs.

Where an operation of Triton is an ensemble, its inputs and outputs are told apart by their names; so they are here, for
models to move there and clients not to notice (`training/layouts.py`).

Shape legend: B rows, P pairs, S points of a path, D... the dimensions of a row, L... the dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoencoder.v1 import model_pb2
from service import paths
from service.calls import Call
from service.dispatcher import Done, Result
from service.errors import InvalidArgument, NotFound
from service.model import DECODE, DENOISE, ENCODE, INTERPOLATE, RECONSTRUCT, ServedModel
from service.tensors import Array, Rows, Spec

# A dimension of any size.
ANY = -1

_METHODS = {"linear": paths.linear, "spherical": paths.spherical}


@dataclass(frozen=True, kw_only=True)
class Input:
    """`spec` is that of one row; weights are rows without dimensions."""

    name: str
    spec: Spec
    optional: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (ANY, *self.spec.row_shape)


@dataclass(frozen=True, kw_only=True)
class Output:
    """`converted`: whether it comes in the type that was asked for; scores are always FP32."""

    name: str
    shape: tuple[int, ...]
    converted: bool = True


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a request says beside its tensors."""

    steps: int | None = None
    method: str = "linear"
    max_points: int


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of one loaded model. `batched`: whether all its tensors count the same rows."""

    model: ServedModel
    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    start: Start
    results: Callable[[Result], tuple[Rows, ...]] = lambda result: result.outputs
    batched: bool = True

    @property
    def full_name(self) -> str:
        return f"{self.model.name}.{self.name}"


class Start(Protocol):
    def __call__(self, inputs: Mapping[str, Array], wanted: Wanted, call: Call, done: Done) -> None:
        """Submit what was sent. Raises ServiceError."""


def split(full_name: str) -> tuple[str, str]:
    """MODEL.OPERATION to both. Raises InvalidArgument and NotFound."""
    if not full_name:
        raise InvalidArgument("NO_MODEL_NAME", "model name: must be given")
    model, _, operation = full_name.rpartition(".")
    if operation not in _OPERATIONS or not model:
        raise NotFound(
            "NO_SUCH_MODEL",
            f"there is no model {full_name[:128]!r}; a name here is MODEL.OPERATION, such as mnist-conv.encode, with "
            + ", ".join(_OPERATIONS),
        )
    return model, operation


def names(card: model_pb2.Model) -> list[str]:
    """The operations that a model has."""
    given = {model_pb2.Operation.Name(number).removeprefix("OPERATION_").lower() for number in card.operations}
    return [name for name in _OPERATIONS if name in given]


def operation(model: ServedModel, name: str) -> Operation:
    """Raises Unsupported where the model does not have it."""
    model.require(name)
    return _OPERATIONS[name](model)


def _encode(model: ServedModel) -> Operation:
    return Operation(
        model=model,
        name=ENCODE,
        inputs=(Input(name="rows", spec=model.input),),
        outputs=(Output(name="latents", shape=(ANY, *model.latent.row_shape)),),
        start=lambda inputs, wanted, call, done: model.encode(inputs["rows"], call, done),
    )


def _decode(model: ServedModel) -> Operation:
    return Operation(
        model=model,
        name=DECODE,
        inputs=(Input(name="latents", spec=model.latent),),
        outputs=(Output(name="rows", shape=(ANY, *model.input.row_shape)),),
        start=lambda inputs, wanted, call, done: model.decode(inputs["latents"], call, done),
    )


def _reconstruct(model: ServedModel) -> Operation:
    return Operation(
        model=model,
        name=RECONSTRUCT,
        inputs=(Input(name="rows", spec=model.input),),
        outputs=(
            Output(name="reconstructions", shape=(ANY, *model.input.row_shape)),
            Output(name="reconstruction_errors", shape=(ANY,), converted=False),
            Output(name="novelties", shape=(ANY,), converted=False),
        ),
        start=lambda inputs, wanted, call, done: model.reconstruct(inputs["rows"], call, done),
        results=lambda result: (*result.outputs, model.novelty(result.outputs[1])),
    )


def _denoise(model: ServedModel) -> Operation:
    return Operation(
        model=model,
        name=DENOISE,
        inputs=(Input(name="rows", spec=model.input),),
        outputs=(
            Output(name="clean", shape=(ANY, *model.input.row_shape)),
            Output(name="distances", shape=(ANY,), converted=False),
        ),
        start=lambda inputs, wanted, call, done: model.denoise(inputs["rows"], call, done),
        results=lambda result: (result.outputs[0], np.sqrt(result.outputs[1])),
    )


def _interpolate(model: ServedModel) -> Operation:
    def start(inputs: Mapping[str, Array], wanted: Wanted, call: Call, done: Done) -> None:
        method = _METHODS.get(wanted.method)
        if method is None:
            raise InvalidArgument("BAD_METHOD", f"method: must be linear or spherical; got {wanted.method[:64]!r}")
        weights = inputs.get("weights")
        if wanted.steps is not None and weights is not None:
            raise InvalidArgument("TWO_POINTS", "steps and weights: only one of them can be given")
        path = paths.Path.through(
            method,
            steps=wanted.steps,
            weights=None if weights is None else weights.astype(np.float32),
            max_points=wanted.max_points,
        )
        given = inputs.keys() - {"weights"}
        if given == {"start", "end"}:
            first, last, walk = inputs["start"], inputs["end"], model.interpolate_rows
        elif given == {"start_latents", "end_latents"}:
            first, last, walk = inputs["start_latents"], inputs["end_latents"], model.interpolate_latents
        else:
            raise InvalidArgument("NO_ENDS", "start and end, or start_latents and end_latents: two must be given")
        if len(first) != len(last):
            raise InvalidArgument("BAD_SHAPE", f"start has {len(first)} rows and end has {len(last)}; must be equal")
        walk(first, last, path, call, done)

    return Operation(
        model=model,
        name=INTERPOLATE,
        inputs=(
            Input(name="start", spec=model.input, optional=True),
            Input(name="end", spec=model.input, optional=True),
            Input(name="start_latents", spec=model.latent, optional=True),
            Input(name="end_latents", spec=model.latent, optional=True),
            Input(name="weights", spec=Spec(row_shape=(), is_image=False), optional=True),
        ),
        outputs=(
            Output(name="rows", shape=(ANY, ANY, *model.input.row_shape)),
            Output(name="latents", shape=(ANY, ANY, *model.latent.row_shape)),
        ),
        start=start,
        batched=False,
    )


_OPERATIONS: dict[str, Callable[[ServedModel], Operation]] = {
    ENCODE: _encode,
    DECODE: _decode,
    RECONSTRUCT: _reconstruct,
    DENOISE: _denoise,
    INTERPOLATE: _interpolate,
}
