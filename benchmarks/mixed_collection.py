"""Are texts and pictures of one collection ranked fairly, and what makes them so?

    python benchmarks/mixed_collection.py --data DATA                      judges, writes the record
    python benchmarks/mixed_collection.py --data DATA --split validation   the same on validation, into no record
    python benchmarks/mixed_collection.py --write-docs                     the table of docs/intra-modal.md

DATA holds fashion-products and flickr8k-800. Each item of a collection is there as a picture or as texts, never as
both; queries are pictures and texts. Means are fitted on training's items, knobs set on validation, and the held-out
split is judged once with them. Vectors stay in .runs/mixed-collection.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.intra_modal_tables import interval, number, signed
from benchmarks.intra_modal_tasks import F32, I64, Judged, KeptVectors, products_of, rows_of
from benchmarks.lab_runs import RECORDS, ROOT
from benchmarks.marked import markdown_table, replace_blocks
from evaluation.encoder import ArtifactEncoder
from evaluation.metrics import mean_estimate
from evaluation.probes.ranking import average_precision
from evaluation.significance import Means, paired_means
from model_store.intra_modal import VectorMaps, centred, centred_directions, principal, random_directions
from model_store.store import Store

RUNS, RECORD = ROOT / ".runs" / "mixed-collection", RECORDS / "mixed-collection.json"
PAGE = ROOT / "docs" / "intra-modal.md"
RAW, MEAN, MERGED, STANDARD = "as it is", "mean", "two lists merged", "scores standardised"
KEEPS = (48, 96, 192, 288)
_RANK, _FIRST = 60, 10  # of reciprocal rank fusion (Cormack et al., 2009); the hits that are looked at
F64 = NDArray[np.float64]
Score = Callable[[F32, str], F64]  # unit queries [Q, D] of one modality -> scores [Q, N] of the items


@dataclass(frozen=True, kw_only=True)
class MixedGallery:
    """Items, each a picture or a text, and queries of both kinds. things: whose picture or text it is; no item answers
    a query of its own thing, unless `own` says that only these are right."""

    name: str
    items: F32
    are_texts: NDArray[np.bool_]
    labels: I64
    things: I64
    queries: Mapping[str, tuple[F32, I64, I64]]  # by modality: unit vectors, labels, things
    own: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of each query: average precision, normalised gain at 10, and the share of pictures among the first ten."""

    precision: F64
    gain: F64
    pictures: F64
    labels: I64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--write-docs", action="store_true")
    chosen = parser.parse_args()
    if chosen.data is not None:
        record = judged(chosen.data, chosen.split)
        path = RECORD if chosen.split == "test" else RUNS / "validation.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if chosen.write_docs:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(replace_blocks(page, {"mixed-collection": table(record)}), encoding="utf-8")
    return 0


def judged(data: Path, split: Judged) -> dict[str, Any]:
    encode = KeptVectors(ArtifactEncoder(Store(None).open("everyday-small")), RUNS / "vectors")
    found: dict[str, Any] = {}
    for make in (product_gallery, photograph_gallery):
        pictures, texts, galleries = make(data, encode)
        found[galleries["test"].name] = compared(pictures, texts, galleries, split)
        print(f"{galleries['test'].name} judged", flush=True)
    return found


def product_gallery(data: Path, encode: KeptVectors) -> tuple[F32, F32, dict[str, MixedGallery]]:
    """Photographs and titles of products; right are those of the same article and colour."""
    rows = list(products_of(data))
    trained = rows_of(rows, "train")[::10]
    galleries: dict[str, MixedGallery] = {}
    for split in ("validation", "test"):
        chosen = [row for row in rows_of(rows, split) if row.kind is not None]
        kinds = sorted({row.kind for row in chosen if row.kind})
        labels = np.array([kinds.index(row.kind or "") for row in chosen])
        pictures = encode.images([row.path.read_bytes() for row in chosen], f"products {split}")
        texts = encode.texts([row.title for row in chosen])
        are_texts = np.array([halved(row.path.name) for row in chosen])
        things = np.arange(len(chosen))
        galleries[split] = MixedGallery(
            name="products",
            items=np.where(are_texts[:, None], texts, pictures),
            are_texts=are_texts,
            labels=labels,
            things=things,
            queries={"image": (pictures, labels, things), "text": (texts, labels, things)},
            own=False,
        )
    images = encode.images([row.path.read_bytes() for row in trained], "products train")
    return images, encode.texts([row.title for row in trained]), galleries


