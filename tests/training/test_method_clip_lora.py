"""CLIP-LoRA: no step is the base, merged is unmerged, and nothing but the named weights is changed."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from timm.layers.attention import Attention
from torch import nn
from torch.nn import functional

from evaluation.encoder import open_artifact
from model_store.store import Store
from training.checkpoint import load_model, read_checkpoint
from training.loop import train
from training.method import create
from training.methods.clip_lora import ClipLoraOptions
from training.methods.parts.low_rank import LowRankChange, LowRankTarget, LowRankTowers, low_rank_targets
from training.models.towers import AttentionHead, DualEncoder, OpenClipDualEncoder, PixelInput
from training.opening import open_checkpoint
from training.publish import publish_checkpoint

pytestmark = pytest.mark.torch

Train = Callable[..., Path]

COLOURS = ("blue", "green", "red", "white")
SHOTS = ("method=clip_lora", "method_options.label=colour", "method_options.shots=8")


def drawn_change(targets: tuple[LowRankTarget, ...], *, dropout: float = 0.25) -> LowRankChange:
    """A change that is one: both factors are drawn."""
    torch.manual_seed(2)
    change = LowRankChange(targets, rank=2, alpha=1.0, dropout=dropout)
    for up in change.up:
        nn.init.normal_(up, std=0.3)
    return change


def open_clips() -> OpenClipDualEncoder:
    model = OpenClipDualEncoder.__new__(OpenClipDualEncoder)
    nn.Module.__init__(model)
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 12, "heads": 2, "layers": 2}
    model.clip = open_clip.CLIP(embed_dim=10, vision_cfg=vision, text_cfg=text)
    model.pixel_input = PixelInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return model.eval().requires_grad_(False)


class Odd(DualEncoder):
    """A convolution of each kind, and attention as a pooling head and as timm have it."""

    def __init__(self) -> None:
        super().__init__()
        pooling = AttentionHead(8, 4, grid=2, heads=2, dropout=0.0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), pooling, Attention(8, num_heads=2))

    def image_parts(self) -> tuple[nn.Module, ...]:
        return (self.trunk,)


def pictures() -> torch.Tensor:
    return torch.randint(0, 255, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def ids(end: int) -> torch.Tensor:
    return torch.tensor([[1, 5, 9, 3, end, 0], [1, 7, end, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["conv", "vit", "open_clip"])
def test_a_change_that_has_not_begun_is_the_base_to_the_bit(kind: str, square_base: Path, vit_base: Path) -> None:
    model = open_clips() if kind == "open_clip" else load_model(square_base if kind == "conv" else vit_base).model
    end = 49 if kind == "open_clip" else model.text.end_id
    targets = low_rank_targets(model, "both")
    towers = LowRankTowers(model, LowRankChange(targets, rank=2, alpha=1.0, dropout=0.25)).eval()
    with torch.inference_mode():
        assert all(torch.equal(each, model.get_parameter(name)) for name, each in towers.weights().items())
        assert torch.equal(towers.encode_image(pictures()), model.encode_image(pictures()))
        assert torch.equal(towers.encode_text(ids(end)), model.encode_text(ids(end)))
        begun = LowRankTowers(model, drawn_change(targets)).eval()
        assert not torch.allclose(begun.encode_image(pictures()), model.encode_image(pictures()), atol=1e-3)
        assert not torch.allclose(begun.encode_text(ids(end)), model.encode_text(ids(end)), atol=1e-3)


def test_what_is_changed_is_attention_and_whole_convolutions() -> None:
    clip = open_clips()
    blocks = ["visual.transformer.resblocks.0", "transformer.resblocks.0", "transformer.resblocks.1"]
    attention = {f"clip.{block}.attn.in_proj_weight": 3 for block in blocks}
    assert {each.name: each.parts for each in low_rank_targets(clip, "both")} == {
        "clip.visual.conv1.weight": 1, **attention,
    }  # fmt: skip
    assert [each.name for each in low_rank_targets(clip, "text")] == list(attention)[1:]
    assert {each.name for each in low_rank_targets(clip, "image")} == {"clip.visual.conv1.weight", *list(attention)[:1]}
    assert {each.name: each.parts for each in low_rank_targets(Odd(), "both")} == {
        "trunk.0.weight": 1,
        "trunk.2.query.weight": 1, "trunk.2.key.weight": 1, "trunk.2.value.weight": 1,
        "trunk.3.qkv.weight": 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match="the text tower has neither attention nor a convolution"):
        low_rank_targets(Odd(), "text")


def test_a_merged_attention_is_the_unmerged_one() -> None:
    """Queries, keys and values have a change each, on the attention's input."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 2, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    change = drawn_change((LowRankTarget("in_proj_weight", (36, 12), 3),))
    x = torch.randn(4, 7, 12)
    projected = [
        functional.linear(x, weight, bias) + 0.5 * (x @ down.T) @ up.T
        for weight, bias, down, up in zip(
            attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), change.down, change.up, strict=True
        )
    ]
    query, key, value = (each.unflatten(2, (2, 6)).transpose(1, 2) for each in projected)
    attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    merged = change.changed(dict(attention.named_parameters()))
    found, _ = torch.func.functional_call(attention, merged, (x, x, x))
    torch.testing.assert_close(found, attention.out_proj(attended), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (1, 1), (5, 1)])
