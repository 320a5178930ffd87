"""Every recipe becomes a package that computes what PyTorch computes, and holds nothing of the machine."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from autoencoder.v1 import model_pb2
from service import packages
from training import __main__ as command_line
from training import recipes, train
from training.data import Dataset
from training.errors import ParityError, RunError
from training.export import check_parity, export, golden
from training.graphs import Graphs, session, to_onnx
from training.precision import Precision
from training.reduction import time_ratio
from training.report import report
from training.runs import Run


@pytest.fixture(scope="module")
def exported(
    digits: Dataset, digit_runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, packages.Package]:
    models = tmp_path_factory.mktemp("models")
    return {name: packages.read(export(run, digits, models)) for name, run in digit_runs.items()}


def run_graph(graph: bytes, values: np.ndarray) -> np.ndarray:
    loaded = session(graph)
    (result,) = loaded.run(None, {loaded.get_inputs()[0].name: values})
    assert isinstance(result, np.ndarray)
    return result


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("count", [1, 2, 33])
def test_pytorch_and_onnx_agree(
    name: str, count: int, exported: dict[str, packages.Package], digit_runs: dict[str, Run], digits: Dataset
) -> None:
    network = train.restore(digit_runs[name], digits.row_shape)
    rows = digits.test_rows[:count]
    with torch.no_grad():
        latents = network.encode(rows)
        outputs = network.decode(latents)
    got = run_graph(exported[name].encoder, rows.numpy())
    assert np.allclose(got, latents.numpy(), atol=1e-5, rtol=1e-4)
    assert np.allclose(run_graph(exported[name].decoder, got), outputs.numpy(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", recipes.names())
def test_a_package_passes_the_checks_of_the_service(name: str, exported: dict[str, packages.Package]) -> None:
    package = exported[name]
    packages.check_golden(
        package,
        lambda rows: run_graph(package.encoder, rows),
        lambda latents: run_graph(package.decoder, latents),
    )


@pytest.mark.parametrize("name", recipes.names())
def test_the_graphs_have_the_agreed_signature(name: str, exported: dict[str, packages.Package]) -> None:
    for content, source, target in (
        (exported[name].encoder, "rows", "latents"),
        (exported[name].decoder, "latents", "rows"),
    ):
        graph = onnx.load_model_from_string(content)
        assert [value.name for value in graph.graph.input] == [source]
        assert [value.name for value in graph.graph.output] == [target]
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 20)]


@pytest.mark.parametrize("name", recipes.names())
def test_the_manifest_says_what_the_model_is(name: str, exported: dict[str, packages.Package], digits: Dataset) -> None:
    manifest = exported[name].manifest
    assert (manifest.name, manifest.version, manifest.variant) == (f"digits-{name}", 1, name)
    denoises = name.startswith("denoising")
    assert (model_pb2.OPERATION_DENOISE in manifest.operations) == manifest.HasField("corruption") == denoises
    assert set(manifest.operations) | {model_pb2.OPERATION_DENOISE} == set(model_pb2.Operation.values()[1:])
    assert list(manifest.input.row_shape) == [8, 8]
    assert (manifest.input.minimum, manifest.input.maximum) == (0, 1)
    assert len(manifest.reconstruction_error_quantiles) == 101
    assert 0 <= manifest.parity.max_absolute_difference < 1e-3
    assert list(manifest.parity.batch_rows) == [1, 2, 7, 64, 256]
    assert manifest.dataset.fingerprint == digits.fingerprint()
    assert manifest.dataset.test_rows == 360
    assert {metric.name for metric in manifest.metrics} >= {
        "psnr_db",
        "squared_error_sum",
        "pca_psnr_db",
        "knn_accuracy",
    }
    assert set(manifest.library_versions) >= {"torch", "onnx", "onnxruntime"}
    assert re.fullmatch(r"([0-9a-f]{40})?", manifest.git_commit)
    assert manifest.recipe["network"]["kind"] == recipes.load(name).network.kind  # type: ignore[index]
    assert manifest.create_time.seconds > 1_700_000_000
    assert not manifest.HasField("runtime")


@pytest.mark.parametrize("name", recipes.names())
def test_nothing_of_this_machine_is_in_a_package(name: str, exported: dict[str, packages.Package]) -> None:
    package = exported[name]
    assert (package.directory / "README.md").stat().st_size > 500
    assert 1000 < (package.directory / "card.png").stat().st_size < 120_000
    here = Path(__file__).resolve().parents[3]
    traces = [str(here), str(Path.home()), os.path.dirname(torch.__file__), "site-packages", 'File "', "/usr/"]
    for path in package.directory.iterdir():
        content = path.read_bytes()
        for trace in traces:
            assert trace.encode() not in content, f"{trace} in {path.name}"
    for content in (package.encoder, package.decoder):
        graph = onnx.load_model_from_string(content)
        assert not graph.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
        del graph.graph.initializer[:]  # random bytes spell anything of three letters
        assert b".py" not in graph.SerializeToString()


@pytest.mark.parametrize("name", ["denoising-conv", "stacked", "pca"])
def test_the_same_weights_give_the_same_bytes(name: str, digit_runs: dict[str, Run], digits: Dataset) -> None:
    first, second = (train.restore(digit_runs[name], digits.row_shape) for _ in range(2))
    assert to_onnx(first) == to_onnx(second)
    assert golden(first, digits.test_rows[:4]) == golden(second, digits.test_rows[:4])


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_graph_that_differs_stops_the_export_and_leaves_nothing(
    side: str, digit_runs: dict[str, Run], digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(network: torch.nn.Module, scaling: object) -> object:
        graphs = to_onnx(network)  # type: ignore[arg-type]
        layer = getattr(network, side)[-1]
        with torch.no_grad():
            layer.bias[0] += 0.01
        return graphs

    monkeypatch.setattr("training.export.to_onnx", broken)
    with pytest.raises(ParityError, match=rf"{side}.onnx: differs from PyTorch by .* nothing was exported"):
        export(digit_runs["deep"], digits, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_gate_holds_every_batch_size(digit_runs: dict[str, Run], digits: Dataset) -> None:
    network = train.restore(digit_runs["deep"], digits.row_shape)
    graphs = to_onnx(network)
    rows = digits.test_rows.clone()
    rows[200] = 1e6  # only the largest batch holds this row, in which float32 sums differ by more than 1e-5
    assert check_parity(network, graphs, digits.test_rows).max_absolute_difference < 1e-4
    rows[200] = float("nan")
    with pytest.raises(ParityError, match="on 256 rows"):
        check_parity(network, graphs, rows)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_less_than_fp32_is_a_model_of_its_own_with_its_own_figures(
    precision: Precision,
    exported: dict[str, packages.Package],
    digit_runs: dict[str, Run],
    digits: Dataset,
    tmp_path: Path,
) -> None:
    full = exported["deep"]
    told: list[str] = []
    made = packages.read(
        export(digit_runs["deep"], digits, tmp_path, precision=precision, max_psnr_loss_db=3.0, say=told.append)
    )
    packages.check_golden(
        made, lambda rows: run_graph(made.encoder, rows), lambda latents: run_graph(made.decoder, latents)
    )
    assert (made.manifest.name, made.manifest.version) == (f"digits-deep-{precision}", 1)
    assert packages.GOLDEN_ATOL < made.manifest.parity.golden_absolute_tolerance < 1
    rows = digits.test_rows.numpy()
    errors = {}
    for package in (full, made):
        figures = {metric.name: metric.value for metric in package.manifest.metrics}
        outputs = run_graph(package.decoder, run_graph(package.encoder, rows))
        errors[package.manifest.name] = float(np.square(outputs - rows).sum() / len(rows))
        assert figures["squared_error_sum"] == pytest.approx(errors[package.manifest.name], rel=1e-4)
    loss_db = 10 * np.log10(errors[made.manifest.name] / errors[full.manifest.name])
    assert figures["precision_psnr_loss_db"] == pytest.approx(loss_db, abs=1e-3)
    (line,) = told
    words = re.fullmatch(
        rf"{precision} costs (\S+) dB of PSNR and takes (\S+) of fp32's time on this processor(.*)", line
    )
    assert words is not None, line
    assert float(words[1]) == pytest.approx(loss_db, abs=2e-3)
    assert 0.05 < float(words[2]) < 20
    assert bool(words[3]) == (float(words[2]) > 1.1), line
    validation = digits.validation_rows.numpy()
    largest = np.square(run_graph(made.decoder, run_graph(made.encoder, validation)) - validation).mean((1, 2)).max()
    assert made.manifest.reconstruction_error_quantiles[-1] == pytest.approx(largest, rel=1e-4)
    assert made.manifest.reconstruction_error_quantiles != full.manifest.reconstruction_error_quantiles


def test_a_time_is_that_of_the_same_rows_through_both(exported: dict[str, packages.Package]) -> None:
    small, large = (Graphs(encoder=exported[name].encoder, decoder=exported[name].decoder) for name in ("pca", "conv"))
    rows = np.random.default_rng(0).random((256, 8, 8), np.float32)
    assert time_ratio(small, large, rows) > 2
    assert time_ratio(large, small, rows) < 0.5


def test_what_costs_more_than_allowed_is_not_exported(
    digit_runs: dict[str, Run], digits: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match=r"int8: costs .* dB of the test rows' PSNR, more than -9 \(--max-psnr-loss"):
        export(digit_runs["deep"], digits, tmp_path / "models", precision="int8", max_psnr_loss_db=-9.0)
    assert not (tmp_path / "models").exists()


def test_versions_count_up_and_a_given_one_is_replaced(
    digit_runs: dict[str, Run], digits: Dataset, tmp_path: Path
) -> None:
    first = export(digit_runs["pca"], digits, tmp_path)
    second = export(digit_runs["pca"], digits, tmp_path)
    assert (first.name, second.name) == ("1", "2")
    again = export(digit_runs["pca"], digits, tmp_path, version=1)
    assert again == first
    assert sorted(path.name for path in first.parent.iterdir()) == ["1", "2"]


def test_a_run_of_rows_that_have_changed_since_is_refused(
    digit_runs: dict[str, Run], digits: Dataset, tmp_path: Path
) -> None:
    rows = digits.train_rows.clone()
    rows[0, 0, 0] += 0.5
    changed = replace(digits, train_rows=rows)
    with pytest.raises(RunError, match=r"was trained on other rows of digits: SHA-256 .*; put them back"):
        export(digit_runs["pca"], changed, tmp_path / "models")
    with pytest.raises(RunError, match="was trained on other rows of digits"):
        report(digit_runs["pca"], changed)
    assert not (tmp_path / "models").exists()


def test_a_run_of_other_data_is_refused(digit_runs: dict[str, Run], digits: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path)
    content = json.loads((digit_runs["pca"].folder / "recipe.json").read_text(encoding="utf-8"))
    content["data"]["name"] = "mnist"
    (tmp_path / "recipe.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match="was trained on mnist, not on digits"):
        export(run, digits, tmp_path / "models")


def test_a_run_can_be_exported_for_another_runtime(
    digit_runs: dict[str, Run], exported: dict[str, packages.Package], tmp_path: Path
) -> None:
    run = digit_runs["pca"]
    arguments = ["export", "pca", "--run", str(run.folder), "--layout", "triton", "--out", str(tmp_path)]
    assert command_line.main(arguments) == 0
    encoder = tmp_path / "digits-pca.encode" / "1" / "model.onnx"
    assert encoder.read_bytes() == exported["pca"].encoder
