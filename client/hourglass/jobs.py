"""A call without its I/O: which messages to send, and how the answers become one result.

A `Job` is used once, by one call: `parts()` makes the messages, lazily, so that rows are read when they are sent;
`accept` takes the answers in any order; `finish` gives the result.
"""

from __future__ import annotations

import math
import numbers
import operator
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from autoencoder.v1 import autoencoder_pb2, model_pb2
from hourglass import tensors
from hourglass.errors import DeadlineExceeded, Internal, InvalidArgument
from hourglass.results import Denoised, Execution, Interpolation, Reconstruction
from hourglass.tensors import Array

Result = TypeVar("Result")
OnExecution = Callable[[Execution], None]
Progress = Callable[[int, int], None]

_METHODS = {
    "linear": autoencoder_pb2.INTERPOLATION_METHOD_LINEAR,
    "spherical": autoencoder_pb2.INTERPOLATION_METHOD_SPHERICAL,
}


# gRPC takes a longer one for none at all, or for one that has passed.
_LONGEST_S = 1e8


class Deadline:
    """One deadline for all messages of a call. `end` is on the monotonic clock; infinity where there is none."""

    def __init__(self, timeout_s: float | None) -> None:
        if timeout_s is not None and not (isinstance(timeout_s, numbers.Real) and 0 < timeout_s < math.inf):
            raise InvalidArgument(f"timeout_s: must be a positive number of seconds, or None; got {timeout_s!r}")
        self.timeout_s = timeout_s
        self.end = math.inf if timeout_s is None else self.now() + timeout_s

    @staticmethod
    def now() -> float:
        return time.monotonic()

    def remaining_s(self) -> float | None:
        if self.timeout_s is None:
            return None
        remaining = self.end - self.now()
        if remaining <= 0:
            raise DeadlineExceeded(f"timeout_s={self.timeout_s} passed before all rows were sent")
        return min(remaining, _LONGEST_S)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a call is split. A message holds at least one row, however large."""

    max_message_rows: int = 256
    max_message_bytes: int = 1 << 20
    max_in_flight: int = 4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}: must be at least 1; got {value}")

    def rows_per_message(self, row_bytes: int, points_per_row: int = 1) -> int:
        return max(1, min(self.max_message_rows // points_per_row, self.max_message_bytes // max(1, row_bytes)))


@dataclass(frozen=True)
class Part:
    """One message, of the rows from `start` up to `stop`."""

    start: int
    stop: int
    request: Any


class Join:
    """The answers of the messages, each put where its rows belong in one array."""

    def __init__(self, total: int, out: Array | None = None) -> None:
        self._total = total
        self._array = out
        self._is_given = out is not None

    def put(self, start: int, stop: int, answer: Array) -> None:
        # An array without rows may claim any shape for them.
        if self._array is None and len(answer) == stop - start:
            self._array = np.empty((self._total, *answer.shape[1:]), answer.dtype.newbyteorder("="))
        if (
            self._array is None
            or len(answer) != stop - start
            or (answer.shape[1:] != self._array.shape[1:] and not self._is_given)
        ):
            row_shape = answer.shape[1:] if self._array is None else self._array.shape[1:]
            raise Internal(
                f"the answer to {stop - start} rows has the shape {list(answer.shape)}, where "
                f"{[stop - start, *row_shape]} was expected",
                reason="BAD_ANSWER",
            )
        if answer.shape[1:] != self._array.shape[1:]:
            raise InvalidArgument(f"out: must have rows of the shape {answer.shape[1:]}; got {self._array.shape[1:]}")
        self._array[start:stop] = answer

    @property
    def array(self) -> Array:
        assert self._array is not None, "no answer was accepted; this is a bug"
        return self._array


@dataclass(frozen=True, kw_only=True)
class Mergeable:
    """What it takes to send the rows of several jobs in one message: those with the same `key`."""

    key: tuple[Hashable, ...]
    rows: Array
    build: Callable[[Array], Any]


class Job(Generic[Result]):
    def __init__(
        self,
        method: str,
        *,
        total: int,
        message_rows: int,
        build: Callable[[int, int], Any],
        joins: Mapping[str, Join],
        finish: Callable[[Execution], Result],
        on_execution: OnExecution | None,
        mergeable: Mergeable | None = None,
    ) -> None:
        self.method = method
        self.total = total
        self.done = 0
        self.is_single = total <= message_rows
        self.message_rows = message_rows
        self._mergeable = mergeable
        self._build = build
        self._joins = joins
        self._finish = finish
        self._on_execution = on_execution
        self._execution: Execution | None = None

    def parts(self) -> Iterator[Part]:
        for start in range(0, self.total, self.message_rows):
            stop = min(start + self.message_rows, self.total)
            yield Part(start, stop, self._build(start, stop))

    def where(self, part: Part) -> str:
        """What to add to the text of an error, which counts rows within its message."""
        return "" if self.is_single else f" (in the message of the rows {part.start} to {part.stop - 1})"

    @property
    def merge_key(self) -> Hashable | None:
        """Jobs with the same key may share a message; None where this one may not."""
        return None if self._mergeable is None else (self.method, *self._mergeable.key)

    @staticmethod
    def merged_request(jobs: Sequence[Job[Any]]) -> Any:
        """One message with the rows of all, which have the same `merge_key`, one after the other."""
        parts = [job._mergeable for job in jobs if job._mergeable is not None]
        rows = parts[0].rows if len(parts) == 1 else np.concatenate([part.rows for part in parts])
        return parts[0].build(rows)

    def accept(self, part: Part, response: Any, *, start: int = 0, total: int | None = None) -> None:
        """Take the answer to a part; in a message shared with others it begins at row `start` of `total`."""
        execution = Execution.of(response.execution)
        self._execution = execution if self._execution is None else self._execution.plus(execution)
        for field, join in self._joins.items():
            value = getattr(response, field)
            tensor = isinstance(value, autoencoder_pb2.Tensor)
            answer = tensors.unpack(value) if tensor else np.asarray(value, np.float32)
            if total is not None and len(answer) == total:
                answer = answer[start : start + part.stop - part.start]
            join.put(part.start, part.stop, answer)
        self.done += part.stop - part.start

    def finish(self) -> Result:
        assert self._execution is not None, "no answer was accepted; this is a bug"
        if self._on_execution is not None:
            self._on_execution(self._execution)
        return self._finish(self._execution)


def selector(model: str, version: int | str | None = None) -> autoencoder_pb2.ModelSelector:
    """Raises InvalidArgument for what is no text, or none that UTF-8 has."""
    try:
        if not isinstance(model, str):  # None would be no name, and bytes be taken for UTF-8
            raise TypeError
        return autoencoder_pb2.ModelSelector(name=model, version="" if version is None else str(version))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"model, version: must be text; got {model!r} and {version!r}") from error


def get_model(model: str, version: int | str | None) -> autoencoder_pb2.GetModelRequest:
    return autoencoder_pb2.GetModelRequest(model=selector(model, version))


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments that all calls share."""

    limits: Limits
    model: str
    version: int | str | None
    dtype: npt.DTypeLike | None
    out: Array | None = None
    on_execution: OnExecution | None


