"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.options import add_rounds


def test_a_median_of_no_rounds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_rounds(parser, 3)
    assert parser.parse_args([]).rounds == 3
    assert parser.parse_args(["--rounds", "1"]).rounds == 1
    for text in ("0", "-1", "three"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--rounds", text])
        assert f"must be a whole number from 1; got '{text}'" in capsys.readouterr().err
