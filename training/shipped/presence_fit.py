"""`python -m training.shipped.presence_fit`: a presence for an artifact, calibrated on pictures whose labels are known.

    python -m training.shipped.presence_fit FOLDER --products DATA --coco COCO          # fit, and judge on the same
    python -m training.shipped.presence_fit FOLDER --products DATA --coco COCO --write  # and keep it in the manifest
    python -m training.shipped.presence_fit FOLDER --products DATA --coco COCO --test   # judge what the manifest has

Either kind of data may be left out. Every candidate is asked about every photograph (products of the validation
split, photographs of train2017) with lists of 1, 2, 5, 12 and all names, some of which are there and some not. A
logistic curve is fitted to its scores, to the logarithm of how many names were asked, and to the length of the
picture's vector (Platt, 1999, with two more inputs), and the candidate with the smallest log loss is taken: lists weigh
alike, however long, and so do the kinds of data. The threshold is the one of the best F1. Held out, for --test, are
products of the test split and val2017. Collages of products are judged, not fitted on: they say how far the numbers of
single photographs carry. A model without a dense role is asked about whole pictures, and has no places to judge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.fashion import ARTICLE_TYPES, MIN_PHOTOGRAPHS
from evaluation.probes.ranking import average_precision
from evaluation.zero_shot import class_matrix
from model_store.artifact import Artifact
from model_store.label_vectors import LabelVectors, compared_texts, known_scale
from model_store.manifest import Manifest, Presence
from model_store.modality.image import prepare, prepare_dense
from model_store.platt import fit_logistic
from model_store.presence import aggregate_scores, default_presence, presence_logits, score_maps
from model_store.regions import find_regions, overlap, refine
from model_store.seal import MANIFEST_FILE
from model_store.session import SessionSettings
from model_store.store import Store, copy_to_change, replace
from model_store.towers import DenseTower, Tower, normalized, open_dense_tower, open_tower
from training.config import SplitBy
from training.data.coco import category_names, read_instances
from training.data.rows import Split
from training.shipped.collages import Collage, CollageThing, Layout, collages, read_products, singles

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
EncodeTexts = Callable[[Sequence[str]], NDArray[np.float32]]
KINDS = tuple(sorted(ARTICLE_TYPES))
AGGREGATIONS = ("pooled", "softmax_sum", "max")
LIST_SIZES = (1, 2, 5, 12)  # and all names at once
COLLAGES = 300
# Texts that name nothing that is asked for: without them a list of one or two has nothing to be compared with.
NEUTRAL: Mapping[str, tuple[str, ...]] = {
    "words of a shop": ("clothes", "shoes", "accessory", "bag", "product", "man", "woman", "white", "a photo of"),
    "everyday words": (
        "a photo", "something", "people", "a room", "a street", "a field", "food", "an animal", "the sea", "the sky",
        "clothes", "a product",
    ),
}  # fmt: skip
_BINS = 15
_BOX_IOU = 0.5
_LEAST_SPREAD = 0.01  # of the vectors' lengths: less says nothing


@dataclass(frozen=True, eq=False)
class EncodedCollage:
    """A collage through an encoder: positions [rows, columns, D], pooled vector [D]."""

    collage: Collage
    positions: NDArray[np.float32]
    pooled: NDArray[np.float32]

    @property
    def has_places(self) -> bool:
        return self.positions.shape[:2] != (1, 1)

    def kinds(self, names: Sequence[str]) -> set[int]:
        """Which of `names` are in it."""
        return {names.index(thing.kind) for thing in self.collage.things}


@dataclass(frozen=True)
class AskedPictures:
    """Pictures of one kind of data, and all names that they are asked for."""

    name: str
    names: tuple[str, ...]
    seen: Sequence[EncodedCollage]


@dataclass(frozen=True, eq=False)
class AskedLabels:
    """One entry for each label of each list: its aggregate, whether it is there, 1 / the number of labels in its list,
    that number, and the length of the picture's pooled vector."""

    aggregates: F64
    truth: Bools
    weights: F64
    sizes: NDArray[np.int64]
    lengths: F64


class Texts:
    """Label and neutral vectors of an artifact."""

    def __init__(self, encode: EncodeTexts) -> None:
        self._encode = encode

    def of(self, rule: Presence, names: Sequence[str]) -> LabelVectors:
        denials, neutral = compared_texts(rule)
        return LabelVectors(
            positive=class_matrix(self._encode, names, rule.positive_templates),
            negative=class_matrix(self._encode, names, denials) if denials else None,
            neutral=normalized(self._encode(neutral)) if neutral else None,
        )


