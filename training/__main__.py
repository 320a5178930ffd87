"""The command line: `python -m training train|resume|compare|export|report|list|zoo`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from service.errors import PackageError
from training import data, devices, overrides, recipes
from training.errors import Interrupted, TrainingError

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
"""

TABLE = (
    "squared_error_sum",
    "pca_squared_error_sum",
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
    command.add_argument("--data", choices=recipes.DATA_NAMES, help="the data set (default: the recipe's)")
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

    command = commands.add_parser("export", help="turn a run into a model package")
    _recipe(command)
    _run(command)
    _data_dir(command)
    command.add_argument("--models", type=Path, default=Path("models"), help="where packages live (default: models)")
    command.add_argument(
        "--version", type=int, metavar="N", help="replaced where it exists (default: one more than the largest)"
    )
    command.set_defaults(run=export_command)

    command = commands.add_parser("report", help="make a page of pictures and figures in the run's folder")
    _recipe(command)
    _run(command)
    _data_dir(command)
    command.set_defaults(run=report_command)

    command = commands.add_parser("list", help="list the recipes")
    command.set_defaults(run=list_command)

    command = commands.add_parser("zoo", help="train, export (as version 1) and report all recipes")
    command.add_argument("recipe", nargs="*", metavar="RECIPE", help="only these (default: all)")
    command.add_argument("--data", choices=recipes.DATA_NAMES, help="the data set (default: each recipe's)")
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
    from training.train import load_dataset

    run = _chosen_run(options)
    package = export(run, load_dataset(run.recipe(), options.data_dir), options.models, version=options.version)
    print(package)
    return 0


def report_command(options: argparse.Namespace) -> int:
    from training.report import report
    from training.train import load_dataset

    run = _chosen_run(options)
    print(report(run, load_dataset(run.recipe(), options.data_dir)))
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
    if options.data:
        changes.append(("data.name", options.data))
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
