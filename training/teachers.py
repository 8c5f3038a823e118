"""A teacher: a frozen model that a student learns from, asked at every step, or once for fixed looks at every row."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.files import whole_file
from model_store.manifest import ImageSpec, TextSpec
from training import distributed
from training.bases import StoredTowers, open_stored, specs_of, stored_tokenizer
from training.checkpoint import load_model
from training.config import ARTIFACT, StoredModel
from training.data.batches import SecondLook, TextIds
from training.data.protocol import Source
from training.distillation_losses import PairVectors
from training.losses import unit
from training.models.towers import DualEncoder
from training.progress import Track, untracked

_FORMAT = 1
_CHUNK = 64
F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TeacherVectors:
    """What a teacher says of N training rows in each of K fixed looks: unit vectors float32 [N, K, D]."""

    image: F32
    text: F32

    def of(self, row: Tensor, look: Tensor) -> PairVectors:
        """Of rows int64 [B] in their looks int64 [B]."""
        at = (row.cpu().numpy(), look.cpu().numpy())
        return PairVectors(
            torch.from_numpy(self.image[at]).to(row.device), torch.from_numpy(self.text[at]).to(row.device)
        )


class Teacher:
    """A checkpoint or a stored artifact, frozen; of an artifact the fp32 ONNX graphs answer, so no weights are needed.

    Raises:
        ValueError: it cannot be opened, or its pictures are not square.
    """

    def __init__(self, reference: str, *, store: Path | None = None, device: str = "cpu") -> None:
        """reference: the folder of a checkpoint, or `artifact:NAME[@VERSION]`, in `store`."""
        self.reference, self._device = reference, device
        self._opened = _stored(reference, store) if reference.startswith(ARTIFACT) else _checkpoint(reference)
        self.model = self._opened.model.to(device).eval().requires_grad_(False)
        spec = self._opened.image_spec
        if spec.height_px != spec.width_px:
            raise ValueError(f"teacher {reference} takes pictures of {spec.width_px} x {spec.height_px} px: not square")
        self.size_px = spec.height_px

    @property
    def scale(self) -> Tensor:
        """Its inverse temperature, a scalar."""
        return self.model.logit_scale.detach().exp().reshape(()).to(self._device)

    @property
    def dim(self) -> int:
        """The length of its vectors."""
        ids = torch.from_numpy(self.look().tokenize(["a"]))
        return self._encoded(ids, text=True).shape[1]

    def look(self) -> SecondLook:
        """What it wants to see of a batch."""
        return SecondLook(size_px=self.size_px, tokenize=TextIds(self._opened.text_spec, self._opened.tokenizer_bytes))

    def vectors(self, image: Tensor, text: Tensor) -> PairVectors:
        """Of pictures uint8 [B, size_px, size_px, 3] and of texts int64 [B, L]."""
        return PairVectors(self._encoded(image, text=False), self._encoded(text, text=True))

    def cached(
        self, source: Source, *, looks: int, data_key: str, folder: Path | None, track: Track = untracked
    ) -> TeacherVectors:
        """Its vectors of every row of `source` in so many looks, read from `folder` or worked out and kept there.

        data_key: names the data and how they are augmented. With it and the teacher's own digests a file is named, so
        that neither can change behind it. Of several processes the first works them out.

        Raises:
            ValueError: the data have no rows to name, or are smaller than what the teacher takes.
        """
        key = hashlib.sha256(
            "\n".join([f"teacher {_FORMAT} {looks}", self._opened.digest, data_key]).encode()
        ).hexdigest()
        path = None if folder is None else folder / f"teacher-{key[:24]}.npz"
        with distributed.first_alone():
            found = _read(path)
            if found is None:
                found = self._looked(source, looks, track)
                _keep(path, found)
        return found

    def _looked(self, source: Source, looks: int, track: Track) -> TeacherVectors:
        second, count = self.look(), len(source.pixels)
        parts = [
            (look, np.arange(at, min(at + _CHUNK, count))) for look in range(looks) for at in range(0, count, _CHUNK)
        ]
        image: list[F32] = []
        text: list[F32] = []
        for look, rows in track(parts, "teacher"):
            pixels, said = source.looks(rows, look, size_px=self.size_px)
            both = self.vectors(torch.from_numpy(pixels), torch.from_numpy(second.tokenize(said)))
            image.append(both.image.cpu().numpy())
            text.append(both.text.cpu().numpy())
        return TeacherVectors(image=_by_row(image, looks), text=_by_row(text, looks))

    def _encoded(self, inputs: Tensor, *, text: bool) -> Tensor:
        encode = self.model.encode_text if text else self.model.encode_image
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            return torch.cat([unit(encode(part.to(self._device))) for part in inputs.split(_CHUNK)])


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model, how it takes its inputs, and a digest of all that its vectors depend on."""

    model: DualEncoder
    image_spec: ImageSpec
    text_spec: TextSpec
    tokenizer_bytes: bytes
    digest: str


def _checkpoint(folder: str) -> _Opened:
    try:
        loaded = load_model(Path(folder))
    except OSError as error:
        raise ValueError(f"teacher {folder} is no checkpoint, and stored models are artifact:NAME: {error}") from error
    info = loaded.info
    digests = (info.weights_sha256, info.image_spec_digest, info.text_spec_digest, info.tokenizer_sha256)
    return _Opened(
        model=loaded.model,
        image_spec=info.image_spec,
        text_spec=info.text_spec,
        tokenizer_bytes=loaded.tokenizer_bytes,
        digest=" ".join((info.config.model.model_dump_json(), *digests)),
    )


def _stored(reference: str, store: Path | None) -> _Opened:
    artifact = open_stored(StoredModel(kind="artifact", reference=reference.removeprefix(ARTIFACT), store=store))
    image_spec, text_spec = specs_of(artifact)
    names = artifact.manifest.fingerprint
    return _Opened(
        model=StoredTowers(artifact),
        image_spec=image_spec,
        text_spec=text_spec,
        tokenizer_bytes=stored_tokenizer(artifact)[1],
        digest=f"{names.image} {names.text}",
    )


def _by_row(parts: Sequence[F32], looks: int) -> F32:
    """Chunks of [n, D], look by look -> [N, K, D]."""
    joined = np.concatenate(parts)
    return np.ascontiguousarray(joined.reshape(looks, -1, joined.shape[1]).transpose(1, 0, 2))


def _read(path: Path | None) -> TeacherVectors | None:
    """None: no such file, or one that another crash left unreadable."""
    if path is None or not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return TeacherVectors(image=stored["image"], text=stored["text"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(path: Path | None, found: TeacherVectors) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, by_many=True) as stream:
            np.savez(stream, image=found.image, text=found.text)
