"""The command line as a user meets it: real subprocesses on the built-in digits."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from service import packages
from training import recipes
from training.__main__ import main
from training.data import load
from training.runs import Run
from training.train import restore, train

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_train_report_export_from_nothing(tmp_path: Path) -> None:
    trained = command(
        "train", "denoising", "--data", "digits", "--epochs", "1", "--set", "network.latent=9", folder=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    told = r"training digits-denoising, run runs/denoising/[\d-]+\njoint, epoch 1 of 1: train loss .*\n"
    assert re.fullmatch(told, trained.stderr)  # no progress bar where there is no terminal
    assert re.search(r"digits-denoising, on the test rows\n(.*\n)*  psnr_db +[0-9.]+", trained.stdout)
    run = Run.newest(tmp_path / "runs", "denoising")
    assert run.recipe().network.latent == 9  # type: ignore[union-attr]

    reported = command("report", "denoising", folder=tmp_path)
    assert reported.returncode == 0, reported.stderr
    page = tmp_path / reported.stdout.strip()
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'src="([^"]+)"', text)
    assert {"losses.png", "pictures.png", "features.png", "latents.png"} == set(pictures)
    for name in pictures:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    assert "http" not in text  # nothing from elsewhere

    exported = command("export", "denoising", folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    package = packages.read(tmp_path / exported.stdout.strip())
    assert (package.manifest.name, package.latent_shape) == ("digits-denoising", (9,))


def test_a_table_of_figures_a_run_and_a_package_for_the_zoo(tmp_path: Path) -> None:
    made = command("zoo", "pca", "linear", "--data", "digits", "--epochs", "1", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert [str(path.relative_to(tmp_path)) for path in packages.find(tmp_path / "models")] == [
        "models/digits-linear/1",
        "models/digits-pca/1",
    ]
    for name in ("pca", "linear"):
        assert (Run.newest(tmp_path / "runs", name).report_folder / "index.html").exists()


def test_list_names_every_recipe_and_help_teaches(tmp_path: Path) -> None:
    listed = command("list", folder=tmp_path)
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == recipes.names()
    helped = command("--help", folder=tmp_path)
    assert helped.returncode == 0
    for word in ("train", "resume", "compare", "export", "report", "list", "zoo", "--data digits"):
        assert word in helped.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "vae"], "no recipe 'vae'"),
        (["train", "deep", "--data", "digits", "--set", "network.latent=-1"], "network.latent: .*; got -1"),
        (["train", "deep", "--data", "digits", "--set", "nonsense"], "--set: must be KEY=VALUE"),
        (["train", "deep", "--data", "digits", "--epochs", "0"], "procedure.epochs: .*; got 0"),
        (["train", "deep", "--data-dir", "nowhere"], "no mnist in nowhere"),
        (["export", "deep"], "train one first"),
        (["report", "deep", "--run", "nowhere"], "recipe.json: cannot be read"),
        (["resume", "nowhere"], "nowhere: has no checkpoint"),
        (["compare", "nowhere"], "nowhere: has no checkpoint"),
    ],
)
def test_a_mistake_is_one_line_not_a_traceback(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert re.fullmatch(f"error: .*{words}.*\n", capsys.readouterr().err)


def stopped_by(number: signal.Signals, epochs: int, folder: Path) -> tuple[Run, str, int]:
    """A training that was sent that signal once it had finished an epoch; its run, what it said, its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "training", "train", "deep", "--data", "digits", "--epochs", str(epochs)],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + 90
        while not list(folder.glob("runs/deep/*/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return Run.newest(folder / "runs", "deep"), errors, process.returncode


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_use_it(tmp_path: Path) -> None:
    run, errors, status = stopped_by(signal.SIGINT, 100_000, tmp_path)
    assert status == 130
    assert "Traceback" not in errors
    assert f"python -m training resume {run.folder.relative_to(tmp_path)}" in errors
    restore(run, (8, 8))  # the weights can be read
    assert not list(run.folder.glob(".*.new"))
    told = re.search(r"use it: +python -m training (export .*)", errors)
    assert told
    exported = command(*told[1].split(), folder=tmp_path)
    assert exported.returncode == 0, exported.stderr
    digits = load("digits", folder=None, validation_share=0.1, seed=0)
    assert packages.read(tmp_path / exported.stdout.strip()).manifest.dataset.fingerprint == digits.fingerprint()


def test_killed_at_once_and_resumed_it_becomes_what_it_would_have_been(tmp_path: Path) -> None:
    run, _, status = stopped_by(signal.SIGKILL, 100, tmp_path)
    assert status == -signal.SIGKILL
    assert len(run.metrics()) < 100
    picture = tmp_path / "curves.png"
    compared = command("compare", str(run.folder), "--picture", str(picture), folder=tmp_path)
    assert re.search(r"finished +no\n", compared.stdout), compared.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    resumed = command("resume", str(run.folder), "--tensorboard", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "digits-deep, on the test rows" in resumed.stdout
    assert list(run.folder.glob("tensorboard/events.*"))
    assert [entry["epoch"] for entry in run.metrics()] == list(range(1, 101))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train(run.recipe(), load("digits", folder=None, validation_share=0.1, seed=0), tmp_path / "whole")
    torch.set_num_threads(threads)
    weights = [restore(each, (8, 8)).state_dict() for each in (run, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
