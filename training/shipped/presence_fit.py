"""`python -m training.shipped.presence_fit`: a calibrated presence for an artifact of product photographs.

    python -m training.shipped.presence_fit FOLDER --data DATA            # fit and judge on the validation split
    python -m training.shipped.presence_fit FOLDER --data DATA --write    # and keep it in the artifact's manifest
    python -m training.shipped.presence_fit FOLDER --data DATA --test     # judge the manifest on the held-out split

Every candidate is asked about every validation photograph with lists of 1, 2, 5, 12 and all kinds of article, some of
which are there and some not. A logistic curve (Platt, 1999) is fitted to its scores, and the candidate with the
smallest log loss is taken: lists weigh alike, however long. The threshold is the one of the best F1. Collages are
judged, not fitted on: they say how far the numbers of single photographs carry.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.fashion import ARTICLE_TYPES, MIN_PHOTOGRAPHS
from evaluation.platt import fit_platt
from evaluation.probes.ranking import average_precision
from evaluation.zero_shot import class_matrix
from model_store.artifact import Artifact
from model_store.label_vectors import LabelVectors, compared_texts, known_scale
from model_store.manifest import Manifest, Presence
from model_store.modality.image import prepare_dense
from model_store.presence import aggregate_scores, default_presence, score_maps
from model_store.regions import find_regions, overlap, refine
from model_store.seal import MANIFEST_FILE
from model_store.session import SessionSettings
from model_store.store import copy_to_change, replace
from model_store.towers import DenseTower, normalized, open_dense_tower, open_tower
from training.shipped.collages import Collage, Layout, Split, collages, read_products, singles

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
EncodeTexts = Callable[[Sequence[str]], NDArray[np.float32]]
KINDS = tuple(sorted(ARTICLE_TYPES))
LIST_SIZES = (1, 2, 5, 12, len(KINDS))
COLLAGES = 300
# Words of the model's own world that name no kind: without them a list of one or two has nothing to be compared with.
_WORDS = ("clothes", "shoes", "accessory", "bag", "product", "man", "woman", "white", "a photo of")
_BINS = 15
_BOX_IOU = 0.5


@dataclass(frozen=True, eq=False)
class EncodedCollage:
    """A collage through the dense encoder: positions [rows, columns, D], pooled vector [D]."""

    collage: Collage
    positions: NDArray[np.float32]
    pooled: NDArray[np.float32]

    @property
    def kinds(self) -> set[int]:
        return {KINDS.index(thing.kind) for thing in self.collage.things}


@dataclass(frozen=True, eq=False)
class AskedLabels:
    """One entry for each label of each list: its aggregate, whether it is there, and 1 / the length of its list."""

    aggregates: F64
    truth: Bools
    weights: F64
    sizes: NDArray[np.int64]


class Texts:
    """Label and neutral vectors of an artifact, encoded once for each rule."""

    def __init__(self, encode: EncodeTexts) -> None:
        self._encode = encode

    def of(self, rule: Presence) -> LabelVectors:
        denials, neutral = compared_texts(rule)
        return LabelVectors(
            positive=class_matrix(self._encode, KINDS, rule.positive_templates),
            negative=class_matrix(self._encode, KINDS, denials) if denials else None,
            neutral=normalized(self._encode(neutral)) if neutral else None,
        )


def candidates(manifest: Manifest) -> dict[str, Presence]:
    """What is compared on validation."""
    own = default_presence(manifest.templates, known_scale(manifest))
    rules: dict[str, Presence] = {}
    for aggregation in ("pooled", "softmax_sum", "max"):
        for name, neutral in (("empty prompts", own.neutral_texts), ("words", _WORDS)):
            change = {"aggregation": aggregation, "neutral_texts": neutral}
            rules[f"{aggregation}, {name}"] = own.model_copy(update=change)
    return rules


def look(
    tower: DenseTower, artifact: Artifact, pictures: Iterable[Collage], *, short_px: int | None
) -> list[EncodedCollage]:
    """Raises:
    ValueError: the artifact has no dense role.
    """
    spec = artifact.dense_spec
    if spec is None:
        raise ValueError(f"{artifact.reference} has no dense_encoder: there is nothing to calibrate")
    found: list[EncodedCollage] = []
    for each in pictures:
        vectors = tower(prepare_dense(each.image, spec, short_px=short_px)[None])
        found.append(EncodedCollage(each, vectors.positions[0], vectors.pooled[0]))
    return found


def ask(seen: Sequence[EncodedCollage], rule: Presence, vectors: LabelVectors, *, seed: int) -> AskedLabels:
    """Every picture with a list of each size: half of the kinds that are there, and others; the full list has all."""
    rng = np.random.default_rng(seed)
    found: list[tuple[F64, Bools, int]] = []
    for each in seen:
        for size in LIST_SIZES:
            absent = [kind for kind in range(len(KINDS)) if kind not in each.kinds]
            rng.shuffle(absent)
            here = [kind for kind in sorted(each.kinds) if rng.random() < 0.5]
            chosen = list(range(len(KINDS))) if size == len(KINDS) else [*here, *absent][:size]
            labels = _some(vectors, chosen)
            maps = score_maps(each.positions, labels, rule)
            truth = np.array([kind in each.kinds for kind in chosen])
            found.append((aggregate_scores(maps, each.pooled, labels, rule), truth, len(chosen)))
    sizes = np.concatenate([np.full(size, size) for _, _, size in found])
    aggregates, truth = (np.concatenate([entry[part] for entry in found]) for part in (0, 1))
    return AskedLabels(aggregates, truth.astype(np.bool_), 1.0 / sizes, sizes)


def _some(vectors: LabelVectors, chosen: Sequence[int]) -> LabelVectors:
    negative = None if vectors.negative is None else vectors.negative[list(chosen)]
    return LabelVectors(positive=vectors.positive[list(chosen)], negative=negative, neutral=vectors.neutral)


def fit_calibration(aggregates: F64, truth: Bools, weights: F64) -> tuple[float, float]:
    """Slope and offset of the likeliest logistic curve.

    Raises:
        ValueError: only one answer occurs, or higher scores do not mean that a label is rather there.
    """
    slope, offset = fit_platt(aggregates, truth, weights)
    if not slope > 0:
        raise ValueError(f"the slope is {slope:.3g}: labels that are there score no higher than those that are not")
    return slope, offset


def log_loss(p: F64, truth: Bools, weights: F64) -> float:
    likelihood = np.log(np.clip(np.where(truth, p, 1 - p), 1e-12, 1))
    return float(-(weights * likelihood).sum() / weights.sum())


def best_threshold(p: F64, truth: Bools, weights: F64) -> float:
    """The score, in hundredths, from which on F1 is highest."""
    steps = np.arange(1, 100) / 100
    return float(steps[int(np.argmax([_f1(p >= step, truth, weights) for step in steps]))])


def _f1(said: Bools, truth: Bools, weights: F64) -> float:
    right = (weights * (said & truth)).sum()
    return float(2 * right / max((weights * said).sum() + (weights * truth).sum(), 1e-12))


def calibration_error(p: F64, truth: Bools, weights: F64) -> float:
    """Expected calibration error (Guo et al., 2017) over 15 bins of equal width."""
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    total = 0.0
    for each in np.unique(bins):
        chosen = bins == each
        share = weights[chosen].sum()
        total += abs(float((weights[chosen] * (p[chosen] - truth[chosen])).sum()) / share) * share
    return total / float(weights.sum())


def fit(
    seen: Sequence[EncodedCollage], texts: Texts, rules: Mapping[str, Presence], *, seed: int
) -> tuple[str, Presence]:
    """The calibrated candidate of the smallest log loss, and its name; prints one line for each.

    Raises:
        ValueError: none of them scores labels that are there higher than others.
    """
    best: tuple[float, str, Presence] | None = None
    for name, rule in rules.items():
        asked = ask(seen, rule, texts.of(rule), seed=seed)
        try:
            slope, offset = fit_calibration(asked.aggregates, asked.truth, asked.weights)
        except ValueError as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        p = _sigmoid(slope * asked.aggregates + offset)
        loss = log_loss(p, asked.truth, asked.weights)
        change = {"calibration_slope": round(slope, 4), "calibration_offset": round(offset, 4)}
        change["threshold"] = best_threshold(p, asked.truth, asked.weights)
        print(f"{name}: log loss {loss:.4f}, {change}", flush=True)
        if best is None or loss < best[0]:
            best = (loss, name, rule.model_copy(update=change))
    if best is None:
        raise ValueError("no candidate can be calibrated")
    return best[1], Presence.model_validate(best[2].model_dump())


def judge(seen: Sequence[EncodedCollage], rule: Presence, vectors: LabelVectors, *, seed: int) -> dict[str, float]:
    """Presence over lists of all sizes (mAP: of the full list), and where the maps of what is there point."""
    asked = ask(seen, rule, vectors, seed=seed)
    p = _sigmoid(rule.calibration_slope * asked.aggregates + rule.calibration_offset)
    said, weights = p >= rule.threshold, asked.weights
    right = float((weights * (said & asked.truth)).sum())
    whole = asked.sizes == len(KINDS)
    truth = np.array([[kind in each.kinds for kind in range(len(KINDS))] for each in seen])
    scores = p[whole].reshape(len(seen), -1)
    least = min(MIN_PHOTOGRAPHS, int(truth.sum(axis=0).max()))
    often = [kind for kind in range(len(KINDS)) if truth[:, kind].sum() >= least]
    return {
        "pictures": len(seen),
        "there": float((weights * asked.truth).sum() / weights.sum()),
        "calibration error": calibration_error(p, asked.truth, weights),
        "precision": right / float(max((weights * said).sum(), 1e-12)),
        "recall": right / float((weights * asked.truth).sum()),
        "mAP": float(np.mean([average_precision(scores[:, kind], truth[:, kind]) for kind in often])),
        "chance mAP": float(np.mean([truth[:, kind].mean() for kind in often])),
        **_places(seen, rule, vectors),
    }


def _places(seen: Sequence[EncodedCollage], rule: Presence, vectors: LabelVectors) -> dict[str, float]:
    """Shares of the kinds that are there: the peak lies in one of its boxes; the best box has IoU .5 with one.

    Chance is a point anywhere, and the box of the whole picture.
    """
    hits: list[tuple[float, float, float, float]] = []
    for each in seen:
        maps, size = score_maps(each.positions, vectors, rule), each.collage.image.size
        width, height = size
        for kind in sorted(each.kinds):
            truths = [thing.edges for thing in each.collage.things if thing.kind == KINDS[kind]]
            fine = refine(maps[kind])
            row, column = np.unravel_index(int(fine.argmax()), fine.shape)
            x, y = (column + 0.5) * width / fine.shape[1], (row + 0.5) * height / fine.shape[0]
            pointed = any(e[0] <= x < e[2] and e[1] <= y < e[3] for e in truths)
            luck = sum((e[2] - e[0]) * (e[3] - e[1]) for e in truths) / (width * height)
            best = find_regions(maps[kind], width=width, height=height)[0]
            boxed = max(overlap((best.x0, best.y0, best.x1, best.y1), e) for e in truths)
            everything = max(overlap((0, 0, width, height), e) for e in truths)
            hits.append((pointed, luck, boxed >= _BOX_IOU, everything >= _BOX_IOU))
    names = ("pointing", "chance pointing", "box", "chance box")
    return dict(zip(names, np.mean(np.array(hits, dtype=np.float64), axis=0).tolist(), strict=True))


def write_presence(artifact: Artifact, presence: Presence) -> None:
    """Replace the presence of the artifact's manifest; nothing else changes, so fingerprints and build stay.

    Raises:
        IntegrityError: the folder's files are not those of the manifest; nothing was changed.
    """
    changed = Manifest.model_validate(artifact.manifest.model_dump() | {"presence": presence.model_dump()})
    with copy_to_change(artifact) as staged:
        replace(artifact, staged, changed)


def open_folder(folder: Path) -> Artifact:
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    return Artifact(manifest=manifest, folder=folder, base=None, writable=False)


def _sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.presence_fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of one artifact, with its manifest.json")
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.csv and images/")
    parser.add_argument("--collages", type=int, default=COLLAGES, help="of each layout that are judged")
    parser.add_argument("--short-px", type=int, action="append", help="sizes to judge at; default: the artifact's own")
    parser.add_argument("--write", action="store_true", help="keep the presence in the manifest")
    parser.add_argument("--test", action="store_true", help="fit nothing; judge the manifest's on the held-out split")
    chosen = parser.parse_args(arguments)
    artifact = open_folder(chosen.folder)
    settings = SessionSettings(intra_threads=1)
    tower, text = open_dense_tower(artifact, "fp32", settings), open_tower(artifact, "text_encoder", "fp32", settings)
    tokenizer = artifact.tokenizer()
    texts = Texts(lambda some: normalized(text(tokenizer(list(some)))))
    split: Split = "test" if chosen.test else "validation"
    products = read_products(chosen.data, split)
    rule = artifact.manifest.presence
    if not chosen.test:
        name, rule = fit(
            look(tower, artifact, singles(products), short_px=None), texts, candidates(artifact.manifest), seed=0
        )
        print(f"chosen: {name}")
    if rule is None:
        parser.error(f"{artifact.reference} has no presence: fit one first")
    layouts: tuple[Layout, ...] = ("single", "grid", "scattered")
    for short_px in chosen.short_px or [None]:
        for layout in layouts:
            pictures = singles(products) if layout == "single" else collages(products, layout, chosen.collages, seed=1)
            seen = look(tower, artifact, pictures, short_px=short_px)
            numbers = judge(seen, rule, texts.of(rule), seed=1)
            shown = ", ".join(f"{key} {value:.3f}".replace(".000", "") for key, value in numbers.items())
            print(f"{split}, {layout}, short side {short_px or 'own'}: {shown}", flush=True)
    if chosen.write:
        write_presence(artifact, rule)
        sys.stdout.write(f"{artifact.reference}: presence written\n")


if __name__ == "__main__":
    main()
