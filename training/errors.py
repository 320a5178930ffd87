"""What can go wrong in training, each with a text that says what to change.

TrainingError
├── RecipeError     a recipe, or an override of one, breaks a rule
├── DataError       a data set cannot be found, read or fetched
├── RunError        a run's folder is missing, or lacks what is needed
├── DeviceError     a device that was asked for is not there
├── Diverged        a loss became NaN or infinite; the run has the checkpoint of before
├── ParityError     an exported graph does not compute what PyTorch computes
├── LayoutError     a package cannot be written where it was to go
└── Interrupted     Ctrl-C or SIGTERM; the run has its last checkpoint
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


class DeviceError(TrainingError):
    pass


class Diverged(TrainingError):
    def __init__(self, folder: Path, what: str, where: str, kept: str) -> None:
        super().__init__(
            f"{where}: {what}, so the training was stopped; steps count from 0\n"
            f"kept: {folder}, whose last checkpoint is of before ({kept})\n"
            "try: in the procedure, a smaller learning_rate, warmup_epochs = 1, clip_norm = 1.0, or precision = "
            "'float32' where it is not; and look for extreme values in the data"
        )


class ParityError(TrainingError):
    pass


class Interrupted(TrainingError):
    """`signal_number` is the signal that asked for it, if one did."""

    def __init__(self, folder: Path, signal_number: int | None) -> None:
        self.signal_number = signal_number
        super().__init__(
            f"stopped; the last checkpoint is in {folder}\n"
            f"go on:      python -m training resume {folder}\n"
            f"look at it: python -m training report {folder.parent.name} --run {folder}\n"
            f"use it:     python -m training export {folder.parent.name} --run {folder}"
        )
