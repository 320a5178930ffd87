"""A support vector machine with an RBF kernel on pixels, C and gamma chosen on the validation rows.

scikit-learn fits it; the kernel is computed here, by one matrix product, and passed in: tens of times faster than its
own for so many rows. Shape legend: B rows, N elements of a row, V rows that the kernel is taken with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from sklearn.svm import SVC
from torch import Tensor

from benchmarks.reproduction import redrawn
from benchmarks.reproduction.bench import Bench, Outcome, say
from benchmarks.reproduction.rows import Trial

# Gamma as a multiple of one over (elements times their variance), the scale of the data.
GAMMAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
COSTS = (1.0, 3.0, 10.0, 30.0)
# More rows than this would make a kernel that does not fit into memory beside others' work.
MAX_ROWS = 10_000
_CHUNK_ROWS = 5_000


def svm_trial(data: str) -> Trial:
    def run(bench: Bench) -> Outcome:
        dataset = redrawn.load(bench, data)
        # A larger set is chosen on its first rows and fitted whole, without a kernel in memory.
        train = dataset.train_rows.flatten(1)[:MAX_ROWS]
        labels = dataset.train_labels[:MAX_ROWS].numpy()
        scale = 1 / (train.shape[1] * float(train.var()))
        best_error, best = np.inf, None
        for gamma in GAMMAS:
            kernel = rbf(train, train, gamma * scale)
            against = rbf(dataset.validation_rows.flatten(1), train, gamma * scale)
            for cost in COSTS:
                machine = SVC(C=cost, kernel="precomputed", cache_size=1000).fit(kernel, labels)
                error = 100 * float(np.mean(machine.predict(against) != dataset.validation_labels.numpy()))
                say(f"SVM on {data}, gamma {gamma} of scale, C {cost}: validation error {error:.2f} %")
                if error < best_error:
                    best_error, best = error, (machine, gamma, cost)
        assert best is not None, "an error is below infinity; this is a bug"
        machine, gamma, cost = best
        whole = len(dataset.train_rows) > MAX_ROWS
        if whole:
            machine = SVC(C=cost, gamma=gamma * scale, cache_size=2000)
            machine.fit(dataset.train_rows.flatten(1).numpy(), dataset.train_labels.numpy())
        misses = 0
        for chunk, wanted in zip(
            torch.split(dataset.test_rows.flatten(1), _CHUNK_ROWS),
            torch.split(dataset.test_labels, _CHUNK_ROWS),
            strict=True,
        ):
            inputs = chunk.numpy() if whole else rbf(chunk, train, gamma * scale)
            misses += int(np.sum(machine.predict(inputs) != wanted.numpy()))
        figures = {
            "test_error_percent": 100 * misses / len(dataset.test_rows),
            "validation_error_percent": best_error,
        }
        settings = {"gamma_of_scale": gamma, "C": cost, "train_rows": len(dataset.train_rows)}
        return Outcome(figures=figures, settings=settings)

    return run


def rbf(rows: Tensor, others: Tensor, gamma: float) -> npt.NDArray[np.float32]:
    """exp(-gamma |a - b|^2) of rows [B, N] and others [V, N], as [B, V]."""
    squares = rows.square().sum(1, keepdim=True) + others.square().sum(1) - 2 * rows @ others.T
    kernel: npt.NDArray[np.float32] = squares.clamp_(min=0).mul_(-gamma).exp_().numpy()
    return kernel
