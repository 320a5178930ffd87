"""bytes of a recipe in TOML -> a recipe that can be written down and read again, or RecipeError"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.plans import NAME
from training import recipes
from training.errors import RecipeError

SHIPPED = ("contractive", "conv", "pca", "stacked")


@contextmanager
def opened(folder: Path) -> Iterator[Callable[[bytes], None]]:
    path = folder / "mine.toml"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            recipe = recipes.load(str(path))
        except RecipeError as error:
            assert all(line.startswith("mine.toml: ") for line in str(error).split("\n")), error
            assert len(str(error)) < 65536, f"{len(str(error))} characters of text"
            return
        # It names a package.
        assert NAME.fullmatch(recipe.model_name), recipe.model_name
        assert recipes.check(recipe.model_dump(mode="json"), where="again") == recipe

    yield one


def seeds() -> dict[str, bytes]:
    shipped = {name: (recipes.FOLDER / f"{name}.toml").read_bytes() for name in SHIPPED}
    own = b'[data]\nname = "own"\npath = "a.csv"\nkind = "series"\ncolumns = ["a"]\nwindow = 8\nstride = 2\n'
    series = b'[network]\nkind = "conv1d"\nchannels = [4]\n[loss]\nkind = "squared-error"\n'
    joint = b'[procedure]\nkind = "joint"\nepochs = 1\nschedule = "step"\nstep_epochs = 1\nstep_factor = 0.5\n'
    return shipped | {
        "series": b'description = "d"\n' + own + series + joint,
        "deep_list": b"a = " + b"[" * 3000,
        "deep_table": b"a = " + b"{a = " * 500,
        "deep_key": b".".join([b"a"] * 3000) + b" = 1",
        "long_number": b"seed = " + b"9" * 5000,
        "long_hexadecimal": b"seed = 0x" + b"f" * 8000,
        "large_number": b"seed = 0x" + b"f" * 3500,
        "not_numbers": b"seed = nan\n[procedure]\nkind = 'joint'\nepochs = -inf\n",
        "date": b"seed = 2020-01-01",
        "long_text": b'description = 1\nname = "' + b"n" * 8000 + b'"',
        "line_break": b'"a\\nb" = 1',
    }
