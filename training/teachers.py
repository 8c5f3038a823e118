"""A teacher: a frozen model that a student learns from, asked at every step, or once for fixed looks at every row."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_store.files import whole_file
from model_store.manifest import Distillation, ImageSpec, TextSpec
from model_store.store import Artifact
from training import distributed
from training.bases import StoredTowers, open_stored, specs_of, stored_tokenizer
from training.checkpoint import LoadedModel, load_model
from training.config import ARTIFACT, StoredModel
from training.data.batches import SecondLook, TextIds, Tokenize
from training.data.protocol import Source
from training.distillation_losses import PairVectors
from training.losses import unit
from training.models.towers import DualEncoder
from training.progress import Track, untracked

_FORMAT = 1
_CHUNK = 64
F32 = NDArray[np.float32]
TermName = TypeVar("TermName", bound=str)


@dataclass(frozen=True, kw_only=True)
class TeacherVectors:
    """What a teacher says of N training rows in each of K fixed looks: unit vectors float32 [N, K, D].

    text: [N, K, 0] where it was asked about pictures only.
    """

    image: F32
    text: F32

    def of(self, row: Tensor, look: Tensor) -> PairVectors:
        """Of rows int64 [B] in their looks int64 [B]."""
        at = (row.cpu().numpy(), look.cpu().numpy())
        image, text = (torch.from_numpy(each[at]).to(row.device) for each in (self.image, self.text))
        return PairVectors(image, text)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen model; of a stored artifact the fp32 ONNX graphs answer, so that it needs no weights.

    name: NAME@VERSION of an artifact, the name of a checkpoint's recipe. identity: fingerprints of the artifact's
    towers, sha256 of the checkpoint's weights. digest: of all that its vectors depend on.

    Raises:
        ValueError: its pictures are not square.
    """

    name: str
    identity: str
    model: DualEncoder
    image_spec: ImageSpec
    text_spec: TextSpec
    tokenizer_bytes: bytes
    digest: str
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.model.to(self.device).eval().requires_grad_(False)
        spec = self.image_spec
        if spec.height_px != spec.width_px:
            raise ValueError(
                f"the teacher takes pictures of {spec.width_px} x {spec.height_px} px, which are not square"
            )

    @classmethod
    def of(cls, loaded: LoadedModel, *, device: str = "cpu") -> Teacher:
        """A checkpoint, or the base of a run."""
        if isinstance(loaded.model, StoredTowers):
            return cls.stored(loaded.model.artifact, device=device)
        info = loaded.info
        digests = (info.weights_sha256, info.image_spec_digest, info.text_spec_digest, info.tokenizer_sha256)
        return cls(
            name=info.config.name,
            identity=info.weights_sha256,
            model=loaded.model,
            image_spec=info.image_spec,
            text_spec=info.text_spec,
            tokenizer_bytes=loaded.tokenizer_bytes,
            digest=" ".join((info.config.model.model_dump_json(), *digests)),
            device=device,
        )

    @classmethod
    def open(cls, reference: str, *, store: Path | None = None, device: str = "cpu") -> Teacher:
        """reference: the folder of a checkpoint, or `artifact:NAME[@VERSION]`, in `store`.

        Raises:
            ValueError: it cannot be opened.
        """
        if not reference.startswith(ARTIFACT):
            try:
                return cls.of(load_model(Path(reference)), device=device)
            except OSError as error:
                message = f"teacher {reference} is no checkpoint, and stored models are {ARTIFACT}NAME: {error}"
                raise ValueError(message) from error
        model = StoredModel(kind="artifact", reference=reference.removeprefix(ARTIFACT), store=store)
        return cls.stored(open_stored(model), device=device)

    @classmethod
    def stored(cls, artifact: Artifact, *, device: str = "cpu") -> Teacher:
        image_spec, text_spec = specs_of(artifact)
        names = artifact.manifest.fingerprint
        return cls(
            name=artifact.reference,
            identity=f"{names.image} {names.text}",
            model=StoredTowers(artifact),
            image_spec=image_spec,
            text_spec=text_spec,
            tokenizer_bytes=stored_tokenizer(artifact)[1],
            digest=f"{names.image} {names.text}",
            device=device,
        )

    def taught(self, terms: Mapping[TermName, float]) -> Distillation:
        """What a student's card says of it."""
        weights = {str(term): weight for term, weight in terms.items()}
        return Distillation(teacher=self.name, teacher_digest=self.identity, terms=weights)

    @property
    def size_px(self) -> int:
        return self.image_spec.height_px

    @property
    def scale(self) -> Tensor:
        """Its inverse temperature, a scalar."""
        return self.model.logit_scale.detach().exp().reshape(()).to(self.device)

    @property
    def dim(self) -> int:
        """The length of its vectors."""
        return self.text_vectors(torch.from_numpy(self.tokenize(["a"]))).shape[1]

    @property
    def tokenize(self) -> Tokenize:
        return TextIds(self.text_spec, self.tokenizer_bytes)

    def look(self, *, texts: bool = True) -> SecondLook:
        """What it wants to see of a batch."""
        return SecondLook(size_px=self.size_px, tokenize=self.tokenize if texts else None)

    def vectors(self, image: Tensor, text: Tensor) -> PairVectors:
        """Of pictures uint8 [B, size_px, size_px, 3] and of texts int64 [B, L]."""
        return PairVectors(self.image_vectors(image), self.text_vectors(text))

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures uint8 [B, size_px, size_px, 3]."""
        return self._encoded(self.model.encode_image, pixels)

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Unit vectors [B, D] of texts int64 [B, L]."""
        return self._encoded(self.model.encode_text, ids)

    def cached(
        self,
        source: Source,
        *,
        looks: int,
        data_key: str,
        folder: Path | None,
        texts: bool = True,
        track: Track = untracked,
    ) -> TeacherVectors:
        """Its vectors of every row of `source` in so many looks, read from `folder` or worked out and kept there.

        data_key: names the data and how they are augmented. With it and the teacher's own digests a file is named, so
        that neither can change behind it. Of several processes the first works them out.

        Raises:
            ValueError: the data have no rows to name, or are smaller than what the teacher takes.
        """
        key = hashlib.sha256(
            "\n".join([f"teacher {_FORMAT} {looks} {texts}", self.digest, data_key]).encode()
        ).hexdigest()
        path = None if folder is None else folder / f"teacher-{key[:24]}.npz"
        with distributed.first_alone():
            found = _read(path)
            if found is None:
                found = self._looked(source, looks, texts, track)
                _keep(path, found)
        return found

    def _looked(self, source: Source, looks: int, texts: bool, track: Track) -> TeacherVectors:
        count = len(source.row_weights())
        parts = [
            (look, np.arange(at, min(at + _CHUNK, count))) for look in range(looks) for at in range(0, count, _CHUNK)
        ]
        image: list[F32] = []
        text: list[F32] = []
        for look, rows in track(parts, "teacher"):
            pixels, said = source.looks(rows, look, size_px=self.size_px)
            image.append(self.image_vectors(torch.from_numpy(pixels)).cpu().numpy())
            ids = torch.from_numpy(self.tokenize(said)) if texts else None
            text.append(np.empty((len(rows), 0), np.float32) if ids is None else self.text_vectors(ids).cpu().numpy())
        return TeacherVectors(image=_by_row(image, looks), text=_by_row(text, looks))

    def _encoded(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            return torch.cat([unit(encode(part.to(self.device))) for part in inputs.split(_CHUNK)])


def _by_row(parts: Sequence[F32], looks: int) -> F32:
    """Chunks of [n, D], look by look -> [N, K, D]."""
    joined = np.concatenate(parts)
    return np.ascontiguousarray(joined.reshape(looks, len(joined) // looks, joined.shape[1]).transpose(1, 0, 2))


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
