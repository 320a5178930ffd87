"""Packages in the layouts of other runtimes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from service import packages
from service.errors import PackageError
from tests import tiny
from training import __main__ as command_line
from training import layouts, precision
from training.errors import LayoutError

ROOT = Path(__file__).parents[3]


def test_plain_files_run_in_onnxruntime_alone(tmp_path: Path) -> None:
    package = tiny.write(tmp_path / "models")
    written = layouts.convert(package, "onnx", tmp_path / "out")
    assert {path.name for path in written} == {"encoder.onnx", "decoder.onnx", "model.json", "golden.npz"}
    done = subprocess.run(
        [sys.executable, "-I", ROOT / "examples" / "onnxruntime_alone.py", tmp_path / "out"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("5 rows, 3 numbers each in between\n")
    difference = re.search(r"at most (\S+) from", done.stdout)
    assert difference
    assert float(difference.group(1)) < 1e-4


@pytest.mark.parametrize("denoises", [True, False])
def test_a_triton_repository_has_a_model_for_each_operation(tmp_path: Path, denoises: bool) -> None:
    """What the configurations say is checked with Triton's own schema in tests/ecosystem."""
    package = tiny.write(tmp_path / "models", version=7, denoises=denoises)
    written = layouts.convert(package, "triton", tmp_path / "out")
    operations = {"encode", "decode", "reconstruct"} | ({"denoise"} if denoises else set())
    assert {path.name for path in written} == {f"tiny.{operation}" for operation in operations}
    assert all((path / "config.pbtxt").is_file() and (path / "7").is_dir() for path in written)
    session = onnxruntime.InferenceSession((tmp_path / "out" / "tiny.encode" / "7" / "model.onnx").read_bytes())
    (latents,) = session.run(None, {"rows": tiny.rows(2)})
    np.testing.assert_allclose(latents, tiny.encode(tiny.rows(2)), rtol=1e-5)


def test_several_models_go_into_one_repository(tmp_path: Path) -> None:
    for name in ("tiny", "other"):
        layouts.convert(tiny.write(tmp_path / "models", name), "triton", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 8


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_what_is_there_is_never_overwritten(tmp_path: Path, layout: str) -> None:
    package = tiny.write(tmp_path / "models")
    (first, *others) = layouts.convert(package, layout, tmp_path / "out")
    for path in others:
        path.rename(tmp_path / path.name)
    with pytest.raises(LayoutError, match=f"{re.escape(str(first))}: is there already"):
        layouts.convert(package, layout, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [first]


def test_a_package_that_breaks_a_rule_is_not_converted(tmp_path: Path) -> None:
    package = tiny.write(tmp_path / "models")
    (package / packages.ENCODER).write_bytes(b"no graph")
    with pytest.raises(PackageError, match=r"encoder\.onnx"):
        layouts.convert(package, "triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_knows_every_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(command_line.LAYOUTS) == set(layouts.LAYOUTS)
    assert command_line.PRECISIONS == precision.PRECISIONS
    package = tiny.write(tmp_path / "models")
    monkeypatch.chdir(package)  # a relative path has no name and version of its own
    assert command_line.main(["convert", ".", str(tmp_path / "out"), "--layout", "onnx"]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "out" / name) for name in ("decoder.onnx", "encoder.onnx", "golden.npz", "model.json")
    ]
    assert command_line.main(["convert", ".", str(tmp_path / "out"), "--layout", "onnx"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert command_line.main(["export", "conv", "--layout", "triton"]) == 1
    assert "--out: goes with" in capsys.readouterr().err
