"""The command line: `python -m training inspect|train|resume|compare|export|convert|report|list|zoo`."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from service.errors import PackageError
from training import data, devices, overrides, recipes
from training.errors import Interrupted, RecipeError, TrainingError

DESCRIPTION = """\
Train autoencoders from recipes and turn them into model packages.

A recipe says what network, corruption, penalty, loss and procedure make the model; `list` shows those that come with
Hourglass. Every training goes into a new folder, runs/RECIPE/TIME, from which `report` makes a page to look at and
`export` a package to serve.
"""

EXAMPLES = """\
examples:
  python -m training list
  python -m training train conv --data digits          # small, built in: nothing to download
  python -m training train undercomplete --data-dir ~/mnist --set network.latent=16
  python -m training resume runs/conv/20260131-120000  # goes on as if it had not been stopped
  python -m training compare runs/conv/*               # a table, and the curves as compare.png
  torchrun --nproc-per-node=2 -m training train conv   # two processes, each with half of every batch
  python -m training report undercomplete              # of its newest run
  python -m training export undercomplete --models models
  python -m training export deep --precision int8      # three times as fast on a CPU, for a little PSNR
  python -m training convert models/mnist-conv/1 --layout triton triton-models
  python -m training inspect pump.csv --window 64 --stride 8 --write pump.toml    # one's own data
  python -m training train pump.toml
"""

# Those of training.layouts and training.precision, whose import would make `--help` wait.
LAYOUTS = ("triton", "onnx")
PRECISIONS = ("fp32", "fp16", "int8")
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


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m training",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train a recipe into a new run and measure it on the test rows")
    _recipe(command)
    _data(command, "the recipe's")
    command.add_argument("--epochs", type=int, metavar="N", help="epochs of every phase (default: the recipe's)")
    command.add_argument("--seed", type=int, metavar="N", help="of the split, the weights, the order, the noise")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override any value of the recipe, such as network.latent=16 or corruption='{kind=\"none\"}'; repeatable",
    )
    _data_dir(command)
    _runs(command, "--out", "where the run's folder is made")
    command.add_argument(
        "--resume",
        action="store_true",
        help="where the newest run of exactly this recipe was stopped, go on with it; where it is finished, say so",
    )
    _threads(command)
    _device(command)
    _tensorboard(command)
    command.set_defaults(run=train_command)

    command = commands.add_parser("resume", help="go on with a run that was stopped, to the weights it would have had")
    command.add_argument("run_folder", type=Path, metavar="RUN", help="the run's folder, such as runs/conv/TIME")
    _data_dir(command)
    _device(command)
    _tensorboard(command)
    command.set_defaults(run=resume_command)

    command = commands.add_parser("compare", help="a table of runs: figures, time, what differs; and their curves")
    command.add_argument("run_folders", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    command.add_argument(
        "--picture", type=Path, default=Path("compare.png"), metavar="FILE", help="the curves (default: compare.png)"
    )
    command.set_defaults(run=compare_command)

    command = commands.add_parser("export", help="turn a run into a model package, or into files for another runtime")
    _recipe(command)
    _run(command)
    _data_dir(command)
    command.add_argument("--models", type=Path, default=Path("models"), help="where packages live (default: models)")
    command.add_argument(
        "--version", type=int, metavar="N", help="replaced where it exists (default: one more than the largest)"
    )
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="what the graphs compute in; fp16 and int8 make a model NAME-fp16 or NAME-int8 (default: fp32)",
    )
    command.add_argument(
        "--max-psnr-loss",
        type=float,
        default=0.2,
        metavar="DB",
        help="what less than fp32 may cost of the test rows' PSNR; else nothing is exported (default: 0.2)",
    )
    command.add_argument(
        "--layout",
        choices=("package", *LAYOUTS),
        default="package",
        help="package for Hourglass; triton, a model repository; onnx, plain files (default: package)",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="where another layout is written; for a package it is --models"
    )
    command.set_defaults(run=export_command)

    command = commands.add_parser("convert", help="write a model package, verified, for another runtime")
    command.add_argument("package", type=Path, metavar="PACKAGE", help="such as models/mnist-conv/1")
    command.add_argument("out", type=Path, metavar="DIR", help="where it is written")
    command.add_argument(
        "--layout", choices=LAYOUTS, required=True, help="triton, a model repository; onnx, plain files"
    )
    command.set_defaults(run=convert_command)

    command = commands.add_parser("report", help="make a page of pictures and figures in the run's folder")
    _recipe(command)
    _run(command)
    _data_dir(command)
    command.set_defaults(run=report_command)

    command = commands.add_parser("inspect", help="say what a file or folder holds; write a recipe to start from")
    command.add_argument("data", metavar="DATA", help=".npy, .npz, .csv or .parquet, or a folder of images")
    command.add_argument("--window", type=int, metavar="N", help="cut windows of N steps (default: a row is a row)")
    command.add_argument("--stride", type=int, metavar="N", help="steps from one window to the next (default: 1)")
    command.add_argument("--columns", nargs="+", metavar="NAME", help="of a table (default: those of changing numbers)")
    command.add_argument("--label", metavar="NAME", help="the column of classes (default: `label`, where there is one)")
    command.add_argument("--write", type=Path, metavar="RECIPE.toml", help="write a recipe that trains as it stands")
    command.set_defaults(run=inspect_command)

    command = commands.add_parser("list", help="list the recipes")
    command.set_defaults(run=list_command)

    command = commands.add_parser("zoo", help="train, export (as version 1) and report all recipes")
    command.add_argument("recipe", nargs="*", metavar="RECIPE", help="only these (default: all)")
    _data(command, "each recipe's")
    command.add_argument("--epochs", type=int, metavar="N", help="epochs of every phase (default: each recipe's)")
    _data_dir(command)
    command.add_argument("--models", type=Path, default=Path("models"), help="where packages live (default: models)")
    _runs(command, "--out", "where the runs' folders are made")
    _threads(command)
    _device(command)
    command.set_defaults(run=zoo_command)
    return top


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
    if not options.tensorboard:
        return None
    from training.events import watch

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
    from training.layouts import convert

    for path in convert(options.package, options.layout, options.out):
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


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if getattr(options, "threads", None):
        import torch

        torch.set_num_threads(options.threads)
    try:
        return int(options.run(options))
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        return 128 + (error.signal_number or signal.SIGINT)
    except (TrainingError, PackageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _resolve(name: str, options: argparse.Namespace) -> recipes.Recipe:
    changes: list[tuple[str, Any]] = [overrides.parse(text) for text in getattr(options, "set", [])]
    if options.data in recipes.DATA_NAMES:
        changes += [("data.name", options.data), ("data.path", None)]
    elif options.data:
        from training.inspection import name_for

        changes += [("data.name", name_for(options.data)), ("data.path", options.data)]
    if getattr(options, "seed", None) is not None:
        changes.append(("seed", options.seed))
    recipe = recipes.load(name, changes)
    if options.epochs is not None:
        recipe = recipes.load(name, [*changes, *overrides.epochs(recipe, options.epochs)])
    return recipe


def _chosen_run(options: argparse.Namespace) -> Any:
    from training.runs import Run

    if options.run_folder:
        return Run(options.run_folder)
    name = Path(options.recipe).stem if options.recipe.endswith(".toml") else options.recipe
    return Run.newest(options.runs, name)


def _metrics(run: Any) -> dict[str, float]:
    evaluation = run.evaluation()
    assert evaluation is not None, "training ends with an evaluation; this is a bug"
    metrics: dict[str, float] = evaluation["metrics"]
    return metrics


def _recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a name from `list`, or a path to a .toml file")


def _data(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--data",
        metavar="DATA",
        help=f"{', '.join(recipes.DATA_NAMES)}, or a path: .npy, .npz, .csv, .parquet, a folder of images (default: "
        f"{default})",
    )


def _data_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help=f"a folder of IDX files, DIR/mnist/*.gz or DIR/*.gz (default: ${data.DATA_VARIABLE}, else a download into "
        f"{data.CACHE}/)",
    )


def _runs(command: argparse.ArgumentParser, flag: str, text: str) -> None:
    command.add_argument(flag, type=Path, default=Path("runs"), metavar="DIR", help=f"{text} (default: runs)")


def _run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", dest="run_folder", type=Path, metavar="DIR", help="a run's folder (default: newest)")
    _runs(command, "--runs", "where to look for the newest run")


def _threads(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's, one a core)")


def _device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        choices=devices.DEVICE_NAMES,
        default="auto",
        help="where to train; auto: a GPU where torch sees one, else the CPU (default: auto)",
    )


def _tensorboard(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tensorboard",
        action="store_true",
        help="write the log as TensorBoard events too, in the run's tensorboard/ (needs the extra `tensorboard`)",
    )


if __name__ == "__main__":
    sys.exit(main())
