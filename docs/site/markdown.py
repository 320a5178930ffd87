"""A page of Markdown as what the site and its tests need of it: fenced blocks, and the prose between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"( *)(`{3,})(.*)")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Lines of a page. `language` is None for prose; of a fenced block it is what stands after the fence, or ""."""

    text: str
    line: int  # the first line, counted from 1; of a block the one after its fence
    language: str | None = None
    indent: str = ""  # what stands before the fence; `text` is without it


def parts(page: str) -> Iterator[Part]:
    """The prose and the blocks of a page, in order. Raises ValueError for a fence that is not closed."""
    lines = page.splitlines(keepends=True)
    begin, number = 0, 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if not opened:
            number += 1
            continue
        indent, fence, language = opened.groups()
        end = number + 1
        while end < len(lines) and lines[end].strip() != fence:
            end += 1
        if end == len(lines):
            raise ValueError(f"line {number + 1}: the fence is not closed")
        if number > begin:
            yield Part(text="".join(lines[begin:number]), line=begin + 1)
        text = "".join(line.removeprefix(indent) for line in lines[number + 1 : end])
        yield Part(text=text, line=number + 2, language=language.strip(), indent=indent)
        begin = number = end + 1
    if begin < len(lines):
        yield Part(text="".join(lines[begin:]), line=begin + 1)


def fenced(part: Part) -> str:
    """A block as it stands in a page."""
    lines = (part.indent + line if line.strip() else line for line in part.text.splitlines(keepends=True))
    return f"{part.indent}```{part.language}\n{''.join(lines)}{part.indent}```\n"
