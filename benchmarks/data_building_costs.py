"""Costs of `clipworks data build`, and the distances at which its picture codes find copies."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.modality.image import decode
from training.building.picture_code import picture_code

SIZES = (10_000, 100_000)
DISTANCES = (0, 1, 2, 3, 4, 6, 8)
PICTURES, COPIED = 500, 150
_SHARD = 5_000
_WORDS = ("red", "green", "blue", "mug", "ring", "owl", "lamp", "chair")


def memory(folder: Path) -> list[dict[str, Any]]:
    """The command with one process on so many tiny pairs: its peak resident memory, its time, and its files."""
    rows: list[dict[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "queries.tsv").write_text("\n".join(_WORDS))
    for pairs in SIZES:
        raw, out = folder / f"raw-{pairs}", folder / f"out-{pairs}"
        if not raw.is_dir():
            _write_tiny(raw, pairs)
        shutil.rmtree(out, ignore_errors=True)
        words = ["data", "build", raw, "--queries", folder / "queries.tsv", "--out", out, "--most", pairs // 20]
        words += ["--workers", 1, "--json"]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "clipworks", *map(str, words)], stdout=subprocess.DEVNULL, stderr=sys.stderr
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"status {status}")
        rows.append(
            {
                "pairs": pairs,
                "peak_mb": round(used.ru_maxrss / 1024, 1),
                "cpu_s": round(used.ru_utime + used.ru_stime, 1),
                "wall_s": round(time.monotonic() - began, 1),
                "work_mb": round(sum(path.stat().st_size for path in out.rglob("*.jsonl")) / 1e6, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _write_tiny(folder: Path, pairs: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(pairs)
    for start in range(0, pairs, _SHARD):
        with tarfile.open(folder / f"{start // _SHARD:04d}.tar", "w") as tar:
            for number in range(start, start + _SHARD):
                out = io.BytesIO()
                cells = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(cells).resize((32, 32), Image.Resampling.BILINEAR).save(out, format="JPEG")
                text = " ".join(_WORDS[int(place)] for place in rng.integers(0, len(_WORDS), 3))
                for extension, data in (("jpg", out.getvalue()), ("txt", text.encode())):
                    entry = tarfile.TarInfo(f"{number:08d}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def near(data: Path) -> dict[str, dict[str, list[float]]]:
    """By set of pictures: the share of copies, and of other pictures, within each of DISTANCES bits."""
    sets = {
        "everyday photographs": [*(data / "flickr8k-800").rglob("*.jpg"), *(data / "coco-mini").rglob("*.jpg")],
        "product photographs": [*(data / "fashion-products").rglob("*.jpg")],
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name, paths in sets.items():
        places = np.random.default_rng(0).permutation(len(paths))[:PICTURES]
        pictures = [decode(sorted(paths)[place].read_bytes()) for place in places]
        codes = picture_codes(pictures)
        apart = np.stack([np.bitwise_count(codes ^ code).sum(axis=1) for code in codes]).astype(np.int64)
        np.fill_diagonal(apart, 999)
        shares = {"another picture": _shares(apart.min(axis=1))}
        for copy, change in _COPIES.items():
            copied = picture_codes([change(picture) for picture in pictures[:COPIED]])
            shares[copy] = _shares(np.bitwise_count(copied ^ codes[:COPIED]).sum(axis=1))
        found[name] = shares
        print(name, shares, flush=True)
    return found


def picture_codes(pictures: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.frombuffer(picture_code(picture), dtype=np.uint8) for picture in pictures])


def _shares(apart: NDArray[Any]) -> list[float]:
    return [round(float((apart <= distance).mean()), 4) for distance in DISTANCES]


def again(picture: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=quality)
    return decode(out.getvalue())


def _scaled(picture: Image.Image) -> Image.Image:
    size = (round(0.6 * picture.width), round(0.6 * picture.height))
    return again(picture.resize(size, Image.Resampling.BICUBIC), 85)


def _cropped(picture: Image.Image) -> Image.Image:
    off = round(0.02 * picture.width), round(0.02 * picture.height)
    return again(picture.crop((*off, picture.width - off[0], picture.height - off[1])), 90)


_COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 70": lambda picture: again(picture, 70),
    "0.6 of the size": _scaled,
    "2 % of each edge cut off": _cropped,
}
