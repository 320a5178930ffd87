"""The shares that perf reports, by what they are of."""

from __future__ import annotations

import pytest

from benchmarks.call_cost import by_library, table

REPORT = """\
# Samples: 8K of event 'cpu-clock:ppp'
#
# Overhead  Shared Object
# ........  .........................
#
    40.50%  python3.11
    20.00%  cygrpc.cpython-311-x86_64-linux-gnu.so
    12.25%  onnxruntime_pybind11_state.so
    10.00%  [kernel.kallsyms]
     5.00%  libc.so.6
     4.00%  libm.so.6
     3.00%  _multiarray_umath.cpython-311-x86_64-linux-gnu.so
     2.00%  _message.abi3.so
     0.25%  libpython3.11.so.1.0
     0.10%  libother.so
"""


def test_shares_are_added_up_by_library() -> None:
    shares = by_library(REPORT)
    assert shares == pytest.approx(
        {
            "Python's interpreter": 0.4075,
            "grpc's core and its Cython layer": 0.2,
            "onnxruntime": 0.1225,
            "the kernel": 0.1,
            "the C library": 0.09,
            "numpy and protobuf": 0.05,
            "libother.so": 0.001,
        }
    )


def test_a_report_without_shares_is_refused() -> None:
    with pytest.raises(ValueError, match="no shares"):
        by_library("# nothing was sampled\n")


def test_the_table_leaves_out_less_than_a_hundredth_but_adds_it_up() -> None:
    lines = table({"service": {"b": 60.0, "a": 39.5, "rest": 0.5}, "bare echo": {"a": 20.0}}).splitlines()
    assert lines == [
        "| microseconds a call | service | bare echo |",
        "|---|---:|---:|",
        "| b | 60 | 0 |",
        "| a | 40 | 20 |",
        "| all | 100 | 20 |",
    ]
