"""Zero-shot classification of things that are cut out of plain pictures: made smaller, moved, on other backgrounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.cutouts import (
    Cutout,
    NoPlainBackground,
    Pose,
    composed,
    cut_out,
    part_of_photograph,
    plain_background,
)
from evaluation.encoder import Encoder, Vectors
from evaluation.metrics import TIE
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.standard.asking import Asking, Tell, digest, joined, run_key, unasked
from evaluation.standard.classify import NO_TEMPLATES, Wording, judged, wording
from evaluation.standard.image_folder import ImageFolder, LabelledPhotograph, identities, in_hash_order, labels_of
from evaluation.standard.photographs import Photograph
from evaluation.zero_shot import class_matrix
from model_store.errors import InputError
from model_store.modality.image import OWN_FILES, decode

SIDE_PX = 448
PICTURES = 400
_GREY = (128, 128, 128)
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))


@dataclass(frozen=True)
class Shift:
    """How a thing is shown. background: its own colour, grey, or a part of a photograph; others: how many other things
    are beside it."""

    name: str
    background: str
    size: float
    corner: bool = False
    others: int = 0


SHIFTS = (
    *(
        Shift(f"{background}, {size:.0%}".replace("%", " %"), background, size)
        for background in ("own background", "grey", "photographs")
        for size in (1.0, 0.7, 0.5)
    ),
    Shift("own background, 35 %", "own background", 0.35),
    Shift("own background, 50 %, in a corner", "own background", 0.5, corner=True),
    Shift("photographs, 50 %, in a corner", "photographs", 0.5, corner=True),
    Shift("own background, 50 %, beside one other", "own background", 0.5, corner=True, others=1),
    Shift("own background, 50 %, beside three others", "own background", 0.5, corner=True, others=3),
)


@dataclass(frozen=True)
class ShareKept:
    """The accuracy of one way to show things as a share of their accuracy as they are; outcomes: [n], 0 or 1 each."""

    shifted: F64
    plain: F64

    def __call__(self, picks: NDArray[np.intp]) -> float:
        before = float(self.plain[picks].sum())
        return float(self.shifted[picks].sum()) / before if before else float("nan")


@dataclass(frozen=True)
class ShiftedTask:
    """folder: pictures of one thing each on a plain background, by class; backgrounds: photographs without them.

    most: how many pictures are taken, in an order by hash.
    """

    name: str
    folder: ImageFolder
    backgrounds: tuple[Photograph, ...]
    template: Wording = "own"
    seed: int = 0
    most: int = PICTURES
    kind: str = "shifted"

    def key(self, encoder: Encoder) -> RunKey:
        own = wording(self.template, encoder)
        return run_key(self, encoder, asked=digest([self._asked(), own]), seed=self.seed)

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Rows: top-1 as it is, for every shift, and what share of the first is kept. With others in the picture, a
        thing is right when its class is before all that are not there.

        Raises:
            ValueError: a picture cannot be read, or none has a plain background.
        """
        templates = wording(self.template, encoder)
        if templates is None:
            return unasked(self.key(encoder), encoder, NO_TEMPLATES)
        items, part = judged(self.folder)
        things, left_out = _cut(in_hash_order(items, seed=self.seed)[: self.most])
        if not things:
            raise ValueError(f"{self.name}: no picture has one thing on a plain background")
        shifts = [each for each in SHIFTS if self.backgrounds or each.background != "photographs"]
        names = self.folder.names
        asking = Asking(
            encoder,
            self.kind,
            pictures=len(things) * (1 + len(shifts)),
            texts=len({one.format(name) for one in templates for name in names}),
            progress=progress,
        )
        classes = class_matrix(asking.text_vectors, names, templates)
        truth = labels_of([each.item for each in things])
        nobody = np.zeros((len(things), 0), dtype=np.int64)
        plain = _hits(asking.drawn_vectors(each.item.photograph.shown() for each in things), classes, truth, nobody)
        clusters = np.arange(len(things))
        rows = [mean_row("as it is", plain, clusters, chance=1 / len(names))]
        kept: list[ProbeRow] = []
        for number, shift in enumerate(shifts):
            beside = self._beside(truth, shift, number)
            shown = self._shown(things, beside, shift, number)
            hits = _hits(asking.drawn_vectors(shown), classes, truth, truth[beside])
            rivals = [
                len(names) - len({*row} - {own})
                for row, own in zip(truth[beside].tolist(), truth.tolist(), strict=True)
            ]
            rows.append(mean_row(shift.name, hits, clusters, chance=float(np.mean(1 / np.array(rivals)))))
            statistic = ShareKept(hits, plain)
            kept.append(ProbeRow(name=f"kept: {shift.name}", chance=None, clusters=clusters, statistic=statistic))
        notes = [*self.folder.notes, *([f"judged on the {part} pictures only"] if part else [])]
        if left_out:
            notes.append(f"{left_out} pictures have no plain background around one thing: left out")
        if not self.backgrounds:
            notes.append("no photographs as backgrounds: name a folder with backgrounds=")
        return joined(self.key(encoder), asking, [*rows, *kept], asked=self._asked(), notes=notes)

    def _beside(self, truth: NDArray[np.int64], shift: Shift, number: int) -> NDArray[np.int64]:
        """Which things are beside each, int64 [n, others]."""
        random = np.random.default_rng((self.seed, number, 0))
        return random.integers(len(truth), size=(len(truth), shift.others))

    def _shown(
        self, things: Sequence[CutPhotograph], beside: NDArray[np.int64], shift: Shift, number: int
    ) -> Iterator[NDArray[np.uint8]]:
        for at, each in enumerate(things):
            random = np.random.default_rng((self.seed, number, 1, at))
            places = [_CORNERS[place] for place in random.permutation(4)] if shift.corner else [(0.5, 0.5)]
            poses = [Pose(shift.size, *place) for place in places]
            others = [things[other].cutout for other in beside[at]]
            if shift.background == "photographs":
                photograph = _decoded(self.backgrounds[random.integers(len(self.backgrounds))])
                background = part_of_photograph(photograph, SIDE_PX, random)
            else:
                background = plain_background(_GREY if shift.background == "grey" else each.cutout.colour, SIDE_PX)
            drawn = composed(list(zip((each.cutout, *others), poses, strict=False)), background)
            yield np.asarray(drawn)

    def _asked(self) -> str:
        backgrounds = (each.identity for each in self.backgrounds)
        return digest([*identities(self.folder), *backgrounds, self.template, self.seed, self.most, SHIFTS, SIDE_PX])


