"""BMP: the header (BITMAPCOREHEADER and its successors). There are no parts to walk."""

from __future__ import annotations

_CORE_HEADER_BYTES = 12


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    """A negative height means rows from the top."""
    if len(data) < 26:
        return None
    if int.from_bytes(data[14:18], "little") == _CORE_HEADER_BYTES:
        return int.from_bytes(data[18:20], "little"), int.from_bytes(data[20:22], "little")
    return int.from_bytes(data[18:22], "little"), abs(int.from_bytes(data[22:26], "little", signed=True))


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    """Nothing to count."""
