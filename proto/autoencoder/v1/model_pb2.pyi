import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]

class TensorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_KIND_UNSPECIFIED: _ClassVar[TensorKind]
    TENSOR_KIND_IMAGE: _ClassVar[TensorKind]
    TENSOR_KIND_VECTOR: _ClassVar[TensorKind]
    TENSOR_KIND_SERIES: _ClassVar[TensorKind]

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_ENCODE: _ClassVar[Operation]
    OPERATION_DECODE: _ClassVar[Operation]
    OPERATION_RECONSTRUCT: _ClassVar[Operation]
    OPERATION_DENOISE: _ClassVar[Operation]
    OPERATION_INTERPOLATE: _ClassVar[Operation]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_FLOAT32: _ClassVar[Precision]
    PRECISION_FLOAT16: _ClassVar[Precision]
    PRECISION_INT8: _ClassVar[Precision]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_UINT8: DataType
TENSOR_KIND_UNSPECIFIED: TensorKind
TENSOR_KIND_IMAGE: TensorKind
TENSOR_KIND_VECTOR: TensorKind
TENSOR_KIND_SERIES: TensorKind
OPERATION_UNSPECIFIED: Operation
OPERATION_ENCODE: Operation
OPERATION_DECODE: Operation
OPERATION_RECONSTRUCT: Operation
OPERATION_DENOISE: Operation
OPERATION_INTERPOLATE: Operation
PRECISION_UNSPECIFIED: Precision
PRECISION_FLOAT32: Precision
PRECISION_FLOAT16: Precision
PRECISION_INT8: Precision

class TensorSpec(_message.Message):
    __slots__ = ("dtype", "row_shape", "minimum", "maximum", "kind", "columns")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ROW_SHAPE_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    row_shape: _containers.RepeatedScalarFieldContainer[int]
    minimum: float
    maximum: float
    kind: TensorKind
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., row_shape: _Optional[_Iterable[int]] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., kind: _Optional[_Union[TensorKind, str]] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("name", "sha256", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("name", "fingerprint", "train_rows", "validation_rows", "test_rows")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ROWS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_ROWS_FIELD_NUMBER: _ClassVar[int]
    TEST_ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    train_rows: int
    validation_rows: int
    test_rows: int
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., train_rows: _Optional[int] = ..., validation_rows: _Optional[int] = ..., test_rows: _Optional[int] = ...) -> None: ...

class Corruption(_message.Message):
    __slots__ = ("kind", "level")
    KIND_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    level: float
    def __init__(self, kind: _Optional[str] = ..., level: _Optional[float] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Parity(_message.Message):
    __slots__ = ("max_absolute_difference", "absolute_tolerance", "relative_tolerance", "batch_rows", "golden_absolute_tolerance")
    MAX_ABSOLUTE_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_ABSOLUTE_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    max_absolute_difference: float
    absolute_tolerance: float
    relative_tolerance: float
    batch_rows: _containers.RepeatedScalarFieldContainer[int]
    golden_absolute_tolerance: float
    def __init__(self, max_absolute_difference: _Optional[float] = ..., absolute_tolerance: _Optional[float] = ..., relative_tolerance: _Optional[float] = ..., batch_rows: _Optional[_Iterable[int]] = ..., golden_absolute_tolerance: _Optional[float] = ...) -> None: ...

class Runtime(_message.Message):
    __slots__ = ("provider", "max_batch_rows", "ready_time", "load_seconds")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    READY_TIME_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    provider: str
    max_batch_rows: int
    ready_time: _timestamp_pb2.Timestamp
    load_seconds: float
    def __init__(self, provider: _Optional[str] = ..., max_batch_rows: _Optional[int] = ..., ready_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., load_seconds: _Optional[float] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "variant", "description", "recipe", "input", "latent", "output", "operations", "corruption", "files", "dataset", "metrics", "reconstruction_error_quantiles", "parity", "library_versions", "git_commit", "create_time", "runtime", "row_scale", "precision")
    class LibraryVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    CORRUPTION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_QUANTILES_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    GIT_COMMIT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ROW_SCALE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    variant: str
    description: str
    recipe: _struct_pb2.Struct
    input: TensorSpec
    latent: TensorSpec
    output: TensorSpec
    operations: _containers.RepeatedScalarFieldContainer[Operation]
    corruption: Corruption
    files: _containers.RepeatedCompositeFieldContainer[File]
    dataset: Dataset
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    reconstruction_error_quantiles: _containers.RepeatedScalarFieldContainer[float]
    parity: Parity
    library_versions: _containers.ScalarMap[str, str]
    git_commit: str
    create_time: _timestamp_pb2.Timestamp
    runtime: Runtime
    row_scale: _containers.RepeatedScalarFieldContainer[float]
    precision: Precision
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., variant: _Optional[str] = ..., description: _Optional[str] = ..., recipe: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., input: _Optional[_Union[TensorSpec, _Mapping]] = ..., latent: _Optional[_Union[TensorSpec, _Mapping]] = ..., output: _Optional[_Union[TensorSpec, _Mapping]] = ..., operations: _Optional[_Iterable[_Union[Operation, str]]] = ..., corruption: _Optional[_Union[Corruption, _Mapping]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., dataset: _Optional[_Union[Dataset, _Mapping]] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., reconstruction_error_quantiles: _Optional[_Iterable[float]] = ..., parity: _Optional[_Union[Parity, _Mapping]] = ..., library_versions: _Optional[_Mapping[str, str]] = ..., git_commit: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., runtime: _Optional[_Union[Runtime, _Mapping]] = ..., row_scale: _Optional[_Iterable[float]] = ..., precision: _Optional[_Union[Precision, str]] = ...) -> None: ...
