"""Measures what weights of prompt templates gain that pictures without labels decide (docs/prompts.md).

    python benchmarks/prompt_weights.py --data FOLDER [--write-docs]

FOLDER holds flowers5, textures10, fashion-products, coco-mini, flickr8k-800 and prompts. Weights come from the training
parts, whose labels nothing looks at; sharpness, threshold and whether there are reference pictures are chosen once for
all tasks on the validation parts; the held-out parts are asked with what was chosen. Vectors are kept in .runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.marked import RECORDS
from benchmarks.prompt_weights_data import (
    F32,
    TaskPictures,
    TemplateTask,
    encoder,
    read_tasks,
    reference_pictures,
    template_pool,
)
from model_store.store import Store
from model_store.template_weights import (
    Weighting,
    template_scores,
    template_weights,
    weighted_label_vectors,
)
from model_store.templates import named_templates

F64 = NDArray[np.float64]
SHARPNESSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
THRESHOLDS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.75)
UNTUNED = {"softmax": 1.0, "select": 0.5}
AMOUNTS = (10, 30, 100, 300)
DRAWS, DRAWN = 200, 7
_Z = 1.959963984540054
RECORD = RECORDS / "prompt-weights.json"


class TemplateStudy:
    """pool: templates; imagenet: how many of them, the first ones, are the 80. scale: the model's logit scale."""

    def __init__(self, tasks: Sequence[TemplateTask], reference: F32, pool: Sequence[str], *, scale: float) -> None:
        self.tasks, self.pool, self._reference, self._scale = tasks, list(pool), reference, scale
        self.sets = {"80": list(range(len(named_templates("imagenet")))), "pool": list(range(len(pool)))}

    def scores(self, task: TemplateTask, *, kind: str, amount: int | None = None, seed: int = 0) -> F64:
        """Of all templates of the pool. kind: "own" expects what the task's pictures say, "reference" also the others,
        "raw" nothing."""
        shown = task.train.vectors
        if amount is not None:
            shown = shown[np.random.default_rng(seed).permutation(len(shown))[:amount]]
        if kind == "raw":
            largest = np.stack([(shown @ task.texts[:, at].T).max(axis=1) for at in range(len(self.pool))], axis=1)
            return self._scale * largest.mean(axis=0, dtype=np.float64)
        reference = self._reference if kind == "reference" else None
        return template_scores(shown, task.texts, reference=reference, scale=self._scale)

    def weights(self, scores: F64, of: str, how: Weighting, **knobs: float) -> F64:
        """Of all templates; those that are not of the set have none."""
        found = np.zeros(len(self.pool))
        found[self.sets[of]] = template_weights(scores[self.sets[of]], how, **knobs)
        return found

    def equal(self, templates: Sequence[str]) -> F64:
        found = np.zeros(len(self.pool))
        found[[self.pool.index(each) for each in templates]] = 1 / len(templates)
        return found


def right(task: TemplateTask, weights: F64, shown: TaskPictures) -> NDArray[np.bool_]:
    """Whether each picture is classified right, bool [N]."""
    used = weights > 0
    vectors = weighted_label_vectors(task.texts[:, used], weights[used])
    return (shown.vectors @ vectors.T).argmax(axis=1) == shown.truth


def choose(study: TemplateStudy) -> dict[str, Any]:
    """Knobs that are best on average over the validation parts, and all that was tried."""
    tried: list[dict[str, Any]] = []
    for kind in ("own", "reference"):
        scores = {task.name: study.scores(task, kind=kind) for task in study.tasks}
        for of in study.sets:
            for how, knob, values in (("softmax", "sharpness", SHARPNESSES), ("select", "threshold", THRESHOLDS)):
                for value in values:
                    accuracy = [
                        right(task, study.weights(scores[task.name], of, how, **{knob: value}), task.validation).mean()
                        for task in study.tasks
                    ]
                    tried.append(
                        {"kind": kind, "of": of, "how": how, knob: value, "validation": rounded(np.mean(accuracy))}
                    )
    best = {
        f"{how}, {of}": max((row for row in tried if (row["how"], row["of"]) == (how, of)), key=_validation)
        for how in ("softmax", "select")
        for of in study.sets
    }
    return {"tried": tried, "best": best}


