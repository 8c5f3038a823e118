"""A frozen model's vectors of the training data, worked out once and kept on disk under what they depend on."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.files import whole_file
from training.bases import StoredTowers
from training.checkpoint import LoadedModel
from training.data.batches import shared_ids
from training.data.protocol import Source
from training.data.rows import Drawn, LabelledRow
from training.models.dense import DenseSource, dense_of_model
from training.progress import Track, untracked

FORMAT = 3
_CHUNK = 128
_PICK_STREAM = 5
F32 = NDArray[np.float32]
_NONE = np.empty(0, dtype=np.float32)
_NOBODY = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Un-normalised vectors of N training pictures, of M captions of theirs, and of V pictures of validation.

    image [N, D]; validation [V, D]: in the order of `Source.pictures`; dense [N, h, w, D] or [0]: no such level;
    row int64 [M]: the picture of a caption; text [M, D]; negative [M, D] with has_negative bool [M], or [0];
    caption_id, negative_id int64 [M]: equal where two captions are, whichever of the two they are. M may be 0.

    With a label, pictures are those of `Source.labelled`, their vectors come from one dense run at its size, positions
    are kept in half precision, and there are also: names str [C]; present bool [N, C]; validation_dense [V, h, w, D];
    validation_present bool [V, C].
    """

    image: F32
    validation: F32
    dense: NDArray[np.floating]
    row: NDArray[np.int64]
    text: F32
    negative: F32
    has_negative: NDArray[np.bool_]
    caption_id: NDArray[np.int64]
    negative_id: NDArray[np.int64]
    names: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))
    present: NDArray[np.bool_] = field(default_factory=lambda: _NOBODY)
    validation_dense: NDArray[np.floating] = field(default_factory=lambda: _NONE)
    validation_present: NDArray[np.bool_] = field(default_factory=lambda: _NOBODY)


