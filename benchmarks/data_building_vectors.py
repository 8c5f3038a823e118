"""Copies that `clipworks data build` finds by hash, by the vectors of a stored model, and by both; and others it takes.

The cosine is chosen on validation pictures; the table is of held-out ones.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.data_building_costs import again, picture_codes
from clipworks.cli.data_filter import OpenEmbedder, StoredEmbedder
from model_store.modality.image import decode
from training.building.near_vectors import NORM, drop_near_vectors, rounded, vectors_path, write_vector
from training.building.pair_table import PairTable

MODEL, BITS, USUAL = "everyday-small", 3, 0.95
COSINES = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
WRONG = 0.01  # share of other pictures that a cosine may take on validation pictures
_POOL, _COPIED, _ROWS = 250, 75, 10_000


def measure(data: Path) -> dict[str, Any]:
    """By set: the chosen cosine, and by copy the share found by hash, by vectors with USUAL and chosen, by both."""
    embedder, began = StoredEmbedder.of(MODEL, None), time.process_time()
    model, sets, embedded = embedder.open(), {}, 0
    for name, (validation, held_out) in _splits(data).items():
        judged, count = _judged(model, validation)
        wrong = {cosine: float(_taken(judged["cosines"]["another picture"], cosine).mean()) for cosine in COSINES}
        chosen = next((cosine for cosine in COSINES if wrong[cosine] <= WRONG), COSINES[-1])
        test, more = _judged(model, held_out)
        embedded += count + more
        sets[name] = {
            "cosine": chosen,
            "pictures": len(held_out),
            "validation_wrong": wrong,
            "found": _found(test, chosen),
        }
        print(name, sets[name], flush=True)
    return {
        "model": MODEL,
        "sets": sets,
        "bytes": 2 * embedder.dim,
        "picture_ms": round(1000 * (time.process_time() - began) / embedded, 1),
        "compare_s": _compare_seconds(embedder.dim),
        "rows": _ROWS,
    }


def _splits(data: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """Validation and held-out pictures of each set; of products by their ids, as the data's README has it."""
    rng = np.random.default_rng(0)
    everyday = sorted((data / "flickr8k-800").rglob("*.jpg"))
    products = sorted((data / "fashion-products").rglob("*.jpg"))
    found: dict[str, tuple[list[Path], list[Path]]] = {}
    places = rng.permutation(len(everyday))[: 2 * _POOL]
    found["everyday photographs"] = ([everyday[at] for at in places[:_POOL]], [everyday[at] for at in places[_POOL:]])
    parts = [[path for path in products if path.stem[-1] == digit] for digit in "21"]
    validation, held_out = ([part[at] for at in rng.permutation(len(part))[:_POOL]] for part in parts)
    found["product photographs"] = (validation, held_out)
    return found


def _judged(model: OpenEmbedder, paths: Sequence[Path]) -> tuple[dict[str, dict[str, NDArray[Any]]], int]:
    """bits, cosines: copy -> of each picture with it; another picture -> all with all. And how many there were."""
    pictures = [decode(path.read_bytes()) for path in paths]
    hashes, vectors = picture_codes(pictures), _vectors(model, pictures)
    bits = {"another picture": np.stack([np.bitwise_count(hashes ^ code).sum(axis=1) for code in hashes])}
    cosines, count = {"another picture": vectors @ vectors.T}, len(pictures)
    for copy, change in _COPIES.items():
        copied = [change(picture) for picture in pictures[:_COPIED]]
        bits[copy] = np.bitwise_count(picture_codes(copied) ^ hashes[:_COPIED]).sum(axis=1)
        cosines[copy] = (_vectors(model, copied) * vectors[:_COPIED]).sum(axis=1)
        count += len(copied)
    return {"bits": bits, "cosines": cosines}, count


def _vectors(model: OpenEmbedder, pictures: Sequence[Image.Image]) -> NDArray[np.float64]:
    """As they are kept: whole numbers, by their length. Pictures travel as PNG: nothing is lost on the way."""
    whole = np.stack([rounded(np.asarray(vector)) for vector in model.vectors([_png(each) for each in pictures])])
    return whole / np.linalg.norm(whole.astype(np.float64), axis=1, keepdims=True)


def _found(judged: dict[str, dict[str, NDArray[Any]]], chosen: float) -> dict[str, dict[str, float]]:
    shares: dict[str, dict[str, float]] = {}
    for copy, bits in judged["bits"].items():
        cosines = judged["cosines"][copy]
        if copy == "another picture":
            hashed = _taken(-bits.astype(np.float64), -BITS)
            usual, near = _taken(cosines, USUAL), _taken(cosines, chosen)
        else:
            hashed, usual, near = bits <= BITS, cosines >= USUAL, cosines >= chosen
        by = {"hash": hashed, "usual": usual, "vectors": near, "both": hashed | near}
        shares[copy] = {name: round(float(each.mean()), 4) for name, each in by.items()}
    return shares


def _taken(nearness: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """Which pictures go where each stays unless one that stays is this near; in their order."""
    gone = np.zeros(len(nearness), dtype=bool)
    for row in range(len(nearness)):
        gone[row] = bool(((nearness[row, :row] >= least) & ~gone[:row]).any())
    return gone


def _compare_seconds(dim: int) -> float:
    """CPU time of deciding about so many unrelated vectors."""
    drawn = np.random.default_rng(0).normal(size=(_ROWS, dim))
    whole = np.rint(NORM * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.int16)
    with tempfile.TemporaryDirectory() as name:
        facts = Path(name) / "facts.jsonl"
        usual = {"at": 0, "fault": None, "size": [9, 9], "code": "00" * 32, "queries": [0]}
        with facts.open("w", encoding="utf-8") as lines, vectors_path(facts).open("wb") as stream:
            for place, vector in enumerate(whole):
                own = {"i": place, "pair": f"{place:032x}", "picture": f"{place:032x}"}
                lines.write(json.dumps(usual | own) + "\n")
                write_vector(stream, place, vector)
        table = PairTable(Path(name) / "table")
        table.take_in(0, facts, seed=0)
        began = time.process_time()
        drop_near_vectors(table, [facts], Path(name), cosine=USUAL, dim=dim)
        table.close()
        return round(time.process_time() - began, 2)


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=1)
    return out.getvalue()


def _half(picture: Image.Image) -> Image.Image:
    size = (max(1, picture.width // 2), max(1, picture.height // 2))
    return again(picture.resize(size, Image.Resampling.BICUBIC), 90)


def _cropped(picture: Image.Image) -> Image.Image:
    """Without a tenth of its width and of its height, half of it at each edge."""
    off = round(0.05 * picture.width), round(0.05 * picture.height)
    return again(picture.crop((*off, picture.width - off[0], picture.height - off[1])), 90)


def _coloured(picture: Image.Image) -> Image.Image:
    """Half of the saturation, and a fifth brighter."""
    return again(ImageEnhance.Brightness(ImageEnhance.Color(picture.convert("RGB")).enhance(0.5)).enhance(1.2), 90)


_COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 60": lambda picture: again(picture, 60),
    "half of the size": _half,
    "a tenth cut off": _cropped,
    "mirrored": lambda picture: again(ImageOps.mirror(picture), 90),
    "saturation halved, a fifth brighter": _coloured,
}
