"""What is said when the service is up: a line in the log, and on a terminal what to type next."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from autoencoder.v1 import model_pb2

log = logging.getLogger("service")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A line about a model."""

    name: str
    text: str

    @classmethod
    def of(cls, model: model_pb2.Model) -> Card:
        shape, latent = (list(spec.row_shape) for spec in (model.input, model.latent))
        return cls(name=model.name, text=f"version {model.version}  {shape} -> {latent}  {model.description}")


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """`workers` is the number of processes."""

    address: str
    http: str
    device: str
    models: int
    workers: int

    def log(self) -> None:
        log.info("serving", extra=asdict(self))

    def print(self, cards: Sequence[Card]) -> None:
        """To people, on standard output."""
        width = max(len(card.name) for card in cards)
        by = "" if self.workers == 1 else f" in {self.workers} processes"
        print(f"\nHourglass serves {len(cards)} models with {self.device}{by}:\n")
        for card in cards:
            print(f"  {card.name:{width}}  {card.text}")
        print(
            f"""
  gRPC        {self.address}
  metrics     http://{self.http}/metrics  (/healthz, /readyz)

Try, in another terminal:

  .venv/bin/hourglass models --address {self.address}
  .venv/bin/hourglass --help
  make demo

Ctrl-C stops it.
""",
            flush=True,
        )
