"""The folder of one training run: recipe, metrics, checkpoints, evaluation, report.

`runs/<recipe>/<id>/` holds `recipe.json` (resolved), `metrics.jsonl` (one object an epoch), `best.safetensors`
(weights), `last.safetensors` (the state of the training at the last checkpoint) and `previous.safetensors` (the one
before, while it trains), `evaluation.json`, and `report/` once there is one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from training import checkpoints, recipes
from training.checkpoints import SUFFIX
from training.errors import RunError

RECIPE, METRICS, EVALUATION, REPORT = "recipe.json", "metrics.jsonl", "evaluation.json", "report"
LOCK = ".lock"
LAST, PREVIOUS, REFUSED, BEST, CLASSIFIER = "last", "previous", "refused", "best", "classifier"

State = tuple[dict[str, Tensor], dict[str, Any]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    folder: Path

    @classmethod
    def create(cls, root: Path, recipe: recipes.Recipe) -> Run:
        """A new folder under `root/<recipe>`, named by the time, with the resolved recipe in it."""
        started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        for count in range(1, 1000):
            folder = root / recipe.name / (started if count == 1 else f"{started}-{count}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            (folder / RECIPE).write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
            return cls(folder)
        raise RunError(f"{root / recipe.name}: a thousand runs began in one second")

    @classmethod
    def all(cls, root: Path, name: str) -> list[Run]:
        """The runs of that recipe with a checkpoint, the newest last."""
        found = {path.parent for kind in (LAST, PREVIOUS) for path in (root / name).glob(f"*/{kind}{SUFFIX}")}
        return [cls(folder) for folder in sorted(found, key=lambda it: ((it / RECIPE).stat().st_mtime_ns, it.name))]

    @classmethod
    def newest(cls, root: Path, name: str) -> Run:
        """The newest run of that recipe with a checkpoint."""
        found = cls.all(root, name)
        if not found:
            raise RunError(f"no run of {name!r} in {root}: train one first (python -m training train {name})")
        return found[-1]

    @property
    def report_folder(self) -> Path:
        return self.folder / REPORT

    def recipe(self) -> recipes.Recipe:
        table = self._read_json(RECIPE)
        return recipes.check(table, where=str(self.folder / RECIPE))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training it meanwhile. Raises RunError where one does."""
        with open(self.folder / LOCK, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.folder}: is being trained by another process") from error
            except OSError:
                pass  # a file system without locks
            yield

    def log(self, entry: Mapping[str, Any]) -> None:
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the log; a last one that a full disk or the end of the process has torn is left out."""
        path = self.folder / METRICS
        if not path.exists():
            return []
        entries, lines = [], path.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                entries.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise RunError(f"{path}: line {number} is not JSON: {error}") from error
        return entries

    def rewind(self, log_lines: int) -> None:
        """Make ready to go on from `state`, after whose first `log_lines` lines the log is written again.

        A last checkpoint that is not whole is set aside, so that it does not push out the one before.
        """
        if self.has(LAST):
            try:
                checkpoints.read(self._path(LAST))
            except RunError:
                os.replace(self._path(LAST), self._path(REFUSED))
        path = self.folder / METRICS
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            staging = self.folder / f".{METRICS}.new"
            staging.write_bytes(b"".join(lines[:log_lines]))
            os.replace(staging, path)

    def save(self, module: nn.Module | Mapping[str, Tensor], checkpoint: str) -> None:
        """Write weights; a reader sees the old ones or the new ones."""
        weights = module.state_dict() if isinstance(module, nn.Module) else module
        checkpoints.write(self._path(checkpoint), weights, {})

    def has(self, checkpoint: str) -> bool:
        return self._path(checkpoint).exists()

    def restore(self, module: nn.Module, checkpoint: str) -> None:
        """Load weights; of `last` those of the network."""
        if checkpoint == LAST:
            weights = checkpoints.under_prefix("network", self.state()[0])
        else:
            weights, _ = checkpoints.read(self._path(checkpoint))
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise RunError(f"{self._path(checkpoint)}: cannot be read as this recipe's weights: {error}") from error

    def save_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state of the training as `last`; what was `last` is `previous`."""
        if self.has(LAST):
            os.replace(self._path(LAST), self._path(PREVIOUS))
        checkpoints.write(self._path(LAST), tensors, facts)

    def state(self) -> State:
        """The last state that is whole. Raises RunError where there is none."""
        refused = []
        for checkpoint in (LAST, PREVIOUS):
            if self.has(checkpoint):
                try:
                    state = checkpoints.read(self._path(checkpoint))
                except RunError as error:
                    refused.append(str(error))
                    continue
                for text in refused:
                    _log.warning("%s; taking %s%s, the one before", text, checkpoint, SUFFIX)
                return state
        raise RunError("\n".join(refused) or f"{self.folder}: has no checkpoint ({LAST}{SUFFIX})")

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end and measured."""
        return bool(self.state()[1].get("finished"))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Leave of the last state what is of use when the training is over: the weights, and that it is over."""
        tensors, _ = self.state()
        weights = checkpoints.with_prefix("network", checkpoints.under_prefix("network", tensors))
        checkpoints.write(self._path(LAST), weights, {**facts, "finished": True})
        for checkpoint in (PREVIOUS, REFUSED):
            self._path(checkpoint).unlink(missing_ok=True)

    def _path(self, checkpoint: str) -> Path:
        return self.folder / f"{checkpoint}{SUFFIX}"

    def save_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        staging = self.folder / f".{EVALUATION}.new"
        staging.write_text(json.dumps(evaluation, indent=2) + "\n", encoding="utf-8")
        os.replace(staging, self.folder / EVALUATION)

    def evaluation(self) -> dict[str, Any] | None:
        return self._read_json(EVALUATION) if (self.folder / EVALUATION).exists() else None

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path}: must hold one JSON object")
        return content