def test_a_merged_convolution_is_one_to_few_channels_and_one_by_one_beside_it(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, kernel, stride=stride, padding=kernel // 2)
    change = drawn_change((LowRankTarget("weight", tuple(conv.weight.shape)),))
    x = torch.randn(2, 6, 9, 9)
    down, up = change.down[0].view(2, 6, kernel, kernel), change.up[0].view(10, 2, 1, 1)
    beside = functional.conv2d(functional.conv2d(x, down, stride=stride, padding=kernel // 2), up)
    found = torch.func.functional_call(conv, change.changed(dict(conv.named_parameters())), (x,))
    torch.testing.assert_close(found, conv(x) + 0.5 * beside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 40), (8, 40, 3, 3)])
def test_dropout_leaves_out_whole_input_channels_in_training_only(shape: tuple[int, ...]) -> None:
    change, weights = drawn_change((LowRankTarget("w", shape),)), {"w": torch.zeros(shape)}
    whole, part = change.changed(weights)["w"], change.changed(weights, training=True)["w"]
    assert torch.equal(whole, change.changed(weights)["w"])
    per_channel = part.transpose(0, 1).flatten(1).abs().amax(dim=1)
    dropped = per_channel == 0
    assert 2 <= int(dropped.sum()) <= 20  # a quarter of forty is expected
    kept = part.transpose(0, 1)[~dropped]
    torch.testing.assert_close(kept, whole.transpose(0, 1)[~dropped] / 0.75)


@pytest.fixture(scope="module")
def learnt(squares: Path, square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of changes of both towers and of texts alone, of a base that has hardly learnt to name."""
    folder, found = tmp_path_factory.mktemp("learnt"), dict[str, Path]()
    for towers in ("both", "text"):
        found[towers] = folder / towers
        places = [f"run.folder={json.dumps(str(found[towers]))}", f"base={json.dumps(str(square_base))}"]
        train(squares, [*places, *SHOTS, "optim.steps=60", "optim.rate=0.02", f"method_options.towers={towers}"])
    return found


@pytest.mark.parametrize("towers", [pytest.param("both", marks=pytest.mark.long), "text"])
def test_training_names_more_than_zero_shot_and_moves_the_targets_alone(
    learnt: dict[str, Path], square_base: Path, towers: str
) -> None:
    judged = read_checkpoint(learnt[towers]).metrics["validation"]
    assert judged["adapted"]["class_mean"] - judged["zero_shot"]["class_mean"] > 0.2, judged
    before, after = (load_file(folder / "weights.safetensors") for folder in (square_base, learnt[towers]))
    assert before.keys() == after.keys()
    moved = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    model = load_model(square_base).model
    assert moved == {f"model.{each.name}" for each in low_rank_targets(model, towers)}


def test_the_checkpoint_is_the_averaged_change_in_the_bases_weights(learnt: dict[str, Path], square_base: Path) -> None:
    state, model = load_file(learnt["both"] / "state.safetensors"), load_model(square_base).model
    change = LowRankChange(low_rank_targets(model, "both"), rank=2, alpha=1.0, dropout=0.25)
    change.load_state_dict({
        name: state[f"average/change.{name}"] for name in change.state_dict()
    })  # fmt: skip
    after = load_file(learnt["both"] / "weights.safetensors")
    for name, expected in LowRankTowers(model, change).weights().items():
        assert torch.equal(after[f"model.{name}"], expected)
        assert not torch.equal(expected, model.get_parameter(name))


@pytest.mark.long
def test_it_is_published_as_a_model_and_texts_alone_beside_the_bases_pictures(
    learnt: dict[str, Path], square_base: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store", builtin=False)
    base = publish_checkpoint(square_base, "base", store, precisions=("fp32",)).manifest
    texts, shown = [*COLOURS, "a purple shirt"], [np.full((16, 16, 3), at * 60, dtype=np.uint8) for at in range(4)]
    for towers in ("both", "text"):
        artifact = publish_checkpoint(learnt[towers], towers, store, precisions=("fp32",))
        assert artifact.manifest.kind == ("base" if towers == "both" else "derivation")
        same = artifact.manifest.fingerprint.image == base.fingerprint.image
        assert same == (towers == "text")
        encoder, ours = open_artifact(artifact), open_checkpoint(learnt[towers])
        np.testing.assert_allclose(encoder.encode_texts(texts), ours.encode_texts(texts), atol=2e-5)
        np.testing.assert_allclose(encoder.encode_images(shown), ours.encode_images(shown), atol=2e-5)


def test_the_pages_recipe_trains(squares: Path, square_base: Path, tmp_path: Path) -> None:
    """Its options are the defaults, and its settings train."""
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    ours = tomllib.loads(re.findall(r"## clip_lora\n.*?```toml\n(.*?)```", page, flags=re.S)[0])
    told = ClipLoraOptions.parse(ours["method_options"], method="clip_lora")
    assert told == ClipLoraOptions(label="colour", templates=("a photo of a {}",))
    settings = [f"optim.{name}={value}" for name, value in {**ours["optim"], "steps": 2}.items()]
    places = [f"run.folder={json.dumps(str(tmp_path / 'run'))}", f"base={json.dumps(str(square_base))}"]
    assert train(squares, [*places, *SHOTS, *settings]).step == 2


def test_one_prompt_is_asked_for() -> None:
    with pytest.raises(ValueError, match="templates"):
        create("clip_lora", {"label": "colour", "templates": ["{}", "a {}"]})
