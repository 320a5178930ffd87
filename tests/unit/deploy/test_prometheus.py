"""The rules and their runbook, by themselves; tests/integration/test_prometheus.py has them read a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.unit.deploy.configuration import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


TESTS = ("tests.yml", "tests_of_days.yml")
ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=PROMETHEUS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@needs_promtool
def test_the_rules_pass_their_own_tests() -> None:
    promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("test", "rules", *TESTS)


def test_every_alert_is_shown_to_fire_and_to_stay_silent() -> None:
    cases = [
        case
        for name in TESTS
        for test in yaml.safe_load((PROMETHEUS / name).read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(ALERTS)


def test_every_recording_rule_is_used() -> None:
    dashboard = (ROOT / "deploy" / "grafana" / "dashboard.json").read_text()
    users = dashboard + "".join(rule["expr"] for rule in ALERTS.values())
    assert not {rule["record"] for rule in rules("recording.yml") if rule["record"] not in users}


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_an_entry_in_the_runbook_and_links_to_it(name: str) -> None:
    path, _, anchor = ALERTS[name]["annotations"]["runbook"].partition("#")
    entries = re.split(r"^## ", (ROOT / path).read_text(), flags=re.MULTILINE)[1:]
    (entry,) = [entry for entry in entries if entry.splitlines()[0].strip() == name]
    assert anchor == name.lower()
    for part in ("**Means**", "**Look at**", "**Do**"):
        assert part in entry


def test_the_runbook_has_no_entry_for_an_alert_that_is_no_more() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings == list(ALERTS)
