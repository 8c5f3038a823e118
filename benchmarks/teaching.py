"""Accuracy of label sets taught over HTTP with few pictures, judged on others, and the seconds that teaching takes.

    clipworks serve --data memory
    python benchmarks/teaching.py --url http://127.0.0.1:8000 --products FOLDER --label subCategory [--out FILE]
    python benchmarks/teaching.py --url http://127.0.0.1:8000 --classes FOLDER [--out FILE]
    python benchmarks/teaching.py --url http://127.0.0.1:8000 --speed

--products: `captions.csv` (image, ..., the label) and the photographs, as docs/fashion-small.md describes; examples
come from products with id % 10 == 2, which no model here was trained on, and judged are those with id % 10 == 1.
--classes: a folder of pictures for each class; a fifth of them, by the sha256 of their bytes, is judged.
--speed: 1,000 drawn JPEGs (--side wide) in 20 labels, from the first byte to a set that is ready.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.marked import markdown_table
from clipworks import Client
from evaluation.metrics import class_mean_accuracy, mean_estimate

NAME = "teaching-benchmark"
SHOTS = (1, 2, 4, 8, 16)
SEEDS = 3
LEAST = 20
SPEED_LABELS, SPEED_EACH = 20, 50
Pictures = Mapping[str, Sequence[Path]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--products", type=Path)
    parser.add_argument("--label", default="subCategory")
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--side", type=int, default=640, help="of --speed: width in pixels, three quarters as high")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with Client(options.url, batch_size=16, concurrency=2) as client:
        if options.speed:
            found: Any = speed(client, side=options.side)
            print(json.dumps(found))
        else:
            pool, judged = products(options.products, options.label) if options.products else folders(options.classes)
            found = [row for shots in (0, *SHOTS) for row in accuracy(client, pool, judged, shots)]
            print(table(found))
        client.delete_label_set(NAME)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def products(folder: Path, label: str) -> tuple[Pictures, Pictures]:
    """(pictures for examples, pictures to judge) by label; labels with at least LEAST pictures for examples."""
    with (folder / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    split: dict[int, dict[str, list[Path]]] = {1: {}, 2: {}}
    for row in rows:
        if (part := int(Path(row["image"]).stem) % 10) in split:
            split[part].setdefault(row[label], []).append(folder / row["image"])
    frequent = sorted(name for name, paths in split[2].items() if len(paths) >= LEAST)
    return {name: split[2][name] for name in frequent}, {name: split[1].get(name, []) for name in frequent}


def folders(folder: Path) -> tuple[Pictures, Pictures]:
    """As `products`, of a folder for each class."""
    pool: dict[str, list[Path]] = {}
    judged: dict[str, list[Path]] = {}
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        for picture in sorted(path for path in each.iterdir() if path.is_file()):
            held_out = int(hashlib.sha256(picture.read_bytes()).hexdigest(), 16) % 5 == 0
            (judged if held_out else pool).setdefault(each.name, []).append(picture)
    return pool, judged


def accuracy(client: Client, pool: Pictures, judged: Pictures, shots: int) -> list[dict[str, Any]]:
    """One row for each seed of the examples; 0 shots are the words alone, without a seed."""
    names = list(pool)
    pictures = [path for name in names for path in judged[name]]
    truth = np.array([at for at, name in enumerate(names) for _ in judged[name]])
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS if shots else 1):
        told = None
        if shots:
            rng = np.random.default_rng(seed)
            chosen = {name: [pool[name][i] for i in rng.permutation(len(pool[name]))[:shots]] for name in names}
            told = client.teach(NAME, chosen).label_set
        else:
            client.put_label_set(NAME, names)
        answers = client.classify(pictures, label_set=NAME, top_k=1)
        predicted = np.array([names.index(each[0].label) for each in answers])
        left_out = told.leave_one_out if told else None
        rows.append(
            {
                "shots": shots,
                "seed": seed,
                "judged": len(truth),
                "accuracy": asdict(mean_estimate(predicted == truth)),
                "class_mean": class_mean_accuracy(predicted, truth),
                "majority": max(Counter(truth.tolist()).values()) / len(truth),
                "chance": 1 / len(names),
                "left_out": left_out.model_dump() if left_out else None,
                "mix": told.mix if told else None,
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds, with the lowest and the highest; the interval is of the first seed, over pictures."""
    lines: list[list[str]] = []
    for shots in sorted({row["shots"] for row in rows}):
        mine = [row for row in rows if row["shots"] == shots]
        found = [row["accuracy"]["value"] for row in mine]
        left_out = [row["left_out"]["accuracy"] for row in mine if row["left_out"]]
        lines.append(
            [
                str(shots) if shots else "0 (words alone)",
                f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})",
                f"{np.mean([row['class_mean'] for row in mine]):.3f}",
                f"{np.mean(left_out):.3f}" if left_out else "",
                ", ".join(f"{row['mix']:g}" for row in mine) if shots else "",
            ]
        )
    first = rows[0]
    said = f"n = {first['judged']}, largest class {first['majority']:.3f}, chance {first['chance']:.3f}\n\n"
    return said + markdown_table(
        ["examples a label", "accuracy (lowest and highest seed)", "class mean", "leave-one-out", "mix"], lines
    )


def speed(client: Client, *, side: int) -> dict[str, Any]:
    """Seconds for 1,000 pictures of 20 labels, and what the same pictures take through /embed alone."""
    pictures = {f"label {at}": [_drawn(at, number, side) for number in range(SPEED_EACH)] for at in range(SPEED_LABELS)}
    everything = [each for label in pictures.values() for each in label]
    client.embed(images=everything[:64])  # warm
    runs: list[tuple[float, float]] = []
    for _ in range(2):
        began_s = time.perf_counter()
        client.embed(images=everything)
        embedded_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        found = client.teach(NAME, pictures).label_set
        runs.append((time.perf_counter() - began_s, embedded_s))
        assert found.examples == len(everything), found
    return {
        "examples": len(everything),
        "labels": SPEED_LABELS,
        "side_px": side,
        "taught_s": [round(taught, 2) for taught, _ in runs],
        "embedded_s": [round(embedded, 2) for _, embedded in runs],
        "ratio": round(float(np.median([taught / embedded for taught, embedded in runs])), 2),
    }


def _drawn(label: int, number: int, side: int) -> bytes:
    rng = np.random.default_rng([label, number])
    small = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(small).resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
