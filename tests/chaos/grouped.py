"""The service in the control group whose folder is $CHAOS_GROUP: python -m tests.chaos.grouped FLAGS..."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from tests.chaos.groups import VARIABLE

if __name__ == "__main__":
    (Path(os.environ[VARIABLE]) / "cgroup.procs").write_text("0")  # this process
    runpy.run_module("service", run_name="__main__", alter_sys=True)