def candidates(manifest: Manifest, aggregations: Sequence[str] = AGGREGATIONS) -> dict[str, Presence]:
    """What is compared on validation."""
    own = default_presence(manifest.templates, known_scale(manifest))
    rules: dict[str, Presence] = {}
    for aggregation in aggregations:
        for name, neutral in (("empty prompts", own.neutral_texts), *NEUTRAL.items()):
            for divide_by in ("pooled_norm", "one"):
                change = {"aggregation": aggregation, "neutral_texts": neutral, "divide_by": divide_by}
                rules[f"{aggregation}, {name}, divided by {divide_by}"] = own.model_copy(update=change)
    return rules


def look(
    tower: DenseTower | Tower, artifact: Artifact, pictures: Iterable[Collage], *, short_px: int | None
) -> list[EncodedCollage]:
    """Through the dense encoder, or through the image encoder where there is none: one position, the whole picture.

    Raises:
        ValueError: the artifact has no image encoder.
    """
    spec, whole = artifact.dense_spec, artifact.image_spec
    found: list[EncodedCollage] = []
    for each in pictures:
        if isinstance(tower, Tower):
            if whole is None:
                raise ValueError(f"{artifact.reference} takes no pictures")
            vector = tower(prepare(each.image, whole)[None])
            found.append(EncodedCollage(each, vector[None], vector[0]))
            continue
        assert spec is not None
        vectors = tower(prepare_dense(each.image, spec, short_px=short_px)[None])
        found.append(EncodedCollage(each, vectors.positions[0], vectors.pooled[0]))
    return found


def ask(pictures: AskedPictures, rule: Presence, vectors: LabelVectors, *, seed: int) -> AskedLabels:
    """Every picture with a list of each size: half of the names that are there, and others; the full list has all."""
    rng = np.random.default_rng(seed)
    found: list[tuple[F64, Bools, int]] = []
    count = len(pictures.names)
    list_sizes = [*(size for size in LIST_SIZES if size < count), count]
    for each in pictures.seen:
        there = each.kinds(pictures.names)
        for size in list_sizes:
            absent = [kind for kind in range(count) if kind not in there]
            rng.shuffle(absent)
            here = [kind for kind in sorted(there) if rng.random() < 0.5]
            chosen = list(range(count)) if size == count else [*here, *absent][:size]
            labels = _some(vectors, chosen)
            maps = score_maps(each.positions, labels, rule)
            truth = np.array([kind in there for kind in chosen])
            found.append((aggregate_scores(maps, each.pooled, labels, rule), truth, len(chosen)))
    sizes = np.concatenate([np.full(size, size) for _, _, size in found])
    aggregates, truth = (np.concatenate([entry[part] for entry in found]) for part in (0, 1))
    lengths = np.repeat([float(np.linalg.norm(each.pooled)) for each in pictures.seen], sum(list_sizes))
    return AskedLabels(aggregates, truth.astype(np.bool_), 1.0 / sizes, sizes, lengths)


def _some(vectors: LabelVectors, chosen: Sequence[int]) -> LabelVectors:
    negative = None if vectors.negative is None else vectors.negative[list(chosen)]
    return LabelVectors(positive=vectors.positive[list(chosen)], negative=negative, neutral=vectors.neutral)


def fit_calibration(asked: AskedLabels, *, by_length: bool) -> dict[str, float]:
    """The likeliest logistic curve, as fields of a Presence; by_length: the length of the picture's vector is an input.

    Raises:
        ValueError: only one answer occurs, or higher scores do not mean that a label is rather there.
    """
    inputs = [asked.aggregates, np.log(asked.sizes)]
    if by_length and asked.lengths.std() > _LEAST_SPREAD * asked.lengths.mean():
        inputs.append(asked.lengths)
    slopes, offset = fit_logistic(np.stack(inputs, axis=1), asked.truth, asked.weights)
    slope, count, *length = slopes.tolist()
    if not slope > 0:
        raise ValueError(f"the slope is {slope:.3g}: labels that are there score no higher than those that are not")
    found = {
        "calibration_slope": slope,
        "calibration_count": count,
        "calibration_length": length[0] if length else 0.0,
        "calibration_offset": offset,
    }
    return {name: round(value, 4) for name, value in found.items()}


def probabilities(asked: AskedLabels, rule: Presence) -> F64:
    """As model_store.presence gives them, for all entries at once."""
    return _sigmoid(presence_logits(asked.aggregates, rule, asked=asked.sizes, length=asked.lengths))


