"""What can go wrong, named by what a caller can do about it.

ServiceError
├── InvalidArgument      the request breaks a rule; sending it again will not help
├── NotFound             no such model or version
├── Unsupported          the model has no such operation
├── Conflict             the state of the service or of a package does not allow it; change that first
├── Unauthenticated      no token, or one that is not known
├── PermissionDenied     the token does not allow this
├── NotServed            the method is part of a protocol, and is not answered here
├── TooLarge             the request is over a limit that the operator set; send less in one message
├── Overloaded           the queue is full, or memory; try again after `retry_after_s`
├── Unavailable          loading or draining; try again, elsewhere if there is an elsewhere
├── DeadlineExceeded     the deadline passed or could not be met; the rows were not run
├── Cancelled            the caller went away
└── Internal             our fault; the text holds an id that the log explains

Retired                  the version was swapped for another before the request got to it; to be handled anew
PackageError             a model package that is refused, with the file and the rule it breaks
StartError               the service cannot start as it was told to
"""

from __future__ import annotations

import logging
import secrets
import sys

log = logging.getLogger(__name__)

_MEMORY_RETRY_AFTER_S = 1.0
_MAX_RULE = 1000


class ServiceError(Exception):
    """An answer that is not a result. `reason` goes into ErrorInfo: capitals, digits and underscores."""

    def __init__(self, reason: str, text: str, **metadata: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.metadata = metadata


class InvalidArgument(ServiceError):
    pass


class NotFound(ServiceError):
    pass


class Unsupported(ServiceError):
    pass


class NotServed(ServiceError):
    pass


class Conflict(ServiceError):
    pass


class Unauthenticated(ServiceError):
    pass


class PermissionDenied(ServiceError):
    pass


class TooLarge(ServiceError):
    pass


class Overloaded(ServiceError):
    def __init__(self, reason: str, text: str, *, retry_after_s: float, **metadata: str) -> None:
        super().__init__(reason, text, **metadata)
        self.retry_after_s = retry_after_s


class Unavailable(ServiceError):
    pass


class DeadlineExceeded(ServiceError):
    pass


class Cancelled(ServiceError):
    pass


class Internal(ServiceError):
    """Shown to callers without its cause: the log has the traceback under the same id."""

    def __init__(self) -> None:
        self.error_id = secrets.token_hex(6)
        super().__init__("INTERNAL", f"internal error {self.error_id}", error_id=self.error_id)


def internal_error(what: str) -> Internal | Overloaded:
    """For the exception that is being handled: an Internal, and the log has the traceback under the same id; where
    memory ran out, which a later or smaller request may not meet, an Overloaded."""
    if isinstance(sys.exception(), MemoryError):
        log.warning("no memory", extra={"what": what})
        return Overloaded(
            "NO_MEMORY",
            "there was no memory for this; try again later, or with fewer rows",
            retry_after_s=_MEMORY_RETRY_AFTER_S,
        )
    error = Internal()
    log.exception(what, extra={"error_id": error.error_id})
    return error


class Retired(Exception):
    pass


class PackageError(Exception):
    def __init__(self, file: str, rule: str) -> None:
        # What a package says of itself may be long, and an error goes to administrators in HTTP/2 headers.
        rule = rule if len(rule) <= _MAX_RULE else rule[:_MAX_RULE] + "…"
        super().__init__(f"{file}: {rule}")
        self.file = file
        self.rule = rule


class StartError(Exception):
    pass