@dataclass(frozen=True, eq=False)
class CutPhotograph:
    item: LabelledPhotograph
    cutout: Cutout


def _cut(items: Sequence[LabelledPhotograph]) -> tuple[list[CutPhotograph], int]:
    """Those that can be cut out, and how many cannot. They are kept no larger than they are ever shown."""
    found: list[CutPhotograph] = []
    for item in items:
        image = _decoded(item.photograph)
        image.thumbnail((SIDE_PX, SIDE_PX))
        try:
            found.append(CutPhotograph(item, cut_out(image)))
        except NoPlainBackground:
            continue
    return found, len(items) - len(found)


def _decoded(one: Photograph) -> Image.Image:
    """Raises:
    ValueError: it cannot be read, or does not decode.
    """
    shown = one.shown()
    if not isinstance(shown, bytes):
        return Image.fromarray(shown)
    try:
        return decode(shown, OWN_FILES).convert("RGB")
    except InputError as error:
        raise ValueError(f"{one.name}: {error}") from error


def _hits(images: Vectors, classes: Vectors, truth: NDArray[np.int64], beside: NDArray[np.int64]) -> F64:
    """1 where the true class is before all others but those of `beside` [n, others]; a tie is wrong."""
    scores = images.astype(np.float64) @ classes.astype(np.float64).T
    rows = np.arange(len(truth))
    own = scores[rows, truth]
    scores[rows, truth] = -np.inf
    scores[rows[:, None], beside] = -np.inf
    return (own - TIE > scores.max(axis=1)).astype(np.float64)
