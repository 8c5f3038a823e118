"""Slim towers: blocks of any width are open_clip's at its own, and a model's description says them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.config import ModelConfig, OpenClipConfig, SmallConfig
from training.models.building import build_model, image_spec
from training.models.dense import DenseSource, dense_of_model
from training.models.slim_blocks import SlimBlock
from training.models.tower_plans import SIDES, plan_of, shape_of
from training.models.towers import DualEncoder
from training.slim_config import SlimShape, SlimTower

pytestmark = pytest.mark.torch
VOCAB, END = 500, 499
PIXELS = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[497, 5, 6, 7, END, 0, 0, 0, 0, 0, 0, 0], [497, 9, END, *[0] * 9], [497, *range(20, 30), END]])


def small(trunk: str = "clipworks_vit_t", *, head: str = "mean", pool: str = "eos+bag", **more: Any) -> SmallConfig:
    image = {"trunk": trunk, "size_px": 16, "pool": head}
    text = {"merges": 200, "context_length": 16, "width": 16, "layers": 2, "heads": 2, "pool": pool, **more}
    return SmallConfig.model_validate({"kind": "small", "embed_dim": 16, "image": image, "text": text})


@pytest.fixture(scope="module")
def open_clip_vit(tmp_path_factory: pytest.TempPathFactory) -> OpenClipConfig:
    folder = tmp_path_factory.mktemp("slim_vit")
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 16,
            "layers": 3,
            "width": 32,
            "head_width": 8,
            "patch_size": 8,
            "ls_init_value": 0.5,
        },
        "text_cfg": {"context_length": 12, "vocab_size": VOCAB, "width": 16, "heads": 2, "layers": 2},
    }
    (folder / "clipworks-slim-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return OpenClipConfig(kind="open_clip", architecture="clipworks-slim-vit")


def built(config: ModelConfig) -> DualEncoder:
    torch.manual_seed(0)
    model = build_model(config, vocab_size=VOCAB, end_id=END).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms that start as 0 and 1 would hide what is cut wrongly
        parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def whole_shape(model: DualEncoder) -> SlimShape:
    plans = {side: plan_of(model, side) for side in SIDES}
    return SlimShape(image=shape_of(model, plans["image"]), text=shape_of(model, plans["text"]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("activation", "layer_scale"), [(nn.GELU, None), (QuickGELU, 0.3)])
def test_at_open_clips_widths_a_block_is_open_clips(
    activation: type[nn.Module], layer_scale: float | None, masked: bool
) -> None:
    torch.manual_seed(0)
    theirs = ResidualAttentionBlock(24, 3, ls_init_value=layer_scale, act_layer=activation)
    nn.init.normal_(theirs.attn.in_proj_bias)
    ours = SlimBlock(24, heads=3, head_width=8, mlp=96, pattern=theirs)
    ours.load_state_dict(theirs.state_dict())
    mask = torch.full((5, 5), float("-inf")).triu_(1) if masked else None
    x = torch.randn(2, 5, 24)
    found: list[dict[str, Tensor]] = []
    for block in (theirs, ours):
        out = block(x, attn_mask=mask)
        out.square().sum().backward()
        found.append({"out": out, **{n: p.grad for n, p in block.named_parameters() if p.grad is not None}})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 13 + 2 * (layer_scale is not None)
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-4)
    assert [type(block.mlp.gelu) for block in (theirs, ours)] == [activation] * 2


def test_a_narrow_block_has_the_widths_it_is_given() -> None:
    block = SlimBlock(10, heads=3, head_width=4, mlp=7, pattern=ResidualAttentionBlock(24, 3))
    assert block(torch.randn(2, 5, 10)).shape == (2, 5, 10)
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters() if p.ndim == 2}
    assert shapes == {
        "attn.in_proj_weight": (36, 10),
        "attn.out_proj.weight": (10, 12),
        "mlp.c_fc.weight": (7, 10),
        "mlp.c_proj.weight": (10, 7),
    }
    with pytest.raises(ValueError, match="its own tokens only"):
        block(torch.zeros(1, 2, 10), torch.zeros(1, 2, 10), torch.zeros(1, 2, 10))


@pytest.mark.parametrize("case", ["mean", "attention", "flat", "open_clip"])
def test_a_slim_model_of_the_whole_shape_is_the_whole_model(case: str, open_clip_vit: OpenClipConfig) -> None:
    config = open_clip_vit if case == "open_clip" else small(head=case)
    whole = built(config)
    slim = build_model(config.model_copy(update={"slim": whole_shape(whole)}), vocab_size=VOCAB, end_id=END).eval()
    assert all(isinstance(block, SlimBlock) for side in SIDES for block in plan_of(slim, side).blocks(slim))
    slim.load_state_dict(whole.state_dict())
    torch.testing.assert_close(slim.encode_image(PIXELS), whole.encode_image(PIXELS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slim.encode_text(IDS), whole.encode_text(IDS), rtol=1e-5, atol=1e-5)
    spec = image_spec(config)
    dense = [dense_of_model(model, spec) for model in (whole, slim)]
    assert all(isinstance(each, DenseSource) for each in dense)
    for left, right in zip(*(each.module(PIXELS) for each in dense), strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["mean", "attention", "flat", "open_clip"])
def test_shapes_are_what_was_asked_for(case: str, open_clip_vit: OpenClipConfig) -> None:
    image = SlimTower(width=20, head_width=8, heads=(1, 3), mlp=(30, 31))
    text = SlimTower(width=9, head_width=8, heads=(2,), mlp=(11,))
    config = (open_clip_vit if case == "open_clip" else small(head=case)).model_copy(
        update={"slim": SlimShape(image=image, text=text)}
    )
    model = build_model(config, vocab_size=VOCAB, end_id=END)
    found = whole_shape(model)
    positions = None if case == "open_clip" else tuple(range(20))
    assert found.image == image.model_copy(update={"position_channels": positions})
    assert found.text == text
    assert model.encode_image(PIXELS).shape == model.encode_text(IDS).shape == (3, 16)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        if isinstance(module, nn.LayerNorm):
            assert tuple(module.weight.shape) == tuple(module.normalized_shape)


def test_a_trunk_keeps_the_positions_of_its_channels() -> None:
    tower = SlimTower(width=2, head_width=4, heads=(1,), mlp=(4,), position_channels=(3, 70))
    model = build_model(
        small().model_copy(update={"slim": SlimShape(image=tower)}), vocab_size=VOCAB, end_id=END
    ).requires_grad_(False)
    nn.init.zeros_(model.trunk.patches.weight)
    nn.init.zeros_(model.trunk.patches.bias)
    entering: list[Tensor] = []
    model.trunk.transformer.register_forward_pre_hook(lambda module, given: entering.append(given[0]))
    model.encode_image(PIXELS)
    # Of 128 channels: 32 sines and 32 cosines of the row, then those of the column; rates fall from 1 to 1e-4.
    row, column = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    expected = torch.stack([(row * 10_000 ** (-3 / 32)).sin(), (column * 10_000 ** (-6 / 32)).sin()], dim=1)
    torch.testing.assert_close(entering[0][0], expected)


def test_models_that_are_not_slim_are_described_as_before() -> None:
    for config in (small(), OpenClipConfig(kind="open_clip", architecture="ViT-B-32")):
        assert "slim" not in config.model_dump_json()
    shape = SlimShape(text=SlimTower(width=8, head_width=8, heads=(1,), mlp=(4,)))
    config = OpenClipConfig(kind="open_clip", architecture="ViT-B-32", slim=shape)
    assert json.loads(config.structure())["slim"] == {"text": {"width": 8, "head_width": 8, "heads": [1], "mlp": [4]}}


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"heads": (1, 1), "mlp": (4,)}, "heads names 2 layers and mlp 1"),
        ({"heads": (), "mlp": ()}, "at least 1"),
        ({"heads": (0,), "mlp": (4,)}, "greater than or equal to 1"),
        ({"heads": (1,), "mlp": (4,), "position_channels": (0,)}, "position_channels names 1 channels of 8"),
    ],
)
def test_shapes_that_are_none_are_refused(tower: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SlimTower(width=8, head_width=8, **tower)


def test_what_cannot_be_slim_says_so(open_clip_vit: OpenClipConfig) -> None:
    tower = SlimTower(width=8, head_width=8, heads=(1,), mlp=(4,))

    def build(config: ModelConfig, **sides: SlimTower) -> None:
        build_model(config.model_copy(update={"slim": SlimShape(**sides)}), vocab_size=VOCAB, end_id=END)

    with pytest.raises(ValueError, match="the image tower, a ConvTrunk, cannot shrink: only transformers can"):
        build(small("clipworks_conv_t"), image=tower)
    with pytest.raises(ValueError, match="the text tower, a TextTower, cannot shrink"):
        build(small(pool="bag"), text=tower)
    with pytest.raises(ValueError, match=r"model\.slim\.image: width 300, but the architecture has 128"):
        build(small(), image=tower.model_copy(update={"width": 300}))
    with pytest.raises(ValueError, match=r"width stays 16: its token vectors are the embedding"):
        build(small(bag_projection=False), text=tower)
    with pytest.raises(ValueError, match="position_channels name 128 of 128"):
        build(small(), image=tower.model_copy(update={"position_channels": tuple(range(121, 129))}))
    with pytest.raises(ValidationError, match="leave pretrained or slim out"):
        OpenClipConfig(kind="open_clip", architecture="ViT-B-32", pretrained="openai", slim=SlimShape(image=tower))


def test_gradient_checkpointing_learns_the_same(train_squares: Callable[..., Path], vit_squares: Path) -> None:
    shape = (
        "model.slim={image={width=20,head_width=8,heads=[1,3],mlp=[30,31]},"
        "text={width=9,head_width=8,heads=[2],mlp=[11]}}"
    )
    options = (shape, "optim.steps=2", "run.validate_steps=9")
    plain = train_squares(*options, recipe=vit_squares, name="plain")
    saving = train_squares(*options, "run.gradient_checkpointing=true", recipe=vit_squares, name="saving")
    expected, found = (load_file(each / "weights.safetensors") for each in (plain, saving))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
