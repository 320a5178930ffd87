"""The pages of the site from the Markdown of the repository, where each text stands once.

Links between files become links between pages; a link to a file that is no page becomes its name. Formulas, in the form
that GitHub shows (```math and $`...`$), become MathML, which browsers draw without a script. What goes on with an item
of a list after an empty line is indented by two spaces there, and by four here.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from urllib.parse import urlsplit

from latex2mathml import converter

from docs.site import api, markdown, python

ROOT = Path(__file__).resolve().parents[2]

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_IMAGE = re.compile(r'(<img src=")([^"]+)(")')
_FORMULA = re.compile(r"\$`([^`]+)`\$")
_CONTINUED = re.compile(r"(?:\A|(?<=\n))\n((?: {2}\S.*\n)+)")
_HEADING = re.compile(r"^## ", re.MULTILINE)


class PageError(Exception):
    """A page cannot be made: the text names the file and the rule."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of the repository, or its part: what comes before the first section, or the sections after it."""

    path: str
    part: str = "all"  # all, head, sections
    title: str = ""  # of a part that has none


# Beside docs/*.md, each of which is a page of its own name.
SOURCES = {
    "index.md": Source(path="README.md", part="head"),
    "quick_start.md": Source(path="README.md", part="sections", title="Quick start"),
    "client.md": Source(path="client/README.md"),
    "packages.md": Source(path="models/README.md"),
    "examples.md": Source(path="examples/README.md"),
    "changelog.md": Source(path="CHANGELOG.md"),
    "contributing.md": Source(path="CONTRIBUTING.md"),
}
# What is linked to in the repository and has its place in the site elsewhere.
ELSEWHERE = {
    "proto/autoencoder/v1/autoencoder.proto": "api/autoencoder.md",
    "proto/autoencoder/v1/admin.proto": "api/admin.md",
    "proto/autoencoder/v1/model.proto": "api/model.md",
    "deploy": "deployment.md",
}


def assemble(out: Path, root: Path = ROOT) -> list[Path]:
    """Write all pages and the pictures that they show into the folder `out`, which is made anew. Raises PageError."""
    shutil.rmtree(out, ignore_errors=True)
    own = {path.name: Source(path=f"docs/{path.name}") for path in sorted((root / "docs").glob("*.md"))}
    for name in own.keys() & SOURCES.keys():
        raise PageError(f"docs/{name}: the site has a page of that name already, from {SOURCES[name].path}")
    written = []
    for name, source in (own | SOURCES).items():
        written.append(_write(out / name, _Page(name, source, out, root).text()))
    for name, text in (api.pages(root) | python.pages(root)).items():
        written.append(_write(out / name, text))
    shutil.copyfile(Path(__file__).with_name("site.css"), out / "site.css")
    return written


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class _Page:
    """One page under way: its name in the site, where its text comes from, and where pictures are copied to."""

    def __init__(self, name: str, source: Source, out: Path, root: Path) -> None:
        self._name, self._source, self._out, self._root = name, source, out, root

    def text(self) -> str:
        whole = (self._root / self._source.path).read_text(encoding="utf-8")
        try:
            parts = list(markdown.parts(_cut(whole, self._source)))
        except ValueError as error:
            raise PageError(f"{self._source.path}: {error}") from error
        return "".join(self._prose(part.text) if part.language is None else self._block(part) for part in parts)

    def _prose(self, text: str) -> str:
        # In a span, since Markdown takes a line that begins with <math> for a block of its own.
        text = _FORMULA.sub(lambda found: f"<span>{mathml(found[1])}</span>", text)
        text = _CONTINUED.sub(lambda found: f"\n{indent(found[1], '  ')}\n", text)
        text = _IMAGE.sub(lambda found: found[1] + self._copied(self._resolved(found[2])) + found[3], text)
        return _LINK.sub(self._link, text)

    def _block(self, part: markdown.Part) -> str:
        if part.language == "math":
            return f"{part.indent}<div>{mathml(part.text, display='block')}</div>\n"
        return markdown.fenced(replace(part, indent=part.indent * 2))

    def _link(self, found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        url = urlsplit(target)
        if url.scheme or not url.path:
            return found[0]
        path = self._resolved(url.path)
        if picture:
            return f"![{label}]({self._copied(path)})"
        page = _page_of(path)
        if page:
            anchor = f"#{url.fragment}" if url.fragment else ""
            return f"[{label}]({self._relative(page)}{anchor})"
        if path.endswith(".png"):
            return f"[{label}]({self._copied(path)})"
        return f"`{path}`" if label.strip("`") == path else f"{label} (`{path}`)"

    def _resolved(self, target: str) -> str:
        """The file that a link points at, from the root of the repository."""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self._source.path), target))
        if path.startswith("..") or not (self._root / path).exists():
            raise PageError(f"{self._source.path}: links to {target}, and there is no {path}")
        return path

    def _copied(self, path: str) -> str:
        """A picture's place in the site, where it is copied to, as the page sees it."""
        place = self._out / "pictures" / Path(path).relative_to(Path(path).parts[0])
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._root / path, place)
        return self._relative(place.relative_to(self._out).as_posix())

    def _relative(self, place: str) -> str:
        return posixpath.relpath(place, posixpath.dirname(self._name) or ".")


def _cut(text: str, source: Source) -> str:
    first = _HEADING.search(text)
    if source.part == "all" or first is None:
        return text
    return text[: first.start()] if source.part == "head" else f"# {source.title}\n\n{text[first.start() :]}"


def _page_of(path: str) -> str | None:
    """The page that a file of the repository is, if it is one."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    for name, source in SOURCES.items():
        if source.path == path:
            return name
    return Path(path).name if Path(path).parent == Path("docs") and path.endswith(".md") else None


def mathml(formula: str, display: str = "inline") -> str:
    """A formula of LaTeX as MathML."""
    return converter.convert(formula.strip(), display=display)
