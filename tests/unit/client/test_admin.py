"""What the administrators' client refuses before it asks; what it does is tested on a real service."""

from __future__ import annotations

from typing import Any

import pytest

import hourglass


@pytest.mark.parametrize(
    ("method", "arguments", "says"),
    [
        ("versions", {"name": 5}, "name, label: must be text"),
        ("load", {"name": None}, "model, version: must be text; got None"),
        ("unload", {"name": "\ud800"}, "model, version: must be text"),
        ("label", {"name": "tiny", "label": 5, "version": 1}, "name, label: must be text"),
        ("rollback", {"name": "tiny", "label": "\ud800"}, "name, label: must be text"),
        ("reload", {"name": "tiny", "timeout_s": "soon"}, "timeout_s: must be a positive number of seconds"),
    ],
)
def test_a_wrong_argument_is_named(method: str, arguments: dict[str, Any], says: str) -> None:
    with hourglass.AdminClient("127.0.0.1:1") as admin, pytest.raises(hourglass.InvalidArgument, match=says):
        getattr(admin, method)(**arguments)
