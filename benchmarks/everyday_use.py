"""A folder of photographs with captions, indexed and found by its captions: what a person who searches gets, over HTTP.

    clipworks serve --data memory
    python benchmarks/everyday_use.py --url http://127.0.0.1:8000 --data FOLDER [--out FILE]

FOLDER holds `captions.csv` (image,caption; several rows for a photograph with several captions) and the photographs,
there or in `images/`.
Every caption is searched once, ten answers each.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import numpy as np

from clipworks import Client

COLLECTION = "everyday-use"
AT = (1, 5, 10)


def id_of(image: str) -> str:
    return image.replace("/", ":")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with (options.data / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    images = sorted({image for image, _ in rows})
    folder = options.data / "images" if (options.data / "images" / images[0]).exists() else options.data
    with Client(options.url) as client:
        photos = client.create_collection(COLLECTION)
        try:
            began_s = time.perf_counter()
            stored = photos.upsert_images([folder / image for image in images], ids=[id_of(image) for image in images])
            indexed_s = time.perf_counter() - began_s
            if stored.errors:
                print(
                    f"{len(stored.errors)} pictures were not stored: {next(iter(stored.errors.values()))}",
                    file=sys.stderr,
                )
                return 1
            began_s = time.perf_counter()
            answers = photos.search([{"text": caption} for _, caption in rows], top_k=max(AT))
            searched_s = time.perf_counter() - began_s
        finally:
            client.delete_collection(COLLECTION)
    found = [[hit.id for hit in answer.hits] for answer in answers]
    hits = np.array([[id_of(image) in ids[:k] for k in AT] for (image, _), ids in zip(rows, found, strict=True)])
    numbers = {
        "photographs": len(images),
        "captions": len(rows),
        "indexed_per_s": round(len(images) / indexed_s, 1),
        "searched_per_s": round(len(rows) / searched_s, 1),
        **{f"found among {k}": round(float(share), 4) for k, share in zip(AT, hits.mean(axis=0), strict=True)},
    }
    text = json.dumps(numbers, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
