"""Every command in the documentation is run for real, or read by its program's own parser, or stands here with a reason;
every program in Python is run."""

from __future__ import annotations

import ast
import json
import re
import runpy
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from docs.site import markdown
from hourglass.__main__ import main as hourglass
from tests.docs import commands, parsing
from tests.docs.commands import ROOT, Command
from tests.docs.conftest import ADDRESS, placed

PAGES = commands.pages()

# Run for real, in a folder with the files that the pages speak of and against a service. All others are only parsed: they
# train, measure or serve for long, and have tests of their own.
RUN = (
    "hourglass",
    "python -c",
    "python -m service.tokens new",
    "python -m training list",
    "python -m training convert",
    "python -m training inspect pump",
    "python -m examples.sensors make",
    "python examples/onnxruntime_alone.py",
)
# What is in commands that are only parsed all the same, and why.
ONLY_PARSED = {
    "hourglass.example.org": "another service than that of the test",
    "--engine ray": "run by tests/ecosystem/test_ray.py, in an environment of its own",
    "--shard": "one share of eight; run by tests/integration/test_batch_shards.py",
    "batch join": "as --shard",
}
# What can be neither run nor parsed here, by its first word.
ELSEWHERE = {
    "$EDITOR": "an editor",
    "build/go/client": "built with Debian's Go; run by tests/ecosystem/test_go.py",
    "docker": "no daemon; the image is built and run by make image-test",
    "examples/shell/hourglass.sh": "needs buf; run by tests/ecosystem/test_shell.py",
    "examples/shell/node_modules/.bin/buf": "installed with npm, for tests/ecosystem/test_shell.py",
    "for": "pipes into kubectl",
    "jq": "not on every machine; run by tests/ecosystem/test_shell.py",
    "kubectl": "no cluster; the manifests have tests in tests/unit/deploy and tests/ecosystem",
    "node": "not on every machine; run by tests/ecosystem/test_node.py",
}


def is_run(command: Command) -> bool:
    text = " ".join(command.words).removeprefix(".venv/bin/") + " "
    return text.startswith(RUN) and not any(part in text for part in ONLY_PARSED)


