"""The folder of one training run: recipe, metrics, checkpoints, evaluation, report.

`runs/<recipe>/<id>/` holds `recipe.json` (resolved), `metrics.jsonl` (one object an epoch), `last.safetensors` and
`best.safetensors`, `evaluation.json`, and `report/` once there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from training import recipes
from training.errors import RunError

RECIPE, METRICS, EVALUATION, REPORT = "recipe.json", "metrics.jsonl", "evaluation.json", "report"
LAST, BEST, CLASSIFIER = "last", "best", "classifier"


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
    def newest(cls, root: Path, name: str) -> Run:
        """The newest run of that recipe with a checkpoint."""
        found = [path.parent for path in (root / name).glob(f"*/{LAST}.safetensors")]
        if not found:
            raise RunError(f"no run of {name!r} in {root}: train one first (python -m training train {name})")
        return cls(max(found, key=lambda folder: ((folder / RECIPE).stat().st_mtime_ns, folder.name)))

    @property
    def report_folder(self) -> Path:
        return self.folder / REPORT

    def recipe(self) -> recipes.Recipe:
        table = self._read_json(RECIPE)
        return recipes.check(table, where=str(self.folder / RECIPE))

    def log(self, entry: Mapping[str, Any]) -> None:
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        path = self.folder / METRICS
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def save(self, module: nn.Module, checkpoint: str) -> None:
        """Write the module's weights; a reader sees the old ones or the new ones."""
        staging = self.folder / f".{checkpoint}.new"
        save_file({name: value.detach().contiguous() for name, value in module.state_dict().items()}, staging)
        os.replace(staging, self.folder / f"{checkpoint}.safetensors")

    def has(self, checkpoint: str) -> bool:
        return (self.folder / f"{checkpoint}.safetensors").exists()

    def restore(self, module: nn.Module, checkpoint: str) -> None:
        path = self.folder / f"{checkpoint}.safetensors"
        try:
            module.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise RunError(f"{path}: cannot be read as this recipe's weights: {error}") from error

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
