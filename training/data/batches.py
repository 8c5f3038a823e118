"""Training batches that depend on nothing but (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.manifest import TextSpec
from model_store.modality.text import Tokenizer
from training.data.augment import CaptionAugment, ImageAugment, View
from training.data.rows import Drawn, Row, caption_ids
from training.data.scenes import SceneRows
from training.distributed import own_rows

Tokenize = Callable[[Sequence[str]], NDArray[np.int64]]
Neighbours = NDArray[np.int64]
Ids = tuple[NDArray[np.int64], NDArray[np.int64]]
_BATCH_STREAM, _EPOCH_STREAM, _NEIGHBOUR_STREAM, _LOOK_STREAM = 0, 1, 4, 8


@dataclass(frozen=True, kw_only=True)
class SecondLook:
    """How another model, such as a teacher, takes what a batch holds: the side of its pictures, and its tokens.

    tokenize None: it wants no texts.
    """

    size_px: int
    tokenize: Tokenize | None = None


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a run wants in its batches, beside pictures and captions.

    pairs: captions are asked for, and data without them refuse. negatives: also the rows' false captions, see
    `text_fields`. truth: with the field `excused`; codes: with `meaning_code`; both only where data have an oracle.
    captions: so many rows of a batch are about one picture. neighbours: int64 [N, K]; the second half of a batch are
    then neighbours of the first, one each.
    looks: a row is shown and said in so many ways that are drawn once for all, and the field look int64 [B] says which
    a batch has of each; 0: every step draws anew. second: also second_image uint8 [B, size_px, size_px, 3] and
    second_text int64 [B, L'], the same crops and captions for another model.
    """

    batch_size: int
    pairs: bool = True
    negatives: bool = False
    truth: bool = False
    codes: bool = False
    captions: int = 1
    neighbours: Neighbours | None = None
    looks: int = 0
    second: SecondLook | None = None


class TextIds:
    """Tokenises texts to int64 [n, L], as short as the text spec allows; can be sent to another process."""

    def __init__(self, spec: TextSpec, tokenizer_bytes: bytes) -> None:
        self._made_of = (spec, tokenizer_bytes)
        self._tokenizer = Tokenizer(spec, tokenizer_bytes)

    def __reduce__(self) -> tuple[type[TextIds], tuple[TextSpec, bytes]]:
        return TextIds, self._made_of

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Raises InvalidText."""
        return self._tokenizer.pad([self._tokenizer.encode(text) for text in texts])


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """Rows of a table with their pictures uint8 [N, S, S, 3], and how both are augmented."""

    rows: Sequence[Row]
    pixels: NDArray[np.uint8]
    image_augment: ImageAugment
    caption_augment: CaptionAugment
    seed: int
    captioned: bool = True

    def look(self, row: int, look: int) -> tuple[View, str]:
        """How a row is shown and said in one of its fixed looks; it depends on the seed and these numbers only."""
        rng = np.random.default_rng((self.seed, _LOOK_STREAM, row, look))
        return self.view(rng), self.text(row, rng) if self.captioned else ""

    def view(self, rng: np.random.Generator) -> View:
        return self.image_augment.draw(self.pixels.shape[1], rng)

    def text(self, row: int, rng: np.random.Generator) -> str:
        return self.caption_augment(self.rows[row].caption, rng)

    def shown(self, picks: NDArray[np.int64], views: Sequence[View], *, size_px: int) -> NDArray[np.uint8]:
        """uint8 [n, size_px, size_px, 3]: each row's picture as its view shows it."""
        augment = replace(self.image_augment, size_px=size_px)
        return np.stack([augment.seen(self.pixels[i], view) for i, view in zip(picks, views, strict=True)])


@dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches of captioned images; the last incomplete batch of an epoch is dropped.

    Batch fields: image uint8 [B, size, size, 3], row int64 [B], text int64 [B, L], caption_id int64 [B] (equal for
    equal case-folded captions, before augmentation), and what `plan` asks for; captions and truth are not for tables.
    Of pictures without captions the fields of texts are missing.
    """

    table: TableRows
    tokenize: Tokenize
    plan: BatchPlan

    def __post_init__(self) -> None:
        rows, plan = self.table.rows, self.plan
        if not self.table.captioned and (plan.pairs or plan.negatives or (plan.second and plan.second.tokenize)):
            raise ValueError("these pictures have no captions, and what is trained wants pairs (kd_image does not)")
        if len(rows) < self.plan.batch_size:
            raise ValueError(f"{len(rows)} training rows do not fill one batch of {self.plan.batch_size}")
        object.__setattr__(self, "_ids", shared_ids([Drawn(row.caption, row.negative) for row in rows]))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.table.rows) // self.plan.batch_size

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of 0-based `step`."""
        return self.part(step, process=0, processes=1)

    def part(self, step: int, *, process: int, processes: int) -> dict[str, torch.Tensor]:
        """One process's rows of it. What is drawn is drawn for all, so that it does not depend on their number."""
        table, plan, size = self.table, self.plan, self.plan.batch_size
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((table.seed, _EPOCH_STREAM, epoch)).permutation(len(table.rows))
        picks = order[position * size : (position + 1) * size]
        picks = with_neighbours(picks, plan.neighbours, seed=table.seed, step=step)
        rng = np.random.default_rng((table.seed, _BATCH_STREAM, step))
        own, found = own_rows(len(picks), process=process, processes=processes), dict[str, torch.Tensor]()
        if plan.looks:
            looks = rng.integers(plan.looks, size=len(picks))[own]
            seen = [table.look(row, look) for row, look in zip(picks[own].tolist(), looks.tolist(), strict=True)]
            views, texts = [view for view, _ in seen], [text for _, text in seen]
            found["look"] = torch.from_numpy(looks)
        else:
            views = [table.view(rng) for _ in picks][own]
            texts = [table.text(row, rng) if table.captioned else "" for row in picks.tolist()][own]
        picks = picks[own]
        if plan.second is not None:
            found["second_image"] = torch.from_numpy(table.shown(picks, views, size_px=plan.second.size_px))
            if plan.second.tokenize is not None:
                found["second_text"] = torch.from_numpy(plan.second.tokenize(texts))
        found["image"] = torch.from_numpy(table.shown(picks, views, size_px=table.image_augment.size_px))
        found["row"] = torch.from_numpy(picks)
        if not table.captioned:
            return found
        drawn = [Drawn(text, table.rows[i].negative) for i, text in zip(picks, texts, strict=True)]
        ids: Ids = object.__getattribute__(self, "_ids")
        ids = ids[0][picks], ids[1][picks]
        return {**found, **text_fields(drawn, self.tokenize, ids=ids, negatives=plan.negatives)}


