"""pyarrow, which has no types, as `Any`; ModuleNotFoundError where the extra `parquet` is not installed."""

from __future__ import annotations

import importlib
from typing import Any


def arrow() -> Any:
    return importlib.import_module("pyarrow")


def parquet() -> Any:
    return importlib.import_module("pyarrow.parquet")
