"""Towers: what a graph must keep true, on tiny widths."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch
from torch.nn import functional

import training.models.trunks  # noqa: F401  (registers the trunks)
from training.config import ImageTowerConfig, OpenClipConfig, SmallConfig, TextTowerConfig
from training.models.building import build_model, image_spec
from training.models.towers import OpenClipDualEncoder, SmallDualEncoder
from training.models.trunks import TOTAL_STRIDE

VOCAB, END = 50, 49


def small(*, pool: str = "eos+bag", layers: int = 2) -> SmallDualEncoder:
    torch.manual_seed(0)
    config = SmallConfig(
        kind="small",
        embed_dim=24,
        image=ImageTowerConfig(trunk="clipworks_conv_t", size_px=32),
        text=TextTowerConfig(merges=1, context_length=10, width=16, layers=layers, heads=2, pool=pool),
    )
    model = build_model(config, vocab_size=VOCAB, end_id=END)
    assert isinstance(model, SmallDualEncoder)
    # Random statistics, scales and corrections: what starts as zero or one cannot hide an error.
    if pool == "eos+bag":
        torch.nn.init.normal_(model.text.projection.weight, std=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_dense_vectors_average_to_the_pooled_embedding(pixels: torch.Tensor) -> None:
    model = small()
    dense = model.encode_dense(pixels)
    assert dense.shape == (3, 32 // TOTAL_STRIDE, 32 // TOTAL_STRIDE, 24)
    torch.testing.assert_close(dense.mean(dim=(1, 2)), model.encode_image(pixels), rtol=1e-4, atol=1e-5)
    assert dense.std(dim=(1, 2)).min() > 1e-4  # positions do differ


@pytest.mark.parametrize("side", [32, 48])
def test_a_vit_says_where_and_takes_pictures_of_any_size(side: int) -> None:
    torch.manual_seed(0)
    trunk = timm.create_model("clipworks_vit_t", num_classes=0).eval()
    grid = side // TOTAL_STRIDE
    picture = torch.zeros(1, 3, side, side)
    with torch.no_grad():
        features = trunk.forward_features(picture)
    assert features.shape == (1, trunk.num_features, grid, grid)
    cells = features[0].flatten(1).T
    # Of a picture that is the same everywhere, cells differ by their place alone: rows, columns, and both.
    apart = torch.cdist(cells, cells) + torch.eye(grid * grid) * 9
    assert apart.min() > 1e-2
    # The cell of a patch answers to its patch: more than any other cell does.
    spot = picture.clone()
    spot[..., :TOTAL_STRIDE, -TOTAL_STRIDE:] = 1
    with torch.no_grad():
        moved = (trunk.forward_features(spot) - features)[0].norm(dim=0)
    assert moved.flatten().argmax() == grid - 1


def test_pixels_are_normalised_inside(pixels: torch.Tensor) -> None:
    model = small()
    outside = (pixels.permute(0, 3, 1, 2).float() / 255 - model.pixel_input.mean) / model.pixel_input.std
    expected = model.image_projection(model.trunk.forward_features(outside))
    torch.testing.assert_close(model.encode_image(pixels), expected)
    unit = pixels.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(model.encode_pixels(unit), expected)
    # The channel order matters: a model that took BGR would answer something else.
    assert not torch.allclose(model.encode_image(pixels.flip(-1)), expected, atol=1e-4)


def test_embeddings_are_not_normalised(pixels: torch.Tensor) -> None:
    norms = small().encode_image(pixels).norm(dim=-1)
    assert (norms - 1).abs().min() > 1e-3


@pytest.mark.parametrize("pool", ["eos", "eos+bag", "bag"])
def test_what_follows_the_end_token_does_not_matter(pool: str) -> None:
    model = small(pool=pool)
    ids = torch.tensor([[48, 5, 6, END, 0, 0, 0, 0, 0, 0], [48, 7, 8, 9, 10, END, 0, 0, 0, 0]])
    full = model.encode_text(ids)
    torch.testing.assert_close(model.encode_text(ids[:, :6]), full)
    junk = ids.clone()
    junk[0, 4:] = 17
    torch.testing.assert_close(model.encode_text(junk), full)
    other = ids.clone()
    other[0, 1] = 11
    assert not torch.allclose(model.encode_text(other)[0], full[0], atol=1e-4)


def test_only_a_bag_ignores_word_order() -> None:
    ids = torch.tensor([[48, 5, 6, END], [48, 6, 5, END]])
    bag, both = small(pool="bag").encode_text(ids), small(pool="eos+bag").encode_text(ids)
    torch.testing.assert_close(bag[0], bag[1])
    assert not torch.allclose(both[0], both[1], atol=1e-4)


def test_an_empty_text_has_a_finite_vector() -> None:
    for pool in ("eos", "eos+bag", "bag"):
        assert torch.isfinite(small(pool=pool).encode_text(torch.tensor([[48, END]]))).all()


def test_trunks_are_timm_models_of_stride_eight() -> None:
    # Other tests register towers of their own under such names.
    names = [*timm.list_models("clipworks_conv_*"), *timm.list_models("clipworks_plain_*")]
    assert len(names) >= 3
    for name in names:
        trunk = timm.create_model(name, pretrained=False, num_classes=0).eval()
        with torch.inference_mode():
            features = trunk.forward_features(torch.zeros(1, 3, 64, 48))
        assert features.shape == (1, trunk.num_features, 8, 6)


@pytest.mark.slow
def test_an_open_clip_model_stands_behind_the_same_doors() -> None:
    config = OpenClipConfig(kind="open_clip", architecture="RN50")
    model = build_model(config, vocab_size=49408, end_id=49407).eval()
    assert isinstance(model, OpenClipDualEncoder)
    spec = image_spec(config)
    assert (spec.height_px, spec.resize_mode, spec.interpolation) == (224, "shortest", "bicubic")
    pixels = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    ids = open_clip.get_tokenizer("RN50")(["a blue shoe"])
    with torch.inference_mode():
        normalised = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(
            spec.std
        ).view(1, 3, 1, 1)
        torch.testing.assert_close(model.encode_image(pixels), model.clip.encode_image(normalised))
        torch.testing.assert_close(
            functional.normalize(model.encode_text(ids), dim=-1), model.clip.encode_text(ids, normalize=True)
        )
        # Batches are cut at their longest text.
        torch.testing.assert_close(model.encode_text(ids[:, :5]), model.encode_text(ids))
        with pytest.raises(NotImplementedError, match="no per-position"):
            model.encode_dense(pixels)
