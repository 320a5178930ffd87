"""How many CPUs and processes."""

from __future__ import annotations

import os

from service.cores import cpu_limit, worker_count


def test_the_cpu_limit_is_at_least_one_and_at_most_the_machine() -> None:
    assert 1 <= cpu_limit() <= (os.cpu_count() or 1)


def test_workers_are_a_number_or_one_a_cpu_and_one_on_a_gpu() -> None:
    assert worker_count("3", "cuda") == 3
    assert worker_count("auto", "cpu") == cpu_limit()
    assert worker_count("auto", "cuda") == 1
