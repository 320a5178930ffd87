"""The client of the Hourglass autoencoder service: numpy in, numpy out."""

from hourglass.admin import AdminClient, ModelVersion
from hourglass.aio import AsyncClient
from hourglass.channel import TLS
from hourglass.client import Client
from hourglass.errors import (
    Cancelled,
    Closed,
    DeadlineExceeded,
    HourglassError,
    Internal,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
    VersionChanged,
)
from hourglass.results import Denoised, Execution, Interpolation, ModelCard, Reconstruction, Spec

__all__ = [
    "TLS",
    "AdminClient",
    "AsyncClient",
    "Cancelled",
    "Client",
    "Closed",
    "DeadlineExceeded",
    "Denoised",
    "Execution",
    "HourglassError",
    "Internal",
    "Interpolation",
    "InvalidArgument",
    "ModelCard",
    "ModelVersion",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Reconstruction",
    "Spec",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "VersionChanged",
]
