"""The command line: `python -m docs.site`; `make docs`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, ConfigurationError

from docs.site.pages import ROOT, PageError, assemble

PAGES = ROOT / "build" / "pages"
SITE = ROOT / "build" / "site"


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m docs.site",
        description="Write the documentation's site into build/site: pages from the Markdown of the repository, the "
        "API reference from the comments of the .proto files, the Python reference from the client's docstrings. A "
        "link or anchor that leads nowhere, and a page that mkdocs.yml does not name, end the build.",
    )


def render(pages: Path, out: Path) -> None:
    """The pages as a site. Raises Abort, with what MkDocs warned of in the log."""
    config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(pages), site_dir=str(out), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()


def main(arguments: list[str] | None = None) -> int:
    parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        assemble(PAGES)
        render(PAGES, SITE)
    except (PageError, Abort, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {SITE}: open {SITE / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
