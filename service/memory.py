"""What the C library's allocator keeps, and what Python's collector of cycles goes through."""

from __future__ import annotations

import ctypes
import gc
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_NEVER = 2**31 - 1
# The largest that glibc takes on 64 bits (HEAP_MAX_SIZE / 2).
_LARGEST_MMAP_THRESHOLD = 32 << 20
# So many more objects than at the last collection call for the next: far more than the requests of a batch are made of.
_LOOSE_OBJECTS = 20_000


def keep_memory() -> bool:
    """Have large blocks come from memory that the process keeps; False where the C library has no such setting.

    By default glibc maps every large block anew and unmaps it when it is freed: the kernel clears each page of each
    message that comes or goes, which takes longer than everything else that is done with a message of some hundred
    kilobytes. For the whole process, before it has threads.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library without it
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def settle() -> None:
    """Leave what is there now, modules and models, out of Python's later collections of cycles, once what of it is not
    needed any more has been freed.

    A full collection goes through every object there is while all threads wait, for as long as hundreds of requests
    take, and comes every few thousand. Of the requests themselves little is left to go through. For the whole process,
    after each change of its models.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_LOOSE_OBJECTS, *gc.get_threshold()[1:])
