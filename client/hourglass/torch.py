"""The service's latents as a data set for PyTorch. Needs the extra `torch`; nothing else imports this module.

from hourglass.torch import LatentDataset

dataset = LatentDataset("mnist-denoising-conv", digits, labels, batch_rows=64, shuffle_seed=0)
for epoch in range(10):
    dataset.set_epoch(epoch)
    for latents, targets in DataLoader(dataset, batch_size=None):
        ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from hourglass.client import Client
from hourglass.tensors import Array

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError as error:
    raise ImportError("hourglass.torch needs PyTorch: pip install 'hourglass-client[torch]'") from error


# Row numbers [rows].
Numbers = npt.NDArray[np.intp]


class LatentDataset(IterableDataset[Any]):
    """Rows as the latents that a running service has for them, encoded while the training goes on.

    Gives (latent, target) pairs, or latents alone without `targets`: float32 tensors [*latent shape] for
    `DataLoader(dataset, batch_size=64)`, or with `batch_rows` whole batches [rows, *latent shape] for
    `DataLoader(dataset, batch_size=None)`, which spares the loader a step for every row. The last batch may be shorter.
    Every row comes once an epoch, in order, or in another order each epoch with `shuffle_seed` and `set_epoch`.

    `rows` [rows, ...row shape] and `targets` [rows, ...] are arrays or memory maps; only the chunk of `chunk_rows` rows
    that is sent is read. While one chunk is used, the next `chunks_ahead` are asked for. `model`, `version`, `address`:
    as for `hourglass.sklearn.LatentTransformer`, but that the model must be named. All chunks of an epoch come from
    the version that answers the first.

    Workers of a loader share the rows between them. The work is the service's, so that `num_workers=0` is usually the
    fastest; with workers, start them with `multiprocessing_context="spawn"`, as gRPC does not survive a fork.

    Raises ValueError for arguments that break a rule; the iteration raises `HourglassError`.
    """

    def __init__(
        self,
        model: str,
        rows: Array,
        targets: npt.ArrayLike | None = None,
        *,
        version: int | str | None = None,
        address: str | Callable[[], Client] = "127.0.0.1:50051",
        batch_rows: int | None = None,
        shuffle_seed: int | None = None,
        chunk_rows: int = 1024,
        chunks_ahead: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.version = version
        self.address = address
        self.rows = rows
        self.targets = None if targets is None else np.asanyarray(targets)
        self.batch_rows = batch_rows
        self.shuffle_seed = shuffle_seed
        self.chunk_rows = chunk_rows
        self.chunks_ahead = chunks_ahead
        self._epoch = 0
        if self.targets is not None and len(self.targets) != len(rows):
            raise ValueError(f"targets: must be one for each of {len(rows)} rows; got {len(self.targets)}")
        for name, least in (("batch_rows", 1), ("chunk_rows", 1), ("chunks_ahead", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: must be at least {least}; got {value}")

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; without `shuffle_seed` it changes nothing."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Rows, or batches with `batch_rows`, of an epoch without workers."""
        return len(self.rows) if self.batch_rows is None else -(-len(self.rows) // self.batch_rows)

    def __iter__(self) -> Iterator[Any]:
        order = np.arange(len(self.rows))
        if self.shuffle_seed is not None:
            np.random.default_rng((self.shuffle_seed, self._epoch)).shuffle(order)
        order = self._share(order)
        if len(order) == 0:
            return
        if self.batch_rows is None:
            for numbers, latents in self._chunks(order, self.chunk_rows):
                for at, number in enumerate(numbers):
                    yield self._pair(latents[at], None if self.targets is None else self.targets[number])
            return
        # Chunks of whole batches, so that no batch is put together from two.
        chunk_rows = max(1, self.chunk_rows // self.batch_rows) * self.batch_rows
        for numbers, latents in self._chunks(order, chunk_rows):
            for at in range(0, len(numbers), self.batch_rows):
                batch = slice(at, at + self.batch_rows)
                yield self._pair(latents[batch], None if self.targets is None else self.targets[numbers[batch]])

    def _share(self, order: Numbers) -> Numbers:
        """What falls to this worker, in whole batches."""
        worker = get_worker_info()
        if worker is None:
            return order
        unit = self.batch_rows or 1
        batches = -(-len(order) // unit)
        begin, end = (batches * number // worker.num_workers * unit for number in (worker.id, worker.id + 1))
        return order[begin:end]

    def _chunks(self, order: Numbers, chunk_rows: int) -> Iterator[tuple[Numbers, torch.Tensor]]:
        """Row numbers and their latents, with calls under way for the chunks that come next."""
        # A client of the process that iterates: connections do not pass into a worker.
        with self._connect() as client, ThreadPoolExecutor(1) as calls:
            version = client.model(self.model, self.version).version

            def encode(numbers: Numbers) -> torch.Tensor:
                return torch.from_numpy(client.encode(self.model, self.rows[numbers], version=version))

            pending: deque[tuple[Numbers, Future[torch.Tensor]]] = deque()
            try:
                for begin in range(0, len(order), chunk_rows):
                    numbers = order[begin : begin + chunk_rows]
                    pending.append((numbers, calls.submit(encode, numbers)))
                    if len(pending) > self.chunks_ahead:
                        numbers, future = pending.popleft()
                        yield numbers, future.result()
                while pending:
                    numbers, future = pending.popleft()
                    yield numbers, future.result()
            finally:
                # Left before its end, an epoch does not wait for what nobody will read.
                for _, future in pending:
                    future.cancel()
                client.close()

    def _connect(self) -> Client:
        return self.address() if callable(self.address) else Client(self.address)

    @staticmethod
    def _pair(latents: torch.Tensor, targets: Any) -> Any:
        return latents if targets is None else (latents, torch.as_tensor(targets))
