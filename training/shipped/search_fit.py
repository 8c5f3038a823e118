"""`python -m training.shipped.search_fit`: what a search tells of its hits, calibrated on pictures with known labels.

    python -m training.shipped.search_fit FOLDER --products DATA --coco COCO --write  # fit, and keep it in the manifest
    python -m training.shipped.search_fit FOLDER --products DATA --coco COCO --test   # judge what the manifest has
    python -m training.shipped.search_fit FOLDER --folders PICTURES --write           # one's own: a folder a label

Every label is searched for in all pictures of a kind of data and in random parts of them, in several wordings; once
with its pictures, and once without them, where nothing matches. Two logistic curves are fitted (Platt, 1999) to what
model_store.search_presence calls evidence: of the first ten hits, whether they show the label, and of the best of
them, whether any picture does. Searches with and without a match weigh alike, and so do the kinds of data. The
threshold is the highest, in hundredths, that refuses one search in ten of those that have a match, in the mean of the
kinds of data. Held out, for --test, are products of the test split, val2017, and of one's own pictures half, by the
hash of their bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.artifact import Artifact
from model_store.label_vectors import filled
from model_store.manifest import Manifest, SearchCalibration
from model_store.modality.image import OWN_FILES, decode, prepare
from model_store.platt import fit_platt
from model_store.search_presence import FIRST, evidence, hit_probabilities, neutral_mean
from model_store.session import SessionSettings
from model_store.store import copy_to_change, replace
from model_store.towers import Tower, activated, normalized, open_tower
from training.config import SplitBy
from training.data.rows import Split
from training.shipped.collages import open_product, read_products
from training.shipped.presence_fit import NEUTRAL, calibration_error, log_loss, open_folder, read_coco

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
EncodeTexts = Callable[[Sequence[str]], NDArray[np.float32]]
REFUSED = 0.1  # at most, of searches that have a match
WORDINGS = ("{}", "a {}", "a photo of a {}")  # of a search
_PARTS = (1.0, 0.5, 0.25, 0.125)  # of the pictures
_DRAWS = 4
_FEWEST = 10
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class NothingToTell(ValueError):
    """The evidence of what is there is no greater than that of what is not."""


@dataclass(frozen=True, eq=False)
class SearchedPictures:
    """Pictures of one kind of data: unit vectors float32 [N, D], and for each label which show it, [N]."""

    name: str
    vectors: NDArray[np.float32]
    labels: Mapping[str, Bools]


@dataclass(frozen=True, eq=False)
class Searches:
    """Of searches with and without a match: the evidence of the best of the first hits, whether anything matches, and
    weights, [n]; and the same of all these hits, [m]."""

    best: F64
    has_match: Bools
    weights: F64
    hits: F64
    shows: Bools
    hit_weights: F64


def searches(pictures: SearchedPictures, encode: EncodeTexts, neutral_texts: Sequence[str], *, seed: int) -> Searches:
    """Raises ValueError: no label is shown by some pictures and not by others, which have to be some."""
    rng = np.random.default_rng(seed)
    count = len(pictures.vectors)
    neutral = neutral_mean(encode(neutral_texts))
    parts = [rng.permutation(count)[: int(count * part)] for part in _PARTS for _ in range(1 if part == 1 else _DRAWS)]
    parts = [part for part in parts if len(part) >= min(_FEWEST, count)]
    best: list[float] = []
    has_match: list[bool] = []
    hits: list[F64] = []
    shows: list[Bools] = []
    for label, shown in pictures.labels.items():
        for query in encode(filled(WORDINGS, label)):
            for part in parts:
                for chosen in (part, part[~shown[part]]):
                    if chosen is part and not shown[part].any():
                        continue
                    if len(chosen) < min(_FEWEST, count):
                        continue
                    cosines = pictures.vectors[chosen] @ query
                    first = np.argsort(-cosines, kind="stable")[:FIRST]
                    found = evidence(pictures.vectors[chosen[first]], query, neutral)
                    best.append(float(found.max()))
                    has_match.append(chosen is part)
                    hits.append(found)
                    shows.append(shown[chosen[first]])
    truth = np.array(has_match, dtype=np.bool_)
    if truth.all() or not truth.any():
        others = f"{min(_FEWEST, count)} others or more"
        raise ValueError(f"{pictures.name}: no label is shown by some of its {count} pictures and not by {others}")
    weights = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())
    hit_weights = np.concatenate([np.full(len(each), w / len(each)) for each, w in zip(hits, weights, strict=True)])
    return Searches(np.array(best), truth, weights, np.concatenate(hits), np.concatenate(shows), hit_weights)


def fit(found: Sequence[Searches], neutral_texts: Sequence[str]) -> SearchCalibration:
    """Raises NothingToTell."""
    match_slope, match_offset = fit_platt(
        np.concatenate([each.best for each in found]),
        np.concatenate([each.has_match for each in found]),
        np.concatenate([each.weights for each in found]),
    )
    hit_slope, hit_offset = fit_platt(
        np.concatenate([each.hits for each in found]),
        np.concatenate([each.shows for each in found]),
        np.concatenate([each.hit_weights for each in found]),
    )
    if not min(match_slope, hit_slope) > 0:
        raise NothingToTell(
            f"slopes {match_slope:.3g} and {hit_slope:.3g}: what is there has no more evidence than others"
        )
    curves = SearchCalibration(
        neutral_texts=tuple(neutral_texts),
        hit_slope=round(hit_slope, 4),
        hit_offset=round(hit_offset, 4),
        match_slope=round(match_slope, 4),
        match_offset=round(match_offset, 4),
        threshold=0.0,
    )
    matched = [match_probabilities(each.best[each.has_match], curves) for each in found]
    steps = np.arange(100) / 100
    refused = [float(np.mean([(p < step).mean() for p in matched])) for step in steps]
    highest = max(float(step) for step, share in zip(steps, refused, strict=True) if share <= REFUSED)
    return curves.model_copy(update={"threshold": highest})


def match_probabilities(best: F64, calibration: SearchCalibration) -> F64:
    """As model_store.search_presence.match_probability, of many searches [n]."""
    return activated(calibration.match_slope * best + calibration.match_offset, "sigmoid")


def judge(found: Searches, calibration: SearchCalibration) -> dict[str, float]:
    p, said = match_probabilities(found.best, calibration), hit_probabilities(found.hits, calibration)
    none = p < calibration.threshold
    with_match, without = p[found.has_match], p[~found.has_match]
    above = (with_match[:, None] > without[None]).mean() + 0.5 * (with_match[:, None] == without[None]).mean()
    return {
        "searches": len(p),
        "AUROC": float(above),
        "log loss": log_loss(p, found.has_match, found.weights),
        "calibration error": calibration_error(p, found.has_match, found.weights),
        "no good match, rightly": float(none[~found.has_match].mean()),
        "no good match, wrongly": float(none[found.has_match].mean()),
        "hits that show it": float((found.hit_weights * found.shows).sum()),
        "log loss of hits": log_loss(said, found.shows, found.hit_weights),
        "calibration error of hits": calibration_error(said, found.shows, found.hit_weights),
    }


def write_search(artifact: Artifact, calibration: SearchCalibration) -> None:
    """Replace the calibration of searches in the artifact's manifest; nothing else changes.

    Raises:
        IntegrityError: the folder's files are not those of the manifest; nothing was changed.
    """
    changed = Manifest.model_validate(artifact.manifest.model_dump() | {"search": calibration.model_dump()})
    with copy_to_change(artifact) as staged:
        replace(artifact, staged, changed)


def read_folders(folder: Path, split: Split) -> tuple[list[Path], dict[str, Bools]]:
    """Pictures of one half of `folder`/LABEL/*, and which of them show each label.

    Raises:
        OSError, ValueError: there are no such folders, less than two, or two of one label.
    """
    half = {"validation": 0, "test": 1}.get(split, 0)
    found = [
        (each, path)
        for each in sorted(path for path in folder.iterdir() if path.is_dir())
        for path in sorted(each.iterdir())
        if path.suffix.lower() in _SUFFIXES and hashlib.sha256(path.read_bytes()).digest()[0] % 2 == half
    ]
    names = sorted({each.name for each, _ in found})
    if len({name.replace("_", " ") for name in names}) < len(names):
        raise ValueError(f"{folder}: two of its folders have one label, for _ is a space")
    if len(names) < 2:
        raise ValueError(f"{folder}: expected two folders with pictures or more, one for each label")
    labels = {name.replace("_", " "): np.array([each.name == name for each, _ in found]) for name in names}
    return [path for _, path in found], labels


def _vectors(tower: Tower, artifact: Artifact, images: Iterable[Image.Image]) -> NDArray[np.float32]:
    spec = artifact.image_spec
    if spec is None:
        raise ValueError(f"{artifact.reference} takes no pictures")
    return normalized(np.concatenate([tower(prepare(each, spec)[None]) for each in images]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.search_fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of one artifact, with its manifest.json")
    parser.add_argument("--products", type=Path, help="folder with captions.csv and images/")
    parser.add_argument("--coco", type=Path, help="folder with annotations/, train2017/ and val2017/")
    parser.add_argument("--folders", type=Path, action="append", default=[], help="folder with a folder for each label")
    parser.add_argument("--by", choices=get_args(SplitBy), default="number", help="as in the model's recipe (number)")
    parser.add_argument("--write", action="store_true", help="keep the calibration in the manifest")
    parser.add_argument("--test", action="store_true", help="fit nothing; judge the manifest's on what is held out")
    chosen = parser.parse_args(arguments)
    if chosen.products is None and chosen.coco is None and not chosen.folders:
        parser.error("name --products, --coco or --folders")
    if chosen.test and chosen.write:
        parser.error("--test fits nothing that could be written")
    artifact = open_folder(chosen.folder)
    settings = SessionSettings(intra_threads=1)
    tower = open_tower(artifact, "image_encoder", "fp32", settings)
    text = open_tower(artifact, "text_encoder", "fp32", settings)
    tokenizer = artifact.tokenizer()
    split: Split = "test" if chosen.test else "validation"
    sets: list[SearchedPictures] = []
    if chosen.products is not None:
        products = read_products(chosen.products, split, by=chosen.by)
        kinds = sorted({each.kind for each in products})
        labels = {kind: np.array([each.kind == kind for each in products]) for kind in kinds}
        sets.append(SearchedPictures("products", _vectors(tower, artifact, map(open_product, products)), labels))
    if chosen.coco is not None:
        part = "val2017" if chosen.test else "train2017"
        names, photographs = read_coco(chosen.coco, part)
        labels = {name: np.array([name in {t.kind for t in each.things} for each in photographs]) for name in names}
        sets.append(SearchedPictures(part, _vectors(tower, artifact, (each.image for each in photographs)), labels))
    for folder in chosen.folders:
        paths, labels = read_folders(folder, split)
        images = (decode(path.read_bytes(), OWN_FILES) for path in paths)
        sets.append(SearchedPictures(folder.name, _vectors(tower, artifact, images), labels))

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return normalized(text(tokenizer(list(texts))))

    calibration = artifact.manifest.search
    if not chosen.test:
        calibration = _best(sets, encode, artifact)
    if calibration is None:
        parser.error(f"{artifact.reference} was not calibrated for searches: fit it first")
    for each in sets:
        numbers = judge(searches(each, encode, calibration.neutral_texts, seed=1), calibration)
        shown = ", ".join(f"{key} {value:.3f}".replace(".000", "") for key, value in numbers.items())
        print(f"{split}, {each.name}: {shown}", flush=True)
    if chosen.write:
        write_search(artifact, calibration)
        sys.stdout.write(f"{artifact.reference}: calibration of searches written\n")


def _best(sets: Sequence[SearchedPictures], encode: EncodeTexts, artifact: Artifact) -> SearchCalibration:
    """The calibration of the smallest log loss, of those with other neutral texts; prints one line for each.

    Raises:
        NothingToTell: of all of them.
    """
    empty = tuple(dict.fromkeys(" ".join(t.replace("{}", " ").split()) for t in artifact.manifest.templates))
    compared = {"empty prompts": tuple(text for text in empty if text), **NEUTRAL}
    best: tuple[float, SearchCalibration] | None = None
    for name, neutral in compared.items():
        if not neutral:
            continue
        found = [searches(each, encode, neutral, seed=0) for each in sets]
        try:
            calibration = fit(found, neutral)
        except NothingToTell as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        losses = [judge(each, calibration) for each in found]
        loss = float(np.mean([each["log loss"] + each["log loss of hits"] for each in losses]))
        print(f"{name}: log loss {loss:.4f}, {calibration.model_dump(exclude={'neutral_texts'})}", flush=True)
        if best is None or loss < best[0]:
            best = (loss, calibration)
    if best is None:
        raise NothingToTell("no candidate can be calibrated")
    return best[1]


if __name__ == "__main__":
    main()
