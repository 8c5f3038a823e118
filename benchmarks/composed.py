"""Composed queries: "this, but not that", lists that do not repeat themselves, and when nothing matches.

    python benchmarks/composed.py --data DATA                  # some minutes; .runs/benchmarks/composed.json
    python benchmarks/composed.py --write-docs                 # the record, and the tables of docs/composed.md

DATA holds `fashion-products`, `coco-mini` and `flickr8k-800`. Weights and thresholds are set on validation and read on
held-out pictures. Encoded pictures are kept in .runs/composed, so that a second run takes a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import composed_pictures, composed_tables
from benchmarks.composed_data import SPLITS, ComposedEncoder, QuestionSet, question_sets
from benchmarks.composed_formulas import FORMULAS, Presences, ask
from benchmarks.composed_judge import by_weight, chosen_weights, heldout, pools, tolerance
from benchmarks.composed_lists import diversity, folding
from benchmarks.composed_presence import SIGNALS, Cases, best_threshold, foreign, judged, removed
from benchmarks.figures import RESULTS
from benchmarks.marked import ROOT

RESULT = RESULTS / "composed.json"
POOLED = ("hinge", "presence, log", "presence, cut", "presence, log, length 1")
# Of COCO's 80: what no shop for clothes and hardly a photograph of Flickr8k shows.
FOREIGN = (
    "airplane", "train", "traffic light", "parking meter", "elephant", "bear", "zebra", "giraffe", "wine glass", "fork",
    "banana", "sandwich", "broccoli", "carrot", "pizza", "donut", "toilet", "tv", "laptop", "keyboard", "microwave",
    "oven", "toaster", "sink", "refrigerator", "vase", "scissors", "toothbrush",
)  # fmt: skip


def negatives(sets: dict[str, list[QuestionSet]], encoder: ComposedEncoder, presences: Presences) -> dict[str, Any]:
    """What the formulas reach: their curves on validation, the weights chosen there, numbers on held-out pictures."""
    asked = {split: [(each, ask(each, encoder, presences)) for each in sets[split]] for split in SPLITS}
    curves = by_weight(asked["validation"])
    weights = {name: chosen_weights(curve) for name, curve in curves.items()}
    shared = {name: best for name, (_, best) in weights.items()}
    means = {
        formula.name: np.mean(
            [list(curves[formula.name][each.name].values()) for each in sets["validation"][:-2]], axis=0
        )
        for formula in FORMULAS
    }
    best_vector = max((f.name for f in FORMULAS if f.side == "vector"), key=lambda name: means[name].max())
    return {
        "validation": {
            formula.name: {
                "means": [float(value) for value in means[formula.name]],
                "weights": list(formula.weights),
                "own": weights[formula.name][0],
                "shared": shared[formula.name],
                "tolerance": tolerance(curves[formula.name], shared[formula.name]),
            }
            for formula in FORMULAS
        },
        "heldout": heldout(asked["heldout"], weights),
        "best_vector": best_vector,
        "pools": pools(asked["heldout"], POOLED, shared, best_vector),
    }


def nothing_matches(
    sets: dict[str, list[QuestionSet]], encoder: ComposedEncoder, presences: Presences
) -> dict[str, Any]:
    """Searches for what the gallery lost, and for what is foreign to it, in each data set."""
    cases: dict[str, dict[str, Cases]] = {}
    for split in SPLITS:
        for data, gallery in {each.gallery.data: each.gallery for each in sets[split]}.items():
            names = sorted({a for a, _ in gallery.kinds}) if gallery.kinds else sorted(gallery.labels)
            found = cases.setdefault(f"{data}, removed", {})
            found[split] = removed(gallery, encoder, presences, names)
            if data != "coco-mini":
                found = cases.setdefault(f"{data}, foreign", {})
                found[split] = foreign(gallery, encoder, presences, names, FOREIGN)
    seen = [each["validation"] for name, each in cases.items() if name.endswith("removed")]
    common = {signal: best_threshold([each[signal] for each in seen]) for signal in SIGNALS}
    shipped = {signal: presences.rule.threshold for signal in SIGNALS if "P" in signal}
    shipped["calibrated for searches"] = presences.search.threshold
    return {
        name: judged(each["validation"], each["heldout"], common=common, shipped=shipped)
        for name, each in cases.items()
    }


def measure(data: Path, model: str, store: Path | None) -> dict[str, Any]:
    encoder = ComposedEncoder(model, store, ROOT / ".runs" / "composed")
    sets = {split: question_sets(data, encoder, split) for split in SPLITS}
    seen = {each.gallery.data: each.gallery for each in sets["validation"]}
    presences = Presences(encoder, store)
    record: dict[str, Any] = {"model": encoder.reference, "threshold": presences.rule.threshold}
    record["lengths"] = {name: [float(q) for q in np.percentile(g.lengths, (5, 50, 95))] for name, g in seen.items()}
    shops = [next(each.gallery for each in sets[split] if each.gallery.data == "products") for split in SPLITS]
    neutral = presences.neutral.mean(axis=0)
    record["pictures"] = composed_pictures.judged(*(composed_pictures.parts(shop, encoder, neutral) for shop in shops))
    record["negatives"] = negatives(sets, encoder, presences)
    record["nothing"] = nothing_matches(sets, encoder, presences)
    record["diversity"], record["folding"] = {}, {}
    folders = {"products": data / "fashion-products", "flickr8k": data / "flickr8k-800" / "images"}
    for split in SPLITS:
        galleries = {each.gallery.data: each.gallery for each in sets[split]}
        shop = galleries["products"]
        names = [name for name in sorted({a for a, _ in shop.kinds}) if shop.labels[name].sum() >= 10]
        record["diversity"][split] = {"names": len(names)} | diversity(shop, encoder, names)
        record["folding"][split] = {name: folding(galleries[name], encoder, folder) for name, folder in folders.items()}
    return record


def rounded(value: Any) -> Any:
    """Floats to four places: what a table shows, and a record that stays small."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="everyday-small")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--write-docs", action="store_true", help="keep the last run's record, and write its tables")
    chosen = parser.parse_args(arguments)
    if chosen.data is not None:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        record = rounded(measure(chosen.data, chosen.model, chosen.store))
        RESULT.write_text(json.dumps(record) + "\n", encoding="utf-8")
    elif not chosen.write_docs:
        parser.error("--data or --write-docs")
    record = json.loads(RESULT.read_text(encoding="utf-8"))
    print("\n\n".join(composed_tables.blocks(record).values()))
    if chosen.write_docs:
        composed_tables.publish(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
