"""The site is built, whole, from nothing that lies elsewhere."""

from __future__ import annotations

import inspect
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from mkdocs.exceptions import Abort
from PIL import Image

import hourglass
from autoencoder.v1 import admin_pb2, autoencoder_pb2, model_pb2
from docs.site import api, markdown, pages, pictures
from docs.site.__main__ import render
from tests.docs.commands import ROOT
from training import recipes

# What a browser fetches by itself; a link is only followed by people.
FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
MOST_BYTES = 1_000_000  # of the pictures of the concepts
# Of 255; another model in one of three lines is 2.8. Another processor may round a pixel otherwise.
LARGEST_MEAN_DIFFERENCE = 1.0


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    pages.assemble(folder)
    return folder


@pytest.fixture(scope="module")
def site(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    render(sources, folder)
    return folder


class Page(HTMLParser):
    """What a page fetches, where it links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        if tag in FETCHED and given.get("rel") != "canonical":
            self.fetched.append(given.get(FETCHED[tag], ""))
        if tag == "a":
            self.links.append(given.get("href", ""))
        self.anchors.add(given.get("id", ""))


def test_nothing_is_fetched_from_elsewhere_and_everything_is_there(site: Path) -> None:
    found = list(site.rglob("*.html"))
    assert len(found) > 20
    for path in found:
        for url in filter(None, Page(path).fetched):
            assert not re.match(r"(https?:)?//", url), f"{path}: fetches {url}"
            # The page of errors is shown at any address, so that its own are from the root.
            if path.name != "404.html":
                assert (path.parent / url.split("?")[0].split("#")[0]).exists(), f"{path}: there is no {url}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    read = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in read.items():
        for url in page.links:
            place, _, anchor = url.partition("#")
            if re.match(r"\w+:", place):
                continue
            target = (path.parent / place).resolve() if place else path
            assert target.is_file(), f"{path}: links to {url}"
            assert not anchor or anchor == "__skip" or anchor in read[target].anchors, f"{path}: no anchor {url}"


def test_no_markdown_is_left_as_it_was(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|script|style).*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"^(<p>)?([-*+|] |\d+\. |#+ )|```|\$`|\]\(", text, re.MULTILINE), path


def test_every_element_of_the_protos_is_described(site: Path) -> None:
    for name, text in api.pages().items():
        anchors = Page((site / name).with_suffix(".html")).anchors
        for heading in re.findall(r"\{#(.+)\}", text):
            assert heading in anchors
        for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
            assert not row.endswith("|  |"), f"{name}: no comment on {row}"
    for file in (autoencoder_pb2, model_pb2, admin_pb2):
        text = api.pages()[f"api/{Path(file.DESCRIPTOR.name).stem}.md"]
        for message in file.DESCRIPTOR.message_types_by_name.values():
            section = text.split(f"{{#{message.name}}}")[1].split("\n## ")[0]
            assert [*re.findall(r"^\| `(\w+)` \| (\d+)", section, re.MULTILINE)] == [
                (field.name, str(field.number)) for field in message.fields
            ], message.name
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"### {method.name} {{#{service.name}.{method.name}}}" in text


def test_the_comments_are_those_of_the_proto() -> None:
    text = api.pages()["api/autoencoder.md"]
    assert "Rows of numbers: row-major, little-endian, no padding." in text
    assert "| `rows` | 2 | [`Tensor`](autoencoder.md#Tensor) | Rows of the model's input shape. |" in text
    assert "stream of [`StreamRequest`](autoencoder.md#StreamRequest) →" in text
    assert "map of `string` to `string`" in api.pages()["api/model.md"]
    assert "```text\n  INVALID_ARGUMENT     the request is wrong" in text


def test_every_public_name_of_the_client_is_described(site: Path) -> None:
    anchors = Page(site / "python.html").anchors
    for name in hourglass.__all__:
        assert f"hourglass.{name}" in anchors
    for name, _ in inspect.getmembers(hourglass.Client, inspect.isfunction):
        if not name.startswith("_"):
            assert f"hourglass.Client.{name}" in anchors


def test_every_recipe_has_a_concept_with_formula_and_picture() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    sections = [section for section in text.split("\n## ") if re.search(r"^Recipes? `", section, re.MULTILINE)]
    named = [name for section in sections for name in re.findall(r"`([\w-]+)`", section.split(". ")[0])]
    assert sorted(named) == sorted(recipes.names())
    for section in [*sections, text.split("\n## Interpolation")[1].split("\n## ")[0]]:
        assert "```math\n" in section
        assert "**When.**" in section
        assert "](concepts/" in section


def test_the_pictures_are_what_the_packages_give(tmp_path: Path) -> None:
    drawn = pictures.draw(tmp_path, ROOT / "models")
    committed = sorted(pictures.FOLDER.iterdir())
    assert sorted(path.name for path in drawn) == [path.name for path in committed]
    assert sum(path.stat().st_size for path in committed) < MOST_BYTES
    for path in drawn:
        new, old = (np.asarray(Image.open(one).convert("RGB"), float) for one in (path, pictures.FOLDER / path.name))
        assert new.shape == old.shape, path.name
        assert np.abs(new - old).mean() < LARGEST_MEAN_DIFFERENCE, f"{path.name}: run python -m docs.site.pictures"


@pytest.mark.parametrize(
    ("addition", "says"),
    [
        ("\n[x](training.md#nowhere)\n", "does not contain an anchor '#nowhere'"),
        ("\n[x](nowhere.md)\n", "nowhere.md"),
        (None, "new.md"),  # a page that is not in the navigation
    ],
)
def test_a_site_with_a_fault_is_not_built(
    sources: Path, tmp_path: Path, addition: str | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = tmp_path / "pages"
    shutil.copytree(sources, wrong, ignore=shutil.ignore_patterns("python.md"))
    (wrong / "python.md").write_text("# Python\n")
    with open(wrong / "new.md" if addition is None else wrong / "changelog.md", "a", encoding="utf-8") as file:
        file.write(addition or "# New\n")
    with pytest.raises(Abort):
        render(wrong, tmp_path / "site")
    assert says in caplog.text


def tree(folder: Path, readme: str) -> Path:
    """The least repository that has all sources, with that README."""
    for source in pages.SOURCES.values():
        path = folder / source.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# Title\n")
    (folder / "README.md").write_text(readme)
    (folder / "docs").mkdir()
    (folder / "docs" / "a.md").write_text(
        "# A\n\n[the code](../code.py), [`code.py`](../code.py), [b](../client/README.md#x)\n\n- a\n\n  ```text\n  b\n  ```\n\n  c\n- d\n"
    )
    (folder / "code.py").write_text("")
    for name in ("proto", "client/hourglass"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_links_of_the_repository_become_links_of_the_site(tmp_path: Path) -> None:
    readme = "# Title\n\n[a](docs/a.md) [b](#use)\n\n```\n[c](nowhere.md)\n```\n\n## Use\n\n$`a^2`$ is a sum.\n\n```math\nb\n```\n"
    pages.assemble(tmp_path / "out", tree(tmp_path / "tree", readme))
    assert (
        tmp_path / "out" / "index.md"
    ).read_text() == "# Title\n\n[a](a.md) [b](#use)\n\n```\n[c](nowhere.md)\n```\n\n"
    quick_start = (tmp_path / "out" / "quick_start.md").read_text()
    assert quick_start.startswith("# Quick start\n\n## Use\n\n<span><math")
    assert 'display="block"' in quick_start
    assert (
        (tmp_path / "out" / "a.md").read_text()
        == "# A\n\nthe code (`code.py`), `code.py`, [b](client.md#x)\n\n- a\n\n    ```text\n    b\n    ```\n\n    c\n\n- d\n"
    )


def test_a_link_to_nothing_is_named_with_its_page(tmp_path: Path) -> None:
    with pytest.raises(pages.PageError, match=r"README.md: links to nowhere.md, and there is no nowhere.md"):
        pages.assemble(tmp_path / "out", tree(tmp_path / "tree", "# Title\n\n[x](nowhere.md)\n"))


def test_no_page_takes_the_place_of_another(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", "# Title\n")
    (root / "docs" / "client.md").write_text("# Another\n")
    with pytest.raises(
        pages.PageError, match=r"docs/client.md: the site has a page of that name already, from client/README.md"
    ):
        pages.assemble(tmp_path / "out", root)


def test_a_fence_that_is_not_closed_is_found() -> None:
    with pytest.raises(ValueError, match="line 2: the fence is not closed"):
        list(markdown.parts("a\n```\nb\n"))