def photograph_gallery(data: Path, encode: KeptVectors) -> tuple[F32, F32, dict[str, MixedGallery]]:
    """Photographs, and captions of other photographs; right is what shows or describes the query's own one.

    A picture asks for captions of itself, and a caption for its picture or for other captions of it.
    """
    with (data / "flickr8k-800" / "captions.csv").open(encoding="utf-8", newline="") as stream:
        told: dict[str, list[str]] = {}
        for row in csv.DictReader(stream):
            told.setdefault(row["image"], []).append(row["caption"])
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for name in sorted(told):
        parts[list(parts)[digest(name) % 3]].append(name)
    vectors = {
        part: (
            encode.images([(data / "flickr8k-800" / "images" / name).read_bytes() for name in names], f"flickr {part}"),
            encode.texts([text for name in names for text in told[name]]),
            np.array([at for at, name in enumerate(names) for _ in told[name]]),
        )
        for part, names in parts.items()
    }
    galleries: dict[str, MixedGallery] = {}
    for split in ("validation", "test"):
        pictures, texts, of = vectors[split]
        as_texts = np.array([halved(name) for name in parts[split]])
        asks = np.array([at == 0 or of[at - 1] != of[at] for at in range(len(of))])  # the first caption of each
        shown, written = np.flatnonzero(~as_texts), np.flatnonzero(as_texts[of] & ~asks)
        things = np.concatenate([shown, of[written]])
        galleries[split] = MixedGallery(
            name="photographs and captions",
            items=np.concatenate([pictures[shown], texts[written]]),
            are_texts=np.repeat([False, True], [len(shown), len(written)]),
            labels=things,
            things=things,
            queries={
                "image": (pictures[as_texts], np.flatnonzero(as_texts), np.flatnonzero(as_texts)),
                "text": (texts[asks], of[asks], of[asks]),
            },
            own=True,
        )
    return vectors["train"][0], vectors["train"][1], galleries


def digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def halved(name: str) -> bool:
    """Whether the item of this name is there as texts."""
    return digest(f"half {name}") % 2 == 1


def ways(pictures: F32, texts: F32, gallery: MixedGallery) -> dict[str, dict[str, Score]]:
    """By name, each by its knobs."""
    dim = pictures.shape[1]
    found: dict[str, dict[str, Score]] = {
        RAW: {"": lambda queries, _: cosines(queries, gallery.items)},
        MEAN: {"": mapped(centred(pictures, texts), gallery)},
        "text pca": {f"{keep} kept": mapped(principal(texts, keep=keep), gallery) for keep in KEEPS},
        "picture pca": {f"{keep} kept": mapped(principal(pictures, keep=keep), gallery) for keep in KEEPS},
        "random": {f"{keep} kept": mapped(random_directions(dim, keep=keep, seed=0), gallery) for keep in KEEPS},
    }
    found["mean, then picture pca"] = {
        f"{keep} kept": mapped(centred_directions(pictures, texts, keep=keep), gallery) for keep in KEEPS
    }
    found[MERGED] = {"": lambda queries, _: fused(cosines(queries, gallery.items), gallery.are_texts)}
    found[STANDARD] = {"": lambda queries, _: standardised(cosines(queries, gallery.items), gallery.are_texts)}
    return found


def cosines(queries: F32, items: F32) -> F64:
    return queries.astype(np.float64) @ items.T.astype(np.float64)


def mapped(maps: VectorMaps, gallery: MixedGallery) -> Score:
    """Each vector through the map of its own modality."""
    items = np.where(gallery.are_texts[:, None], maps.text(gallery.items), maps.image(gallery.items))
    return lambda queries, modality: cosines((maps.image if modality == "image" else maps.text)(queries), items)


def fused(scores: F64, are_texts: NDArray[np.bool_]) -> F64:
    """Reciprocal rank fusion of one list of pictures and one of texts: each modality in turn."""
    made = np.zeros_like(scores)
    for part in (are_texts, ~are_texts):
        ranks = np.argsort(np.argsort(-scores[:, part], axis=1), axis=1)
        made[:, part] = 1 / (_RANK + 1 + ranks)
    return made


