"""The client for code with threads, or without."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy.typing as npt

from autoencoder.v1 import autoencoder_pb2, autoencoder_pb2_grpc
from hourglass import jobs
from hourglass.channel import CONNECTIONS, MAX_ATTEMPTS, TLS, Connected, Endpoint
from hourglass.errors import Closed, HourglassError, from_rpc
from hourglass.jobs import Call, Deadline, Job, Limits, OnExecution, Part, Progress
from hourglass.results import Denoised, Interpolation, ModelCard, Reconstruction
from hourglass.tensors import Array
from hourglass.tracing import with_trace

Result = TypeVar("Result")


class Client(Connected):
    """A connection to one service, for any number of threads; a context manager.

    `address`: `host:port`, or any gRPC name such as `dns:///host:port` and `unix:/path`. Nothing is sent until the
    first call. `tls`: True to trust the roots that gRPC ships, or a `TLS`. `token`: sent as a bearer token; without
    TLS only to a loopback address or a unix socket, unless `token_in_clear`. `attempts`: how often a message is tried,
    1 to 5; only UNAVAILABLE is tried again, after 0.2, 0.4, 0.8 and 1.6 s, give or take a fifth.

    Rows are sent in messages of at most `max_message_rows` rows and `max_message_bytes` bytes (but at least one row),
    of which `max_in_flight` are under way at a time. The first that fails cancels the others. They take turns over
    `connections` connections, each opened when it is first used: a service of several processes takes each connection
    in one of them, and a balancer may do the same.

    Arguments that calls share: `version`: a number or a label; None is the latest. `dtype`: float32 (default) or
    float16, of the answer. `timeout_s`: the deadline of the whole call; None (default) is none. `out`: an array that
    the rows or latents of the answer are written to and that is returned. `progress`: called with the rows done and
    the rows in all after each message. `on_execution`: called once, with the `Execution`. Both are called in the
    calling thread.

    In a program that uses OpenTelemetry, the service's spans lie under the span that is current at the call.

    Raises ValueError for arguments that break a rule and OSError for TLS files that cannot be read. Calls raise
    `HourglassError` and nothing else; after one has failed, what was written to `out` is undefined.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: bool | TLS = False,
        token: str | None = None,
        token_in_clear: bool = False,
        attempts: int = MAX_ATTEMPTS,
        max_message_rows: int = 256,
        max_message_bytes: int = 1 << 20,
        max_in_flight: int = 4,
        connections: int = CONNECTIONS,
    ) -> None:
        endpoint = Endpoint(
            address=address,
            tls=tls,
            token=token,
            token_in_clear=token_in_clear,
            attempts=attempts,
            connections=connections,
        )
        self._limits = Limits(
            max_message_rows=max_message_rows, max_message_bytes=max_message_bytes, max_in_flight=max_in_flight
        )
        self._address = address
        self._metadata = endpoint.metadata
        self._closed = False
        self._channels = [
            grpc.insecure_channel(address, options)
            if (credentials := endpoint.credentials) is None
            else grpc.secure_channel(address, credentials, options)
            for options in endpoint.channel_options
        ]
        self._stubs = cycle([autoencoder_pb2_grpc.AutoencoderServiceStub(channel) for channel in self._channels])

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way, here and in other threads: it raises Closed. Closing twice does nothing."""
        self._closed = True
        for channel in self._channels:
            channel.close()

    def models(self, *, timeout_s: float | None = None) -> list[ModelCard]:
        """The cards of all models that are ready, by name, then by version, the latest first."""
        response = self._call("ListModels", autoencoder_pb2.ListModelsRequest(), Deadline(timeout_s))
        return [ModelCard.of(model) for model in response.models]

    def model(self, name: str, version: int | str | None = None, *, timeout_s: float | None = None) -> ModelCard:
        """The card of one model."""
        return ModelCard.of(self._call("GetModel", jobs.get_model(name, version), Deadline(timeout_s)).model)

    def encode(
        self,
        model: str,
        rows: npt.ArrayLike,
        *,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        on_execution: OnExecution | None = None,
    ) -> Array:
        """Rows [rows, ...row shape] to latents [rows, ...latent shape].

        uint8 is for images and means 0 to 255 for 0 to 1; float16 and float32 are sent as they are, other numbers as
        float32 of the same value.
        """
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return self._run(jobs.encode(call, rows), timeout_s, progress)

    def decode(
        self,
        model: str,
        latents: npt.ArrayLike,
        *,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        on_execution: OnExecution | None = None,
    ) -> Array:
        """Latents [rows, ...latent shape] to rows [rows, ...row shape]."""
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return self._run(jobs.decode(call, latents), timeout_s, progress)

    def reconstruct(
        self,
        model: str,
        rows: npt.ArrayLike,
        *,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        on_execution: OnExecution | None = None,
    ) -> Reconstruction:
        """Rows, encoded and decoded again, with how well each was reproduced and how novel it is."""
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return self._run(jobs.reconstruct(call, rows), timeout_s, progress)

    def denoise(
        self,
        model: str,
        rows: npt.ArrayLike,
        *,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        out: Array | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        on_execution: OnExecution | None = None,
    ) -> Denoised:
        """Corrupted rows to clean rows; Unsupported for a model that was not trained with a corruption."""
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return self._run(jobs.denoise(call, rows), timeout_s, progress)

    def interpolate(
        self,
        model: str,
        start: npt.ArrayLike,
        end: npt.ArrayLike,
        *,
        steps: int | None = None,
        weights: Sequence[float] | None = None,
        method: str = "linear",
        latents: bool = False,
        return_latents: bool = False,
        version: int | str | None = None,
        dtype: npt.DTypeLike | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        on_execution: OnExecution | None = None,
    ) -> Interpolation:
        """The rows on the path from each row of `start` to that of `end`, walked in the latent space.

        `steps` points, evenly spaced with both ends (at least 2), or those at `weights` (0 is the start, 1 the end; -1
        to 2 with linear). `method`: linear or spherical. `latents`: whether start and end are latents.
        """
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, on_execution=on_execution)
        job = jobs.interpolate(
            call,
            start,
            end,
            steps=steps,
            weights=weights,
            method=method,
            latents=latents,
            return_latents=return_latents,
        )
        return self._run(job, timeout_s, progress)

    def _run(self, job: Job[Result], timeout_s: float | None, progress: Progress | None) -> Result:
        deadline = Deadline(timeout_s)
        if job.is_single:
            part = next(job.parts())
            self._accept(job, part, self._call(job.method, part.request, deadline), progress)
        else:
            self._run_many(job, deadline, progress)
        return job.finish()

    def _run_many(self, job: Job[Any], deadline: Deadline, progress: Progress | None) -> None:
        done: SimpleQueue[Any] = SimpleQueue()
        calls: dict[Any, Part] = {}
        parts = job.parts()
        try:
            while True:
                for part in islice(parts, self._limits.max_in_flight - len(calls)):
                    call = self._begin(job.method, part.request, deadline)
                    calls[call] = part
                    call.add_done_callback(done.put)
                if not calls:
                    return
                call = done.get()
                part = calls.pop(call)
                if call.code() is not grpc.StatusCode.OK:
                    raise self._error(call, job.where(part))
                self._accept(job, part, call.result(), progress)
        finally:
            for call in calls:
                call.cancel()

    @staticmethod
    def _accept(job: Job[Any], part: Part, response: Any, progress: Progress | None) -> None:
        job.accept(part, response)
        if progress is not None:
            progress(job.done, job.total)

    def _call(self, method: str, request: Any, deadline: Deadline) -> Any:
        try:
            return getattr(next(self._stubs), method)(
                request, timeout=deadline.remaining_s(), metadata=with_trace(self._metadata)
            )
        except grpc.RpcError as error:
            raise self._error(error) from error
        except ValueError as error:
            raise self._closed_error(error) from error

    def _begin(self, method: str, request: Any, deadline: Deadline) -> Any:
        try:
            return getattr(next(self._stubs), method).future(
                request, timeout=deadline.remaining_s(), metadata=with_trace(self._metadata)
            )
        except ValueError as error:
            raise self._closed_error(error) from error

    def _error(self, error: grpc.RpcError, where: str = "") -> HourglassError:
        if self._closed:
            return Closed("the client was closed during the call")
        return from_rpc(error, address=self._address, where=where)

    def _closed_error(self, error: ValueError) -> Exception:
        """grpc has a plain ValueError for a call on a closed channel."""
        return Closed("the client is closed") if self._closed else error
