"""The scenarios of `make chaos`, in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_answer_is_wrong_no_request_is_lost_and_the_service_serves(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    scenario.run(tmp_path, scenario.short)
