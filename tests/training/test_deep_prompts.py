"""Deep prompts: none are the base, each layer reads its own, and what a tower says of its tokens stays in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn

from model_store.modality.text import Tokenizer
from tests.training.prompt_towers import WIDTH, sentences
from training.bases import StoredTowers
from training.checkpoint import load_model
from training.data.vocabulary import clip_merges, clip_text_spec
from training.methods.parts.contexts import name_ids
from training.methods.parts.deep_prompts import (
    CoupledPrompts,
    LayerPrompts,
    PromptedTowers,
    TextPrompts,
    TowerPrompts,
    image_transformer,
    replaced,
)
from training.methods.parts.prompt_learning import image_start, text_start
from training.models.aligned import AlignedDualEncoder
from training.models.towers import DualEncoder, OpenClipDualEncoder, PixelInput

pytestmark = pytest.mark.torch

LENGTH, VOCABULARY, KINDS = 16, 2000, ("vit", "open_clip")
NAMES = ("red", "dark green", "the colour of snow")
# Dark, grey and bright.
PICTURES = torch.randint(0, 85, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PICTURES += torch.tensor([0, 85, 170], dtype=torch.uint8).view(3, 1, 1, 1)
Models = dict[str, tuple[DualEncoder, Tokenizer]]


def open_clips(**changes: object) -> OpenClipDualEncoder:
    model = OpenClipDualEncoder.__new__(OpenClipDualEncoder)
    nn.Module.__init__(model)
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 3, "width": 16, "head_width": 8, "patch_size": 8, **changes}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 12, "heads": 2, "layers": 2}
    model.clip = open_clip.CLIP(embed_dim=10, vision_cfg=vision, text_cfg=text)
    for each in model.clip.parameters():
        nn.init.normal_(each, std=0.3)
    model.pixel_input = PixelInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(prompt_base: Path) -> Models:
    loaded = load_model(prompt_base)
    merges = 500
    tokenizer = Tokenizer(clip_text_spec(merges, context_length=LENGTH), clip_merges(merges))
    assert tokenizer.spec.vocab_size <= VOCABULARY
    return {"vit": (loaded.model, loaded.tokenizer), "open_clip": (open_clips(), tokenizer)}


def drawn(*shape: int, std: float = 1.0) -> Tensor:
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def prompts_of(model: DualEncoder, *, count: int, depth: int = 2, text_depth: int = 2) -> TowerPrompts:
    texts = model.encode_text.__self__
    width = (texts.clip if isinstance(texts, OpenClipDualEncoder) else texts.text).token_embedding.weight.shape[1]
    image = LayerPrompts(drawn(depth, count, 16))
    prompts = TowerPrompts(image, TextPrompts(drawn(text_depth, count, width), drawn(0, width)))
    return prompts.eval().requires_grad_(False)


def seen_by(blocks: nn.ModuleList, run: Callable[[], object]) -> list[Tensor]:
    """What each layer is given during `run`."""
    found: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].clone())) for block in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return found


def text_blocks(model: DualEncoder) -> nn.ModuleList:
    owner = model.clip if isinstance(model, OpenClipDualEncoder) else model.text
    return owner.transformer.resblocks


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompts_are_the_base_to_the_bit(models: Models, kind: str) -> None:
    model, tokenizer = models[kind]
    towers = PromptedTowers(model, prompts_of(model, count=0, depth=3))
    assert torch.equal(towers.encode_image(PICTURES), model.encode_image(PICTURES))
    ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(name) for name in NAMES]))
    if kind == "open_clip":  # the base pads to its whole length, which moves roundings
        torch.testing.assert_close(towers.encode_text(ids), model.encode_text(ids), rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(towers.encode_text(ids), model.encode_text(ids))
        assert torch.equal(towers.image.encode_dense(PICTURES), model.encode_dense(PICTURES))
    begun = PromptedTowers(model, prompts_of(model, count=2))
    assert not torch.allclose(begun.encode_image(PICTURES), model.encode_image(PICTURES), atol=1e-3)
    assert not torch.allclose(begun.encode_text(ids), model.encode_text(ids), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_pictures_are_what_layers_put_together_by_hand_say(models: Models, kind: str, depth: int) -> None:
    """Tokens and prompts apart: what a layer makes of prompts is thrown away where the next one has its own."""
    model, _ = models[kind]
    layers = drawn(depth, 2, 16)
    towers = PromptedTowers(model, TowerPrompts(LayerPrompts(layers).requires_grad_(False), None))
    blocks = image_transformer(model).resblocks
    (tokens, *_) = seen_by(blocks, lambda: model.encode_image(PICTURES))
    prompts = (model.clip.visual.ln_pre(layers[0]) if kind == "open_clip" else layers[0]).expand(3, -1, -1)
    for at, block in enumerate(blocks):
        prompts = layers[at].expand(3, -1, -1) if 0 < at < depth else prompts
        tokens, prompts = block(torch.cat([tokens, prompts], dim=1)).split([tokens.shape[1], 2], dim=1)
    if isinstance(model, OpenClipDualEncoder):
        expected = model.clip.visual.ln_post(tokens[:, 0]) @ model.clip.visual.proj
    else:
        grid = model.trunk.norm(tokens).permute(0, 2, 1).unflatten(2, (2, 2))
        expected = model.image_projection(grid)
        dense = towers.image.encode_dense(PICTURES)
        assert dense.shape == (3, 2, 2, 16)
        torch.testing.assert_close(dense, model.image_projection.dense(grid), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(towers.encode_image(PICTURES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_take_the_place_of_the_last_layers_and_are_not_added(models: Models, kind: str) -> None:
    model, tokenizer = models[kind]
    prompts = prompts_of(model, count=2)
    towers = PromptedTowers(model, prompts)
    assert prompts.text is not None
    ids = name_ids(NAMES, tokenizer, count=2)
    before = seen_by(text_blocks(model), lambda: model.encode_text(ids))
    texts = seen_by(text_blocks(model), lambda: towers.encode_text(ids))
    assert {each.shape[1] for each in texts} == {min(ids.shape[1] + 2, LENGTH)}
    assert torch.equal(texts[1][:, 1:3], prompts.text.layers[1].expand(3, -1, -1))
    assert torch.equal(texts[0][:, 0], before[0][:, 0])  # the start token stays the first
    images = seen_by(image_transformer(model).resblocks, lambda: towers.encode_image(PICTURES))
    (bare, *_) = seen_by(image_transformer(model).resblocks, lambda: model.encode_image(PICTURES))
    assert {each.shape[1] for each in images} == {bare.shape[1] + 2}
    assert torch.equal(images[0][:, :-2], bare)
    assert prompts.image is not None
    assert torch.equal(images[1][:, -2:], prompts.image.layers[1].expand(3, -1, -1))
    assert not torch.allclose(images[2][:, -2:], prompts.image.layers[1].expand(3, -1, -1), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_ctx", [1, 2])
def test_words_that_have_not_moved_are_the_hand_written_prompt(models: Models, kind: str, n_ctx: int) -> None:
    """Some of their tokens are prompts, the others stay; prompts of deeper layers would say something else."""
    model, tokenizer = models[kind]
    text = text_start(model, tokenizer, words="a of a", n_ctx=n_ctx, depth=1).requires_grad_(False)
    assert text.layers.shape[:2] == (1, n_ctx)
    names = NAMES[:2]
    found = PromptedTowers(model, TowerPrompts(None, text)).encode_text(name_ids(names, tokenizer, count=text.count))
    said = torch.from_numpy(tokenizer.pad([tokenizer.encode(f"a of a {name}") for name in names]))
    expected = model.encode_text(said)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    if kind == "open_clip":
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(found, expected)
    deeper = text_start(model, tokenizer, words="a of a", n_ctx=n_ctx, depth=2).requires_grad_(False)
    moved = PromptedTowers(model, TowerPrompts(None, deeper)).encode_text(name_ids(names, tokenizer, count=text.count))
    assert not torch.allclose(moved, expected, atol=1e-5)


def test_a_sentence_encoder_reads_prompts_of_each_of_its_layers() -> None:
    """Layers put together by hand; the words that have not moved are the hand-written prompt to the bit."""
    tokenizer = Tokenizer(clip_text_spec(500, context_length=LENGTH), clip_merges(500))
    model = sentences(tokenizer)
    words = text_start(model, tokenizer, words="a of a", n_ctx=2, depth=1).requires_grad_(False)
    found = PromptedTowers(model, TowerPrompts(None, words)).encode_text(name_ids(NAMES, tokenizer, count=words.count))
    said = [tokenizer.encode(f"a of a {name}") for name in NAMES]
    assert torch.equal(found, model.encode_text(torch.from_numpy(tokenizer.pad(said))))
    prompts = TextPrompts(drawn(2, 2, WIDTH), drawn(0, WIDTH)).requires_grad_(False)
    towers, tower = PromptedTowers(model, TowerPrompts(None, prompts)), model.text
    ids = name_ids(NAMES, tokenizer, count=2)
    given = seen_by(tower.layers, lambda: towers.encode_text(ids))
    assert torch.equal(given[1][:, 1:3], prompts.layers[1].expand(3, -1, -1))
    rest = tower.layers[0](given[0], torch.zeros(3, 1, 1, given[0].shape[1]))
    (alone,) = (row for row in range(3) if len(said[row]) == max(map(len, said)))  # the longest text has no padding
    torch.testing.assert_close(given[1][alone, 3:], rest[alone, 3:])
    torch.testing.assert_close(given[1][alone, 0], rest[alone, 0])
    with pytest.raises(ValueError, match="prompts in front of 3 layers are wanted, and the text tower has 2"):
        text_start(model, tokenizer, words=None, n_ctx=2, depth=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_says_the_same_alone_and_in_company(models: Models, kind: str) -> None:
    model, tokenizer = models[kind]
    towers = PromptedTowers(model, prompts_of(model, count=2))
    ids = name_ids(NAMES, tokenizer, count=2)
    for encode, rows in ((towers.encode_image, PICTURES), (towers.encode_text, ids)):
        alone = torch.cat([encode(row[None]) for row in rows])
        torch.testing.assert_close(encode(rows), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_of_pictures_reaches_coupled_text_prompts_in_every_layer(models: Models, kind: str) -> None:
    model, _ = models[kind]
    text = TextPrompts(drawn(2, 2, 12), drawn(0, 12))
    prompts = TowerPrompts(CoupledPrompts(text, 16), text)
    towers = PromptedTowers(model, prompts)
    towers.encode_image(PICTURES).square().sum().backward()
    assert text.layers.grad is not None
    assert (text.layers.grad.abs().amax(dim=(1, 2)) > 0).all()
    assert {name for name, each in prompts.named_parameters() if each.grad is not None} == {
        "text.layers", *(f"image.couplings.{at}.{kind}" for at in range(2) for kind in ("weight", "bias")),
    }  # fmt: skip
    assert all(each.grad is None for each in model.parameters())
    # The constants that ship are what the functions say.
    constant = TowerPrompts.of(prompts.constant())
    assert set(constant.state_dict()) == {"image.layers", "text.layers", "text.words"}
    assert torch.equal(PromptedTowers(model, constant).encode_image(PICTURES), towers.encode_image(PICTURES))


def test_a_copy_with_other_layers_leaves_the_base_alone(models: Models) -> None:
    model, _ = models["vit"]
    before, other = dict(model.named_modules()), nn.Identity()
    made = replaced(model, trunk=other)
    assert made.get_submodule("trunk") is other
    assert dict(model.named_modules()) == before
    assert made.get_submodule("text") is model.get_submodule("text")


@pytest.mark.parametrize("kind", ["conv", "open_clip's conv", "timm", "pooling", "stored", "aligned", "another"])
def test_image_towers_without_a_place_for_prompts_are_refused_with_the_reason(kind: str, square_base: Path) -> None:
    model: DualEncoder
    if kind == "conv":
        model = load_model(square_base).model
    elif kind in ("stored", "aligned"):
        model = (StoredTowers if kind == "stored" else AlignedDualEncoder).__new__(
            StoredTowers if kind == "stored" else AlignedDualEncoder
        )
        nn.Module.__init__(model)
    else:
        changes: dict[str, dict[str, object]] = {
            "open_clip's conv": {"layers": (1, 1, 1, 1), "image_size": 32},
            "timm": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token", "timm_proj": "linear"},
            "pooling": {"attentional_pool": True, "attn_pooler_heads": 2},
        }
        model = open_clips(**changes.get(kind, {}))
    if kind == "another":
        model.clip.visual.transformer = nn.Identity()
    said = {
        "conv": "extra tokens for attention layers; this image tower is convolutional and has none",
        "open_clip's conv": "extra tokens for attention layers; this image tower is convolutional and has none",
        "timm": "need a ViT of known layers, and VisionTransformer is none of them",
        "pooling": "ends in attention pooling",
        "stored": "take its checkpoint as base",
        "aligned": "AlignedDualEncoder has none",
        "another": "need open_clip's own transformer, Identity is another one",
    }
    with pytest.raises(ValueError, match=said[kind]):
        image_transformer(model)


def test_more_layers_or_prompts_than_there_are_are_refused(models: Models) -> None:
    model, tokenizer = models["vit"]
    assert image_start(model, n_ctx=4, depth=None).layers.shape == (3, 4, 16)
    assert image_start(model, n_ctx=4, depth=2).layers.shape == (2, 4, 16)
    with pytest.raises(ValueError, match="in front of 4 layers are wanted, and the image tower has 3"):
        image_start(model, n_ctx=4, depth=4)
    with pytest.raises(ValueError, match="the text tower has 2"):
        text_start(model, tokenizer, words=None, n_ctx=4, depth=3)
    with pytest.raises(ValueError, match="the smaller tower has 1"):
        text_start(model, tokenizer, words=None, n_ctx=4, depth=2, most=1)
    with pytest.raises(ValueError, match="words 'a' have 1 tokens, fewer than n_ctx = 2"):
        text_start(model, tokenizer, words="a", n_ctx=2, depth=1)
    assert isinstance(image_transformer(model), Transformer)
