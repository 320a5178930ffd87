"""The details of a status: google.rpc.ErrorInfo and google.rpc.RetryInfo, without googleapis-common-protos.

A process has one default pool of descriptors, and two definitions of google.rpc.Status in it would clash. So the few
fields that are read here are declared under names of our own, in a pool of our own; the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

METADATA_KEY = "grpc-status-details-bin"
DOMAIN = "hourglass"
# No server is waited for longer, whatever it says.
_MAX_RETRY_AFTER_S = 86400.0

_Field = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True, kw_only=True)
class Details:
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    # 0 to a day.
    retry_after_s: float | None = None


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="hourglass/status_details.proto", package="hourglass.rpc", syntax="proto3"
    )

    def declare(name: str, *fields: tuple[str, int, int, int, str]) -> descriptor_pb2.DescriptorProto:
        declared = file.message_type.add(name=name)
        for field_name, number, kind, label, type_name in fields:
            declared.field.add(
                name=field_name,
                number=number,
                type=_Field.Type.ValueType(kind),
                label=_Field.Label.ValueType(label),
                type_name=type_name or None,
            )
        return declared

    one, many = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED
    text, data, nested = _Field.TYPE_STRING, _Field.TYPE_BYTES, _Field.TYPE_MESSAGE
    declare("Any", ("type_url", 1, text, one, ""), ("value", 2, data, one, ""))
    declare("Duration", ("seconds", 1, _Field.TYPE_INT64, one, ""), ("nanos", 2, _Field.TYPE_INT32, one, ""))
    declare("Status", ("details", 3, nested, many, ".hourglass.rpc.Any"))
    declare("RetryInfo", ("retry_delay", 1, nested, one, ".hourglass.rpc.Duration"))
    info = declare(
        "ErrorInfo",
        ("reason", 1, text, one, ""),
        ("domain", 2, text, one, ""),
        ("metadata", 3, nested, many, ".hourglass.rpc.ErrorInfo.MetadataEntry"),
    )
    entry = info.nested_type.add(name="MetadataEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=text, label=one)
    entry.field.add(name="value", number=2, type=text, label=one)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"hourglass.rpc.{name}"))
        for name in ("Status", "ErrorInfo", "RetryInfo")
    }


_MESSAGES = _messages()


def parse(trailing_metadata: Iterable[tuple[str, str | bytes]] | None) -> Details:
    """What the trailing metadata of a failed RPC tell; defaults where they tell nothing or are garbage."""
    for key, value in trailing_metadata or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            try:
                return _parse(value)
            except message.DecodeError:
                return Details()
    return Details()


def _parse(value: bytes) -> Details:
    reason, metadata, retry_after_s = "", {}, None
    for detail in _MESSAGES["Status"].FromString(value).details:
        kind = detail.type_url.rpartition("/")[2]
        if kind == "google.rpc.ErrorInfo":
            info = _MESSAGES["ErrorInfo"].FromString(detail.value)
            if info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
        elif kind == "google.rpc.RetryInfo":
            delay = _MESSAGES["RetryInfo"].FromString(detail.value).retry_delay
            retry_after_s = min(max(delay.seconds + delay.nanos * 1e-9, 0.0), _MAX_RETRY_AFTER_S)
    return Details(reason=reason, metadata=metadata, retry_after_s=retry_after_s)