@dataclass(frozen=True)
class SceneBatches:
    """Batches of drawn scenes with captions drawn for this batch; fields as those of `Batches`.

    With `plan.truth` also excused bool [B, B], with negatives [B, 2B]: which texts are not plainly false of which
    pictures; with codes meaning_code float32 [B, C], with negatives negative_code [B, C]; zero where the code cannot
    say it. With several captions the batch has B / captions pictures, each so many times, with another draw of them.
    A look is another caption: the picture is always the same, up to corruptions.
    """

    rows: SceneRows
    tokenize: Tokenize
    plan: BatchPlan

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of 0-based `step`."""
        return self.part(step, process=0, processes=1)

    def part(self, step: int, *, process: int, processes: int) -> dict[str, torch.Tensor]:
        """One process's rows of it; captions are drawn for all, which have to be told apart."""
        plan = self.plan
        picks = self.rows.pick(step, plan.batch_size // plan.captions)
        picks = with_neighbours(picks, plan.neighbours, seed=self.rows.seed, step=step).repeat(plan.captions)
        draws = np.array([step * plan.captions + at % plan.captions for at in range(len(picks))])
        if plan.looks:
            draws = np.random.default_rng((self.rows.seed, _LOOK_STREAM, step)).integers(plan.looks, size=len(picks))
        drawn = [
            self.rows.draw(row, draw, negative=plan.negatives)
            for row, draw in zip(picks.tolist(), draws.tolist(), strict=True)
        ]
        own = own_rows(len(picks), process=process, processes=processes)
        excused = self.rows.excused(picks[own], drawn, negatives=plan.negatives) if plan.truth else None
        caption_id, negative_id = shared_ids(drawn)
        picks, drawn, found = picks[own], drawn[own], dict[str, torch.Tensor]()
        seen = draws[own].tolist()
        if plan.looks:
            found["look"] = torch.from_numpy(draws[own])
        if plan.second is not None:
            found["second_image"] = torch.from_numpy(self.rows.seen(picks, seen, size_px=plan.second.size_px))
            if plan.second.tokenize is not None:
                found["second_text"] = torch.from_numpy(plan.second.tokenize([one.text for one in drawn]))
        return {
            "image": torch.from_numpy(self.rows.seen(picks, seen, size_px=self.rows.pixels.shape[1])),
            "row": torch.from_numpy(picks),
            **found,
            **({"excused": torch.from_numpy(excused)} if excused is not None else {}),
            **(self._codes(drawn) if plan.codes else {}),
            **text_fields(drawn, self.tokenize, ids=(caption_id[own], negative_id[own]), negatives=plan.negatives),
        }

    def _codes(self, drawn: Sequence[Drawn]) -> dict[str, torch.Tensor]:
        said = {"meaning_code": [one.meaning for one in drawn]}
        if self.plan.negatives:
            said["negative_code"] = [one.negative_meaning or one.meaning for one in drawn]
        return {name: torch.from_numpy(self.rows.code.of(meanings)[0]) for name, meanings in said.items()}


def with_neighbours(
    picks: NDArray[np.int64], neighbours: Neighbours | None, *, seed: int, step: int
) -> NDArray[np.int64]:
    """The first half of `picks` [B] and one neighbour of each (Yuksekgonul et al., 2023, NegCLIP's hard images)."""
    if neighbours is None:
        return picks
    rng = np.random.default_rng((seed, _NEIGHBOUR_STREAM, step))
    anchors = picks[: (len(picks) + 1) // 2]
    chosen = neighbours[anchors, rng.integers(neighbours.shape[1], size=len(anchors))]
    return np.concatenate([anchors, chosen[: len(picks) - len(anchors)]])


def shared_ids(drawn: Sequence[Drawn]) -> Ids:
    """caption_id and negative_id, int64 [B] each: equal where two captions are, whichever of the two they are.

    A caption without a hard negative has its own id there.
    """
    ids = caption_ids([*(one.text for one in drawn), *(one.negative or one.text for one in drawn)])
    return ids[: len(drawn)], ids[len(drawn) :]


def text_fields(drawn: Sequence[Drawn], tokenize: Tokenize, *, ids: Ids, negatives: bool) -> dict[str, torch.Tensor]:
    """text int64 [B, L], caption_id int64 [B]; `ids` as `shared_ids` gives them.

    With `negatives` also negative_text int64 [B, L'], negative_id int64 [B] and has_negative bool [B]. A caption
    without a hard negative carries its own text there, and has_negative False: the loss must leave it out.
    """
    fields = {"text": torch.from_numpy(tokenize([one.text for one in drawn])), "caption_id": torch.from_numpy(ids[0])}
    if negatives:
        fields["negative_text"] = torch.from_numpy(tokenize([one.negative or one.text for one in drawn]))
        fields["negative_id"] = torch.from_numpy(ids[1])
        fields["has_negative"] = torch.tensor([one.negative is not None for one in drawn])
    return fields