def _map_job(
    call: Call,
    method: str,
    rows: npt.ArrayLike,
    *,
    sends: str,
    gives: str,
    scores: Sequence[str],
    finish: Callable[[Execution, list[Array]], Result],
) -> Job[Result]:
    """A job of one answer a row: `sends` and `gives` name the tensors, `scores` the numbers beside them."""
    array = tensors.check_rows(sends, rows)
    wire = tensors.wire_dtype(array, uint8=sends == "rows")
    asked, wanted = selector(call.model, call.version), tensors.answer_dtype(call.dtype)
    if call.out is not None:
        _check_out(call.out, len(array), wanted)
    joins = {gives: Join(len(array), call.out)} | {name: Join(len(array)) for name in scores}
    request = getattr(autoencoder_pb2, f"{method}Request")

    def build(rows: Array) -> Any:
        return request(model=asked, output_dtype=wanted, **{sends: tensors.pack(rows, wire)})

    return Job(
        method,
        total=len(array),
        mergeable=Mergeable(
            key=(call.model, asked.version, wanted, wire, array.dtype, array.shape[1:]), rows=array, build=build
        ),
        message_rows=call.limits.rows_per_message(math.prod(array.shape[1:]) * wire.itemsize),
        build=lambda start, stop: build(array[start:stop]),
        joins=joins,
        finish=lambda execution: finish(execution, [join.array for join in joins.values()]),
        on_execution=call.on_execution,
    )


