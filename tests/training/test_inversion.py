"""Inversion through the other tower: what real tokens and patches give, that it comes nearer, and what is refused."""

# torch gives every submodule the type Tensor | Module.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.checkpoint import LoadedModel, load_model
from training.config import load_config
from training.inversion import Descent, Inverted, oti, ovi
from training.losses import unit
from training.methods.parts.projections import projections_of
from training.models.building import build_model
from training.models.towers import OpenClipDualEncoder, SmallDualEncoder

pytestmark = pytest.mark.torch

NO_STEPS = Descent(steps=0)
FEW = Descent(steps=20)
TEMPLATE = "plain {} shirt"
WORDS = ("a", "x", "7")  # each is one token


@pytest.fixture(scope="module")
def small(prompt_base: Path) -> LoadedModel:
    """A ViT without a class token beside a transformer with a bag of tokens."""
    return load_model(prompt_base)


@pytest.fixture(scope="module")
def clip(squares: Path, tiny_vit: str, small: LoadedModel) -> LoadedModel:
    """A random CLIP of open_clip's; its pictures and its tokens are those of `small`, as far as they are equal."""
    torch.manual_seed(0)
    config = load_config(squares, [tiny_vit, 'run.folder="unused"']).model
    model = build_model(config, vocab_size=49408, end_id=49407).eval().requires_grad_(False)
    return replace(small, model=model)


@pytest.fixture(params=["small", "clip"])
def base(request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue(request.param)


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)


def texts(base: LoadedModel, words: tuple[str, ...]) -> Tensor:
    return torch.from_numpy(base.tokenizer.pad([base.tokenizer.encode(TEMPLATE.format(word)) for word in words]))


def embedded_words(base: LoadedModel) -> Tensor:
    ids = [base.tokenizer.encode(word)[1:-1] for word in WORDS]
    assert {len(row) for row in ids} == {1}
    model = base.model
    assert isinstance(model, SmallDualEncoder | OpenClipDualEncoder)
    table = model.text.token_embedding if isinstance(model, SmallDualEncoder) else model.clip.token_embedding
    return table(torch.tensor(ids)).detach()


def embedded_patches(base: LoadedModel, shown: Tensor) -> Tensor:
    """[N, places, W] of real pictures."""
    model = base.model
    assert isinstance(model, SmallDualEncoder | OpenClipDualEncoder)
    conv = model.trunk.patches if isinstance(model, SmallDualEncoder) else model.clip.visual.conv1
    return conv(model.pixel_input(model.pixel_input.unit_range(shown))).flatten(2).permute(0, 2, 1).detach()


def test_a_real_word_as_start_has_the_vector_of_its_text(base: LoadedModel) -> None:
    found = oti(base, torch.randn(3, 16), template=TEMPLATE, start=embedded_words(base), descent=NO_STEPS)
    torch.testing.assert_close(found.vectors, base.model.encode_text(texts(base, WORDS)))
    assert found.losses.shape == (1,)


def test_real_patches_as_start_have_the_vector_of_their_picture(base: LoadedModel) -> None:
    shown = pixels(3)
    patches = embedded_patches(base, shown)
    found = ovi(base, torch.randn(3, 16), patches=patches.shape[1], start=patches, descent=NO_STEPS)
    torch.testing.assert_close(found.vectors, base.model.encode_image(shown))
    assert patches.shape[1] == 4


def test_one_patch_is_spread_over_the_whole_picture(base: LoadedModel) -> None:
    patches = embedded_patches(base, pixels(2))[:, :2]
    spread = ovi(base, torch.randn(2, 16), patches=4, start=patches.repeat_interleave(2, dim=1), descent=NO_STEPS)
    found = ovi(base, torch.randn(2, 16), patches=2, start=patches, descent=NO_STEPS)
    torch.testing.assert_close(found.vectors, spread.vectors)


@pytest.mark.parametrize("invert", [oti, ovi])
def test_the_loss_falls_and_no_row_depends_on_another(base: LoadedModel, invert: Callable[..., Inverted]) -> None:
    with torch.inference_mode():
        to = base.model.encode_image(pixels(3)) if invert is oti else base.model.encode_text(texts(base, WORDS))
    start = 0.02 * torch.randn(3, 1, embedded_words(base).shape[-1], generator=torch.Generator().manual_seed(1))
    found = invert(base, to, start=start, descent=FEW)
    alone = invert(base, to[1:2], start=start[1:2], descent=FEW)
    losses = found.losses
    assert losses.shape == (21,)
    assert losses[-1] < losses[0] - 0.02
    assert float(losses[-1]) == pytest.approx(float((1 - (unit(found.vectors) * unit(to)).sum(dim=1)).mean()), abs=1e-5)
    torch.testing.assert_close(found.vectors[1:2], alone.vectors, atol=1e-4, rtol=1e-3)
    again = invert(base, to, descent=replace(FEW, steps=1))
    torch.testing.assert_close(again.vectors, invert(base, to, descent=replace(FEW, steps=1)).vectors)


def test_towers_that_cannot_be_inverted_are_refused_with_the_reason(
    squares: Path, square_base: Path, small: LoadedModel
) -> None:
    conv = load_model(square_base)
    with pytest.raises(ValueError, match="behind the patch embedding of a ViT; the image tower ConvTrunk is conv"):
        ovi(conv, torch.randn(1, 16))
    bag = build_model(load_config(squares, ["model.text.pool=bag", 'run.folder="x"']).model, vocab_size=300, end_id=299)
    with pytest.raises(ValueError, match="a pseudo-word is had without a search: the vector that is missing"):
        oti(replace(conv, model=bag), torch.randn(1, 16))
    for template in ("a photo", "{} and {}"):
        with pytest.raises(ValueError, match=r"expected one \{\}"):
            oti(small, torch.randn(1, 16), template=template)
    with pytest.raises(ValueError, match=r"40 words in 'a photo of \{\}' are 47 tokens, the tower reads 16"):
        oti(small, torch.randn(1, 16), words=40)
    with pytest.raises(ValueError, match="5 pseudo-patches for a grid of 4 places"):
        ovi(small, torch.randn(1, 16), patches=5)
    with pytest.raises(ValueError, match=r"start is \[1, 2, 16\], expected \[1, 1, 16\]"):
        oti(small, torch.randn(1, 16), start=torch.zeros(1, 2, 16))


def test_open_clips_projections_are_found(clip: LoadedModel) -> None:
    model = clip.model
    assert isinstance(model, OpenClipDualEncoder)
    ends = projections_of(model)
    np.testing.assert_array_equal(ends.image, model.clip.visual.proj.T)
    np.testing.assert_array_equal(ends.text, model.clip.text_projection.T)
