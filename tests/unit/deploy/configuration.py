"""What the tests of deploy/ share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from service import settings
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[3]
# After the lame-duck delay and the drain: sessions and ports are closed.
CLOSING_S = 5.0


def environment_settings(environment: Mapping[str, str]) -> Settings:
    """What the service makes of an environment, of which it must know every variable."""
    known = {PREFIX + setting.name.upper() for setting in fields(Settings)}
    unknown = {name for name in environment if name.startswith(PREFIX)} - known
    assert not unknown, f"no settings of the service: {unknown}"
    return settings.read([], environment)


def image_instructions() -> dict[str, list[str]]:
    """The instructions of the Dockerfile's last stage, by name."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    last_stage = text[text.rindex("\nFROM ") :]
    instructions = defaultdict(list)
    for line in last_stage.splitlines():
        name, _, rest = line.strip().partition(" ")
        if name and not name.startswith("#"):
            instructions[name].append(rest.strip())
    return instructions
