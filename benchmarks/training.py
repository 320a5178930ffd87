"""The figures of docs/training.md: every recipe on MNIST, and the comparisons that need a second run.

    python -m benchmarks.training --data-dir DIR

Runs of exactly these recipes that are already in `runs/` are used again; the others are trained first. The tables go
between the markers in docs/training.md, and all figures as JSON into `runs/benchmark/training.json`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training import recipes
from training.data import Dataset
from training.runs import Run
from training.train import evaluate_run, load_dataset, train

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
COMMAND = "python -m benchmarks.training"

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A recipe of the package with overrides, beside the recipe as it stands."""

    name: str
    recipe: str
    overrides: tuple[tuple[str, Any], ...]


COMPARISONS = (
    Comparison(
        name="denoising, gaussian",
        recipe="denoising",
        overrides=(("corruption", {"kind": "gaussian", "level": 0.5}),),
    ),
    Comparison(
        name="denoising, salt and pepper",
        recipe="denoising",
        overrides=(("corruption", {"kind": "salt-and-pepper", "level": 0.3}),),
    ),
    Comparison(
        name="contractive, without the penalty", recipe="contractive", overrides=(("penalty", {"kind": "none"}),)
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="a folder of IDX files (default: $HOURGLASS_DATA)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="runs to use again (default: runs)"
    )
    options = parser.parse_args()
    extra = options.runs / "benchmark"
    models: dict[str, Figures] = {}
    for name in recipes.names():
        models[name] = figures(recipes.load(name), options.data_dir, options.runs, options.runs)
    for comparison in COMPARISONS:
        recipe = recipes.load(comparison.recipe, comparison.overrides)
        models[comparison.name] = figures(recipe, options.data_dir, options.runs, extra)
    rho = recipes.load("sparse").penalty
    assert isinstance(rho, recipes.KLSparsity)
    checks = list(requirements(models, rho.rho))
    text = page_part(models, checks)
    extra.mkdir(parents=True, exist_ok=True)
    (extra / "training.json").write_text(json.dumps({"setting": setting(), "models": models}, indent=2) + "\n")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    print(text)
    return 0 if all(check.holds for check in checks) else 1


def figures(recipe: recipes.Recipe, data_dir: Path | None, *places: Path) -> Figures:
    """The figures of a run of exactly this recipe in one of `places`, or of a new one in the last."""
    dataset: Dataset | None = None
    for place in places:
        for path in sorted((place / recipe.name).glob("*/best.safetensors"), reverse=True):
            run = Run(path.parent)
            if run.recipe() == recipe:
                if run.evaluation() is None:
                    dataset = load_dataset(recipe, data_dir)
                    evaluate_run(run, dataset)
                return metrics(run)
    print(f"training {recipe.model_name}: {recipe.description}", file=sys.stderr, flush=True)
    return metrics(train(recipe, load_dataset(recipe, data_dir), places[-1]))


def metrics(run: Run) -> Figures:
    evaluation = run.evaluation()
    assert evaluation is not None, "a run that was evaluated has an evaluation; this is a bug"
    found: Figures = evaluation["metrics"]
    return found


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure that must be at least, or at most, a bound."""

    what: str
    wanted: str
    reached: str
    holds: bool


def requirements(models: dict[str, Figures], rho: float) -> Iterator[Check]:
    def check(what: str, value: float, sign: str, bound: float, form: str = ".4f") -> Check:
        holds = value <= bound if sign == "<=" else value >= bound
        words = "at most" if sign == "<=" else "at least"
        return Check(what=what, wanted=f"{words} {bound:{form}}", reached=f"{value:{form}}", holds=holds)

    linear = models["linear"]
    ratio = linear["squared_error_sum"] / linear["pca_squared_error_sum"]
    yield check("linear: squared error over that of PCA", ratio, "<=", 1.01)
    yield check("undercomplete, 784-32-784: cross-entropy", models["undercomplete"]["cross_entropy"], "<=", 0.0925)
    yield check("conv, the Keras model: cross-entropy", models["conv"]["cross_entropy"], "<=", 0.094)
    off = abs(models["sparse"]["train_mean_activation"] / rho - 1)
    yield check(f"sparse: distance of the mean activation from rho = {rho:g}, as a share", off, "<=", 0.2)
    convolutional = models["denoising-conv"]
    yield check("denoising-conv, noise 0.5: PSNR, dB", convolutional["denoised_psnr_db"], ">=", 20, ".2f")
    yield check("denoising-conv, noise 0.5: pixel accuracy", convolutional["denoised_pixel_accuracy"], ">=", 0.968)
    for name in ("denoising", "denoising, gaussian", "denoising, salt and pepper"):
        gain = models[name]["denoised_psnr_db"] - models[name]["noisy_psnr_db"]
        yield check(f"{name}: PSNR gained over the noisy input, dB", gain, ">=", 0, ".2f")
    penalised, plain = models["contractive"], models["contractive, without the penalty"]
    shrunk = penalised["jacobian_norm"] / plain["jacobian_norm"]
    yield check("contractive: Jacobian norm over that without the penalty", shrunk, "<=", 1)
    loss = penalised["cross_entropy"] / plain["cross_entropy"]
    yield check("contractive: cross-entropy over that without the penalty", loss, "<=", 1.1)
    accuracy = models["stacked"]["classifier_accuracy"]
    yield check("stacked: test accuracy after fine-tuning", accuracy, ">=", 0.983)


def page_part(models: dict[str, Figures], checks: Sequence[Check]) -> str:
    first = next(iter(models.values()))
    plain = [name for name in models if "," not in name]
    denoising = [name for name, values in models.items() if "denoised_psnr_db" in values]
    contractive = [name for name in models if name.startswith("contractive")]
    parts = [
        f"Made by `{COMMAND}`, one seed each. {setting()}",
        "### What must hold",
        table(
            ["figure, MNIST test rows", "wanted", "reached", "holds"],
            [[check.what, check.wanted, check.reached, "yes" if check.holds else "**no**"] for check in checks],
        ),
        "### All recipes, clean test rows, each beside PCA of the same code size",
        f"Floors: an all-black picture has a pixel accuracy of {first['all_black_pixel_accuracy']:.4f}; no model can "
        f"have a cross-entropy below {first['cross_entropy_floor']:.4f}, the entropy of the grey targets.",
        table(
            [
                "recipe",
                "code",
                "squared error",
                "PCA",
                "PSNR, dB",
                "PCA",
                "SSIM",
                "PCA",
                "cross-entropy",
                "pixel accuracy",
                "PCA",
            ],
            [
                [
                    name,
                    f"{models[name]['latent_units']:.0f}",
                    *pair(models[name], "squared_error_sum", ".2f"),
                    *pair(models[name], "psnr_db", ".2f"),
                    *pair(models[name], "ssim", ".3f"),
                    number(models[name], "cross_entropy", ".4f"),
                    *pair(models[name], "pixel_accuracy", ".4f"),
                ]
                for name in plain
            ],
        ),
        "### Their codes",
        table(
            [
                "recipe",
                "linear probe",
                "PCA",
                "5-NN",
                "PCA",
                "mean activation",
                "dead units",
                "Jacobian norm",
                "classifier",
            ],
            [
                [
                    name,
                    *pair(models[name], "linear_probe_accuracy", ".4f"),
                    *pair(models[name], "knn_accuracy", ".4f"),
                    number(models[name], "mean_activation", ".3f"),
                    number(models[name], "dead_units", ".0f"),
                    number(models[name], "jacobian_norm", ".3f"),
                    number(models[name], "classifier_accuracy", ".4f"),
                ]
                for name in plain
            ],
        ),
        "### Denoising, beside the noisy input and beside PCA of the same code size",
        table(
            [
                "recipe",
                "PSNR noisy, dB",
                "denoised",
                "PCA",
                "SSIM noisy",
                "denoised",
                "PCA",
                "pixel accuracy noisy",
                "denoised",
                "PCA",
            ],
            [
                [
                    name,
                    *(
                        number(models[name], f"{side}_{key}", form)
                        for key, form in (("psnr_db", ".2f"), ("ssim", ".3f"), ("pixel_accuracy", ".4f"))
                        for side in ("noisy", "denoised", "pca_denoised")
                    ),
                ]
                for name in denoising
            ],
        ),
        "### Contractive, with and without the penalty",
        table(
            ["recipe", "Jacobian norm", "cross-entropy", "squared error", "linear probe", "5-NN"],
            [
                [
                    name,
                    number(models[name], "jacobian_norm", ".3f"),
                    number(models[name], "cross_entropy", ".4f"),
                    number(models[name], "squared_error_sum", ".2f"),
                    number(models[name], "linear_probe_accuracy", ".4f"),
                    number(models[name], "knn_accuracy", ".4f"),
                ]
                for name in contractive
            ],
        ),
    ]
    return "\n\n".join(parts)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def pair(values: Figures, name: str, form: str) -> list[str]:
    return [number(values, name, form), number(values, f"pca_{name}", form)]


def number(values: Figures, name: str, form: str) -> str:
    return f"{values[name]:{form}}" if name in values else ""


def setting() -> str:
    """Date, hardware and versions."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "scikit-learn", "torchmetrics")
    )
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {processor()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, {versions}."
    )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
