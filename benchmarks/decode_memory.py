"""The memory that decoding takes for each pixel, by format and mode: the peak of a process that decodes one picture.

    python benchmarks/decode_memory.py --side 2048

Prints one JSON object: {case: bytes of memory for each pixel}. Each picture is made in one forked process and decoded
in another, so that neither sees the other's memory; the peak is the kernel's (VmHWM), less what the process had before.
Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, features

from model_store.modality.formats import ALL_FORMATS
from model_store.modality.image import DecodeLimits, decode

_LIMITS = DecodeLimits(formats=ALL_FORMATS)
_ORIENTATION_TAG = 0x0112
_SIDEWAYS = 6
_ENOUGH_BYTES = 16 * 2**30


def cases() -> dict[str, tuple[str, str, dict[str, object]]]:
    """name -> (mode, format, options of the encoder); each also with an orientation, where the format holds one."""
    found: dict[str, tuple[str, str, dict[str, object]]] = {
        "jpeg": ("RGB", "JPEG", {}),
        "jpeg grey": ("L", "JPEG", {}),
        "jpeg progressive": ("RGB", "JPEG", {"progressive": True}),
        "jpeg progressive, 4:4:4": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg cmyk": ("CMYK", "JPEG", {}),
        "jpeg cmyk, progressive": ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
        **{f"png {mode}": (mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
        "png L, transparent level": ("L", "PNG", {"transparency": 9}),
        "png P, transparent entry": ("P", "PNG", {"transparency": 3}),
        "png RGB, transparent colour": ("RGB", "PNG", {"transparency": (1, 2, 3)}),
        "webp lossy": ("RGB", "WEBP", {"method": 0}),
        "webp lossy, alpha": ("RGBA", "WEBP", {"method": 0}),
        "webp lossless": ("RGB", "WEBP", {"method": 0, "lossless": True}),
        "webp lossless, alpha": ("RGBA", "WEBP", {"method": 0, "lossless": True}),
        "gif": ("P", "GIF", {}),
        "bmp": ("RGB", "BMP", {}),
    }
    if features.check("avif"):
        found |= {
            "avif": ("RGB", "AVIF", {"speed": 10}),
            "avif, alpha": ("RGBA", "AVIF", {"speed": 10}),
            "avif, 4:4:4": ("RGB", "AVIF", {"speed": 10, "subsampling": "4:4:4"}),
        }
    return found


def encoded(mode: str, form: str, options: dict[str, object], side_px: int, *, sideways: bool) -> bytes:
    ramp = np.add.outer(np.arange(side_px), np.arange(side_px)) % 256
    if mode == "I;16":
        image = Image.fromarray((ramp * 257).astype(np.uint16))
    else:
        levels = np.stack([ramp, ramp.T // 2, 255 - ramp, ramp], axis=-1).astype(np.uint8)
        image = Image.fromarray(levels).convert(mode)
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = _SIDEWAYS
    sink = BytesIO()
    image.save(sink, form, **options, **({"exif": exif} if sideways else {}))
    return sink.getvalue()


def bytes_per_pixel(side_px: int, only: list[str]) -> dict[str, float]:
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, peak = Path(folder) / "picture", Path(folder) / "peak"
        for name, (mode, form, options) in cases().items():
            if only and name not in only:
                continue
            for sideways in (False, True) if form in ("JPEG", "PNG", "WEBP", "AVIF") else (False,):
                make = partial(encoded, mode, form, options, side_px, sideways=sideways)
                forked(lambda make=make: path.write_bytes(make()))
                forked(lambda: peak.write_text(str(decoding_peak(path.read_bytes()))))
                measured[name + (", sideways" if sideways else "")] = round(int(peak.read_text()) / side_px**2, 1)
    return measured


def decoding_peak(data: bytes) -> int:
    """Bytes by which this process was larger at its largest while it decoded, the encoded picture not counted."""
    before = _status("VmRSS")
    image = decode(data, _LIMITS)
    assert image.mode == "RGB"
    return _status("VmHWM") - before


def forked(work: Callable[[], object]) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_ENOUGH_BYTES, _ENOUGH_BYTES))
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a forked process failed")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--side", type=int, default=2048, help="pixels of a side of each picture")
    parser.add_argument("--only", nargs="+", default=[], help="names of cases")
    arguments = parser.parse_args()
    decode(encoded("RGB", "PNG", {}, 8, sideways=False), _LIMITS)  # what is loaded once is not a picture's cost
    decode(encoded("RGB", "WEBP", {}, 8, sideways=False), _LIMITS)
    print(json.dumps(bytes_per_pixel(arguments.side, arguments.only), indent=1))


if __name__ == "__main__":
    main()
