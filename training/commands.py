"""What each command of `python -m training` does with its options; it imports what it needs when it runs."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from training import overrides, recipes
from training.errors import LayoutError, RecipeError, TrainingError

_DATA_FLAGS = ("window", "stride", "columns", "label")

TABLE = (
    "squared_error_sum",
    "pca_squared_error_sum",
    "explained_variance",
    "pca_explained_variance",
    "psnr_db",
    "pca_psnr_db",
    "noisy_psnr_db",
    "denoised_psnr_db",
    "ssim",
    "cross_entropy",
    "cross_entropy_floor",
    "pixel_accuracy",
    "denoised_pixel_accuracy",
    "all_black_pixel_accuracy",
    "linear_probe_accuracy",
    "pca_linear_probe_accuracy",
    "knn_accuracy",
    "pca_knn_accuracy",
    "classifier_accuracy",
    "mean_activation",
    "train_mean_activation",
    "dead_units",
    "jacobian_norm",
)


def train_command(options: argparse.Namespace) -> int:
    from training.train import load_dataset, newest_of, train
    from training.world import join

    recipe = _resolve(options.recipe, options)
    with join(options.device) as world:
        if options.resume:
            found = world.leaders_text(lambda: str(run.folder) if (run := newest_of(recipe, options.out)) else "")
            if found:
                return _resume(Path(found), options, world)
        dataset = load_dataset(recipe, options.data_dir)
        return _show(train(recipe, dataset, options.out, world=world, watch=_watch(options)), world)


def resume_command(options: argparse.Namespace) -> int:
    from training.world import join

    with join(options.device) as world:
        return _resume(options.run_folder, options, world)


def _resume(folder: Path, options: argparse.Namespace, world: Any) -> int:
    from training.runs import Run
    from training.train import load_dataset, resume

    run = Run(folder)
    if run.finished:
        if world.leads:
            print(f"{folder} is finished; nothing was trained")
        return 0
    return _show(resume(run, load_dataset(run.recipe(), options.data_dir), world=world, watch=_watch(options)), world)


def _watch(options: argparse.Namespace) -> Any:
    """What makes, of a run, what every line of its log is given to."""
    from training import events, progress

    makers = [progress.watch, *([events.watch] if getattr(options, "tensorboard", False) else [])]

    def watch(run: Any) -> Callable[[Mapping[str, Any]], None]:
        watchers = [make(run) for make in makers]

        def tell(entry: Mapping[str, Any]) -> None:
            for watcher in watchers:
                watcher(entry)

        return tell

    return watch


def _show(run: Any, world: Any) -> int:
    if world.leads:
        print_figures({run.recipe().model_name: _metrics(run)})
        print(f"\nrun     {run.folder}")
        print(f"look    python -m training report {run.recipe().name} --run {run.folder}")
        print(f"export  python -m training export {run.recipe().name} --run {run.folder}")
    return 0


def compare_command(options: argparse.Namespace) -> int:
    from training.compare import curves, table
    from training.runs import Run

    runs = [Run(folder) for folder in options.run_folders]
    print(table(runs))
    curves(runs).savefig(options.picture, dpi=90)
    print(f"\ncurves  {options.picture}")
    return 0


def export_command(options: argparse.Namespace) -> int:
    from training.export import export
    from training.layouts import convert
    from training.train import load_dataset

    packaged = options.layout == "package"
    if packaged == (options.out is not None):
        raise TrainingError("--out: goes with --layout triton or onnx, which need it; a package goes to --models")
    run = _chosen_run(options)
    dataset = load_dataset(run.recipe(), options.data_dir)
    make = partial(
        export,
        run,
        dataset,
        version=options.version,
        precision=options.precision,
        max_psnr_loss_db=options.max_psnr_loss,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if packaged:
        print(make(options.models))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        package = make(Path(folder))
        for path in convert(package, options.layout, options.out):
            print(path)
    return 0


def convert_command(options: argparse.Namespace) -> int:
    from service.errors import PackageError
    from training.layouts import convert

    try:
        written = convert(options.package, options.layout, options.out)
    except PackageError as error:
        raise LayoutError(f"{options.package}: {error}") from error
    for path in written:
        print(path)
    return 0


def report_command(options: argparse.Namespace) -> int:
    from training.report import report
    from training.train import load_dataset

    run = _chosen_run(options)
    print(report(run, load_dataset(run.recipe(), options.data_dir)))
    return 0


def inspect_command(options: argparse.Namespace) -> int:
    from training import inspection

    table = {"name": inspection.name_for(options.data), "path": options.data}
    table |= {key: value for key in _DATA_FLAGS if (value := getattr(options, key)) is not None}
    found = inspection.inspect(recipes.check_data(table, where="inspect"))
    print("\n".join(found.lines()))
    if options.write:
        if options.write.suffix != ".toml" or not re.match(recipes.NAME, options.write.stem):
            raise RecipeError(
                "--write: must be the recipe's name, of lower-case letters, digits and hyphens, and .toml; got "
                f"{options.write.name!r}"
            )
        options.write.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(options.write, "x", encoding="utf-8") as file:
                file.write(inspection.starting_recipe(found))
        except FileExistsError:
            raise RecipeError(f"--write: {options.write} is there already, and is not overwritten") from None
        print(f"\nrecipe   {options.write}\ntrain    python -m training train {options.write}")
    return 0


def list_command(options: argparse.Namespace) -> int:
    for name in recipes.names():
        print(f"{name:<16}{recipes.load(name).description}")
    return 0


def zoo_command(options: argparse.Namespace) -> int:
    from training.world import join
    from training.zoo import make_zoo

    chosen = []
    for name in options.recipe or recipes.names():
        closed = isinstance(recipes.load(name).procedure, recipes.ClosedForm)
        chosen.append(_resolve(name, argparse.Namespace(**{**vars(options), **({"epochs": None} if closed else {})})))
    with join(options.device) as world:
        made = make_zoo(
            chosen,
            data_folder=options.data_dir,
            runs=options.out,
            models=options.models,
            world=world,
            watch=_watch(options),
            say=lambda text: print(text, flush=True),
        )
    print_figures({run.recipe().model_name: _metrics(run) for run in made})
    return 0


def print_figures(models: dict[str, dict[str, float]]) -> None:
    """A table of the figures of one model or of several."""
    for name, metrics in models.items():
        print(f"\n{name}, on the test rows")
        for key in TABLE:
            if key in metrics:
                print(f"  {key:<28}{metrics[key]:>12.5g}")


def _resolve(name: str, options: argparse.Namespace) -> recipes.Recipe:
    changes: list[tuple[str, Any]] = [overrides.parse(text) for text in getattr(options, "set", [])]
    if options.data in recipes.DATA_NAMES:
        changes += [("data.name", options.data), ("data.path", None)]
    elif options.data:
        from training.inspection import name_for

        changes += [("data.name", name_for(options.data)), ("data.path", options.data)]
    if getattr(options, "seed", None) is not None:
        changes.append(("seed", options.seed))
    return recipes.load(name, changes, epochs=options.epochs)


def _chosen_run(options: argparse.Namespace) -> Any:
    from training.runs import Run

    if options.run_folder:
        return Run(options.run_folder)
    name = options.recipe
    if name.endswith(".toml"):
        # A recipe may say its own name; one that is no longer there was named after its file.
        name = recipes.load(name).name if Path(name).is_file() else Path(name).stem
    return Run.newest(options.runs, name)


def _metrics(run: Any) -> dict[str, float]:
    evaluation = run.evaluation()
    assert evaluation is not None, "training ends with an evaluation; this is a bug"
    metrics: dict[str, float] = evaluation["metrics"]
    return metrics
