"""What the calls return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autoencoder.v1 import autoencoder_pb2, model_pb2
from hourglass.errors import VersionChanged
from hourglass.tensors import Array


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Who answered a call, and where the time went: sums over its messages, which overlap."""

    model: str
    version: int
    # Seconds that the messages waited for their first batch.
    queue_s: float
    # Seconds that the batches with rows of the messages ran, the rows of others in them included.
    compute_s: float
    # The rows of the largest batch that rows of this call were run in.
    batch_rows: int
    messages: int

    @classmethod
    def of(cls, info: autoencoder_pb2.ExecutionInfo) -> Execution:
        return cls(
            model=info.model_name,
            version=info.model_version,
            queue_s=info.queue_seconds,
            compute_s=info.compute_seconds,
            batch_rows=info.batch_rows,
            messages=1,
        )

    def plus(self, other: Execution) -> Execution:
        """Both together. Raises VersionChanged: numbers of two versions must not be joined."""
        if (self.model, self.version) != (other.model, other.version):
            raise VersionChanged(
                f"versions {self.version} and {other.version} of {self.model} answered messages of one call; "
                "pass version=... to hold to one",
                reason="VERSION_CHANGED",
            )
        return Execution(
            model=self.model,
            version=self.version,
            queue_s=self.queue_s + other.queue_s,
            compute_s=self.compute_s + other.compute_s,
            batch_rows=max(self.batch_rows, other.batch_rows),
            messages=self.messages + other.messages,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    # [rows, ...row shape]
    rows: Array
    # [rows] float32: mean squared difference between each row and its reconstruction.
    errors: Array
    # [rows] float32, 0 to 1: the share of validation rows whose error is smaller; near 1 is unlike the training data.
    novelties: Array
    execution: Execution


@dataclass(frozen=True, kw_only=True, eq=False)
class Denoised:
    # [rows, ...row shape]
    rows: Array
    # [rows] float32: how far each row moved, the root of the mean squared difference.
    distances: Array
    execution: Execution


@dataclass(frozen=True, kw_only=True, eq=False)
class Interpolation:
    # [pairs, points, ...row shape]
    rows: Array
    # [pairs, points, ...latent shape], where `return_latents` asked for it.
    latents: Array | None
    execution: Execution


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One row: its shape, the range that is expected (None where none is known), and image, vector or series.

    `columns` names the last dimension of vectors and series of a table, in its order.
    """

    shape: tuple[int, ...]
    range: tuple[float, float] | None
    kind: str
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: model_pb2.TensorSpec) -> Spec:
        return cls(
            shape=tuple(spec.row_shape),
            range=(spec.minimum, spec.maximum) if spec.minimum != spec.maximum else None,
            kind=_enum_name(model_pb2.TensorKind, spec.kind, "TENSOR_KIND_"),
            columns=tuple(spec.columns),
        )


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """One version of a model. `message` is the whole card as the service sent it: recipe, data set, parity, files."""

    name: str
    version: int
    variant: str
    description: str
    input: Spec
    latent: Spec
    output: Spec
    # Of encode, decode, reconstruct, denoise, interpolate.
    operations: tuple[str, ...]
    # Figures on held-out rows, each name with its unit.
    metrics: dict[str, float]
    # The onnxruntime execution provider that runs it.
    provider: str
    max_batch_rows: int
    message: model_pb2.Model = field(repr=False)

    @classmethod
    def of(cls, model: model_pb2.Model) -> ModelCard:
        return cls(
            name=model.name,
            version=model.version,
            variant=model.variant,
            description=model.description,
            input=Spec.of(model.input),
            latent=Spec.of(model.latent),
            output=Spec.of(model.output),
            operations=tuple(_enum_name(model_pb2.Operation, number, "OPERATION_") for number in model.operations),
            metrics={metric.name: metric.value for metric in model.metrics},
            provider=model.runtime.provider,
            max_batch_rows=model.runtime.max_batch_rows,
            message=model,
        )


def _enum_name(enum: Any, number: int, prefix: str) -> str:
    """In small letters; the number itself where the server is newer than this client."""
    name: str = enum.Name(number) if number in enum.values() else str(number)
    return name.removeprefix(prefix).lower()
