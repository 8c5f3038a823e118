"""A torch model as evaluation sees any encoder: pictures and texts in, unit vectors out, decoded as the server does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from evaluation.encoder import Shown, Vectors
from evaluation.locating import Found, Label, Locator
from evaluation.metrics import normalize
from evaluation.robustness.classifier import Pull
from model_store.manifest import ImageSpec
from model_store.modality.image import OWN_FILES, decode, prepare
from model_store.modality.text import Tokenizer
from model_store.presence import default_presence
from training import distributed
from training.checkpoint import LoadedModel, load_model
from training.models.dense import DEFAULT_DENSE, DenseChoice, DenseSource, dense_of_model

_CHUNK = 128


class TorchEncoder:
    """The two doors of a model: uint8 [B, H, W, 3] -> [B, D] and int64 [B, L] -> [B, D], in fp32 without gradients.

    `space` and `fingerprint` name the weights: pass what changes when they do.

    divided: of several processes that all ask for the same, each encodes its share, and all get all vectors.
    """

    def __init__(
        self,
        encode_image: Callable[[Tensor], Tensor],
        encode_text: Callable[[Tensor], Tensor],
        *,
        image_spec: ImageSpec,
        tokenizer: Tokenizer,
        name: str,
        fingerprint: str,
        templates: tuple[str, ...] | None = None,
        device: str = "cpu",
        divided: bool = False,
    ) -> None:
        self._encode_image, self._encode_text = encode_image, encode_text
        self._image_spec, self._tokenizer, self._device = image_spec, tokenizer, device
        self._divided = divided
        self.name, self.space, self.fingerprint = name, fingerprint, fingerprint
        self.templates = templates
        self.image_px: int | None = min(image_spec.height_px, image_spec.width_px)

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        return self._run(
            self._encode_image, len(images), lambda at: np.stack([self._pixels(one) for one in images[at]])
        )

    def encode_prepared(self, pixels: NDArray[np.uint8]) -> Vectors:
        """Pictures that are [N, H, W, 3] of the model's size already."""
        return self._run(self._encode_image, len(pixels), lambda at: pixels[at])

    def prepared(self, images: Sequence[Shown]) -> NDArray[np.uint8]:
        """uint8 [n, H, W, 3] as the model sees them."""
        return np.stack([self._pixels(one) for one in images])

    def pulled_vectors(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], Pull]:
        """Un-normalised vectors [N, D] of float pictures [N, H, W, 3] in 0..255, and what takes derivatives by them to
        derivatives by the pictures; see `evaluation.robustness`.

        Raises:
            ValueError: the image tower is a graph, which gives no gradients.
        """
        x = torch.from_numpy(pixels).to(self._device).requires_grad_(True)
        with torch.enable_grad():
            vectors = self._encode_image(x).float()
        if not vectors.requires_grad:
            raise ValueError(f"{self.name}: its image tower gives no gradients")

        def pull(weights: NDArray[np.floating]) -> NDArray[np.float32]:
            (found,) = torch.autograd.grad(vectors, x, torch.from_numpy(weights).to(vectors))
            return found.cpu().numpy()

        return vectors.detach().cpu().numpy(), pull

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        # Texts of similar length together: padding to the longest of a few is cheap.
        ids = [self._tokenizer.encode(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        vectors = self._run(
            self._encode_text, len(order), lambda at: self._tokenizer.pad([ids[one] for one in order[at]])
        )
        out = np.empty_like(vectors)
        out[order] = vectors
        return out

    def _pixels(self, image: Shown) -> NDArray[np.uint8]:
        opened = decode(image, OWN_FILES) if isinstance(image, bytes) else Image.fromarray(image)
        return prepare(opened, self._image_spec)

    def _run(
        self, encode: Callable[[Tensor], Tensor], count: int, inputs: Callable[[slice], NDArray[np.generic]]
    ) -> Vectors:
        """Unit vectors [count, D]; `inputs` gives the rows of a slice."""

        def vectors(at: slice) -> NDArray[np.float32]:
            with torch.inference_mode():
                return encode(torch.from_numpy(inputs(at)).to(self._device)).float().cpu().numpy()

        sharing = distributed.count() if self._divided else 1
        size = min(_CHUNK, max(1, math.ceil(count / sharing)))
        parts = [slice(start, start + size) for start in range(0, count, size)]
        found = distributed.divided(parts, vectors) if self._divided else [vectors(part) for part in parts]
        return normalize(np.concatenate(found))


class DenseTorchEncoder(TorchEncoder):
    """A torch model that says where too, one picture at a time, with the presence that an export without one has."""

    def __init__(self, loaded: LoadedModel, source: DenseSource, *, name: str, device: str = "cpu") -> None:
        model, info = loaded.model.to(device), loaded.info
        super().__init__(
            model.encode_image,
            model.encode_text,
            image_spec=info.image_spec,
            tokenizer=loaded.tokenizer,
            name=name,
            fingerprint=_fingerprint(loaded),
            templates=info.templates,
            device=device,
        )
        module = source.module.to(device)

        def run(pixels: NDArray[np.uint8]) -> tuple[Vectors, Vectors]:
            with torch.inference_mode():
                positions, pooled = module(torch.from_numpy(pixels).to(device))
            return positions.float().cpu().numpy(), pooled.float().cpu().numpy()

        presence = default_presence(info.templates, float(model.logit_scale.detach().exp().reshape(-1)[0]))
        self.locator = Locator(run, source.spec, presence, self.encode_texts)

    def locate(
        self, images: Sequence[Shown], labels: Sequence[Label], *, boxes: bool = True, short_px: int | None = None
    ) -> list[Found]:
        return self.locator.locate(images, labels, boxes=boxes, short_px=short_px)


def open_dense_checkpoint(folder: Path, *, dense: DenseChoice = DEFAULT_DENSE) -> DenseTorchEncoder:
    """A checkpoint that says where. dense: what takes the place of a ViT's last attention, as at export.

    Raises:
        ValueError: not a checkpoint that holds a model, or its towers give no vector for a position.
    """
    loaded = load_model(folder)
    source = dense_of_model(loaded.model, loaded.info.image_spec, dense)
    if not isinstance(source, DenseSource):
        raise ValueError(f"{folder.name} does not say where: {source or 'no dense role was asked for'}")
    return DenseTorchEncoder(loaded, source, name=f"{folder.name} (checkpoint)")


def encoder_of(loaded: LoadedModel, *, name: str, device: str = "cpu") -> TorchEncoder:
    """An opened checkpoint as an encoder."""
    model = loaded.model.to(device)
    return TorchEncoder(
        model.encode_image,
        model.encode_text,
        image_spec=loaded.info.image_spec,
        tokenizer=loaded.tokenizer,
        name=name,
        fingerprint=_fingerprint(loaded),
        templates=loaded.info.templates,
        device=device,
    )


def _fingerprint(loaded: LoadedModel) -> str:
    return f"checkpoint {loaded.info.weights_sha256}"
