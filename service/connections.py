"""The connections of a listener, below grpc: which they are, and their end, for which grpc has no way before it stops.

From the moment in which its server is stopped, grpc cancels the calls that still come on open connections, and a caller
who reads CANCELLED cannot tell that nothing was run. Where the connection has gone, the call is UNAVAILABLE, and tried
again.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

_OPEN_FILES = Path("/proc/self/fd")
# While grpc has yet to accept somebody, of which the kernel tells nobody but the one who does it.
_LOOK_S = 0.01
# Who is being accepted does not wait any more, and is not among the open files yet: he is seen when it is looked again.
_LOOKS = 2
# From Linux's asm-generic/socket.h and filter.h: a program of one step, which keeps nothing of a packet.
_SO_ATTACH_FILTER = 26
_KEEP_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)


def end(port: int, patience_s: float) -> None:
    """Let nobody connect to `port` of this process any more, and have grpc close the connections that there are, when
    it has sent what it has to send. Returns when they are closed, or after `patience_s`.

    For addresses on Linux; elsewhere, and for unix sockets, nothing is done.
    """
    until = time.monotonic() + patience_s
    found_none = 0
    while True:
        with ExitStack() as stack:
            held = [stack.enter_context(one) for _, one in _sockets(port)]
            listeners = [one for one in held if _is_listener(one)]
            for listener in listeners:
                with suppress(OSError):
                    _deafen(listener)
            someone_waits = any(_state(listener, select.POLLIN) for listener in listeners)
            open_ones = [one for one in held if one not in listeners and not _state(one, 0)]
            for one in open_ones:
                # It may be gone by now: then there is nothing to do. Read as the end of what its client sends.
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RD)
            found_none = 0 if open_ones or someone_waits else found_none + 1
            left_s = until - time.monotonic()
            if found_none == _LOOKS or left_s <= 0:
                return
            _wait_for_one(open_ones, min(left_s, _LOOK_S) if someone_waits or found_none else left_s)


def files(port: int, *, most_files: int) -> dict[str, int]:
    """The file numbers of the connections to `port` of this process, by their peers as grpc names them. None where the
    process has more than `most_files` files, and where `end` does nothing."""
    if not _OPEN_FILES.is_dir() or len(os.listdir(_OPEN_FILES)) > most_files:
        return {}
    found = {}
    for number, held in _sockets(port):
        with held, suppress(OSError):  # a listener has no peer
            host, peer_port = held.getpeername()[:2]
            address = ipaddress.ip_address(host)
            mapped = address.ipv4_mapped if address.version == 6 else None
            if address.version == 4 or mapped:
                found[f"ipv4:{mapped or address}:{peer_port}"] = number
            else:
                found[f"ipv6:%5B{address}%5D:{peer_port}"] = number
    return found


def _state(held: socket.socket, events: int) -> int:
    """What of `events` is so now; POLLHUP, for which nobody need ask, where a connection is shut in both directions,
    as grpc does before it closes one: it shows on a duplicate too."""
    poll = select.poll()
    poll.register(held, events)
    return sum(event for _, event in poll.poll(0))


def _wait_for_one(open_ones: list[socket.socket], patience_s: float) -> None:
    """Until one of them is shut."""
    poll = select.poll()
    for one in open_ones:
        poll.register(one, 0)
    poll.poll(patience_s * 1000)


def _is_listener(held: socket.socket) -> bool:
    return bool(held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _deafen(listener: socket.socket) -> None:
    """Who connects now is not answered, and refused when the listener closes. Raises OSError."""
    program = ctypes.create_string_buffer(_KEEP_NOTHING)
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def _sockets(port: int) -> Iterator[tuple[int, socket.socket]]:
    """The numbers of its sockets, and duplicates, so that nobody else closes them meanwhile and has another file under
    their number."""
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
            yield int(name), held
        else:
            held.close()


def _is_of(held: socket.socket, port: int) -> bool:
    if held.family not in (socket.AF_INET, socket.AF_INET6) or held.type != socket.SOCK_STREAM:
        return False
    try:
        return bool(held.getsockname()[1] == port)
    except OSError:
        return False