def _check_out(out: Array, total: int, wanted: model_pb2.DataType) -> None:
    dtype = np.dtype(np.float16 if wanted == model_pb2.DATA_TYPE_FLOAT16 else np.float32)
    if not isinstance(out, np.ndarray):
        raise InvalidArgument(f"out: must be a numpy array; got {type(out).__name__}")
    if out.ndim < 1 or len(out) != total or out.dtype != dtype or not out.flags.writeable:
        raise InvalidArgument(
            f"out: must be a writeable array of {total} rows of {dtype}; got the shape {out.shape} of {out.dtype}"
        )


def encode(call: Call, rows: npt.ArrayLike) -> Job[Array]:
    return _map_job(call, "Encode", rows, sends="rows", gives="latents", scores=(), finish=lambda _, joined: joined[0])


def decode(call: Call, latents: npt.ArrayLike) -> Job[Array]:
    return _map_job(
        call, "Decode", latents, sends="latents", gives="rows", scores=(), finish=lambda _, joined: joined[0]
    )


def reconstruct(call: Call, rows: npt.ArrayLike) -> Job[Reconstruction]:
    return _map_job(
        call,
        "Reconstruct",
        rows,
        sends="rows",
        gives="rows",
        scores=("reconstruction_errors", "novelties"),
        finish=lambda execution, joined: Reconstruction(
            rows=joined[0], errors=joined[1], novelties=joined[2], execution=execution
        ),
    )


def denoise(call: Call, rows: npt.ArrayLike) -> Job[Denoised]:
    return _map_job(
        call,
        "Denoise",
        rows,
        sends="rows",
        gives="rows",
        scores=("distances",),
        finish=lambda execution, joined: Denoised(rows=joined[0], distances=joined[1], execution=execution),
    )


def interpolate(
    call: Call,
    start: npt.ArrayLike,
    end: npt.ArrayLike,
    *,
    steps: int | None,
    weights: Sequence[float] | None,
    method: str,
    latents: bool,
    return_latents: bool,
) -> Job[Interpolation]:
    a, b = tensors.check_rows("start", start), tensors.check_rows("end", end)
    if a.shape != b.shape:
        raise InvalidArgument(f"start, end: must have the same shape; got {a.shape} and {b.shape}")
    if (steps is None) == (weights is None):
        raise InvalidArgument("steps, weights: give one of the two")
    if not isinstance(method, str) or method not in _METHODS:
        raise InvalidArgument(f"method: must be linear or spherical; got {method!r}")
    a_wire, b_wire = tensors.wire_dtype(a, uint8=not latents), tensors.wire_dtype(b, uint8=not latents)
    common: dict[str, Any] = {
        "model": selector(call.model, call.version),
        "method": _METHODS[method],
        "return_latents": bool(return_latents),
        "output_dtype": tensors.answer_dtype(call.dtype),
    }
    try:
        if weights is not None:
            common["weights"] = autoencoder_pb2.Weights(values=weights)
            points = len(weights)
        else:
            common["steps"] = points = operator.index(steps)  # type: ignore[arg-type]
            autoencoder_pb2.InterpolateRequest(steps=points)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"steps, weights: a whole number of at least 2, or a list of numbers; {error}") from error
    joins = {"rows": Join(len(a))} | ({"latents": Join(len(a))} if return_latents else {})

    def build(first: int, stop: int) -> Any:
        pair = autoencoder_pb2.TensorPair(
            start=tensors.pack(a[first:stop], a_wire), end=tensors.pack(b[first:stop], b_wire)
        )
        return autoencoder_pb2.InterpolateRequest(**common | {"latents" if latents else "rows": pair})

    return Job(
        "Interpolate",
        total=len(a),
        message_rows=call.limits.rows_per_message(
            math.prod(a.shape[1:]) * (a_wire.itemsize + b_wire.itemsize), max(1, points)
        ),
        build=build,
        joins=joins,
        finish=lambda execution: Interpolation(
            rows=joins["rows"].array,
            latents=joins["latents"].array if return_latents else None,
            execution=execution,
        ),
        on_execution=call.on_execution,
    )
