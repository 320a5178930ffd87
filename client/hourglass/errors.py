"""What can go wrong, named by what a caller can do about it.

HourglassError
├── InvalidArgument      the request breaks a rule; sending it again will not help (a ValueError too)
├── NotFound             no such model or version
├── Unsupported          the model has no such operation, or the server no such call
├── TooLarge             a message is over a limit of the server; send fewer rows in a message
├── Overloaded           the server refuses more work; try again after `retry_after_s`
├── Unavailable          no connection, or the server is loading or draining, and the retries are used up
├── DeadlineExceeded     `timeout_s` passed
├── Unauthenticated      no token, or one that the server does not know
├── PermissionDenied     the token does not allow this
├── Cancelled            the call was cancelled
├── VersionChanged       the messages of one call were answered by different versions; name a version
├── Closed               the client was closed
└── Internal             a fault of the server, or an answer that breaks the contract
"""

from __future__ import annotations

from typing import Any

import grpc

from hourglass import status_details


class HourglassError(Exception):
    """`reason` and `metadata` are those of the server's google.rpc.ErrorInfo; empty where it sent none."""

    def __init__(self, text: str, *, reason: str = "", metadata: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.reason = reason
        self.metadata = metadata or {}


class InvalidArgument(HourglassError, ValueError):
    pass


class NotFound(HourglassError):
    pass


class Unsupported(HourglassError):
    pass


class TooLarge(HourglassError):
    pass


class Overloaded(HourglassError):
    """`retry_after_s` is how long the server asks to wait; None where it does not say."""

    retry_after_s: float | None = None


class Unavailable(HourglassError):
    pass


class DeadlineExceeded(HourglassError):
    pass


class Unauthenticated(HourglassError):
    pass


class PermissionDenied(HourglassError):
    pass


class Cancelled(HourglassError):
    pass


class VersionChanged(HourglassError):
    pass


class Closed(HourglassError):
    pass


class Internal(HourglassError):
    pass


_BY_CODE: dict[grpc.StatusCode, type[HourglassError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Unsupported,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.INTERNAL: Internal,
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
    grpc.StatusCode.ABORTED: Internal,
    grpc.StatusCode.ALREADY_EXISTS: Internal,
}


def from_rpc(error: grpc.RpcError, *, address: str, where: str = "") -> HourglassError:
    """The typed error of a failed RPC. `where`: the rows of the message, whose faults count within it."""
    code = error.code() if hasattr(error, "code") else None
    text = (error.details() if hasattr(error, "details") else None) or ""
    trailing: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    details = status_details.parse(trailing)
    kind = _BY_CODE.get(code, Internal) if code is not None else Internal
    # gRPC itself refuses a message over its limit without details, in these words.
    if kind is Overloaded and details.retry_after_s is None and (details.reason or "larger than max" in text):
        kind = TooLarge
    if not details.reason:
        # Not the service's own words, so they are put beside who was asked and what came back.
        text = f"{address}: {text or 'no text'} ({code.name if code is not None else 'no status'})"
    text += where if kind is InvalidArgument else ""
    result = kind(text, reason=details.reason, metadata=details.metadata)
    if isinstance(result, Overloaded):
        result.retry_after_s = details.retry_after_s
    result.__cause__ = error
    return result
