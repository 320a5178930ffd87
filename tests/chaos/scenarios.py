"""What is done to the service, for how long in the tests and for how long by `make chaos`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import clients, clock, files, life_cycle, memory


@dataclass(frozen=True)
class Scenario:
    """`run(folder, length)` raises AssertionError for a wrong answer, a lost request or a service that does not serve
    afterwards, SkipTest where something that it needs is not here, and returns figures. `folder`: an empty one of its
    own."""

    run: Callable[[Path, int], dict[str, float]]
    unit: str
    short: int
    long: int


SCENARIOS = {
    scenario.run.__name__.replace("_", "-"): scenario
    for scenario in (
        Scenario(life_cycle.reloads, "reloads", 10, 200),
        Scenario(life_cycle.stops_of_one_of_two, "stops", 2, 50),
        Scenario(life_cycle.stops_without_retries, "stops", 2, 50),
        Scenario(life_cycle.workers_killed, "kills", 1, 20),
        Scenario(clients.clients_killed, "clients", 2, 40),
        Scenario(clients.slow_readers, "streams", 2, 16),
        Scenario(clients.slow_loris, "connections of each kind", 20, 200),
        Scenario(clients.short_deadlines, "calls", 200, 10_000),
        Scenario(clients.overload, "seconds", 1, 60),
        Scenario(files.truncated_during_load, "loads", 10, 200),
        Scenario(files.corrupted_package, "packages", 6, 100),
        Scenario(files.full_disk, "labels", 3, 50),
        Scenario(files.expired_certificate, "certificates", 1, 10),
        Scenario(clock.clock_jumps, "jumps", 1, 20),
        Scenario(memory.little_memory, "large requests", 24, 400),
        Scenario(memory.memory_of_a_group, "large requests", 24, 400),
        Scenario(memory.memory_for_all_but_one, "large requests", 5, 200),
        Scenario(memory.leaks, "requests", 2_000, 1_000_000),
    )
}
