"""The command line: `python -m training inspect|train|resume|compare|export|convert|report|list|zoo`."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from functools import partial
from pathlib import Path

from service.errors import PackageError
from service.memory import keep_memory
from training import commands, recipes
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
  python -m training export deep --precision int8      # a third of the bytes, faster on a CPU, for a little PSNR
  python -m training convert models/mnist-conv/1 --layout triton triton-models
  python -m training inspect pump.csv --window 64 --stride 8 --write pump.toml    # one's own data
  python -m training train pump.toml
"""

ABOUT = {
    "train": """\
Train a recipe and measure it on the test rows. The run's folder, runs/RECIPE/TIME, gets the recipe as it was used, the
log of epochs, the last checkpoint and the best, and the evaluation. Ctrl-C or SIGTERM stops it after a step, and
`resume` goes on.

  python -m training train deep --data digits                    # scikit-learn's digits, built in
  python -m training train deep --data-dir ~/mnist --set network.latent=16 --epochs 30
  torchrun --nproc-per-node=2 -m training train deep             # two processes, each with half of every batch
""",
    "resume": """\
Go on with a run that was stopped, by Ctrl-C or by a fault, from its last checkpoint. On a CPU the weights at the end
are those, bit for bit, of a run that was never stopped.

  python -m training resume runs/deep/20260131-120000
""",
    "compare": """\
Print a table of runs, with figures, time and what differs between their recipes, and draw the curves of their losses.

  python -m training compare runs/deep/* --picture deep.png
""",
    "export": """\
Turn a run into a model package that `python -m service` serves, MODELS/NAME/VERSION: both graphs as ONNX, compared with
the trained network on real rows before they are kept, and the manifest. Or into files for another runtime.

  python -m training export deep                         # the newest run of `deep`
  python -m training export deep --precision int8        # smaller and faster on a CPU, for a little PSNR
  python -m training export deep --layout triton --out triton-models
""",
    "convert": """\
Write a model package, after its files were verified, for another runtime.

  python -m training convert models/mnist-conv/1 --layout triton triton-models
""",
    "report": """\
Make a page to look at, report/index.html in the run's folder: curves, reconstructions, latents and the figures of the
evaluation.

  python -m training report deep                         # of its newest run
""",
    "inspect": """\
Say what a file or folder holds: rows, shape, range, missing values, constant columns, classes. --write makes a recipe
from it that trains as it stands, to be changed with an editor.

  python -m training inspect pump.csv --window 64 --stride 8 --write pump.toml
  python -m training train pump.toml
""",
    "list": "List the recipes that come with Hourglass, for `train`, `report` and `export`.\n",
    "zoo": """\
Train, export (as version 1) and report the recipes that come with Hourglass, one after the other.

  python -m training zoo --data-dir ~/mnist --models models
  python -m training zoo pca deep --epochs 2             # only these, in short
""",
}

