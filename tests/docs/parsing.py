"""Commands read by the parsers of the programs that they name, without doing what they say.

A program is run as far as its arguments: `parse_args` of argparse does its work and then ends the program. So a flag that does
not exist, a wrong choice or a missing argument is found, for every program that uses argparse, and nothing else happens.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

from service import settings
from tests.docs.commands import ROOT, Command, of_line
from training import __main__ as training_command
from training import commands as training_commands
from training.errors import TrainingError

_INTERPRETER = ".venv/bin/python"
_NOT_OURS = {"grpc_tools.protoc"}  # modules that recipes of the Makefile run
_WITHOUT_ARGPARSE = ("benchmarks.echo", "service.healthcheck")  # they take what stands there, or nothing
_REQUIRED = "the following arguments are required"
_PROJECTS = {"hourglass": ROOT / "pyproject.toml", "hourglass-client": ROOT / "client" / "pyproject.toml"}


class Refused(Exception):
    """The program does not take these arguments; the text is its own."""


class _Parsed(BaseException):
    """The arguments were taken."""


def check(command: Command) -> None:
    """Raises Refused, or KeyError where no parser for the program is known."""
    words = list(command.words)
    program = words[0].removeprefix(".venv/bin/")
    PARSERS[program](words[1:])


def make(words: Sequence[str]) -> None:
    """The target exists, and what it runs takes the arguments that it is given."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    # ENGINE, so that no container engine is looked for.
    shown = subprocess.run(
        ["make", "--dry-run", "ENGINE=docker", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if shown.returncode != 0:
        raise Refused(shown.stderr.strip())
    for line in shown.stdout.replace("\\\n", " ").splitlines():
        for command in of_line(line, 1, f"make {shlex.join(words)}"):
            run = [word for word in command.words if word != "exec"]
            if run[:1] == [_INTERPRETER] and not {*run} & _NOT_OURS:
                python(run[1:])


def python(words: Sequence[str]) -> None:
    if words[0] != "-m":
        return _parse(ROOT / words[0], words[0], words[1:])
    if len(words) < 2:
        raise Refused("python -m: which module?")
    module, arguments = words[1], list(words[2:])
    if module in _MODULES:
        return _MODULES[module](arguments)
    folder = Path(sysconfig.get_path("stdlib")) if module.split(".")[0] in sys.stdlib_module_names else ROOT
    whole, package = folder / f"{module.replace('.', '/')}.py", folder / module.replace(".", "/") / "__main__.py"
    if module not in _WITHOUT_ARGPARSE or not whole.exists():
        _parse(package if package.exists() else whole, module, arguments)
    return None


def service(arguments: Sequence[str]) -> None:
    """With the rules between settings, which `python -m service` looks at after it has parsed them."""
    with _refusing():
        settings.read(arguments, {})


def training(arguments: Sequence[str]) -> None:
    """With the recipe, and what `--set` changes in it, where the recipe is one that there is."""
    with _refusing():
        options = training_command.parser().parse_args(arguments)
    if options.command == "train" and (not options.recipe.endswith(".toml") or Path(options.recipe).exists()):
        try:
            training_commands._resolve(options.recipe, options)
        except TrainingError as error:
            raise Refused(str(error)) from error


def hourglass(arguments: Sequence[str]) -> None:
    _parse(ROOT / "client" / "hourglass" / "__main__.py", "hourglass", arguments)


def torchrun(arguments: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    with _refusing():
        options = get_args_parser().parse_args(list(arguments))
    python([*(["-m"] if options.module else []), options.training_script, *options.training_script_args])


def pip(arguments: Sequence[str]) -> None:
    """What is installed is a requirement, and the extras of our own projects exist."""
    if arguments[0] != "install" or any(argument.startswith("-") for argument in arguments):
        raise Refused(f"pip install REQUIREMENT... is known here; got {shlex.join(arguments)}")
    for argument in arguments[1:]:
        try:
            wanted = Requirement(argument.replace("./client", "hourglass-client"))
        except InvalidRequirement as error:
            raise Refused(f"{argument}: {error}") from error
        if wanted.name in _PROJECTS:
            project = tomllib.loads(_PROJECTS[wanted.name].read_text(encoding="utf-8"))["project"]
            unknown = wanted.extras - project["optional-dependencies"].keys()
            if unknown:
                raise Refused(f"{argument}: has no extra {', '.join(unknown)}")


def apt_get(arguments: Sequence[str]) -> None:
    """What is installed are names; whether there are such packages is not asked."""
    if arguments[0] != "install" or not all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name) for name in arguments[1:]):
        raise Refused(f"apt-get install PACKAGE... is known here; got {shlex.join(arguments)}")


PARSERS: dict[str, Callable[[Sequence[str]], None]] = {
    "apt-get": apt_get,
    "hourglass": hourglass,
    "make": make,
    "pip": pip,
    "python": python,
    "python3": python,
    "torchrun": torchrun,
}
_MODULES: dict[str, Callable[[Sequence[str]], None]] = {"service": service, "training": training}


def _parse(program: Path, name: str, arguments: Sequence[str]) -> None:
    """Run a program until its arguments are parsed. Raises Refused where it is not there or does not take them."""
    if not program.is_file():
        raise Refused(f"there is no {program}")
    # Without a parser it would run, and do what it does.
    if ".parse_args(" not in program.read_text(encoding="utf-8"):
        raise Refused(f"{name}: does not parse its arguments with argparse")
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(self: argparse.ArgumentParser, *given: object, **named: object) -> None:
        parse(self, *given, **named)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patch, _refusing():
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(program), run_name="__main__")
        except _Parsed:
            return
        except SystemExit as end:
            if end.code == 0 and "--help" in arguments:
                return
            raise
    raise AssertionError(f"{name}: ran, though only its arguments were to be parsed")


@contextmanager
def _refusing() -> Iterator[None]:
    """What argparse says, and ends the program with, becomes Refused."""
    with pytest.MonkeyPatch.context() as patch:

        def error(parser: argparse.ArgumentParser, message: str) -> None:
            raise Refused(f"{parser.prog}: {message}")

        patch.setattr(argparse.ArgumentParser, "error", error)
        try:
            yield
        except SystemExit as end:
            if end.code not in (0, None):
                raise Refused(str(end.code)) from end


def lacks_arguments_only(error: Refused) -> bool:
    """Whether nothing is wrong but that arguments are missing, as in prose that names a command alone."""
    return _REQUIRED in str(error)
