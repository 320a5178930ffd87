"""The command line of training: what it tells while it runs, and one line and an exit code where something is wrong."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training import __main__ as command_line
from training import data, devices, progress, recipes
from training.__main__ import main
from training.runs import Run

SHORT = ["train", "undercomplete", "--data", "digits", "--device", "cpu", "--epochs", "2"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_and_the_list_come_without_torch() -> None:
    script = "import sys; from training.__main__ import main; main(['list']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_what_the_command_line_repeats_is_what_the_modules_say() -> None:
    assert command_line.DEVICES == devices.DEVICE_NAMES
    assert (command_line.DATA_VARIABLE, Path(command_line.CACHE)) == (data.DATA_VARIABLE, data.CACHE)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["train", "conv", "--threads", "-1"], "--threads: must be a whole number from 1 to 4096; got -1"),
        (["train", "conv", "--threads", "5000"], "--threads: must be a whole number from 1 to 4096; got 5000"),
        (["export", "conv", "--version", "0"], "--version: must be a whole number from 1 to 999999999; got 0"),
        (["export", "conv", "--version", "4294967296"], "must be a whole number from 1 to 999999999; got 4294967296"),
        (["export", "conv", "--max-psnr-loss", "nan"], "--max-psnr-loss: must be a number of decibels, 0 or more; got"),
        (["compare", "runs/conv/1", "--picture", "x.txt"], "--picture: the name must end in one of .png, .pdf, .svg"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error(
    flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("case", ["train", "export", "compare", "convert", "zoo"])
def test_a_place_that_cannot_be_written_to_is_one_line_and_the_place(
    case: str, digit_runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    flags = {
        "train": [*SHORT, "--out", "file"],
        "zoo": ["zoo", "undercomplete", "--data", "digits", "--device", "cpu", "--epochs", "1", "--out", "file"],
        "export": ["export", "pca", "--run", str(digit_runs["pca"].folder), "--models", "file"],
        "compare": ["compare", str(digit_runs["pca"].folder), "--picture", "file/x.png"],
        "convert": ["convert", str(Path(__file__).parents[3] / "models" / "mnist-pca" / "1"), "file/x"],
    }[case]
    assert main([*flags, "--layout", "onnx"] if case == "convert" else flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: file[^:]*: (Not a directory|File exists)", error)


def test_a_run_is_found_by_the_file_of_a_recipe_that_has_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = (recipes.FOLDER / "pca.toml").read_text(encoding="utf-8")
    Path("mine.toml").write_text('name = "another"\n' + recipe, encoding="utf-8")
    assert main(["train", "mine.toml", "--data", "digits"]) == 0
    assert main(["report", "mine.toml"]) == 0
    assert re.search(r"runs/another/.*/report/index.html\n$", capsys.readouterr().out)


def test_a_package_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "models/none/1", "out", "--layout", "onnx"]) == 1
    assert capsys.readouterr().err == "error: models/none/1: model.json: cannot be read: No such file or directory\n"
    assert not Path("out").exists()


def test_a_reader_that_goes_away_is_not_an_error_of_ours(digit_runs: dict[str, Run]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "training", "list"]
    ended = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, timeout=60, text=True, cwd=Path(__file__).parents[3]
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_where_no_terminal_shows_a_bar_epochs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SHORT) == 0
    first, *lines = capsys.readouterr().err.splitlines()
    run = Path(first.removeprefix("training digits-undercomplete, run "))
    assert run.is_dir()
    log = Run(run).metrics()
    assert [line.partition(":")[0] for line in lines] == ["joint, epoch 1 of 2", "joint, epoch 2 of 2"]
    for line, entry in zip(lines, log, strict=True):
        assert f"train loss {entry['train_loss']:.5g}, validation loss {entry['validation_loss']:.5g}" in line


def test_epochs_are_told_at_the_ends_of_a_phase_and_every_ten_seconds_of_training(tmp_path: Path) -> None:
    out = io.StringIO()
    recipe = recipes.load("stacked", [("procedure.epochs", 6), ("procedure.finetuning.epochs", 2)])
    tell = progress.watch(Run.create(tmp_path, recipe), out)

    def entry(phase: str, epoch: int, seconds: float) -> dict[str, Any]:
        return {
            "phase": phase, "epoch": epoch, "seconds": seconds, "train_loss": 1.5, "validation_accuracy": 0.25,
            "validation_penalty": 0.0, "best": epoch == 1, "rows_per_s": 1234.5,
        }  # fmt: skip

    for epoch, seconds in enumerate((1, 4, 4, 4, 1, 1), 1):
        tell(entry("layer 1", epoch, seconds))
    for epoch in (1, 2):
        tell(entry("fine-tuning", epoch, 1))
    _, *lines = out.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "layer 1, epoch 1 of 6",
        "layer 1, epoch 4 of 6",
        "layer 1, epoch 6 of 6",
        "fine-tuning, epoch 1 of 2",
        "fine-tuning, epoch 2 of 2",
    ]
    figures = "train loss 1.5, validation accuracy 0.25"
    assert lines[0] == f"layer 1, epoch 1 of 6: {figures}, the best so far; 1,234 rows/s"


def test_a_terminal_has_its_bar_and_no_lines(digit_runs: dict[str, Run]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    tell = progress.watch(digit_runs["conv"], out)
    for entry in digit_runs["conv"].metrics():
        tell(entry)
    assert out.getvalue() == f"training digits-conv, run {digit_runs['conv'].folder}\n"
