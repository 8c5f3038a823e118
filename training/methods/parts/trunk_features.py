"""Features of a frozen trunk and vectors of a locked text tower, worked out once and kept on disk."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.files import whole_file
from training.data.rows import caption_ids
from training.method import Context
from training.models.aligned import AlignedDualEncoder
from training.models.pretrained import text_vectors

_FORMAT = 1
_CHUNK = 32
_PICK_STREAM, _FLIP_STREAM = 6, 7
F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrunkFeatures:
    """Of P different pictures, mirrored ones last, and of M captions of theirs.

    image float32 [P, F]; mirrored: pictures from P / 2 on are the mirrored first half; picture int64 [M]: the picture
    of a caption, not mirrored; text float32 [M, D]; caption_id int64 [M]: equal where two captions are; row_weights
    float64 [M]: how often a caption is drawn, relative to the others.
    """

    image: F32
    mirrored: NDArray[np.bool_]
    picture: NDArray[np.int64]
    text: F32
    caption_id: NDArray[np.int64]
    row_weights: NDArray[np.float64]


@dataclass(frozen=True)
class PairBatches:
    """Captions drawn by weight, each with the features of its picture.

    features [B, F], text_embeds [B, D], positives bool [B, B]: of one picture, or equal captions.
    """

    features: TrunkFeatures
    batch_size: int
    seed: int

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The batch of a 0-based step; it depends on (seed, step) only."""
        held = self.features
        weights = held.row_weights / held.row_weights.sum()
        if len(weights) < self.batch_size:
            raise ValueError(f"{len(weights)} captions do not fill one batch of {self.batch_size}")
        picks = np.random.default_rng((self.seed, _PICK_STREAM, step)).choice(
            len(weights), size=self.batch_size, replace=True, p=weights
        )
        pictures = held.picture[picks]
        shown = pictures
        if held.mirrored.any():
            flipped = np.random.default_rng((self.seed, _FLIP_STREAM, step)).random(self.batch_size) < 0.5
            shown = pictures + flipped * (len(held.image) // 2)
        captions = held.caption_id[picks]
        positives = (pictures[:, None] == pictures[None]) | (captions[:, None] == captions[None])
        return {
            "features": torch.from_numpy(held.image[shown]),
            "text_embeds": torch.from_numpy(held.text[picks]),
            "positives": torch.from_numpy(positives),
        }


def trunk_features(model: AlignedDualEncoder, context: Context, *, captions: int, flip: bool) -> TrunkFeatures:
    """Read the features of exactly this model and these data from the context's folder, or work them out.

    captions: how many of each row of the data. Equal pictures, of rows with several captions, are looked at once.
    """
    pixels = context.source.pictures("train")
    drawn = context.source.captions(captions, negatives=False)
    texts = [one.text for _, one in drawn]
    first, picture_of_row = distinct(pixels)
    weights = context.source.row_weights()[[row for row, _ in drawn]]
    path = None
    if context.features_folder is not None:
        path = context.features_folder / f"trunk-{_key(model, context, pixels, drawn_texts=texts, flip=flip)}.npz"
        if (stored := _read(path)) is not None:
            return stored
    image = _image_features(model, context, pixels[first], flip=flip)
    unique = list(dict.fromkeys(texts))
    vectors = text_vectors(model, _tokenize(context), unique).float().cpu().numpy()
    where = {text: at for at, text in enumerate(unique)}
    found = TrunkFeatures(
        image=image,
        mirrored=np.arange(len(image)) >= len(first),
        picture=picture_of_row[[row for row, _ in drawn]],
        text=vectors[[where[text] for text in texts]],
        caption_id=caption_ids(texts),
        row_weights=weights,
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, by_many=True) as stream:
            np.savez(stream, **{one.name: getattr(found, one.name) for one in fields(TrunkFeatures)})
    return found


def distinct(pixels: NDArray[np.uint8]) -> tuple[list[int], NDArray[np.int64]]:
    """Rows of the different pictures among uint8 [N, H, W, 3], and int64 [N]: which of them each row is."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    numbers = np.empty(len(pixels), dtype=np.int64)
    for row, picture in enumerate(pixels):
        digest = hashlib.sha256(np.ascontiguousarray(picture).data).digest()
        if digest not in seen:
            seen[digest] = len(first)
            first.append(row)
        numbers[row] = seen[digest]
    return first, numbers


def _image_features(model: AlignedDualEncoder, context: Context, pixels: NDArray[np.uint8], *, flip: bool) -> F32:
    """[P, F], mirrored pictures behind the others."""
    parts: list[F32] = []
    model.eval()
    with torch.inference_mode():
        for mirrored in (False, True) if flip else (False,):
            for at in context.track(range(0, len(pixels), _CHUNK), "mirrored features" if mirrored else "features"):
                chunk = pixels[at : at + _CHUNK]
                shown = np.ascontiguousarray(chunk[:, :, ::-1] if mirrored else chunk)
                x = model.pixel_input.unit_range(torch.from_numpy(shown).to(context.device))
                parts.append(model.features(x).float().cpu().numpy())
    return np.concatenate(parts)


def _key(
    model: AlignedDualEncoder, context: Context, pixels: NDArray[np.uint8], *, drawn_texts: Sequence[str], flip: bool
) -> str:
    """A digest of every input: what the features are made with, all pictures and all captions."""
    found = hashlib.sha256(f"trunk features {_FORMAT} {flip} {pixels.shape}\n".encode())
    found.update(context.model.model_dump_json(exclude={"image": {"head", "hidden", "dropout", "unit"}}).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith(("head.", "logit_")):
            found.update(f"{name}\n".encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    found.update(np.ascontiguousarray(pixels).data)
    found.update(np.ascontiguousarray(context.source.row_weights()).data)
    found.update("\n".join(repr(text) for text in drawn_texts).encode())
    return found.hexdigest()[:24]


def _read(path: Path) -> TrunkFeatures | None:
    """None: no such file, or one that another crash left unreadable."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return TrunkFeatures(**{one.name: stored[one.name] for one in fields(TrunkFeatures)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _tokenize(context: Context):
    return lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts])
