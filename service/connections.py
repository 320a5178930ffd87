"""The connections of a listener, ended below grpc, which has no way to do so before it stops.

From the moment in which its server is stopped, grpc cancels the calls that still come on open connections, and a caller
who reads CANCELLED cannot tell that nothing was run. Where the connection has gone, the call is UNAVAILABLE, and tried
again.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")
_LOOK_S = 0.01
# From Linux's asm-generic/socket.h and filter.h: a program of one step, which keeps nothing of a packet.
_SO_ATTACH_FILTER = 26
_KEEP_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)


def end(port: int, patience_s: float) -> None:
    """Let nobody connect to `port` of this process any more, and have grpc close the connections that there are, when
    it has sent what it has to send. Returns when they are closed, or after `patience_s`.

    For addresses on Linux; elsewhere, and for unix sockets, nothing is done.
    """
    until = time.monotonic() + patience_s
    while True:
        with ExitStack() as stack:
            open_ones = 0
            for held in _sockets(port):
                stack.enter_context(held)
                # It may be gone by now: then there is nothing to do.
                with suppress(OSError):
                    if held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        _deafen(held)
                    else:
                        # Read as the end of what its client sends.
                        held.shutdown(socket.SHUT_RD)
                        open_ones += 1
        if not open_ones or time.monotonic() >= until:
            return
        time.sleep(_LOOK_S)


def _deafen(listener: socket.socket) -> None:
    """Who connects now is not answered, and refused when the listener closes. Raises OSError."""
    program = ctypes.create_string_buffer(_KEEP_NOTHING)
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _sockets(port: int) -> Iterator[socket.socket]:
    """Duplicates, so that nobody else closes them meanwhile and has another file under their number."""
    if not port or not _OPEN_FILES.is_dir():
        return
    for name in os.listdir(_OPEN_FILES):
        try:
            if not os.readlink(_OPEN_FILES / name).startswith("socket:"):
                continue
            held = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        if _is_of(held, port):
            yield held
        else:
            held.close()


def _is_of(held: socket.socket, port: int) -> bool:
    if held.family not in (socket.AF_INET, socket.AF_INET6) or held.type != socket.SOCK_STREAM:
        return False
    try:
        return bool(held.getsockname()[1] == port)
    except OSError:
        return False
