"""BMP: the header (BITMAPCOREHEADER and its successors), and how much there is to unpack; there are no parts."""

from __future__ import annotations

from model_store.modality.containers.parts import too_many

_CORE_HEADER_BYTES = 12
_RLE8, _RLE4 = 1, 2
# Pillow unpacks runs in Python: so many bytes and pixels cost it about as much as a part of another format.
_RUN_BYTES_A_PART, _PIXELS_A_PART = 10, 40


def size(data: bytes, max_parts: int) -> tuple[int, int] | None:
    """A negative height means rows from the top."""
    if len(data) < 26:
        return None
    if int.from_bytes(data[14:18], "little") == _CORE_HEADER_BYTES:
        return int.from_bytes(data[18:20], "little"), int.from_bytes(data[20:22], "little")
    return int.from_bytes(data[18:22], "little"), abs(int.from_bytes(data[22:26], "little", signed=True))


def check(data: bytes, max_parts: int, max_scans: int) -> None:
    """Raises ImageTooLarge: more runs to unpack than can be done in a second or two."""
    shape = size(data, max_parts)
    if shape is None or data[14] == _CORE_HEADER_BYTES or int.from_bytes(data[30:34], "little") not in (_RLE8, _RLE4):
        return
    if len(data) > _RUN_BYTES_A_PART * max_parts:
        raise too_many("run-length encoded BMP", "bytes", _RUN_BYTES_A_PART * max_parts)
    if shape[0] * shape[1] > _PIXELS_A_PART * max_parts:
        raise too_many("run-length encoded BMP", "pixels", _PIXELS_A_PART * max_parts)
