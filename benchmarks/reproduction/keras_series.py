"""The autoencoders of the Keras blog and of keras-io on MNIST: test cross-entropy, mean a pixel.

These are recipes of `training/` with overrides; `training.train` trains and measures them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.reproduction.bench import Bench, Outcome
from benchmarks.reproduction.rows import Group, Paper, Row, Trial
from training import recipes
from training.train import load_dataset, train
from training.world import World

RUNS = Path("runs") / "reproduction"
_PIXELS = 28 * 28
_ADAM = {"kind": "joint", "learning_rate": 1e-3, "batch_rows": 256}
_COSINE = {"kind": "joint", "learning_rate": 2e-3, "batch_rows": 256, "schedule": "cosine"}
MORE = ("psnr_db", "ssim", "linear_probe_accuracy", "knn_accuracy", "cross_entropy_floor")

SIMPLE = {"kind": "dense", "latent": 32}
DEEP = {"kind": "dense", "hidden": [128, 64], "latent": 32}
WIDE = {"kind": "convolutional", "channels": [32, 32], "decoder_channels": [32, 32], "upsampling": "transposed"}
# The blog's activity penalty of 1e-4 stands beside a mean over pixels; here the loss is a sum over them.
SPARSE = {"kind": "l1", "strength": 1e-4 * _PIXELS}


def trial(recipe: str, *overrides: tuple[str, Any]) -> Trial:
    def run(bench: Bench) -> Outcome:
        made = recipes.load(recipe, [*overrides, ("seed", bench.seed)])
        evaluation = train(
            made, load_dataset(made, bench.data_dir), RUNS, world=World(device=bench.device)
        ).evaluation()
        assert evaluation is not None, "a run that was trained has an evaluation; this is a bug"
        return Outcome(figures=evaluation["metrics"], settings={"recipe": made.model_dump(mode="json")})

    return run


def row(name: str, title: str, value: float | None, paper: Trial | None, ours: Trial | None, wanted: float) -> Row:
    return Row(
        name=f"keras-{name}",
        title=title,
        metric="denoised_cross_entropy" if "denois" in name else "cross_entropy",
        form=".4f",
        better="lower",
        paper=Paper(value=value) if value is not None else Paper(value=None, note="none"),
        trials={
            **({"paper": paper} if paper else {}),
            **({"ours": ours} if ours else {}),
        },
        wanted={**({"paper": wanted} if paper else {}), **({"ours": wanted} if ours else {})},
        more=(*MORE, "noisy_psnr_db", "denoised_psnr_db", "denoised_ssim") if "denois" in name else MORE,
    )


def group() -> Group:
    constant = {**_ADAM, "epochs": 50}
    cosine = {**_COSINE, "epochs": 100}
    rows = (
        row(
            "simple",
            "simple, 784-32-784",
            0.09,
            trial("undercomplete", ("network", SIMPLE), ("procedure", constant)),
            trial("undercomplete", ("network", SIMPLE), ("procedure", cosine)),
            0.0925,
        ),
        row(
            "sparse",
            "sparse, 784-32-784 with L1",
            0.10,
            trial("undercomplete", ("network", SIMPLE), ("penalty", SPARSE), ("procedure", constant)),
            None,
            0.10,
        ),
        row(
            "deep",
            "deep, 784-128-64-32 and back",
            0.08,
            trial("undercomplete", ("network", DEEP), ("procedure", constant)),
            trial("undercomplete", ("network", DEEP), ("procedure", cosine)),
            0.085,
        ),
        row("conv", "convolutional, 16-8-8", 0.094, None, trial("conv"), 0.094),
        row(
            "io-clean",
            "keras-io, 32-32 transposed, clean",
            0.0622,
            trial("conv", ("network", WIDE), ("procedure", {**_ADAM, "batch_rows": 128, "epochs": 50})),
            trial("conv", ("network", WIDE), ("procedure", {**_COSINE, "batch_rows": 128, "epochs": 100})),
            0.0625,
        ),
        row(
            "io-denoiser",
            "keras-io, 32-32 transposed, noise 0.5",
            None,
            None,
            trial("denoising-conv", ("network", WIDE), ("procedure", {**_COSINE, "batch_rows": 128, "epochs": 15})),
            0.10,
        ),
    )
    return Group(
        title="Keras: the autoencoders of its blog and examples on MNIST",
        text=(
            "Test cross-entropy, mean a pixel. By the paper's protocol: Adam at 1e-3 with batches of 256, 50 "
            "epochs; ours: 2e-3 with a cosine schedule, 100 epochs (keras-io's with noise 15). Weights begin "
            "Glorot uniform in both, as in Keras. "
            "Published figures are rounded, so what is wanted is given to the digit that the text gives."
        ),
        unit="cross-entropy",
        rows=rows,
    )
