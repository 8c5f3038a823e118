"""A stranger's first hour in numbers: a folder of photographs embedded, classified and found by text, all over HTTP.

    python benchmarks/first_use.py --url http://127.0.0.1:8000 --data FOLDER [--out FILE]

FOLDER holds `captions.csv` (image,caption,...,baseColour) and the photographs, as docs/fashion-small.md describes; only
the held-out products (id % 10 == 1) are used.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from clipworks import Client
from evaluation.fashion import MIN_PHOTOGRAPHS, fashion_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with (options.data / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    products = {row["image"]: int(Path(row["image"]).stem) % 10 for row in rows}
    trained = frozenset(row["caption"].casefold() for row in rows if products[row["image"]] not in (1, 2))
    rows = [row for row in rows if products[row["image"]] == 1]
    photographs = [options.data / row["image"] for row in rows]
    titles, colours = [row["caption"] for row in rows], [row["baseColour"] for row in rows]

    with Client(options.url) as client:
        began_s = time.perf_counter()
        images = np.asarray(client.embed(images=photographs))
        embedded_s = time.perf_counter() - began_s
        model = next(model for model in client.models() if model.loaded)
        templates = client.model(model.name).templates
        report = fashion_report(
            images,
            lambda texts: np.asarray(client.embed(texts=texts)),
            titles,
            colours,
            training_titles=trained,
            templates=templates,
        )
        frequent = sorted(c for c, n in Counter(colours).items() if n >= MIN_PHOTOGRAPHS)
        chosen = [index for index, colour in enumerate(colours) if colour in frequent]
        began_s = time.perf_counter()
        answers = client.classify([photographs[i] for i in chosen], [c.casefold() for c in frequent])
        classified_s = time.perf_counter() - began_s
        right = sum(a[0].label == colours[i].casefold() for a, i in zip(answers, chosen, strict=True))
        began_s = time.perf_counter()
        queries = np.asarray(client.embed(texts=titles))
        best = np.argsort(-(queries @ images.T), axis=1)[:, :10]
        found_s = time.perf_counter() - began_s
    numbers = {
        "photographs": len(rows),
        "embedded_per_s": round(len(rows) / embedded_s, 1),
        "classified_per_s": round(len(chosen) / classified_s, 1),
        "queries_per_s": round(len(titles) / found_s, 1),
        "colour_by_classify": round(right / len(chosen), 4),
        "top_10_shape": list(best.shape),
        "report": report,
    }
    text = json.dumps(numbers, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
