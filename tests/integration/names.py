"""A name server for one name, whose addresses change as pods come and go: a headless Service in a process."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType
from typing import Self

_A, _IN = 1, 1


class HeadlessName:
    """Answers every question for an IPv4 address with `addresses`, and any other question with nothing (RFC 1035)."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="names", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            if self._ended:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5  # of the question: the name, its type and its class
        kind, _ = struct.unpack(">HH", query[end - 4 : end])
        addresses = self.addresses if kind == _A else ()
        # A response, authoritative, recursion desired and available; one question, so many answers.
        header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, len(addresses), 0, 0)
        # 0xC00C points to the name in the question; a time to live of 0 s: ask again.
        records = (struct.pack(">HHHIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(address) for address in addresses)
        return header + query[12:end] + b"".join(records)
