"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import cycle
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy.typing as npt

from autoencoder.v1 import autoencoder_pb2, autoencoder_pb2_grpc
from hourglass import jobs
from hourglass.channel import CONNECTIONS, MAX_ATTEMPTS, TLS, Connected, Endpoint
from hourglass.errors import Closed, HourglassError, Internal, from_rpc
from hourglass.jobs import Call, Deadline, Job, Limits, OnExecution, Part, Progress
from hourglass.merging import Merger
from hourglass.results import Denoised, Interpolation, ModelCard, Reconstruction
from hourglass.tensors import Array
from hourglass.tracing import with_trace

Result = TypeVar("Result")


class AsyncClient(Connected):
    """As `Client`, with the same arguments and results; every call is awaited, and so is `close`.

    It belongs to the event loop that it was made in. Calls of few rows that are made at the same time share messages
    (but for `interpolate`), at most `max_in_flight` of which are under way. A call whose task is cancelled cancels its
    messages, unless others share them. A message that calls share is in the trace of the first of them.
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
        asyncio.get_running_loop()  # RuntimeError outside of one, where grpc would pick a loop that nobody runs.
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
            grpc.aio.insecure_channel(address, options)
            if (credentials := endpoint.credentials) is None
            else grpc.aio.secure_channel(address, credentials, options)
            for options in endpoint.channel_options
        ]
        self._stubs = cycle([autoencoder_pb2_grpc.AutoencoderServiceStub(channel) for channel in self._channels])
        self._merger = Merger(self._call, max_in_flight=max_in_flight)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is under way: it raises Closed. Closing twice does nothing."""
        self._closed = True
        await asyncio.gather(*(channel.close() for channel in self._channels))
        await self._merger.close()

    async def models(self, *, timeout_s: float | None = None) -> list[ModelCard]:
        """See `Client.models`."""
        response = await self._call("ListModels", autoencoder_pb2.ListModelsRequest(), Deadline(timeout_s))
        return [ModelCard.of(model) for model in response.models]

    async def model(self, name: str, version: int | str | None = None, *, timeout_s: float | None = None) -> ModelCard:
        """See `Client.model`."""
        return ModelCard.of((await self._call("GetModel", jobs.get_model(name, version), Deadline(timeout_s))).model)

    async def encode(
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
        """See `Client.encode`."""
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return await self._run(jobs.encode(call, rows), timeout_s, progress)

    async def decode(
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
        """See `Client.decode`."""
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return await self._run(jobs.decode(call, latents), timeout_s, progress)

    async def reconstruct(
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
        """See `Client.reconstruct`."""
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return await self._run(jobs.reconstruct(call, rows), timeout_s, progress)

    async def denoise(
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
        """See `Client.denoise`."""
        call = Call(limits=self._limits, model=model, version=version, dtype=dtype, out=out, on_execution=on_execution)
        return await self._run(jobs.denoise(call, rows), timeout_s, progress)

    async def interpolate(
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
        """See `Client.interpolate`."""
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
        return await self._run(job, timeout_s, progress)

    async def _run(self, job: Job[Result], timeout_s: float | None, progress: Progress | None) -> Result:
        deadline, parts = Deadline(timeout_s), job.parts()
        if job.is_single and job.merge_key is not None:
            await self._merger.run(job, deadline)
            if progress is not None:
                progress(job.done, job.total)
        elif job.is_single:
            await self._send(job, parts, deadline, progress)
        else:
            try:
                async with asyncio.TaskGroup() as senders:
                    for _ in range(self._limits.max_in_flight):
                        senders.create_task(self._send(job, parts, deadline, progress))
            except BaseExceptionGroup as group:
                # The first to fail cancelled the others.
                first = group.exceptions[0]
                raise first from first.__cause__
        return job.finish()

    async def _send(self, job: Job[Any], parts: Iterator[Part], deadline: Deadline, progress: Progress | None) -> None:
        """Send one message after the other for as long as there are any; several senders share `parts`."""
        for part in parts:
            job.accept(part, await self._call(job.method, part.request, deadline, job.where(part)))
            if progress is not None:
                progress(job.done, job.total)

    async def _call(self, method: str, request: Any, deadline: Deadline, where: str = "") -> Any:
        try:
            response = await getattr(next(self._stubs), method)(
                request, timeout=deadline.remaining_s(), metadata=with_trace(self._metadata)
            )
        except grpc.aio.AioRpcError as error:
            raise self._error(error, where) from error
        except grpc.aio.UsageError as error:
            if self._closed:
                raise Closed("the client is closed") from error
            raise
        except asyncio.CancelledError as error:
            # Closing the channel cancels its calls as if their tasks had been cancelled.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise Closed("the client was closed during the call") from error
            raise
        if response is None:  # What grpc.aio makes of bytes that are no answer.
            raise Internal(f"{self._address}: the answer is not a message of the contract", reason="BAD_ANSWER")
        return response

    def _error(self, error: grpc.RpcError, where: str) -> HourglassError:
        if self._closed:
            return Closed("the client was closed during the call")
        return from_rpc(error, address=self._address, where=where)
