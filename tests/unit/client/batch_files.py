"""What the tests of `hourglass batch` share: the same rows in every format, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from PIL import Image

from tests.unit.client.fake_service import ALL, FakeService, card

ROWS = np.random.default_rng(11).integers(0, 256, (23, 4, 5), np.uint8)
FLOATS = ROWS / np.float32(255)

Run = Callable[..., tuple[int, str, str]]


def denoiser() -> FakeService:
    return FakeService(card("denoiser", row_shape=(4, 5), latent_units=3, operations=(*ALL, "DENOISE")))


def write_inputs() -> None:
    """ROWS in every format, into the current directory."""
    np.save("rows.npy", ROWS)
    np.save("floats.npy", FLOATS)
    flat = arrow.array(ROWS.reshape(23, 20).tolist(), arrow.list_(arrow.uint8()))
    fixed = arrow.FixedSizeListArray.from_arrays(arrow.array(FLOATS.ravel()), 20)
    parquet.write_table(arrow.table({"id": list(range(23)), "pixels": flat}), "rows.parquet", row_group_size=7)
    parquet.write_table(arrow.table({"name": ["x"] * 23, "pixels": fixed, "more": flat}), "two.parquet")
    Path("pictures/deep").mkdir(parents=True)
    for number, pixels in enumerate(ROWS):
        Image.fromarray(pixels).save(f"pictures/{'deep/' * (number >= 20)}{number:02}.png")
    # Sorted by name: the folder `deep` comes after the digits.
    Path("pictures/notes.txt").write_text("no picture")


def rows_asked(service: FakeService) -> int:
    return sum(request.rows.shape[0] for request in service.requests if hasattr(request, "rows"))


def read_parquet(path: str, shape: tuple[int, ...] = ()) -> dict[str, Any]:
    table = parquet.read_table(path)
    assert table["row"].to_pylist() == list(range(len(table)))
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        is_list = arrow.types.is_fixed_size_list(column.type)
        values = column.flatten().to_numpy() if is_list else column.to_numpy(zero_copy_only=False)
        found[name] = values.reshape(len(table), -1) if is_list else values
    return found
