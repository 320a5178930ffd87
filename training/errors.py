"""What can go wrong in training, each with a text that says what to change.

TrainingError
├── RecipeError     a recipe, or an override of one, breaks a rule
├── DataError       a data set cannot be found, read or fetched
├── RunError        a run's folder is missing, or lacks what is needed
├── ParityError     an exported graph does not compute what PyTorch computes
├── LayoutError     a package cannot be written where it was to go
└── Interrupted     Ctrl-C; the run has its last checkpoint
"""

from __future__ import annotations

from pathlib import Path


class TrainingError(Exception):
    pass


class RecipeError(TrainingError):
    pass


class DataError(TrainingError):
    pass


class RunError(TrainingError):
    pass


class LayoutError(TrainingError):
    pass


class ParityError(TrainingError):
    pass


class Interrupted(TrainingError):
    def __init__(self, folder: Path, recipe: str) -> None:
        super().__init__(
            f"stopped; the last checkpoint is {folder}/last.safetensors\n"
            f"look at it: python -m training report {recipe} --run {folder}\n"
            f"use it:     python -m training export {recipe} --run {folder}"
        )
