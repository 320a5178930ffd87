"""A classifier from a hundred labels: on the pixels, and on the latents that a running service has for them.

An autoencoder learns from rows without labels, so that the few labels one has go further. For each model, the same
classifier (logistic regression) is trained on the same 100 labelled digits, ten of each class, and scored on digits
that it has not seen; the mean over several draws of the hundred.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits

from examples.local_service import ROOT, service
from hourglass import HourglassError
from hourglass.sklearn import LatentTransformer

Array = npt.NDArray[Any]

EACH = 10
# mnist-stacked is left out: its encoder was fine-tuned on all the labels.
MODELS = ("mnist-denoising-conv", "mnist-conv", "mnist-contractive", "mnist-sparse", "mnist-deep", "mnist-pca")


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Rows float32 [N, 784] from 0 to 1. The labelled ones are drawn from the pool."""

    pool: Array
    pool_labels: Array
    test: Array | None
    test_labels: Array | None

    def draw(self, seed: int) -> tuple[Array, Array, Array, Array]:
        """Ten rows of each class and their labels; the rows to score on and theirs: the others, without a test set."""
        random = np.random.default_rng(seed)
        classes = np.unique(self.pool_labels)
        chosen = np.concatenate(
            [random.choice(np.flatnonzero(self.pool_labels == label), EACH, replace=False) for label in classes]
        )
        if self.test is not None and self.test_labels is not None:
            return self.pool[chosen], self.pool_labels[chosen], self.test, self.test_labels
        others = np.setdiff1d(np.arange(len(self.pool)), chosen)
        return self.pool[chosen], self.pool_labels[chosen], self.pool[others], self.pool_labels[others]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.few_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("HOURGLASS_ADDRESS") or None,
        help="a running service, host:port (default: HOURGLASS_ADDRESS, else start one with models/)",
    )
    parser.add_argument("--models", metavar="NAME", nargs="+", default=MODELS, help="whose latents (default: six)")
    parser.add_argument(
        "--mnist",
        action="store_true",
        help="labels from MNIST's training set, scored on its 10,000 test digits (default: the 300 of examples/)",
    )
    parser.add_argument(
        "--data-dir", type=Path, help="MNIST's files (default: HOURGLASS_DATA, else they are downloaded into .data/)"
    )
    parser.add_argument("--draws", type=int, default=10, help="of the hundred labels (default: %(default)s)")
    return parser


def main() -> int:
    arguments = parser().parse_args()
    try:
        if arguments.draws < 1:
            raise ValueError(f"--draws: must be at least 1; got {arguments.draws}")
        data = read_mnist(arguments.data_dir) if arguments.mnist else read_examples()
        with ExitStack() as stack:
            address = arguments.address or stack.enter_context(service(ROOT / "models"))
            compare(data, address, arguments.models, arguments.draws)
    except (HourglassError, ValueError) as error:
        print(f"few_labels: {error}", file=sys.stderr)
        return 1
    return 0


def read_examples() -> Data:
    with np.load(ROOT / "examples" / "digits.npz") as file:
        rows = file["images"].reshape(len(file["images"]), -1).astype(np.float32) / 255
        return Data(pool=rows, pool_labels=file["labels"], test=None, test_labels=None)


def read_mnist(folder: Path | None) -> Data:
    from training import data, errors

    try:
        mnist = data.load("mnist", folder=folder, validation_share=0.1, seed=0)
    except errors.DataError as error:
        raise ValueError(str(error)) from error
    return Data(
        pool=mnist.train_rows.flatten(1).numpy(),
        pool_labels=mnist.train_labels.numpy(),
        test=mnist.test_rows.flatten(1).numpy(),
        test_labels=mnist.test_labels.numpy(),
    )


def compare(data: Data, address: str, models: tuple[str, ...], draws: int) -> dict[str, Array]:
    """Print, and return, the accuracy of each draw for the pixels and for each model."""
    test_rows = len(data.pool) - 10 * EACH if data.test is None else len(data.test)
    print(f"logistic regression on {10 * EACH} labels, scored on {test_rows} digits, {draws} draws\n")
    print(f"{'features':24} {'accuracy, % (standard deviation)':32} {'better than pixels in':24} {'time':>8}")
    accuracies: dict[str, Array] = {}
    for name in ("pixels", *models):
        features = FunctionTransformer() if name == "pixels" else LatentTransformer(name, address=address)
        began = time.perf_counter()
        accuracies[name] = np.array([score(features, data, seed) for seed in range(draws)])
        mean, deviation = 100 * accuracies[name].mean(), 100 * accuracies[name].std()
        better = f"{(accuracies[name] > accuracies['pixels']).sum()} of {draws}" if name != "pixels" else ""
        print(
            f"{name:24} {mean:8.2f} ({deviation:.2f}) {better:>32}   {time.perf_counter() - began:6.1f} s", flush=True
        )
    return accuracies


def score(features: Any, data: Data, seed: int) -> float:
    rows, labels, test, test_labels = data.draw(seed)
    classifier: Pipeline = make_pipeline(features, LogisticRegression(max_iter=1000))
    # With a hundred rows, threads of the linear algebra would only wait for one another.
    with threadpool_limits(1):
        return float(classifier.fit(rows, labels).score(test, test_labels))


if __name__ == "__main__":
    sys.exit(main())
