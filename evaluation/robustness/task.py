"""Robustness as a task of the command line: a user's pictures in folders of classes, corrupted and attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from evaluation.encoder import Encoder, Shown
from evaluation.metrics import TIE
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.robustness.bounds import moved
from evaluation.robustness.classifier import (
    F32,
    I64,
    U8,
    PictureClassifier,
    PulledEncoder,
    SeenClassifier,
    VectorClassifier,
)
from evaluation.robustness.corruptions import all_corrupted
from evaluation.robustness.kinds import JUDGED_KINDS, SEVERITIES
from evaluation.robustness.standard_attack import Attacked, AttackPlan, attacked
from evaluation.standard.asking import Asking, digest, joined, run_key
from evaluation.standard.classify import judged, wording
from evaluation.standard.image_folder import ImageFolder, LabelledPhotograph, in_hash_order, labels_of
from evaluation.suites import Tell
from evaluation.zero_shot import class_matrix
from model_store.errors import InputError
from model_store.manifest import ImageSpec
from model_store.modality.image import OWN_FILES, decode, prepare

SUITE = "robustness"
UNKNOWN_PX = 224
_SCALE = 100.0  # CLIP's own largest; a margin's sign knows none, and a sure softmax keeps its slope in float64


@runtime_checkable
class PreparingEncoder(Protocol):
    """An encoder in this process that shows its pictures as its model sees them."""

    def prepared(self, images: Sequence[Shown]) -> U8:
        """uint8 [n, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Robustness:
    """How often pictures of `folder` are named: as they are, under 15 corruptions, and attacked.

    most: how many pictures, drawn by a hash of their names. epsilons: of the attacks, in levels of 255, ascending; none
    without. An encoder with gradients (a checkpoint) meets AutoAttack's parts, one without (an artifact) Square alone;
    behind a server, where each query is a request, nothing is attacked.
    """

    name: str
    folder: ImageFolder
    epsilons: tuple[float, ...] = (1, 2, 4)
    most: int = 200
    plan: AttackPlan = field(default_factory=AttackPlan)
    kind: str = SUITE

    def __post_init__(self) -> None:
        """Raises:
        ValueError: an epsilon below one level, or twice; no picture.
        """
        if self.most < 1:
            raise ValueError(f"{self.most} pictures: expected one at least")
        if any(not 1 <= epsilon <= 255 for epsilon in self.epsilons):
            raise ValueError(
                f"epsilons {', '.join(f'{each:g}' for each in self.epsilons)}: expected 1 to 255 levels each"
            )
        if list(self.epsilons) != sorted(set(self.epsilons)):
            raise ValueError(f"epsilons {list(self.epsilons)}: expected each once, ascending")

    def key(self, encoder: Encoder) -> RunKey:
        return run_key(self, encoder, asked=digest([self._asked(), self._templates(encoder), _ways(encoder)]))

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Rows: clean accuracy, the mean over corruptions and each of them over its severities, and what is named under
        attack, in whole levels (a picture that can be sent) and in floats.
        """
        items, names, templates = self._items(), self.folder.names, self._templates(encoder)
        texts = {template.format(name) for template in templates for name in names}
        shown = len(items) * (1 + len(JUDGED_KINDS) * len(SEVERITIES) + len(self._met(encoder)))
        asking = Asking(encoder, self.kind, pictures=shown, texts=len(texts), progress=progress)
        classes, truth = class_matrix(asking.text_vectors, names, templates), labels_of(items)
        pixels = as_seen(encoder, items)
        clean = _right(asking.drawn_vectors(list(pixels)), classes, truth)
        rows = [_row("clean", clean, classes)]
        rows += corruption_rows(asking, pixels, classes, truth)
        notes = [f"{len(items)} pictures, seen at {pixels.shape[2]} x {pixels.shape[1]} px", *self.folder.notes]
        if not self._met(encoder):
            notes.append("not attacked: behind a server each of thousands of queries would be a request")
            return joined(self.key(encoder), asking, rows, asked=self._asked(), notes=notes)
        if not isinstance(encoder, PulledEncoder):
            notes.append("no gradients (an artifact): attacked by Square alone, which is weaker; give its checkpoint")
        model = classifier_of(encoder, classes)
        found = attacked(
            model, pixels, truth, epsilons=self.epsilons, plan=self.plan, told=lambda count: asking.told(count)
        )
        rows += [row for each in found for row in attack_rows(each, classes)]
        notes += [f"{each.epsilon:g}/255: {_how(each, pixels)}" for each in found]
        return joined(self.key(encoder), asking, rows, asked=self._asked(), notes=notes)

    def _items(self) -> tuple[LabelledPhotograph, ...]:
        items, _ = judged(self.folder)
        return tuple(in_hash_order(items)[: self.most])

    def _met(self, encoder: Encoder) -> tuple[float, ...]:
        return self.epsilons if isinstance(encoder, PreparingEncoder) else ()

    def _asked(self) -> str:
        shown = [f"{item.label} {item.photograph.identity}" for item in self._items()]
        return digest([*self.folder.names, *shown, *self.epsilons, self.plan])

    def _templates(self, encoder: Encoder) -> tuple[str, ...]:
        return wording("own", encoder) or wording("1", encoder) or ("{}",)


def as_seen(encoder: Encoder, items: Sequence[LabelledPhotograph]) -> U8:
    """The pictures as the model sees them, uint8 [N, H, W, 3]; of a server whose rules are not known here, the middle
    square at its side.

    Raises:
        ValueError: a picture that cannot be read.
    """
    side = encoder.image_px or UNKNOWN_PX
    spec = ImageSpec(
        height_px=side,
        width_px=side,
        resize_mode="shortest",
        interpolation="bicubic",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    seen: list[U8] = []
    for item in items:
        shown = item.photograph.shown()
        try:
            if isinstance(encoder, PreparingEncoder):
                seen.append(encoder.prepared([shown])[0])
            else:
                image = decode(shown, OWN_FILES) if isinstance(shown, bytes) else Image.fromarray(shown)
                seen.append(prepare(image, spec))
        except InputError as error:
            raise ValueError(f"{item.photograph.name}: {error}") from error
    return np.stack(seen)


def classifier_of(encoder: Encoder, classes: F32) -> PictureClassifier:
    """Cosines with unit class vectors [C, D], with gradients where the encoder has them."""
    if isinstance(encoder, PulledEncoder):
        return VectorClassifier(encoder=encoder, classes=classes, scale=_SCALE)
    return SeenClassifier(encoder=encoder, classes=classes, scale=_SCALE)


def corruption_rows(asking: Asking, pixels: U8, classes: F32, truth: I64) -> list[ProbeRow]:
    """The mean over all kinds, then each kind's mean over its severities."""
    found: dict[str, F64] = {}
    for kind in JUDGED_KINDS:
        right = [
            _right(asking.drawn_vectors(list(all_corrupted(pixels, kind, severity))), classes, truth)
            for severity in SEVERITIES
        ]
        found[kind] = np.mean(right, axis=0)
    whole = np.mean(list(found.values()), axis=0)
    rows = [_row("corrupted, mean of 15 kinds", whole, classes)]
    return [*rows, *(_row(f"corrupted, {kind.replace('_', ' ')}", right, classes) for kind, right in found.items())]


def attack_rows(found: Attacked, classes: F32) -> list[ProbeRow]:
    """What is named at one epsilon; floats are told apart where they differ."""
    rows = [_row(f"attacked at {found.epsilon:g}/255", found.named.astype(np.float64), classes)]
    if (found.named != found.named_as_floats).any():
        as_floats = found.named_as_floats.astype(np.float64)
        rows.append(_row(f"attacked at {found.epsilon:g}/255, pixels that are no whole levels", as_floats, classes))
    return rows


def _right(images: F32, classes: F32, truth: I64) -> F64:
    """Labels that fit best alike are no answer."""
    scores = images @ classes.T
    best = scores >= scores.max(axis=1, keepdims=True) - TIE
    return ((best.sum(axis=1) == 1) & (scores.argmax(axis=1) == truth)).astype(np.float64)


def _row(name: str, right: F64, classes: F32) -> ProbeRow:
    return mean_row(name, right, np.arange(len(right), dtype=np.int64), chance=1 / len(classes))


def _how(found: Attacked, pixels: U8) -> str:
    far = moved(pixels, found.pictures)
    misled = far.largest > 0
    if not misled.any():
        return "no picture was misled"
    by = {part: found.by.count(part) for part in dict.fromkeys(found.by) if part}
    most = int(far.largest.max())
    newly = ", ".join(f"{part} {count}" for part, count in by.items()) or "no attack"
    return (
        f"newly misled by {newly}; of all {misled.sum()} that are misled {far.share[misled].mean():.0%} of the values "
        f"were moved, by {most} {'level' if most == 1 else 'levels'} at most"
    )


def _ways(encoder: Encoder) -> str:
    return f"{isinstance(encoder, PulledEncoder)} {isinstance(encoder, PreparingEncoder)}"