def together(sets: Sequence[AskedLabels]) -> AskedLabels:
    """All entries, of which each set weighs the same."""
    names = ("aggregates", "truth", "sizes", "lengths")
    joined = {name: np.concatenate([getattr(each, name) for each in sets]) for name in names}
    weights = np.concatenate([each.weights / each.weights.sum() for each in sets])
    return AskedLabels(**joined, weights=weights * len(weights))


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
    sets: Sequence[AskedPictures], texts: Texts, rules: Mapping[str, Presence], *, seed: int
) -> tuple[str, Presence]:
    """The calibrated candidate of the smallest log loss, and its name; prints one line for each.

    Raises:
        ValueError: none of them scores labels that are there higher than others.
    """
    best: tuple[float, str, Presence] | None = None
    for name, rule in rules.items():
        asked = together([ask(each, rule, texts.of(rule, each.names), seed=seed) for each in sets])
        try:
            fitted = fit_calibration(asked, by_length=rule.divide_by == "one")
        except ValueError as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        rule = rule.model_copy(update=fitted)
        p = probabilities(asked, rule)
        loss = log_loss(p, asked.truth, asked.weights)
        rule = rule.model_copy(update={"threshold": best_threshold(p, asked.truth, asked.weights)})
        print(f"{name}: log loss {loss:.4f}, {fitted}, threshold {rule.threshold}", flush=True)
        if best is None or loss < best[0]:
            best = (loss, name, rule)
    if best is None:
        raise ValueError("no candidate can be calibrated")
    return best[1], Presence.model_validate(best[2].model_dump())


def judge(pictures: AskedPictures, rule: Presence, vectors: LabelVectors, *, seed: int) -> dict[str, float]:
    """Presence over lists of all sizes (mAP: of the full list), and where the maps of what is there point."""
    asked, seen, count = ask(pictures, rule, vectors, seed=seed), pictures.seen, len(pictures.names)
    p = probabilities(asked, rule)
    said, weights = p >= rule.threshold, asked.weights
    right = float((weights * (said & asked.truth)).sum())
    whole = asked.sizes == count
    truth = np.array([[kind in each.kinds(pictures.names) for kind in range(count)] for each in seen])
    scores = p[whole].reshape(len(seen), -1)
    least = min(MIN_PHOTOGRAPHS, int(truth.sum(axis=0).max()))
    often = [kind for kind in range(count) if truth[:, kind].sum() >= least]
    return {
        "pictures": len(seen),
        "there": float((weights * asked.truth).sum() / weights.sum()),
        "calibration error": calibration_error(p, asked.truth, weights),
        **{f"calibration error, {size}": _error_of(p, asked, asked.sizes == size) for size in np.unique(asked.sizes)},
        "precision": right / float(max((weights * said).sum(), 1e-12)),
        "recall": right / float((weights * asked.truth).sum()),
        "mAP": float(np.mean([average_precision(scores[:, kind], truth[:, kind]) for kind in often])),
        "chance mAP": float(np.mean([truth[:, kind].mean() for kind in often])),
        **(_places(pictures, rule, vectors) if seen[0].has_places else {}),
    }


def _error_of(p: F64, asked: AskedLabels, chosen: Bools) -> float:
    return calibration_error(p[chosen], asked.truth[chosen], asked.weights[chosen])


def _places(pictures: AskedPictures, rule: Presence, vectors: LabelVectors) -> dict[str, float]:
    """Shares of the kinds that are there: the peak lies in one of its boxes; the best box has IoU .5 with one.

    Chance is a point anywhere, and the box of the whole picture; "centre": the point in the middle.
    """
    hits: list[tuple[float, float, float, float, float]] = []
    for each in pictures.seen:
        maps, size = score_maps(each.positions, vectors, rule), each.collage.image.size
        width, height = size
        for kind in sorted(each.kinds(pictures.names)):
            truths = [thing.edges for thing in each.collage.things if thing.kind == pictures.names[kind]]
            fine = refine(maps[kind])
            row, column = np.unravel_index(int(fine.argmax()), fine.shape)
            x, y = (column + 0.5) * width / fine.shape[1], (row + 0.5) * height / fine.shape[0]
            pointed = any(e[0] <= x < e[2] and e[1] <= y < e[3] for e in truths)
            centred = any(e[0] <= width / 2 < e[2] and e[1] <= height / 2 < e[3] for e in truths)
            luck = min(1.0, sum((e[2] - e[0]) * (e[3] - e[1]) for e in truths) / (width * height))
            best = find_regions(maps[kind], width=width, height=height)[0]
            boxed = max(overlap((best.x0, best.y0, best.x1, best.y1), e) for e in truths)
            everything = max(overlap((0, 0, width, height), e) for e in truths)
            hits.append((pointed, luck, centred, boxed >= _BOX_IOU, everything >= _BOX_IOU))
    names = ("pointing", "chance pointing", "centre", "box", "chance box")
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
    """The artifact in it; what it derives from lies in the same store."""
    manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    if manifest.base is not None:
        found = Store(folder.resolve().parent.parent).open(f"{manifest.name}@{manifest.version}")
        if found.folder.resolve() != folder.resolve():
            raise ValueError(f"{folder} derives from {manifest.base.name}: expected it in a store, as NAME/VERSION")
        return found
    return Artifact(manifest=manifest, folder=folder, base=None, writable=False)


