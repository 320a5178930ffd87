"""What the collector of cycles goes through. In a process of its own: it is one for all."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc, weakref
from service.memory import settle

class Model:
    def __init__(self):
        self.itself = self

gc.disable()
first = Model()
freed = weakref.ref(first)
settle()
assert gc.get_freeze_count() > 1000, gc.get_freeze_count()
del first
gc.collect()
assert freed() is not None, "full collections go through what has settled"
settle()
assert freed() is None, "what is not needed any more stays for ever"
"""


def test_what_has_settled_is_left_out_of_collections_until_the_next_change() -> None:
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True, timeout=60)