@dataclass(frozen=True, kw_only=True)
class FeatureBatches:
    """Captions at random, each as likely as any other, with their pictures' vectors, un-normalised.

    image_embeds, text_embeds [B, D], caption_id, row int64 [B]; where there are any also negative_embeds [B, D],
    negative_id int64 [B] and has_negative bool [B], dense_embeds float32 [B, h, w, D], and present bool [B, C].
    Without captions, pictures at random, and none of the fields of texts.
    """

    features: Features
    batch_size: int
    seed: int

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The batch of a 0-based step; it depends on (seed, step) only.

        Raises:
            ValueError: fewer captions than a batch holds.
        """
        rng = np.random.default_rng((self.seed, _PICK_STREAM, step))
        held = self.features
        among, what = (len(held.row), "captions") if len(held.row) else (len(held.image), "pictures")
        if among < self.batch_size:
            raise ValueError(f"{among} {what} do not fill one batch of {self.batch_size}")
        picks = rng.choice(among, size=self.batch_size, replace=False)
        rows = held.row[picks] if len(held.row) else picks
        found: dict[str, NDArray[np.generic]] = {"image_embeds": held.image[rows], "row": rows}
        if held.text.size:
            found |= {"text_embeds": held.text[picks], "caption_id": held.caption_id[picks]}
        if held.negative.size:
            found["negative_embeds"] = held.negative[picks]
            found["negative_id"] = held.negative_id[picks]
            found["has_negative"] = held.has_negative[picks]
        if held.dense.size:
            found["dense_embeds"] = held.dense[rows].astype(np.float32)
        if held.present.size:
            found["present"] = held.present[rows]
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}


def cached_features(
    base: LoadedModel,
    source: Source,
    *,
    level: Literal["features", "dense"],
    captions: int,
    negatives: bool,
    folder: Path,
    device: str,
    label: str | None = None,
    side_px: int | None = None,
    track: Track = untracked,
) -> Features:
    """Read the features of exactly this model, data and choice from `folder`, or work them out and keep them there.

    captions: how many of each picture; 0: no texts at all. The name of a file is a digest of every input: the base's
    weights, specs and tokenizer, all pictures and all captions. A file that cannot be read is made again.
    label: a label column, for the level dense; side_px: of its pictures, by default that of the exported dense role.

    Raises:
        ValueError: no such label, a base without positions, or a label with captions.
    """
    if label is not None:
        if level != "dense" or captions:
            raise ValueError(f"label {label!r} is for the level dense without captions, not {level} with {captions}")
        side = side_px or dense_side_px(base)
        shown = {split: source.labelled(label, split, side_px=side) for split in ("train", "validation")}
        key = _key(base, {split: each.pixels for split, each in shown.items()}, [], level=level, negatives=False)
        marks = hashlib.sha256("\n".join(shown["train"].names).encode())
        for each in shown.values():
            marks.update(np.packbits(each.present).data)
        return _kept(
            folder / f"positions-{key}-{marks.hexdigest()[:8]}.npz",
            lambda: _labelled(base, shown, device=device, track=track),
        )
    drawn = source.captions(captions, negatives=negatives) if captions else []
    pictures = {"train": source.pictures("train"), "validation": source.pictures("validation")}
    key = _key(base, pictures, drawn, level=level, negatives=negatives)
    return _kept(
        folder / f"features-{key}.npz",
        lambda: _work_out(base, pictures, drawn, level=level, negatives=negatives, device=device, track=track),
    )


def dense_source(base: LoadedModel) -> DenseSource:
    """The base read position by position: as the exporter's default reads it, or by the dense role of an artifact.

    Raises:
        ValueError: it has no positions.
    """
    model = base.model
    found = model.dense_source() if isinstance(model, StoredTowers) else dense_of_model(model, base.info.image_spec)
    if not isinstance(found, DenseSource):
        raise ValueError(f"base {base.info.config.name} has no vector for a position: {found}")
    return found


def dense_side_px(base: LoadedModel) -> int:
    """Side of the square pictures that the exported dense role looks at."""
    spec = dense_source(base).spec
    return spec.height_px or spec.short_px


def _kept(path: Path, work_out: Callable[[], Features]) -> Features:
    """What lies at `path`, or what is worked out and then lies there."""
    if (stored := _read(path)) is not None:
        return stored
    found, folder = work_out(), path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path, by_many=True) as stream:
        np.savez(stream, **{one.name: getattr(found, one.name) for one in fields(Features)})
    return found


def picture_vectors(base: LoadedModel, pictures: NDArray[np.uint8], *, device: str, track: Track = untracked) -> F32:
    """Un-normalised vectors [n, D] of prepared pictures uint8 [n, H, W, 3], in fp32."""
    return _vectors(base.model.to(device).encode_image, pictures, device=device, track=track, label="picture features")


def _key(
    base: LoadedModel,
    pictures: dict[str, NDArray[np.uint8]],
    drawn: Sequence[tuple[int, Drawn]],
    *,
    level: str,
    negatives: bool,
) -> str:
    info = base.info
    found = hashlib.sha256(f"features {FORMAT} {level} {negatives}\n".encode())
    for part in (info.weights_sha256, info.image_spec_digest, info.text_spec_digest, info.tokenizer_sha256):
        found.update(f"{part}\n".encode())
    found.update(info.config.model.model_dump_json().encode())
    for split, pixels in pictures.items():
        found.update(f"\n{split} {pixels.shape}\n".encode())
        found.update(np.ascontiguousarray(pixels).data)
    for row, one in drawn:
        found.update(f"{row}\t{one.text!r}\t{one.negative!r}\n".encode())
    return found.hexdigest()[:24]


def _read(path: Path) -> Features | None:
    """None: no such file, or one that another crash left unreadable."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Features(**{one.name: stored[one.name] for one in fields(Features)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _work_out(
    base: LoadedModel,
    pictures: dict[str, NDArray[np.uint8]],
    drawn: Sequence[tuple[int, Drawn]],
    *,
    level: str,
    negatives: bool,
    device: str,
    track: Track,
) -> Features:
    model = base.model.to(device)
    captions = [one for _, one in drawn]
    texts = [one.text for one in captions]
    false = [one.negative or one.text for one in captions] if negatives else []
    vectors = _text_vectors(base, [*texts, *false], device=device, track=track) if texts else _NONE
    caption_id, negative_id = shared_ids(captions)
    return Features(
        image=picture_vectors(base, pictures["train"], device=device, track=track),
        validation=picture_vectors(base, pictures["validation"], device=device, track=track),
        dense=_vectors(model.encode_dense, pictures["train"], device=device, track=track, label="positions")
        if level == "dense"
        else _NONE,
        row=np.array([row for row, _ in drawn], dtype=np.int64),
        text=vectors[: len(texts)],
        negative=vectors[len(texts) :] if negatives else _NONE,
        has_negative=np.array([one.negative is not None for one in captions] if negatives else [], dtype=np.bool_),
        caption_id=caption_id,
        negative_id=negative_id,
    )


