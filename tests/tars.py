"""Tar files and pictures of tests, made in memory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

from PIL import Image


def tar_bytes(members: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def picture(number: int) -> bytes:
    """A JPEG of one grey, 5 * number."""
    out = io.BytesIO()
    Image.new("RGB", (27, 23), (5 * number,) * 3).save(out, format="JPEG", quality=95)
    return out.getvalue()
