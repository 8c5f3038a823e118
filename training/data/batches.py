"""Training batches that depend on nothing but (seed, step), so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.manifest import TextSpec
from model_store.modality.text import Tokenizer
from training.data.augment import CaptionAugment, ImageAugment
from training.data.rows import Drawn, Row, caption_ids
from training.data.scenes import SceneRows
from training.distributed import own_rows

Tokenize = Callable[[Sequence[str]], NDArray[np.int64]]
Neighbours = NDArray[np.int64]
Ids = tuple[NDArray[np.int64], NDArray[np.int64]]
_BATCH_STREAM, _EPOCH_STREAM, _NEIGHBOUR_STREAM = 0, 1, 4


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


@dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches of captioned images; the last incomplete batch of an epoch is dropped.

    `pixels` uint8 [N, S, S, 3] belong to `rows`. Batch fields: image uint8 [B, size, size, 3], row int64 [B],
    text int64 [B, L], caption_id int64 [B] (equal for equal case-folded captions, before augmentation).
    negatives: also the rows' false captions, see `text_fields`.
    neighbours: int64 [N, K]; the second half of a batch are then neighbours of the first, one each.
    """

    rows: Sequence[Row]
    pixels: NDArray[np.uint8]
    image_augment: ImageAugment
    caption_augment: CaptionAugment
    tokenize: Tokenize
    batch_size: int
    seed: int
    negatives: bool = False
    neighbours: Neighbours | None = None

    def __post_init__(self) -> None:
        if len(self.rows) < self.batch_size:
            raise ValueError(f"{len(self.rows)} training rows do not fill one batch of {self.batch_size}")
        ids = shared_ids([Drawn(row.caption, row.negative) for row in self.rows])
        object.__setattr__(self, "_ids", ids)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // self.batch_size

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of 0-based `step`."""
        return self.part(step, process=0, processes=1)

    def part(self, step: int, *, process: int, processes: int) -> dict[str, torch.Tensor]:
        """One process's rows of it. What is drawn is drawn for all, so that it does not depend on their number."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, _EPOCH_STREAM, epoch)).permutation(len(self.rows))
        picks = order[position * self.batch_size : (position + 1) * self.batch_size]
        picks = with_neighbours(picks, self.neighbours, seed=self.seed, step=step)
        rng = np.random.default_rng((self.seed, _BATCH_STREAM, step))
        views = [self.image_augment.draw(self.pixels.shape[1], rng) for _ in picks]
        texts = [self.caption_augment(self.rows[i].caption, rng) for i in picks]
        own = own_rows(len(picks), process=process, processes=processes)
        picks = picks[own]
        images = [self.image_augment.seen(self.pixels[i], view) for i, view in zip(picks, views[own], strict=True)]
        drawn = [Drawn(text, self.rows[i].negative) for i, text in zip(picks, texts[own], strict=True)]
        ids: Ids = object.__getattribute__(self, "_ids")
        return {
            "image": torch.from_numpy(np.stack(images)),
            "row": torch.from_numpy(picks),
            **text_fields(drawn, self.tokenize, ids=(ids[0][picks], ids[1][picks]), negatives=self.negatives),
        }


@dataclass(frozen=True)
class SceneBatches:
    """Batches of drawn scenes with captions drawn for this batch; fields as those of `Batches`.

    truth: also excused bool [B, B], with negatives [B, 2B]: which texts are not plainly false of which pictures.
    codes: also meaning_code float32 [B, C], with negatives negative_code [B, C]; zero where the code cannot say it.
    captions: the batch has B / captions pictures, each so many times, with another draw of its captions.
    """

    rows: SceneRows
    tokenize: Tokenize
    batch_size: int
    negatives: bool = False
    neighbours: Neighbours | None = None
    truth: bool = False
    codes: bool = False
    captions: int = 1

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of 0-based `step`."""
        return self.part(step, process=0, processes=1)

    def part(self, step: int, *, process: int, processes: int) -> dict[str, torch.Tensor]:
        """One process's rows of it; captions are drawn for all, which have to be told apart."""
        picks = self.rows.pick(step, self.batch_size // self.captions)
        picks = with_neighbours(picks, self.neighbours, seed=self.rows.seed, step=step).repeat(self.captions)
        draws = [step * self.captions + at % self.captions for at in range(len(picks))]
        drawn = [
            self.rows.draw(int(row), draw, negative=self.negatives) for row, draw in zip(picks, draws, strict=True)
        ]
        own = own_rows(len(picks), process=process, processes=processes)
        excused = self.rows.excused(picks[own], drawn, negatives=self.negatives) if self.truth else None
        caption_id, negative_id = shared_ids(drawn)
        picks, drawn = picks[own], drawn[own]
        return {
            "image": torch.from_numpy(self.rows.pixels[picks]),
            "row": torch.from_numpy(picks),
            **({"excused": torch.from_numpy(excused)} if excused is not None else {}),
            **(self._codes(drawn) if self.codes else {}),
            **text_fields(drawn, self.tokenize, ids=(caption_id[own], negative_id[own]), negatives=self.negatives),
        }

    def _codes(self, drawn: Sequence[Drawn]) -> dict[str, torch.Tensor]:
        said = {"meaning_code": [one.meaning for one in drawn]}
        if self.negatives:
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