def _validation(row: Mapping[str, Any]) -> float:
    return row["validation"]


def contenders(study: TemplateStudy, task: TemplateTask, chosen: Mapping[str, Any]) -> dict[str, F64]:
    """Weights by the name of a row of the tables."""
    own, both = study.scores(task, kind="own"), study.scores(task, kind="reference")
    of_kind = {"own": own, "reference": both}
    found = {
        "label alone": study.equal(["{}"]),
        "one template": study.equal(["a photo of a {}."]),
        "the model's own 3": study.equal(["{}", "a photo of a {}", "a {}"]),
        "mean of 7": study.equal(named_templates("simple")),
        "mean of 80": study.equal(named_templates("imagenet")),
        "mean of the pool": study.equal(study.pool),
    }
    for of in study.sets:
        name = "80" if of == "80" else "the pool"
        found[f"ZPE weights of {name}, untuned"] = study.weights(both, of, "softmax", sharpness=UNTUNED["softmax"])
        found[f"ZPE selection of {name}, untuned"] = study.weights(both, of, "select", threshold=UNTUNED["select"])
        for how, words in (("softmax", "weights"), ("select", "selection")):
            knobs = chosen[f"{how}, {of}"]
            named = {key: knobs[key] for key in ("sharpness", "threshold") if key in knobs}
            found[f"ZPE {words} of {name}, chosen"] = study.weights(of_kind[knobs["kind"]], of, how, **named)  # pyright: ignore[reportArgumentType]
    knobs = chosen["softmax, pool"]
    raw = study.scores(task, kind="raw")
    found["raw scores, weights of the pool"] = study.weights(raw, "pool", "softmax", sharpness=knobs["sharpness"])
    return found


