"""Vectors of a published graph against open_clip end to end: its transform, its tokeniser, its torch model."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from model_store.fidelity import measure
from model_store.graph import open_graph
from model_store.manifest import Fidelity, Role
from model_store.modality.image import prepare
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import CALIBRATION_TEXTS
from model_store.store import Artifact, Store
from training.tiny import write_tiny_source

pytestmark = pytest.mark.torch

Reference = tuple[open_clip.CLIP, Callable[[Image.Image], torch.Tensor], SimpleTokenizer]

STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
RELATIVE_L2_MAX = 1e-4
SIZES = [(61, 83), (131, 49), (97, 187), (49, 50), (200, 101), (73, 73), (300, 55), (48, 95)]


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Store(STORE, builtin=False).open("tiny")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """open_clip's model, transform and tokeniser, loaded through open_clip from the fixture's seed."""
    folder = write_tiny_source(tmp_path_factory.mktemp("tiny"))
    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model, transform = loaded
    packed = folder / "merges.gz"
    packed.write_bytes(gzip.compress((folder / "merges.txt").read_bytes()))
    return model.eval(), transform, SimpleTokenizer(bpe_path=str(packed), context_length=model.context_length)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    found = []
    for width, height in SIZES:
        coarse = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
        found.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return found


def run(artifact: Artifact, role: Role, batch: NDArray[np.generic]) -> NDArray[np.float32]:
    found = artifact.graph_spec(role, "fp32")
    assert found is not None
    return open_graph(*found)(batch)


def image_fidelity(artifact: Artifact, reference: Reference, pixels: NDArray[np.uint8]) -> Fidelity:
    model, transform, _ = reference
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(image) for image in pictures()])).numpy()
    return measure(run(artifact, "image_encoder", pixels), expected)


def prepared(artifact: Artifact) -> NDArray[np.uint8]:
    spec = artifact.image_spec
    assert spec is not None
    return np.stack([prepare(image, spec) for image in pictures()])


def test_images(artifact: Artifact, reference: Reference) -> None:
    found = image_fidelity(artifact, reference, prepared(artifact))
    assert found.centred_relative_l2 <= RELATIVE_L2_MAX
    assert found.centred_cosine_min > 0.999999


@pytest.mark.parametrize("cut", [False, True])
def test_texts(artifact: Artifact, reference: Reference, cut: bool) -> None:
    model, _, tokenizer = reference
    ours: Tokenizer = artifact.tokenizer()
    rows = [ours.encode(text) for text in CALIBRATION_TEXTS]
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(list(CALIBRATION_TEXTS))).numpy()
    got = (
        np.concatenate([run(artifact, "text_encoder", ours.pad([row])) for row in rows])
        if cut
        else run(artifact, "text_encoder", ours.pad(rows, ours.spec.context_length))
    )
    assert measure(got, expected).centred_relative_l2 <= RELATIVE_L2_MAX


def shift(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.roll(pixels, 1, axis=2)


def renormalised(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the graph would see if mean and std were left out: levels that normalise to plain x / 255."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    return ((pixels / 255 * std + mean) * 255).clip(0, 255).round().astype(np.uint8)


# mistake -> least centred relative L2 it must cause: thousands of times the bound.
MISTAKES = {
    "BGR": (lambda pixels: np.ascontiguousarray(pixels[..., ::-1]), 0.3),
    "shifted by 1 px": (shift, 0.01),
    "missing normalisation": (renormalised, 0.3),
    "flipped": (lambda pixels: np.ascontiguousarray(pixels[:, :, ::-1]), 0.1),
    "one level brighter": (lambda pixels: (pixels.astype(np.int16) + 1).clip(0, 255).astype(np.uint8), 0.001),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_sees_each_mistake(artifact: Artifact, reference: Reference, mistake: str) -> None:
    change, least = MISTAKES[mistake]
    found = image_fidelity(artifact, reference, change(prepared(artifact)))
    assert found.centred_relative_l2 > least > RELATIVE_L2_MAX


def test_bilinear_is_seen(artifact: Artifact, reference: Reference) -> None:
    spec = artifact.image_spec
    assert spec is not None
    wrong = spec.model_copy(update={"interpolation": "bilinear"})
    found = image_fidelity(artifact, reference, np.stack([prepare(image, wrong) for image in pictures()]))
    assert found.centred_relative_l2 > 10 * RELATIVE_L2_MAX


def test_one_wrong_token_is_seen(artifact: Artifact, reference: Reference) -> None:
    model, _, tokenizer = reference
    ours = artifact.tokenizer()
    texts = list(CALIBRATION_TEXTS)
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(texts)).numpy()
    rows = [ours.encode(text) for text in texts]
    rows[3][1] = (rows[3][1] + 1) % 1000
    got = run(artifact, "text_encoder", ours.pad(rows, ours.spec.context_length))
    assert measure(got, expected).centred_relative_l2 > 10 * RELATIVE_L2_MAX
