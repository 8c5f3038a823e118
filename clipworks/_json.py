"""JSON of what callers have in hand: scalars and arrays of numpy and pandas, dates, beside Python's own values."""

from __future__ import annotations

import json
from datetime import date
from typing import Any


def json_bytes(value: Any) -> bytes:
    """UTF-8 JSON without spaces. Dates and times become ISO 8601 strings; numpy's scalars and arrays, plain values.

    Raises:
        TypeError: a value that JSON has no form for; the message names its type.
        ValueError: NaN or infinity.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
    return text.encode("utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, date):
        if value != value:  # pandas.NaT is a datetime that equals nothing
            raise ValueError("NaT has no form in JSON; leave the field out")
        return value.isoformat()
    # Arrays have `tolist`, which gives plain values for scalars (and arrays without axes) too.
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
