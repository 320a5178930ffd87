"""The messages of the Open Inference Protocol, in a descriptor pool of their own.

Two copies of descriptors of one name clash in one pool, and clients made for Triton and KServe register theirs in the
default one. So this package registers nothing there: the classes are made here, from the descriptors that `make proto`
compiles from `proto/inference/`. They have no static types.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import Default, DescriptorPool

SERVICE = "inference.GRPCInferenceService"
DESCRIPTORS = "inference_protocol.binpb"


def pool(others: Iterable[str] = ()) -> DescriptorPool:
    """A new pool with the files of the protocol, and with those that declare `others`, symbols of the default pool."""
    made = DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(resources.files("service").joinpath(DESCRIPTORS).read_bytes())
    for file in files.file:
        made.AddSerializedFile(file.SerializeToString())
    added: set[str] = set()
    for symbol in others:
        _copy(Default().FindFileContainingSymbol(symbol), made, added)
    return made


def _copy(file: FileDescriptor, target: DescriptorPool, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _copy(dependency, target, added)
    target.AddSerializedFile(file.serialized_pb)


_POOL = pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


InferRequest = _message("ModelInferRequest")
InferResponse = _message("ModelInferResponse")
StreamInferResponse = _message("ModelStreamInferResponse")
LiveRequest = _message("ServerLiveRequest")
LiveResponse = _message("ServerLiveResponse")
ReadyRequest = _message("ServerReadyRequest")
ReadyResponse = _message("ServerReadyResponse")
ModelReadyRequest = _message("ModelReadyRequest")
ModelReadyResponse = _message("ModelReadyResponse")
ServerMetadataRequest = _message("ServerMetadataRequest")
ServerMetadataResponse = _message("ServerMetadataResponse")
ModelMetadataRequest = _message("ModelMetadataRequest")
ModelMetadataResponse = _message("ModelMetadataResponse")
ConfigRequest = _message("ModelConfigRequest")
ConfigResponse = _message("ModelConfigResponse")
StatisticsRequest = _message("ModelStatisticsRequest")
StatisticsResponse = _message("ModelStatisticsResponse")
IndexRequest = _message("RepositoryIndexRequest")
IndexResponse = _message("RepositoryIndexResponse")
LoadRequest = _message("RepositoryModelLoadRequest")
UnloadRequest = _message("RepositoryModelUnloadRequest")