def judge(study: TemplateStudy, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy on validation and held-out parts, with its interval and the paired difference to the mean of 80."""
    found: dict[str, Any] = {}
    for task in study.tasks:
        rows = contenders(study, task, chosen)
        hits = {name: right(task, weights, task.test) for name, weights in rows.items()}
        found[task.name] = {
            name: {
                "validation": rounded(right(task, weights, task.validation).mean()),
                **estimate(hits[name], hits["mean of 80"]),
                "weighty": int((weights > 0.5 * weights.max()).sum()),
            }
            for name, weights in rows.items()
        }
    return found


def estimate(hits: NDArray[np.bool_], beside: NDArray[np.bool_]) -> dict[str, Any]:
    """Accuracy, and the mean of the paired differences, both with 95 % intervals of the normal distribution."""
    difference = hits.astype(float) - beside
    error = hits.std(ddof=1) / np.sqrt(len(hits))
    of_difference = difference.std(ddof=1) / np.sqrt(len(hits))
    return {
        "accuracy": rounded(hits.mean()),
        "reach": rounded(_Z * error),
        "to_80": rounded(difference.mean()),
        "to_80_reach": rounded(_Z * of_difference),
    }


def singles(study: TemplateStudy, task: TemplateTask) -> dict[str, Any]:
    """Every template by itself, on validation: the best one is a bound, which no method without labels can choose."""
    one = np.eye(len(study.pool))
    alone = np.array([right(task, each, task.validation).mean() for each in one])
    best = int(alone.argmax())
    scores = {kind: study.scores(task, kind=kind) for kind in ("raw", "own", "reference")}
    return {
        "best": study.pool[best],
        "best_validation": rounded(alone[best]),
        "worst_validation": rounded(alone.min()),
        "median_validation": rounded(np.median(alone)),
        "rank_correlation": {kind: rounded(spearman(each, alone)) for kind, each in scores.items()},
        "heaviest": [study.pool[at] for at in np.argsort(-scores["reference"])[:5]],
        "lightest": [study.pool[at] for at in np.argsort(scores["reference"])[:5]],
        "points": [[rounded(a), rounded(b)] for a, b in zip(scores["reference"], alone, strict=True)],
    }


def controls(study: TemplateStudy, task: TemplateTask, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out accuracy with the chosen weights of the pool in random orders: what weights gain that mean nothing."""
    knobs = chosen["softmax, pool"]
    weights = study.weights(study.scores(task, kind=knobs["kind"]), "pool", "softmax", sharpness=knobs["sharpness"])
    rng = np.random.default_rng(0)
    found = [right(task, rng.permutation(weights), task.test).mean() for _ in range(DRAWS)]
    return {"mean": rounded(np.mean(found)), "low": _at(found, 2.5), "high": _at(found, 97.5)}


def spread(study: TemplateStudy, task: TemplateTask, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out accuracy over draws of wordings: one of the pool, the mean of seven, and the seven weighed."""
    knobs = chosen["softmax, pool"]
    scores = study.scores(task, kind=knobs["kind"])
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {
        "one": [],
        "mean of seven": [],
        "seven weighed": [],
        "the best of seven by score": [],
    }
    for _ in range(DRAWS):
        drawn = rng.choice(len(study.pool), DRAWN, replace=False)
        weighed = np.zeros(len(study.pool))
        weighed[drawn] = template_weights(scores[drawn], sharpness=knobs["sharpness"])
        one = np.eye(len(study.pool))
        equal = one[drawn].mean(axis=0)
        best = one[drawn[int(scores[drawn].argmax())]]
        for name, weights in zip(found, (one[drawn[0]], equal, weighed, best), strict=True):
            found[name].append(float(right(task, weights, task.test).mean()))
    return {
        name: {"mean": rounded(np.mean(each)), "low": _at(each, 5), "high": _at(each, 95)}
        for name, each in found.items()
    }


def amounts(study: TemplateStudy, task: TemplateTask, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Validation accuracy by the number of pictures, over ten draws of them."""
    knobs = chosen["softmax, pool"]
    found: dict[str, Any] = {}
    for amount in (*AMOUNTS, len(task.train.vectors)):
        draws = []
        for seed in range(10):
            scores = study.scores(task, kind=knobs["kind"], amount=amount, seed=seed)
            weights = study.weights(scores, "pool", "softmax", sharpness=knobs["sharpness"])
            draws.append(right(task, weights, task.validation).mean())
        found[str(amount)] = {"mean": rounded(np.mean(draws)), "low": rounded(min(draws)), "high": rounded(max(draws))}
    return found


def spearman(a: F64, b: F64) -> float:
    """Rank correlation; ties share their mean rank."""

    def ranks(values: F64) -> F64:
        _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        return (ends - (counts - 1) / 2)[at]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def rounded(value: Any) -> float:
    return round(float(value), 4)


def _at(values: Sequence[float], percent: float) -> float:
    return rounded(np.percentile(values, percent))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="asks the model anew; default: the record as it is")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if options.data:
        RECORD.write_text(json.dumps(measured(options.data), separators=(",", ":")) + "\n", encoding="utf-8")
    if options.write_docs:
        from benchmarks.prompt_weights_report import write

        write(json.loads(RECORD.read_text(encoding="utf-8")))
    return 0


def measured(data: Path) -> dict[str, Any]:
    pool, reader = template_pool(data / "prompts"), encoder()
    manifest = Store(None, builtin=True).open(reader.name.split("@")[0]).manifest
    tasks, reference = read_tasks(data, pool, reader), reference_pictures(data, reader)
    study = TemplateStudy(tasks, reference, pool, scale=manifest.logit_scale or 1.0)
    knobs = choose(study)
    found: dict[str, Any] = {"model": reader.name, "pool": len(pool), "reference": len(reference), "knobs": knobs}
    found["held_out"] = judge(study, knobs["best"])
    found["tasks"] = {
        task.name: {
            "labels": len(task.labels),
            "pictures": [len(each.truth) for each in (task.train, task.validation, task.test)],
            "majority": rounded(np.bincount(task.test.truth).max() / len(task.test.truth)),
            "singles": singles(study, task),
            "control": controls(study, task, knobs["best"]),
            "spread": spread(study, task, knobs["best"]),
            "amounts": amounts(study, task, knobs["best"]),
        }
        for task in tasks
    }
    return found


if __name__ == "__main__":
    sys.exit(main())
