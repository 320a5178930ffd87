"""The service's latents in scikit-learn and PyTorch, from a real service."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch.utils.data import DataLoader

from examples import few_labels
from hourglass import Client, NotFound, Unavailable
from hourglass.sklearn import LatentTransformer
from hourglass.torch import LatentDataset
from tests import tiny
from tests.integration.playing import Playground
from tests.integration.serving import ServerProcess

# The numbers of features that scikit-learn's checks come with. A model for each, so that the transformer finds one.
WIDTHS = (1, 2, 3, 4, 5, 10)
ROWS = tiny.rows(50).reshape(50, -1)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = tmp_path_factory.mktemp("vectors")
    for width in WIDTHS:
        tiny.write_vectors(models, f"width-{width}", width, 2)
    with ServerProcess(models) as process:
        yield process


CHECKS = [check for _, check in estimator_checks_generator(LatentTransformer())]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.func.__name__)
def test_scikit_learns_checks_of_estimators(check: Callable[[Any], None], vectors: ServerProcess) -> None:
    check(LatentTransformer(address=vectors.address))


def test_features_are_the_latents_of_the_service(server: ServerProcess) -> None:
    transformer = LatentTransformer("tiny", address=server.address)
    features = transformer.fit_transform(ROWS)
    np.testing.assert_allclose(features, tiny.encode(ROWS.reshape(-1, 4, 4)), rtol=1e-5)
    assert (transformer.model_version_, transformer.row_shape_) == (2, (4, 4))
    assert list(transformer.get_feature_names_out()) == [f"latenttransformer{unit}" for unit in range(tiny.LATENT)]
    again = pickle.loads(pickle.dumps(transformer))
    np.testing.assert_array_equal(again.transform(ROWS), features)
    bytes_ = np.rint(ROWS * 255).astype(np.uint8)
    np.testing.assert_allclose(transformer.transform(bytes_), transformer.transform(bytes_ / 255), rtol=1e-4, atol=1e-6)


def test_a_version_and_a_connection_of_ones_own(server: ServerProcess) -> None:
    connect = partial(Client, server.address, attempts=1)
    transformer = LatentTransformer("tiny", version=1, address=connect, timeout_s=30)
    fitted = clone(transformer).fit(ROWS)
    assert fitted.model_version_ == 1
    fitted.model_version_ = 9
    with pytest.raises(NotFound):
        fitted.transform(ROWS)


def test_a_pipeline_learns_on_latents(server: ServerProcess) -> None:
    firsts = tiny.encode(ROWS.reshape(-1, 4, 4))[:, 0]
    labels = firsts > np.median(firsts)
    classifier = make_pipeline(LatentTransformer("tiny", address=server.address), LogisticRegression(C=1e3))
    assert classifier.fit(ROWS, labels).score(ROWS, labels) > 0.95


def test_what_does_not_fit_is_named(server: ServerProcess) -> None:
    with pytest.raises(ValueError, match=r"X: must have 16 features, the elements of a row of tiny \(4x4\); got 7"):
        LatentTransformer("tiny", address=server.address).fit(ROWS[:, :7])
    with pytest.raises(ValueError, match="unless one alone has rows of 16 elements; these do: plain, tiny"):
        LatentTransformer(address=server.address).fit(ROWS)
    with pytest.raises(ValueError, match="version: needs a model"):
        LatentTransformer(version=1, address=server.address).fit(ROWS)
    with pytest.raises(NotFound):
        LatentTransformer("none", address=server.address).fit(ROWS)


def dataset(server: ServerProcess, **options: Any) -> LatentDataset:
    return LatentDataset("tiny", ROWS.reshape(-1, 4, 4), np.arange(50), address=server.address, **options)


def test_a_data_set_gives_each_row_once_and_in_order(server: ServerProcess) -> None:
    expected = tiny.encode(ROWS.reshape(-1, 4, 4))
    pairs = list(dataset(server, chunk_rows=7, chunks_ahead=3))
    assert [int(target) for _, target in pairs] == list(range(50))
    np.testing.assert_allclose(torch.stack([latent for latent, _ in pairs]), expected, rtol=1e-5)
    batches = list(DataLoader(dataset(server, batch_rows=8, chunk_rows=20), batch_size=None))
    assert [len(targets) for _, targets in batches] == [8, 8, 8, 8, 8, 8, 2]
    assert len(dataset(server, batch_rows=8)) == 7
    np.testing.assert_allclose(torch.cat([latents for latents, _ in batches]), expected, rtol=1e-5)
    alone = LatentDataset("tiny", ROWS.reshape(-1, 4, 4), address=server.address)
    np.testing.assert_allclose(next(iter(DataLoader(alone, batch_size=50))), expected, rtol=1e-5)


def test_a_shuffled_data_set_keeps_pairs_and_changes_with_the_epoch(server: ServerProcess) -> None:
    expected = tiny.encode(ROWS.reshape(-1, 4, 4))
    shuffled = dataset(server, batch_rows=16, shuffle_seed=3)
    orders = []
    for epoch in (0, 1, 0):
        shuffled.set_epoch(epoch)
        batches = list(shuffled)
        order = torch.cat([targets for _, targets in batches])
        np.testing.assert_allclose(torch.cat([latents for latents, _ in batches]), expected[order], rtol=1e-5)
        orders.append(order.tolist())
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50)) != orders[0]


def test_workers_share_the_rows(server: ServerProcess) -> None:
    loader = DataLoader(dataset(server, batch_rows=8), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert len(loader) == 7
    targets = [targets.tolist() for _, targets in loader]
    assert sorted(number for batch in targets for number in batch) == list(range(50))
    assert sorted(map(len, targets)) == [2, 8, 8, 8, 8, 8, 8]


def test_an_epoch_that_is_left_early_ends_its_calls(server: ServerProcess) -> None:
    epoch = iter(dataset(server, chunk_rows=1, chunks_ahead=8))
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert list(epoch) == []


def test_a_data_set_says_what_is_wrong(server: ServerProcess) -> None:
    with pytest.raises(ValueError, match="targets: must be one for each of 50 rows; got 3"):
        LatentDataset("tiny", ROWS, np.arange(3))
    with pytest.raises(ValueError, match="batch_rows: must be at least 1; got 0"):
        LatentDataset("tiny", ROWS, batch_rows=0)
    gone = LatentDataset("tiny", ROWS, address=partial(Client, "127.0.0.1:1", attempts=1))
    with pytest.raises(Unavailable):
        next(iter(gone))


def test_latents_beat_pixels_on_a_hundred_labels(playground: Playground) -> None:
    accuracies = few_labels.compare(few_labels.read_examples(), playground.address, ("mnist-denoising-conv",), draws=3)
    pixels, latents = accuracies["pixels"], accuracies["mnist-denoising-conv"]
    assert 0.6 < pixels.mean() < 0.8
    assert latents.mean() > pixels.mean() + 0.05


def test_the_client_imports_neither_scikit_learn_nor_torch() -> None:
    program = (
        "import hourglass, hourglass.__main__, sys; "
        "print(sorted({'sklearn', 'torch', 'onnxruntime', 'service'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_a_missing_library_names_the_extra() -> None:
    for module, library, extra in (("sklearn", "sklearn", "sklearn"), ("torch", "torch", "torch")):
        program = f"import sys; sys.modules[{library!r}] = None; import hourglass.{module}"
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"pip install 'hourglass-client[{extra}]'" in output.stderr.splitlines()[-1]