# Those of training.layouts, .precision, .devices, .data and .pictures, whose import would make `--help` wait.
LAYOUTS = ("triton", "onnx")
PRECISIONS = ("fp32", "fp16", "int8")
DEVICES = ("auto", "cpu", "cuda")
DATA_VARIABLE, CACHE = "HOURGLASS_DATA", ".data"
PICTURES = (".png", ".pdf", ".svg")
_MOST_THREADS = 4096


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m training",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return added.add_parser(
            name, help=text, description=ABOUT[name], formatter_class=argparse.RawDescriptionHelpFormatter
        )

    command = add("train", "train a recipe into a new run and measure it on the test rows")
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
    command.set_defaults(run=commands.train_command)

    command = add("resume", "go on with a run that was stopped, to the weights it would have had")
    command.add_argument("run_folder", type=Path, metavar="RUN", help="the run's folder, such as runs/conv/TIME")
    _data_dir(command)
    _device(command)
    _tensorboard(command)
    command.set_defaults(run=commands.resume_command)

    command = add("compare", "a table of runs: figures, time, what differs; and their curves")
    command.add_argument("run_folders", type=Path, nargs="+", metavar="RUN", help="a run's folder")
    command.add_argument(
        "--picture",
        type=_picture,
        default=Path("compare.png"),
        metavar="FILE",
        help=f"the curves, {', '.join(PICTURES)} (default: compare.png)",
    )
    command.set_defaults(run=commands.compare_command)

    command = add("export", "turn a run into a model package, or into files for another runtime")
    _recipe(command)
    _run(command)
    _data_dir(command)
    command.add_argument("--models", type=Path, default=Path("models"), help="where packages live (default: models)")
    command.add_argument(
        "--version", type=_count, metavar="N", help="replaced where it exists (default: one more than the largest)"
    )
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="what the graphs compute in; fp16 and int8 make a model NAME-fp16 or NAME-int8 (default: fp32)",
    )
    command.add_argument(
        "--max-psnr-loss",
        type=_decibels,
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
    command.set_defaults(run=commands.export_command)

    command = add("convert", "write a model package, verified, for another runtime")
    command.add_argument("package", type=Path, metavar="PACKAGE", help="such as models/mnist-conv/1")
    command.add_argument("out", type=Path, metavar="DIR", help="where it is written")
    command.add_argument(
        "--layout", choices=LAYOUTS, required=True, help="triton, a model repository; onnx, plain files"
    )
    command.set_defaults(run=commands.convert_command)

    command = add("report", "make a page of pictures and figures in the run's folder")
    _recipe(command)
    _run(command)
    _data_dir(command)
    command.set_defaults(run=commands.report_command)

    command = add("inspect", "say what a file or folder holds; write a recipe to start from")
    command.add_argument("data", metavar="DATA", help=".npy, .npz, .csv or .parquet, or a folder of images")
    command.add_argument("--window", type=int, metavar="N", help="cut windows of N steps (default: a row is a row)")
    command.add_argument("--stride", type=int, metavar="N", help="steps from one window to the next (default: 1)")
    command.add_argument("--columns", nargs="+", metavar="NAME", help="of a table (default: those of changing numbers)")
    command.add_argument("--label", metavar="NAME", help="the column of classes (default: `label`, where there is one)")
    command.add_argument("--write", type=Path, metavar="RECIPE.toml", help="write a recipe that trains as it stands")
    command.set_defaults(run=commands.inspect_command)

    command = add("list", "list the recipes")
    command.set_defaults(run=commands.list_command)

    command = add("zoo", "train, export (as version 1) and report all recipes")
    command.add_argument("recipe", nargs="*", metavar="RECIPE", help="only these (default: all)")
    _data(command, "each recipe's")
    command.add_argument("--epochs", type=int, metavar="N", help="epochs of every phase (default: each recipe's)")
    _data_dir(command)
    command.add_argument("--models", type=Path, default=Path("models"), help="where packages live (default: models)")
    _runs(command, "--out", "where the runs' folders are made")
    _threads(command)
    _device(command)
    command.set_defaults(run=commands.zoo_command)
    return top


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    keep_memory()  # each step makes and frees tensors of some hundred kilobytes
    try:
        if getattr(options, "threads", None):
            import torch

            torch.set_num_threads(options.threads)
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        return 128 + (error.signal_number or signal.SIGINT)
    except (TrainingError, PackageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads stdout has seen enough; leave nothing that the exit of Python would try to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _count(text: str, most: int = 999_999_999) -> int:  # a version has 32 bits
    if not (text.isdecimal() and len(text) <= len(str(most)) and 0 < int(text) <= most):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {most}; got {text}")
    return int(text)


def _decibels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of decibels, 0 or more; got {text}")
    return value


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"the name must end in one of {', '.join(PICTURES)}; got {text}")
    return path


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
        help=f"a folder of IDX files, DIR/mnist/*.gz or DIR/*.gz (default: ${DATA_VARIABLE}, else a download into "
        f"{CACHE}/)",
    )


def _runs(command: argparse.ArgumentParser, flag: str, text: str) -> None:
    command.add_argument(flag, type=Path, default=Path("runs"), metavar="DIR", help=f"{text} (default: runs)")


def _run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", dest="run_folder", type=Path, metavar="DIR", help="a run's folder (default: newest)")
    _runs(command, "--runs", "where to look for the newest run")


def _threads(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threads",
        type=partial(_count, most=_MOST_THREADS),
        metavar="N",
        help="CPU threads (default: torch's, one a core)",
    )


def _device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        choices=DEVICES,
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