def _labelled(base: LoadedModel, shown: dict[str, LabelledRow], *, device: str, track: Track) -> Features:
    """Positions and pooled vectors, from the same run."""
    module = dense_source(base).module.to(device)
    vectors = {
        split: position_vectors(module, each.pixels, device=device, track=track) for split, each in shown.items()
    }
    none, ids = _NONE, np.empty(0, dtype=np.int64)
    return Features(
        image=vectors["train"][1],
        validation=vectors["validation"][1],
        dense=vectors["train"][0],
        row=ids,
        text=none,
        negative=none,
        has_negative=_NOBODY,
        caption_id=ids,
        negative_id=ids,
        names=np.array(shown["train"].names, dtype=np.str_),
        present=shown["train"].present,
        validation_dense=vectors["validation"][0],
        validation_present=shown["validation"].present,
    )


def position_vectors(
    module: Callable[[Tensor], tuple[Tensor, Tensor]], pictures: NDArray[np.uint8], *, device: str, track: Track
) -> tuple[NDArray[np.float16], F32]:
    """Of prepared pictures uint8 [n, H, W, 3]: un-normalised positions float16 [n, h, w, D], pooled float32 [n, D]."""
    found: list[tuple[NDArray[np.float16], F32]] = []
    with torch.inference_mode():
        for at in track(range(0, len(pictures), _CHUNK), "positions"):
            positions, pooled = module(torch.from_numpy(pictures[at : at + _CHUNK]).to(device))
            found.append((positions.half().cpu().numpy(), pooled.float().cpu().numpy()))
    return np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])


def _text_vectors(base: LoadedModel, texts: Sequence[str], *, device: str, track: Track) -> F32:
    """[n, D]; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    ids = {text: base.tokenizer.encode(text) for text in unique}
    ordered = sorted(unique, key=lambda text: len(ids[text]))
    parts = [ordered[at : at + _CHUNK] for at in range(0, len(ordered), _CHUNK)]
    padded = [base.tokenizer.pad([ids[text] for text in part]) for part in parts]
    encode = base.model.encode_text
    vectors = np.concatenate([_vectors(encode, part, device=device) for part in track(padded, "text features")])
    where = {text: at for at, text in enumerate(ordered)}
    return vectors[[where[text] for text in texts]]


def _vectors(
    encode: Callable[[Tensor], Tensor],
    inputs: NDArray[np.generic],
    *,
    device: str,
    track: Track = untracked,
    label: str = "",
) -> F32:
    """[n, ...] in chunks; no input, no vector: [0]."""
    if not len(inputs):
        return _NONE
    with torch.inference_mode():
        return np.concatenate(
            [
                encode(torch.from_numpy(inputs[at : at + _CHUNK]).to(device)).float().cpu().numpy()
                for at in track(range(0, len(inputs), _CHUNK), label)
            ]
        )
