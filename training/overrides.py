"""A recipe's values by dotted keys, ("network.latent", 16): overrides of the command line, and what differs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from training.errors import RecipeError


def parse(text: str) -> tuple[str, Any]:
    """`network.latent=16` as ("network.latent", 16); the value is TOML, or else text."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key or not value:
        raise RecipeError(f"--set: must be KEY=VALUE, such as network.latent=16; got {text!r}")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key, value


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested tables by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            values |= {f"{key}.{inner}": deeper for inner, deeper in flat(value).items()}
        else:
            values[key] = value
    return values