def _sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def read_coco(folder: Path, part: str) -> tuple[tuple[str, ...], list[Collage]]:
    """The names of COCO's things, and the photographs of `folder`/`part` with the things in them, crowds included.

    Raises:
        OSError, ValueError: not a folder with COCO's `annotations` and `part`.
    """
    pictures = read_instances(folder / "annotations" / f"instances_{part}.json")
    names = tuple(category_names(folder / "annotations" / f"instances_{part}.json"))
    found: list[Collage] = []
    for each in pictures:
        with Image.open(folder / part / each.image) as image:
            edges = [(round(x0), round(y0), round(x1), round(y1)) for x0, y0, x1, y1 in each.boxes.tolist()]
            things = tuple(CollageThing(*thing) for thing in zip(each.labels, edges, strict=True))
            found.append(Collage("single", image.convert("RGB"), things))
    return names, found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.presence_fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of one artifact, with its manifest.json")
    parser.add_argument("--products", type=Path, help="folder with captions.csv and images/")
    parser.add_argument("--coco", type=Path, help="folder with annotations/, train2017/ and val2017/")
    parser.add_argument("--by", choices=get_args(SplitBy), default="number", help="as in its recipe (number)")
    parser.add_argument("--collages", type=int, default=COLLAGES, help="of each layout that are judged")
    parser.add_argument("--short-px", type=int, action="append", help="sizes to judge at; default: the artifact's own")
    parser.add_argument("--aggregation", choices=AGGREGATIONS, action="append", help="compare these only")
    parser.add_argument("--write", action="store_true", help="keep the presence in the manifest")
    parser.add_argument("--test", action="store_true", help="fit nothing; judge the manifest's on what is held out")
    chosen = parser.parse_args(arguments)
    if chosen.products is None and chosen.coco is None:
        parser.error("name --products, --coco or both")
    artifact = open_folder(chosen.folder)
    settings = SessionSettings(intra_threads=1)
    located = artifact.dense_spec is not None
    if not located and (chosen.short_px or set(chosen.aggregation or ()) - {"pooled"}):
        parser.error(f"{artifact.reference} has no dense role: neither --short-px nor an aggregation but pooled")
    tower = (
        open_dense_tower(artifact, "fp32", settings)
        if located
        else open_tower(artifact, "image_encoder", "fp32", settings)
    )
    text = open_tower(artifact, "text_encoder", "fp32", settings)
    tokenizer = artifact.tokenizer()
    texts = Texts(lambda some: normalized(text(tokenizer(list(some)))))
    split: Split = "test" if chosen.test else "validation"
    products = read_products(chosen.products, split, by=chosen.by) if chosen.products else []
    part = "val2017" if chosen.test else "train2017"
    names, photographs = read_coco(chosen.coco, part) if chosen.coco else ((), [])

    def looked(short_px: int | None) -> list[AskedPictures]:
        kinds = [("products", KINDS, list(singles(products))), (part, names, photographs)]
        return [
            AskedPictures(name, labels, look(tower, artifact, pictures, short_px=short_px))
            for name, labels, pictures in kinds
            if pictures
        ]

    rule = artifact.manifest.presence
    own = looked(None)
    if not chosen.test:
        compared = chosen.aggregation or (AGGREGATIONS if located else AGGREGATIONS[:1])
        name, rule = fit(own, texts, candidates(artifact.manifest, compared), seed=0)
        print(f"chosen: {name}")
    if rule is None:
        parser.error(f"{artifact.reference} has no presence: fit one first")
    for short_px in chosen.short_px or [None]:
        sets = own if short_px is None else looked(short_px)
        layouts: tuple[Layout, ...] = ("grid", "scattered") if products and chosen.collages else ()
        for layout in layouts:
            seen = look(tower, artifact, collages(products, layout, chosen.collages, seed=1), short_px=short_px)
            sets = [*sets, AskedPictures(f"products, {layout}", KINDS, seen)]
        for each in sets:
            numbers = judge(each, rule, texts.of(rule, each.names), seed=1)
            shown = ", ".join(f"{key} {value:.3f}".replace(".000", "") for key, value in numbers.items())
            print(f"{split}, {each.name}, short side {short_px or 'own'}: {shown}", flush=True)
    if chosen.write:
        write_presence(artifact, rule)
        sys.stdout.write(f"{artifact.reference}: presence written\n")


if __name__ == "__main__":
    main()
