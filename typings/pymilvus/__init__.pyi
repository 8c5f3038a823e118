"""The part of pymilvus that this project uses; it ships no type information."""

from enum import IntEnum
from typing import Any

class DataType(IntEnum):
    INT64 = 5
    DOUBLE = 11
    VARCHAR = 21
    ARRAY = 22
    FLOAT_VECTOR = 101

class CollectionSchema:
    def add_field(self, field_name: str, datatype: DataType, **kwargs: Any) -> CollectionSchema: ...

class IndexParams:
    def add_index(
        self, field_name: str, *, index_type: str, metric_type: str = ..., params: dict[str, Any] = ...
    ) -> None: ...

class MilvusClient:
    def __init__(self, uri: str, *, token: str = ..., db_name: str = ..., timeout: float | None = ...) -> None: ...
    @classmethod
    def create_schema(cls, *, auto_id: bool = ..., enable_dynamic_field: bool = ...) -> CollectionSchema: ...
    @classmethod
    def prepare_index_params(cls) -> IndexParams: ...
    def close(self) -> None: ...