def standardised(scores: F64, are_texts: NDArray[np.bool_]) -> F64:
    """Scores less the mean of all items of their modality for this query, by their deviation."""
    made = np.zeros_like(scores)
    for part in (are_texts, ~are_texts):
        chosen = scores[:, part]
        made[:, part] = (chosen - chosen.mean(axis=1, keepdims=True)) / chosen.std(axis=1, keepdims=True)
    return made


def outcome_of(gallery: MixedGallery, score: Score, modality: str) -> Outcome:
    queries, labels, things = gallery.queries[modality]
    found: list[tuple[float, float, float]] = []
    asked: list[int] = []
    for row, label, thing in zip(score(queries, modality), labels, things, strict=True):
        among = np.ones(len(row), dtype=bool) if gallery.own else gallery.things != thing
        relevant = (gallery.labels == label)[among]
        if not relevant.any():
            continue
        order = np.argsort(-row[among], kind="stable")[:_FIRST]
        gains = relevant[order] / np.log2(np.arange(2, 2 + len(order)))
        best = (1 / np.log2(np.arange(2, 2 + min(_FIRST, int(relevant.sum()))))).sum()
        shown = float((~gallery.are_texts[among][order]).mean())
        found.append((average_precision(row[among], relevant), float(gains.sum() / best), shown))
        asked.append(int(label))
    precision, gain, shown = np.array(found).T
    return Outcome(precision=precision, gain=gain, pictures=shown, labels=np.array(asked))


def compared(pictures: F32, texts: F32, galleries: Mapping[str, MixedGallery], split: Judged) -> dict[str, Any]:
    tuned, gallery = galleries["validation"], galleries[split]
    tried, held = ways(pictures, texts, tuned), ways(pictures, texts, gallery)
    rows: dict[str, Any] = {}
    for modality in ("image", "text"):
        raw = outcome_of(gallery, held[RAW][""], modality)
        for name, knobs in tried.items():
            scores = {knob: float(outcome_of(tuned, score, modality).gain.mean()) for knob, score in knobs.items()}
            best = max(scores, key=lambda each: scores[each])
            outcome = outcome_of(gallery, held[name][best], modality)
            rows.setdefault(name, {})[modality] = {
                "knobs": best,
                "ndcg@10": estimated(outcome.gain, outcome.labels),
                "mAP": estimated(outcome.precision, outcome.labels),
                "pictures": round(float(outcome.pictures.mean()), 3),
                "minus raw": difference(raw.gain, outcome.gain, outcome.labels),
            }
    counts = {"pictures": int((~gallery.are_texts).sum()), "texts": int(gallery.are_texts.sum())}
    return {"items": counts, "queries": {each: len(found[0]) for each, found in gallery.queries.items()}, "rows": rows}


def estimated(values: F64, groups: I64) -> list[float]:
    found = mean_estimate(values, groups=groups)
    return [round(found.value, 4), round(found.low, 4), round(found.high, 4)]


def difference(before: F64, after: F64, groups: I64) -> list[float] | None:
    """after - before of the same queries, with its 95 % interval over labels."""
    at, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    sums = (np.asarray(np.bincount(at, each), dtype=np.float64) for each in (before, after))
    found = paired_means(*(Means(sums=each, sizes=sizes.astype(np.float64)) for each in sums))
    return None if found is None else [round(each, 4) for each in (found.value, found.low, found.high)]


def table(record: Mapping[str, Any]) -> str:
    lines: list[Sequence[str]] = []
    for name, found in record.items():
        share = found["items"]["pictures"] / sum(found["items"].values())
        for way, by_modality in found["rows"].items():
            for modality, row in by_modality.items():
                asked = "a picture" if modality == "image" else "a text"
                change = "" if way == RAW or row["minus raw"] is None else signed(row["minus raw"])
                lines.append(
                    [
                        name,
                        asked,
                        f"{way}, {row['knobs']}" if row["knobs"] else way,
                        interval(row["ndcg@10"]),
                        change,
                        f"{number(row['pictures'])} of {number(share)}",
                    ]
                )
    lines.sort(key=lambda line: (line[0], line[1]))
    header = ["collection", "query", "way", "NDCG@10", "against as it is", "pictures among the first ten"]
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
