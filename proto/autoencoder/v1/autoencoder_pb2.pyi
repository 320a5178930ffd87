from autoencoder.v1 import model_pb2 as _model_pb2
from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InterpolationMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERPOLATION_METHOD_UNSPECIFIED: _ClassVar[InterpolationMethod]
    INTERPOLATION_METHOD_LINEAR: _ClassVar[InterpolationMethod]
    INTERPOLATION_METHOD_SPHERICAL: _ClassVar[InterpolationMethod]
INTERPOLATION_METHOD_UNSPECIFIED: InterpolationMethod
INTERPOLATION_METHOD_LINEAR: InterpolationMethod
INTERPOLATION_METHOD_SPHERICAL: InterpolationMethod

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: _model_pb2.DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[_Union[_model_pb2.DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ModelSelector(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ExecutionInfo(_message.Message):
    __slots__ = ("model_name", "model_version", "queue_seconds", "compute_seconds", "batch_rows")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    queue_seconds: float
    compute_seconds: float
    batch_rows: int
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("model", "rows", "output_dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    rows: Tensor
    output_dtype: _model_pb2.DataType
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., rows: _Optional[_Union[Tensor, _Mapping]] = ..., output_dtype: _Optional[_Union[_model_pb2.DataType, str]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("latents", "execution")
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    latents: Tensor
    execution: ExecutionInfo
    def __init__(self, latents: _Optional[_Union[Tensor, _Mapping]] = ..., execution: _Optional[_Union[ExecutionInfo, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "latents", "output_dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    latents: Tensor
    output_dtype: _model_pb2.DataType
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., output_dtype: _Optional[_Union[_model_pb2.DataType, str]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("rows", "execution")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    rows: Tensor
    execution: ExecutionInfo
    def __init__(self, rows: _Optional[_Union[Tensor, _Mapping]] = ..., execution: _Optional[_Union[ExecutionInfo, _Mapping]] = ...) -> None: ...

class ReconstructRequest(_message.Message):
    __slots__ = ("model", "rows", "output_dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    rows: Tensor
    output_dtype: _model_pb2.DataType
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., rows: _Optional[_Union[Tensor, _Mapping]] = ..., output_dtype: _Optional[_Union[_model_pb2.DataType, str]] = ...) -> None: ...

class ReconstructResponse(_message.Message):
    __slots__ = ("rows", "reconstruction_errors", "novelties", "execution")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERRORS_FIELD_NUMBER: _ClassVar[int]
    NOVELTIES_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    rows: Tensor
    reconstruction_errors: _containers.RepeatedScalarFieldContainer[float]
    novelties: _containers.RepeatedScalarFieldContainer[float]
    execution: ExecutionInfo
    def __init__(self, rows: _Optional[_Union[Tensor, _Mapping]] = ..., reconstruction_errors: _Optional[_Iterable[float]] = ..., novelties: _Optional[_Iterable[float]] = ..., execution: _Optional[_Union[ExecutionInfo, _Mapping]] = ...) -> None: ...

class DenoiseRequest(_message.Message):
    __slots__ = ("model", "rows", "output_dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    rows: Tensor
    output_dtype: _model_pb2.DataType
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., rows: _Optional[_Union[Tensor, _Mapping]] = ..., output_dtype: _Optional[_Union[_model_pb2.DataType, str]] = ...) -> None: ...

class DenoiseResponse(_message.Message):
    __slots__ = ("rows", "distances", "execution")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    rows: Tensor
    distances: _containers.RepeatedScalarFieldContainer[float]
    execution: ExecutionInfo
    def __init__(self, rows: _Optional[_Union[Tensor, _Mapping]] = ..., distances: _Optional[_Iterable[float]] = ..., execution: _Optional[_Union[ExecutionInfo, _Mapping]] = ...) -> None: ...

class TensorPair(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: Tensor
    end: Tensor
    def __init__(self, start: _Optional[_Union[Tensor, _Mapping]] = ..., end: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Weights(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class InterpolateRequest(_message.Message):
    __slots__ = ("model", "rows", "latents", "steps", "weights", "method", "return_latents", "output_dtype")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RETURN_LATENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    rows: TensorPair
    latents: TensorPair
    steps: int
    weights: Weights
    method: InterpolationMethod
    return_latents: bool
    output_dtype: _model_pb2.DataType
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., rows: _Optional[_Union[TensorPair, _Mapping]] = ..., latents: _Optional[_Union[TensorPair, _Mapping]] = ..., steps: _Optional[int] = ..., weights: _Optional[_Union[Weights, _Mapping]] = ..., method: _Optional[_Union[InterpolationMethod, str]] = ..., return_latents: _Optional[bool] = ..., output_dtype: _Optional[_Union[_model_pb2.DataType, str]] = ...) -> None: ...

class InterpolateResponse(_message.Message):
    __slots__ = ("rows", "latents", "execution")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    rows: Tensor
    latents: Tensor
    execution: ExecutionInfo
    def __init__(self, rows: _Optional[_Union[Tensor, _Mapping]] = ..., latents: _Optional[_Union[Tensor, _Mapping]] = ..., execution: _Optional[_Union[ExecutionInfo, _Mapping]] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("id", "timeout_seconds", "encode", "decode", "reconstruct", "denoise", "interpolate")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCT_FIELD_NUMBER: _ClassVar[int]
    DENOISE_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATE_FIELD_NUMBER: _ClassVar[int]
    id: int
    timeout_seconds: float
    encode: EncodeRequest
    decode: DecodeRequest
    reconstruct: ReconstructRequest
    denoise: DenoiseRequest
    interpolate: InterpolateRequest
    def __init__(self, id: _Optional[int] = ..., timeout_seconds: _Optional[float] = ..., encode: _Optional[_Union[EncodeRequest, _Mapping]] = ..., decode: _Optional[_Union[DecodeRequest, _Mapping]] = ..., reconstruct: _Optional[_Union[ReconstructRequest, _Mapping]] = ..., denoise: _Optional[_Union[DenoiseRequest, _Mapping]] = ..., interpolate: _Optional[_Union[InterpolateRequest, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("id", "error", "encode", "decode", "reconstruct", "denoise", "interpolate")
    ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCT_FIELD_NUMBER: _ClassVar[int]
    DENOISE_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATE_FIELD_NUMBER: _ClassVar[int]
    id: int
    error: StreamError
    encode: EncodeResponse
    decode: DecodeResponse
    reconstruct: ReconstructResponse
    denoise: DenoiseResponse
    interpolate: InterpolateResponse
    def __init__(self, id: _Optional[int] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., encode: _Optional[_Union[EncodeResponse, _Mapping]] = ..., decode: _Optional[_Union[DecodeResponse, _Mapping]] = ..., reconstruct: _Optional[_Union[ReconstructResponse, _Mapping]] = ..., denoise: _Optional[_Union[DenoiseResponse, _Mapping]] = ..., interpolate: _Optional[_Union[InterpolateResponse, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_model_pb2.Model]
    def __init__(self, models: _Optional[_Iterable[_Union[_model_pb2.Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _model_pb2.Model
    def __init__(self, model: _Optional[_Union[_model_pb2.Model, _Mapping]] = ...) -> None: ...