def run(command: Command, places: dict[str, str]) -> int | str | None:
    """The exit code of the program, run in this process with the command's words."""
    words = [placed(word, places) for word in command.words]
    program = words[0].removeprefix(".venv/bin/")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Of runpy, where another test has imported the program.
        warnings.simplefilter("ignore", RuntimeWarning)
        for key, value in command.variables.items():
            patch.setenv(key, value)
        try:
            if program == "hourglass":
                return hourglass(words[1:])
            if words[1] == "-c":
                exec(words[2], {"__name__": "__main__"})
                return 0
            name, run_it = (words[2], runpy.run_module) if words[1] == "-m" else (words[1], runpy.run_path)
            patch.setattr(sys, "argv", words[2:] if words[1] == "-m" else words[1:])
            run_it(name, run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0


@pytest.mark.parametrize("page", [page for page in PAGES if commands.commands(page)], ids=commands.name)
def test_commands_of_a_page(
    page: Path,
    folder: Path,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = []
    for command in commands.commands(page):
        words = command.words
        if not words or words[0] == "export":  # variables for what follows
            for word in words[1:]:
                key, _, value = word.partition("=")
                monkeypatch.setenv(key, placed(value, places))
        elif is_run(command):
            capsys.readouterr()
            code = run(command, places)
            if code not in (0, None):
                wrong.append(f"{command}\nends with {code}: {capsys.readouterr().err}")
        elif words[0] not in ELSEWHERE:
            try:
                parsing.check(command)
            except parsing.Refused as error:
                wrong.append(f"{command}\nis not taken: {error}")
            except KeyError:
                wrong.append(
                    f"{command}\nno test knows {words[0]}: add it to RUN, to tests/docs/parsing.py or, with the reason "
                    "why it cannot be run, to ELSEWHERE. What a command prints is fenced as ```text"
                )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", [page for page in PAGES if [*commands.inline(page)]], ids=commands.name)
def test_commands_within_the_prose(page: Path, folder: Path) -> None:
    for command in commands.inline(page):
        try:
            parsing.check(command)
        except parsing.Refused as error:
            assert parsing.lacks_arguments_only(error), f"{command}\nis not taken: {error}"


# Programs that need a library that is not here, by its name.
LIBRARIES_ELSEWHERE = {"tritonclient": "run by tests/ecosystem/test_clients.py, in an environment of its own"}


@pytest.mark.parametrize("page", [page for page in PAGES if commands.blocks(page, "python")], ids=commands.name)
def test_programs_of_a_page(page: Path, folder: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from hourglass.sklearn import LatentTransformer
    from hourglass.torch import LatentDataset

    for kind in (LatentTransformer, LatentDataset):
        defaults = kind.__init__.__kwdefaults__
        assert defaults is not None
        assert defaults["address"] == ADDRESS
        monkeypatch.setitem(defaults, "address", places[ADDRESS])
    known = {"token": "hg_nobody", "__name__": "__main__"}
    for part in commands.blocks(page, "python"):
        # On the lines of the page, so that a traceback names them.
        program = compile("\n" * (part.line - 1) + placed(part.text, places), commands.name(page), "exec")
        if not imported(part.text) & LIBRARIES_ELSEWHERE.keys():
            exec(program, known)


def imported(program: str) -> set[str]:
    """The libraries that a program imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(program)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.split(".")[0] for name in names}
    return found


def test_other_blocks_are_what_they_say() -> None:
    readers: dict[str, Callable[[str], object]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    for page in PAGES:
        for part in commands.blocks(page, *readers):
            readers[part.language or ""](part.text)
        for part in markdown.parts(page.read_text(encoding="utf-8")):
            assert part.language in {None, "", "sh", "bash", "python", "text", "math", *readers}, (
                f"{commands.name(page)}:{part.line}: no test knows blocks of {part.language}"
            )


def test_the_examples_of_help_are_taken() -> None:
    count = 0
    for path in (path for folder in commands.FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for examples in re.findall(r"^examples:\n((?:  .+\n)+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            for command in commands.of_block(examples, 1, commands.name(path)):
                parsing.check(command)
                count += 1
    assert count > 25


def test_files_that_commands_name_are_there() -> None:
    for page in PAGES:
        for command in commands.commands(page):
            # Of make they are targets.
            for word in command.words if command.words[:1] != ("make",) else ():
                if (
                    "/" in word
                    and "node_modules" not in word
                    and word.split("/")[0] in {*commands.FOLDERS, "tests"} - {"models"}
                ):
                    assert (ROOT / word).exists(), f"{command}: there is no {word}"


def test_every_reason_is_needed() -> None:
    shown = [command for page in PAGES for command in commands.commands(page) if command.words]
    assert set(ELSEWHERE) <= {command.words[0] for command in shown}
    lines = [" ".join(command.words).removeprefix(".venv/bin/") for command in shown]
    for prefix in RUN:
        assert any(line.startswith(prefix) for line in lines), f"RUN has {prefix}, which no page shows"
    assert len(shown) > 60  # the blocks are found at all


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("make nothing", "No rule to make target"),
        ("make bench ARGS=--nothing", "--nothing"),
        ("make train RECIPE=deep ARGS='--data digits --epoch 3x'", "--epoch"),
        ("hourglass encode a.npy b.npy --modell x", "--modell"),
        ("python -m service --portt 1", "--portt"),
        ("python -m service --tls-cert a.pem", "--tls-cert and --tls-key go together"),
        ("python -m training train deep --set network.latents=3", "latents"),
        ("python -m training train nothing", "nothing"),
        ("python -m benchmarks.nothing", "benchmarks.nothing"),
        ("python -m benchmarks.reproduction run x --protocol theirs", "theirs"),
        ("python examples/nothing.py", "examples/nothing.py"),
        ("torchrun --nproc-per-node=2 -m training train conv --nothing", "--nothing"),
        ("pip install './client[nothing]'", "no extra nothing"),
        ("apt-get install --nothing", "--nothing"),
        ("python3 -m zipfile --nothing", "is required"),
    ],
)
def test_a_wrong_command_is_found(line: str, says: str) -> None:
    (command,) = commands.of_line(line, 1, "page.md")
    with pytest.raises(parsing.Refused, match=says):
        parsing.check(command)


@pytest.mark.parametrize("line", ["make run ARGS=--help", "hourglass --help", "python -m benchmarks.batch --help"])
def test_help_is_a_right_command(line: str) -> None:
    (command,) = commands.of_line(line, 1, "page.md")
    parsing.check(command)


def test_a_block_is_split_as_a_shell_does() -> None:
    text = "A=1 make run ARGS='a b'  # why 'this'\n\nmake x && docker tag a \\\n  b | cat > c\nfor a in b; do\n  it\ndone\n"
    found = [*commands.of_block(text, 10, "page.md")]
    assert [(command.line, command.words) for command in found] == [
        (10, ("make", "run", "ARGS=a b")),
        (12, ("make", "x")),
        (12, ("docker", "tag", "a", "b")),
        (12, ("cat",)),
        (14, ("for", "a", "in", "b;", "do")),
    ]
    assert found[0].variables == {"A": "1"}
    with pytest.raises(ValueError, match=r"page.md:3: is not a command"):
        list(commands.of_block('it said "so\n', 3, "page.md"))
