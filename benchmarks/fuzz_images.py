"""Damages valid images of every accepted format and decodes them: an input error or an RGB image, in time and memory.

    python benchmarks/fuzz_images.py --count 20000 --seed 7
    python benchmarks/fuzz_images.py --seconds 600

Every file is decoded in this process, so a crash ends the run; the line before it names the seed of the file. Prints
one JSON object; the exit status is 1 when a file broke a promise, and those files are written to --keep. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from model_store.errors import InputError
from model_store.golden_images import golden_images
from model_store.modality.formats import ALL_FORMATS, missing_decoder, sniff
from model_store.modality.image import DECODE_BYTES_PER_PIXEL, DecodeLimits, declared_pixels, decode

LIMITS = DecodeLimits(max_pixels=3_000_000, formats=ALL_FORMATS)
# A machine that does other things too; what this looks for takes minutes.
BUDGET_S = 5.0
SLACK_BYTES = 32 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
_BORDERS = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
Damage = Callable[[bytearray, random.Random], bytearray]


def seeds() -> list[bytes]:
    """Small valid files of every format and mode that this installation writes."""
    found = [case.data for case in golden_images() if case.raises is None and len(case.data) < 60_000]
    levels = np.random.default_rng(3).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    picture = Image.fromarray(levels)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture.convert("RGB").rotate(angle) for angle in (0, 20, 40)]
    for form in ALL_FORMATS:
        if missing_decoder(form) is not None or form == "HEIF":
            continue
        for mode in ("RGB", "RGBA", "L", "P", "1", "LA", "CMYK"):
            for options in (
                {},
                {"exif": exif.tobytes()},
                {"progressive": True},
                {"lossless": True},
                {"save_all": True, "append_images": frames},
            ):
                sink = BytesIO()
                try:
                    picture.convert(mode).save(sink, form, **options)
                except (OSError, ValueError, TypeError, KeyError, RuntimeError):
                    continue  # the format has no such mode or option
                found.append(sink.getvalue())
    return list(dict.fromkeys(found))


def damaged(sources: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(rng.choice(sources))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        data = rng.choice(DAMAGES)(data, rng)
        if not data:
            break
    if rng.random() < 0.1:
        other = rng.choice(sources)
        data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other)) :]
    if data.startswith(_PNG) and rng.random() < 0.7:
        return with_checksums(bytes(data))
    return bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again: otherwise most damage is found at the first chunk."""
    whole, at = bytearray(data), len(_PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        whole[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(whole)


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _border(data: bytearray, rng: random.Random) -> bytearray:
    """A header byte becomes a border value: most fields are within the first hundred bytes."""
    data[rng.randrange(min(len(data), rng.choice((32, 128, len(data)))))] = rng.choice(_BORDERS)
    return data


def _number(data: bytearray, rng: random.Random) -> bytearray:
    width = rng.choice((2, 4))
    at = rng.randrange(max(1, min(len(data), 200) - width))
    value = rng.choice((0, 1, 255, 1000, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) % 256**width
    data[at : at + width] = value.to_bytes(width, rng.choice(("big", "little")))
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data)) + 1]


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    """A piece many times over: scans, chunks, blocks."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((2, 12, 80, 400))]
    return data[:start] + piece * rng.choice((2, 50, 2000)) + data[start:]


def _remove(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 64))]
    return data


def _pad(data: bytearray, rng: random.Random) -> bytearray:
    """Much of what a format lets lie between its parts; a decoder may go through it byte by byte."""
    start = rng.choice((2, rng.randrange(min(len(data), 128) + 1), rng.randrange(len(data) + 1)))
    piece = rng.choice((b"\xff", b"\0", b"\xff\0", b"\xff\xd8", b"\1a"))
    return data[:start] + piece * (rng.choice((40, 2000, 70_000, 12_000_000)) // len(piece)) + data[start:]


DAMAGES: tuple[Damage, ...] = (_flip, _border, _number, _cut, _repeat, _remove, _pad)


class Run:
    """Decodes files one after the other and notes what broke a promise."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.broken: dict[str, bytes] = {}

    def decode(self, name: str, data: bytes) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        before, started = _status("VmRSS"), time.perf_counter()
        problem = None
        try:
            declared = declared_pixels(data, LIMITS)
            image = decode(data, LIMITS)
        except InputError as error:
            self.outcomes[f"{sniff(data)}: {type(error).__name__}"] += 1
            allowed = DECODE_BYTES_PER_PIXEL * LIMITS.max_pixels
        except BaseException as error:
            problem, allowed = f"raised {type(error).__name__}", 2**62
        else:
            self.outcomes[f"{sniff(data)}: decoded"] += 1
            allowed = DECODE_BYTES_PER_PIXEL * declared
            if image.mode != "RGB" or image.width * image.height > declared:
                problem = f"gave {image.mode} of {image.size}, declared were {declared} px"
        seconds, grown = time.perf_counter() - started, _status("VmHWM") - before
        self.slowest_s = max(self.slowest_s, seconds)
        if seconds > BUDGET_S:
            problem = f"took {seconds:.1f} s"
        if grown > allowed + SLACK_BYTES:
            problem = f"took {grown} bytes, allowed are {allowed}"
        if problem:
            self.broken[f"{name}: {problem}"] = data


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2000, help="files")
    parser.add_argument("--seconds", type=float, default=None, help="time in place of a number of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="folder for the files that broke a promise")
    arguments = parser.parse_args()
    run, sources = Run(), seeds()
    for index, data in enumerate(sources):
        run.decode(f"source {index}", data)
    end = time.monotonic() + arguments.seconds if arguments.seconds else None
    count = 0
    while time.monotonic() < end if end else count < arguments.count:
        data = damaged(sources, random.Random(f"{arguments.seed}/{count}"))
        print(f"{arguments.seed}/{count}", end="\r", file=sys.stderr)
        run.decode(f"{arguments.seed}/{count}", data)
        count += 1
    for name, data in run.broken.items():
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / name.split(":")[0].replace("/", "-")).write_bytes(data)
    print(
        json.dumps(
            {
                "sources": len(sources),
                "files": count,
                "slowest_s": round(run.slowest_s, 3),
                "outcomes": dict(sorted(run.outcomes.items())),
                "broken": list(run.broken),
            },
            indent=1,
        )
    )
    return 1 if run.broken else 0


if __name__ == "__main__":
    sys.exit(main())
