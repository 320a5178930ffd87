"""The commands and the programs that the documentation shows, as they stand in the Markdown of the repository.

A fenced block without a language is commands of a shell; what they print, and drawings, are ```text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docs.site import markdown

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "client", "deploy", "docs", "examples", "models", "proto", "service", "training")

_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_NOT_OURS = re.compile(r"models/[^/]+/\d+/|/node_modules/|/\.venv")
_VARIABLE = re.compile(r"[A-Z_]+=")
_LOOP = re.compile(r"\s*(for|while|if|\{)\s")
_OPERATORS = {"&&", "||", "|", ";"}
_REDIRECTIONS = {"<", ">", ">>"}
_PROGRAMS = ("apt-get", "make", "pip", "python", ".venv/bin/python", "hourglass", ".venv/bin/hourglass", "torchrun")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: `words` after the variables that stand before it."""

    page: str
    line: int
    words: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def pages() -> list[Path]:
    """Every page of Markdown that is written here, by hand."""
    found = [*ROOT.glob("*.md")]
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*.md")
    return sorted(path for path in found if not _NOT_OURS.search(name(path)))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[markdown.Part]:
    """The fenced blocks of a page in these languages."""
    return [part for part in markdown.parts(page.read_text(encoding="utf-8")) if part.language in languages]


def commands(page: Path) -> list[Command]:
    """The commands of a page's blocks, in order. Raises ValueError for what no shell would take."""
    return [
        command for part in blocks(page, "", "sh", "bash") for command in of_block(part.text, part.line, name(page))
    ]


def of_block(text: str, line: int, page: str) -> Iterator[Command]:
    """A loop is one command, whose first word is its keyword: what is in it depends on the loop."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        first, at = at, at + 1
        if _LOOP.match(lines[first]):
            yield Command(page=page, line=line + first, words=tuple(lines[first].split()))
            return
        whole = lines[first]
        while whole.endswith("\\") and at < len(lines):
            whole, at = whole[:-1] + lines[at], at + 1
        yield from of_line(whole, line + first, page)


def of_line(text: str, line: int, page: str) -> Iterator[Command]:
    try:
        reader = shlex.shlex(text, posix=True, punctuation_chars="&|;")
        reader.whitespace_split = True
        tokens = list(reader)
    except ValueError as error:
        raise ValueError(f"{page}:{line}: is not a command: {text!r} ({error}). Output is fenced as ```text") from error
    words: list[str] = []
    while _REDIRECTIONS & set(tokens):
        at = next(at for at, token in enumerate(tokens) if token in _REDIRECTIONS)
        del tokens[at : at + 2]
    for token in [*tokens, ";"]:
        if token not in _OPERATORS:
            words.append(token)
        elif words:
            leading = 0
            while leading < len(words) and _VARIABLE.match(words[leading]):
                leading += 1
            variables = dict(word.split("=", 1) for word in words[:leading])
            yield Command(page=page, line=line, words=tuple(words[leading:]), variables=variables)
            words = []


def inline(page: Path) -> Iterator[Command]:
    """The commands that stand within the prose, those with an ellipsis or a choice left out."""
    for part in markdown.parts(page.read_text(encoding="utf-8")):
        if part.language is not None:
            continue
        for found in _INLINE.finditer(part.text):
            text = " ".join(found[1].split())
            words = text.split()
            while words and _VARIABLE.match(words[0]):
                words.pop(0)
            if len(words) > 1 and words[0] in _PROGRAMS and "..." not in text and "|" not in text:
                line = part.line + part.text.count("\n", 0, found.start())
                yield from of_line(text, line, name(page))
