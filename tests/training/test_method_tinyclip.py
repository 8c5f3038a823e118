"""TinyCLIP: affinities by hand, weights inherited by hand, and masks that end as a smaller dense model."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evaluation.encoder import open_artifact
from model_store.session import SessionSettings
from model_store.store import Store
from model_store.towers import open_dense_tower
from training import loop
from training import method as methods
from training.accumulation import add_gradients, total
from training.checkpoint import load_model, read_checkpoint
from training.config import SmallConfig
from training.data.batches import BatchPlan, TextIds
from training.data.vocabulary import tokenizer_of
from training.distillation_losses import PairVectors, affinity_loss
from training.history import saved_steps
from training.losses import unit
from training.methods.parts.gates import block_parameters
from training.methods.tinyclip import TinyclipMethod
from training.opening import open_checkpoint
from training.publish import publish_checkpoint
from training.slim_config import SlimTower

pytestmark = [pytest.mark.torch, pytest.mark.long]
Train = Callable[..., Path]
MakeContext = Callable[..., methods.Context]
HAND = "method_options.image={layers=3,width=64,heads=2,mlp=100}", "method_options.text={layers=1,width=10,mlp=20}"
MASKS = "method_options.masks={image=0.5,text=0.3,rate_share=12,start=2.0,ramp_share=0.3,fixed_share=0.3}"
# Fast enough that both towers lose something in a few steps.
HASTY = "method_options.masks={image=0.5,text=0.5,rate_share=60,start=1.0,ramp_share=0.2,fixed_share=0.5}"
COLOURS = np.array([(220, 20, 20), (20, 200, 20), (20, 20, 220), (240, 240, 240)], dtype=np.uint8)
PICTURES = [np.broadcast_to(colour, (16, 16, 3)).copy() for colour in COLOURS]
TEXTS = ["plain red shirt 0", "plain blue shirt 1", "plain white shirt 2", "shirt"]
TIMES = {"pairs_per_s", "data_wait_s", "data_wait_share"}


def slim_of(folder: Path) -> dict[str, SlimTower | None]:
    described = read_checkpoint(folder).config.model
    assert isinstance(described, SmallConfig)
    assert described.slim is not None
    return {"image": described.slim.image, "text": described.slim.text}


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "log.csv").open(newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if (row["series"], row["name"]) == ("train", name)]


def started(options: dict[str, Any], context: methods.Context) -> TinyclipMethod:
    torch.manual_seed(0)
    method = methods.create("tinyclip", options)
    assert isinstance(method, TinyclipMethod)
    method.setup(context)
    for module, use in method.modules().values():
        module.train(use != "frozen")
    return method


def batch_of(context: methods.Context, method: methods.Method) -> dict[str, Tensor]:
    batches = context.source.batches(
        lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts]),
        BatchPlan(batch_size=8),
    )
    return method.needs.of(batches(0))


# Weights inherited by hand


def test_inheritance_takes_even_layers_and_the_first_channels_heads_and_units(
    make_context: MakeContext, vit_squares: Path, vit_base: Path
) -> None:
    context = make_context(recipe=vit_squares, base=vit_base)
    options = {"image": {"layers": 3, "width": 64, "heads": 2, "mlp": 100}, "text": {"layers": 1, "width": 10}}
    student = started(options, context).model.state_dict()
    base = load_file(vit_base / "weights.safetensors")
    base = {name.removeprefix("model."): tensor for name, tensor in base.items()}
    for place, layer in enumerate((0, 2, 4)):
        ours, theirs = (f"trunk.transformer.resblocks.{at}." for at in (place, layer))
        packed = base[f"{theirs}attn.in_proj_weight"]  # 128 rows each of query, key and value, 32 of them a head
        expected = torch.cat([packed[start : start + 64, :64] for start in (0, 128, 256)])
        assert torch.equal(student[f"{ours}attn.in_proj_weight"], expected)
        bias = base[f"{theirs}attn.in_proj_bias"]
        assert torch.equal(student[f"{ours}attn.in_proj_bias"], torch.cat([bias[at : at + 64] for at in (0, 128, 256)]))
        assert torch.equal(student[f"{ours}attn.out_proj.weight"], base[f"{theirs}attn.out_proj.weight"][:64, :64])
        assert torch.equal(student[f"{ours}mlp.c_fc.weight"], base[f"{theirs}mlp.c_fc.weight"][:100, :64])
        assert torch.equal(student[f"{ours}mlp.c_fc.bias"], base[f"{theirs}mlp.c_fc.bias"][:100])
        assert torch.equal(student[f"{ours}mlp.c_proj.weight"], base[f"{theirs}mlp.c_proj.weight"][:64, :100])
        assert torch.equal(student[f"{ours}ln_2.weight"], base[f"{theirs}ln_2.weight"][:64])
    assert "trunk.transformer.resblocks.3.ln_1.weight" not in student
    assert torch.equal(student["trunk.patches.weight"], base["trunk.patches.weight"][:64])
    assert torch.equal(student["trunk.norm.bias"], base["trunk.norm.bias"][:64])
    assert torch.equal(student["image_projection.weight"], base["image_projection.weight"][:, :64])
    assert torch.equal(student["image_projection.bias"], base["image_projection.bias"])
    assert torch.equal(student["text.token_embedding.weight"], base["text.token_embedding.weight"][:, :10])
    assert torch.equal(student["text.bag_projection.weight"], base["text.bag_projection.weight"][:, :10])
    block = "text.transformer.resblocks.0."
    assert torch.equal(student[f"{block}attn.out_proj.weight"], base[f"{block}attn.out_proj.weight"][:10])
    assert torch.equal(student["logit_scale"], base["logit_scale"])


def test_the_controls_take_random_channels_or_random_weights(
    make_context: MakeContext, vit_squares: Path, vit_base: Path
) -> None:
    context = make_context(recipe=vit_squares, base=vit_base)
    size = {"image": {"width": 64, "heads": 2}}
    first, random_channels, anew = (
        started({**size, **control}, context) for control in ({}, {"channels": "random"}, {"start": "random"})
    )
    name, base = "trunk.patches.bias", load_model(vit_base).model.state_dict()["trunk.patches.bias"]
    found = random_channels.model.state_dict()[name]
    places = [int((base == value).nonzero()) for value in found]
    assert places == sorted(places)
    assert places != list(range(64))
    assert random_channels.described.slim.image.position_channels == tuple(places)  # type: ignore[union-attr]
    again = started({**size, "channels": "random"}, context).model.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in random_channels.model.state_dict().items())
    shapes = [{key: tensor.shape for key, tensor in each.model.state_dict().items()} for each in (first, anew)]
    assert shapes[0] == shapes[1]
    assert not torch.isin(anew.model.state_dict()[name], base).any()


def test_a_student_that_lacks_nothing_starts_as_its_teacher(
    make_context: MakeContext, vit_squares: Path, vit_base: Path
) -> None:
    context = make_context(recipe=vit_squares, base=vit_base)
    method = started({"scale": "teacher"}, context)
    batch = batch_of(context, method)
    vectors = method.encode(batch)
    its = method.teacher.vectors(batch["image"], batch["text"])
    torch.testing.assert_close(vectors["image"], its.image)
    losses = method.compare(vectors, batch, 0.0)
    logits = method.teacher.scale * its.image @ its.text.T
    entropy = [-(each.softmax(dim=1) * each.log_softmax(dim=1)).sum(dim=1).mean() for each in (logits, logits.T)]
    assert losses.keys() == {"affinity"}
    torch.testing.assert_close(losses["affinity"], (entropy[0] + entropy[1]) / 2)


def test_a_run_by_hand_ends_as_a_small_model(train_squares: Train, vit_squares: Path, vit_base: Path) -> None:
    options = ("method=tinyclip", *HAND, "optim.steps=40", "method_options.task_weight=0.5")
    folder = train_squares(*options, base=vit_base, recipe=vit_squares)
    found = slim_of(folder)
    assert found["image"] == SlimTower(
        width=64, head_width=32, heads=(2, 2, 2), mlp=(100,) * 3, position_channels=tuple(range(64))
    )
    assert found["text"] == SlimTower(width=10, head_width=8, heads=(2,), mlp=(20,))
    small, large = ((each / "weights.safetensors").stat().st_size for each in (folder, vit_base))
    assert small < 0.2 * large
    affinity = logged(folder, "affinity")
    assert np.mean(affinity[-5:]) < 0.5 * affinity[0]
    assert len(logged(folder, "info_nce")) == 40


def test_the_text_tower_of_a_convolutional_model_shrinks_alone(train_squares: Train, square_base: Path) -> None:
    folder = train_squares("method=tinyclip", "method_options.text={width=8,mlp=16}", base=square_base)
    assert slim_of(folder) == {"image": None, "text": SlimTower(width=8, head_width=8, heads=(2,), mlp=(16,))}
    with pytest.raises(ValueError, match="the image tower, a ConvTrunk, cannot shrink"):
        train_squares("method=tinyclip", "method_options.image={width=8}", base=square_base, name="conv")
    with pytest.raises(ValueError, match="the image tower, a ConvTrunk, cannot shrink"):
        train_squares("method=tinyclip", "method_options.masks={image=0.5}", base=square_base, name="masks")


def test_a_vit_of_open_clip_is_inherited_too(train_squares: Train, tiny_vit: str) -> None:
    base = train_squares(tiny_vit, "optim.steps=2", name="vit")
    options = ("method=tinyclip", "method_options.image={layers=1,width=12}", "method_options.text={heads=1,mlp=30}")
    folder = train_squares(*options, tiny_vit, "optim.steps=2", base=base)
    described = read_checkpoint(folder).config.model.slim  # type: ignore[union-attr]
    assert described.image == SlimTower(width=12, head_width=8, heads=(2,), mlp=(64,))  # type: ignore[union-attr]
    assert described.text == SlimTower(width=16, head_width=8, heads=(1, 1), mlp=(30, 30))  # type: ignore[union-attr]
    assert open_checkpoint(folder).encode_texts(TEXTS).shape == (4, 16)


# Masks


@pytest.fixture(scope="module")
def pruned(vit_squares: Path, vit_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two hundred steps with masks."""
    folder = tmp_path_factory.mktemp("pruned") / "run"
    start = (f"run.folder={json.dumps(str(folder))}", f"base={json.dumps(str(vit_base))}")
    loop.train(vit_squares, [*start, "method=tinyclip", MASKS, "optim.steps=200", "run.validate_steps=50"])
    return folder


def sparsities(folder: Path, base: Path) -> dict[str, float]:
    whole = SlimTower(width=128, head_width=32, heads=(4,) * 6, mlp=(512,) * 6)
    wholes = {"image": whole, "text": SlimTower(width=16, head_width=8, heads=(2,) * 2, mlp=(64,) * 2)}
    if base.name != "base":
        wholes = slim_of(base)
    return {
        side: 1 - block_parameters(tower) / block_parameters(wholes[side])
        for side, tower in slim_of(folder).items()
        if tower is not None
    }


def test_masks_reach_their_sparsity(pruned: Path, vit_base: Path) -> None:
    found = sparsities(pruned, vit_base)
    assert found["image"] == pytest.approx(0.5, abs=0.07)
    assert found["text"] == pytest.approx(0.3, abs=0.12)  # two layers of two heads: steps are coarse
    gaps = logged(pruned, "sparsity_image")
    assert len(gaps) == 140, "masks are fixed after 70 % of 200 steps"
    assert gaps[0] == 0 < gaps[20] < gaps[40], "the target rises from 0"
    assert max(gaps) > 1.0
    assert np.mean(gaps[-5:]) < 0.2 * max(gaps)
    affinity = logged(pruned, "affinity")
    assert np.mean(affinity[-5:]) < 0.5 * max(affinity)


def test_the_served_artifact_gives_the_checkpoints_vectors(pruned: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", builtin=False)
    published = publish_checkpoint(pruned, "tiny", store, precisions=("fp32",))
    assert {spec.role for spec in published.manifest.graphs} == {"image_encoder", "text_encoder", "dense_encoder"}
    expected, found = open_checkpoint(pruned), open_artifact(store.open("tiny"))
    for left, right in (
        (found.encode_images(PICTURES), expected.encode_images(PICTURES)),
        (found.encode_texts(TEXTS), expected.encode_texts(TEXTS)),
    ):
        assert np.ptp(right, axis=0).max() > 0.05
        np.testing.assert_allclose(left, right, atol=2e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 112, 144, 3), dtype=np.uint8)
    positions = open_dense_tower(store.open("tiny"), "fp32", SessionSettings())(pixels).positions
    wanted = load_model(pruned).model.encode_dense(torch.from_numpy(pixels)).numpy()
    assert positions.shape == (1, 14, 18, 16)
    np.testing.assert_allclose(positions, wanted, atol=2e-4)


def test_the_small_model_is_the_masked_one_that_the_loop_judged(
    pruned: Path, make_context: MakeContext, vit_squares: Path, vit_base: Path
) -> None:
    info = read_checkpoint(pruned)
    context = make_context(recipe=vit_squares, base=vit_base)
    method = started(info.config.method_options, context)
    state = load_file(pruned / "state.safetensors")
    prefix = "average/model."
    method.model.load_state_dict(
        {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
    )
    method.model.eval()
    small, batch = load_model(pruned).model, batch_of(context, method)
    for function, rows in (("encode_image", batch["image"]), ("encode_text", batch["text"])):
        masked = getattr(method.model, function)(rows)
        torch.testing.assert_close(getattr(small, function)(rows), masked, rtol=1e-4, atol=2e-5)
        assert (getattr(method.student, function)(rows) - masked).abs().max() > 1e-2, "nothing is masked"
    judged = context.source.judge(open_checkpoint(pruned), split="validation")
    assert json.loads(json.dumps(judged)) == info.metrics["validation"]


def test_a_second_stage_prunes_the_first_and_still_mimics_the_first_base(
    pruned: Path, vit_base: Path, vit_squares: Path, train_squares: Train
) -> None:
    recipe = vit_squares.with_name("stages.toml")
    lines = vit_squares.read_text()
    start, end = lines.index("[model]"), lines.index("[optim]")
    recipe.write_text(lines[:start] + lines[end:])  # the base brings its model
    options = ("method=tinyclip", "optim.steps=100", MASKS.replace("12", "20").replace("0.3,", "0.5,", 1))
    teacher = f"method_options.teacher={json.dumps(str(vit_base))}"
    folder = train_squares(*options, teacher, base=pruned, recipe=recipe, name="second")
    found = sparsities(folder, pruned)
    assert 0.3 < found["image"] < 0.7
    assert found["text"] > 0.2
    assert load_model(folder).info.base_sha256 == load_model(pruned).info.weights_sha256
    assert {*slim_of(folder)["image"].position_channels} < {*slim_of(pruned)["image"].position_channels}  # type: ignore
    alone = train_squares(*options, base=pruned, recipe=recipe, name="alone")
    assert logged(alone, "affinity")[0] != logged(folder, "affinity")[0], "two teachers"
    with pytest.raises(ValueError, match="the recipe's model is another one than the base's"):
        train_squares("method=tinyclip", base=pruned, recipe=vit_squares, name="third")


def test_a_teacher_of_another_size_and_vocabulary_sees_what_the_student_sees(
    make_context: MakeContext, train_squares: Train, square_base: Path, vit_base: Path, vit_squares: Path
) -> None:
    """Its affinities are those of its own vectors of the batch's crops and captions."""
    context = make_context(recipe=vit_squares, base=vit_base)
    method = started({"teacher": str(square_base), "scale": "teacher"}, context)
    plan = BatchPlan(batch_size=8, second=method.second)
    batch = method.needs.of(context.source.batches(TextIds(*tokenizer_of(context.model)), plan)(0))
    loaded = load_model(square_base)
    with torch.no_grad():
        its = PairVectors(
            unit(loaded.model.encode_image(batch["second_image"])), unit(loaded.model.encode_text(batch["second_text"]))
        )
        own = PairVectors(*(method.encode(batch)[side] for side in ("image", "text")))
    scale = loaded.model.logit_scale.detach().exp()
    found = method.compare(method.encode(batch), batch, 0.0)["affinity"]
    torch.testing.assert_close(found.detach(), affinity_loss(own, its, scale, scale))


def same_tensors(left: Path, right: Path) -> bool:
    a, b = load_file(left), load_file(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_is_bit_equal(
    vit_squares: Path, vit_base: Path, train_squares: Train, tmp_path: Path, step: int
) -> None:
    """Resumed before the masks are fixed, and after."""
    options = ("method=tinyclip", HASTY, "optim.steps=12", "run.checkpoint_steps=4", "run.keep=9")
    whole = train_squares(*options, base=vit_base, recipe=vit_squares, name="whole")
    assert list(saved_steps(whole)) == [4, 8, 12]
    expected = [load_file(whole / each) for each in ("weights.safetensors", "state.safetensors")]
    slim = slim_of(whole)
    assert slim["image"].width < 120  # type: ignore[union-attr]
    assert bool(expected[1]["live/model.gates.image.fixed"])
    torch.manual_seed(99)
    start = [f"run.folder={json.dumps(str(whole))}", f"base={json.dumps(str(vit_base))}"]
    loop.train(vit_squares, [*start, *options], from_step=step)
    for name, before in zip(("weights.safetensors", "state.safetensors"), expected, strict=True):
        after = load_file(whole / name)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert slim_of(whole) == slim


@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(
    make_context: MakeContext, vit_squares: Path, vit_base: Path, progress: float
) -> None:
    context = make_context(recipe=vit_squares, base=vit_base)
    masks = {"image": 0.5, "text": 0.5, "start": 0.5, "ramp_share": 0.05}
    method = started({"masks": masks, "task_weight": 1.0}, context)
    batch = batch_of(context, method)
    parameters = {name: p for group in method.param_groups() for name, p in group.parameters.items()}
    found: list[dict[str, Tensor]] = []
    with torch.no_grad():
        method.prepare(3, progress)
    for parts in (1, 3):
        for parameter in parameters.values():
            parameter.grad = None
        losses = add_gradients(
            method,
            batch,
            progress,
            parts=parts,
            modules=[method.model],
            autocast=nullcontext,
            scaled=lambda loss: loss,
            reseed=lambda: torch.manual_seed(5),
            before_last=lambda: None,
        )
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        found.append({**gradients, "loss": total(losses).detach()})
    learning = {"model.gates.image.channels.log_alpha", "multipliers.image.linear"}
    assert (learning <= found[0].keys()) == (progress < 0.5)
    assert {"model.dense.trunk.patches.weight", "model.dense.logit_scale"} <= found[0].keys()
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-3, atol=1e-5)


def test_multipliers_climb_and_masks_fall(
    make_context: MakeContext, vit_squares: Path, vit_base: Path, train_squares: Train
) -> None:
    folder = train_squares(
        "method=tinyclip", HASTY.replace("0.5}", "0.2}"), "optim.steps=16", base=vit_base, recipe=vit_squares
    )
    state = load_file(folder / "state.safetensors")
    for side in ("image", "text"):
        for name in ("linear", "quadratic"):
            assert float(state[f"live/multipliers.{side}.{name}"]) > 10.05
        assert float(state[f"live/model.gates.{side}.channels.log_alpha"].mean()) < 0.9
    weights = load_file(folder / "weights.safetensors")
    assert not [name for name in weights if "gates" in name or "multipliers" in name]


def test_masks_over_heads_close_heads_only(
    make_context: MakeContext, vit_squares: Path, vit_base: Path, train_squares: Train
) -> None:
    masks = HASTY.replace("image=0.5,text=0.5", 'image=0.25,over=["heads"]')
    folder = train_squares("method=tinyclip", masks, "optim.steps=40", base=vit_base, recipe=vit_squares)
    found = slim_of(folder)
    assert found["text"] is None
    assert found["image"] is not None
    assert (found["image"].width, found["image"].mlp) == (128, (512,) * 6)
    assert 6 <= sum(found["image"].heads) < 24
    fixed = ("model.text.bag_projection=false", "model.embed_dim=16")
    base = train_squares(*fixed, "optim.steps=1", recipe=vit_squares, name="fixed")
    with pytest.raises(ValueError, match="the text tower's channels stay, its token vectors are the embedding"):
        train_squares("method=tinyclip", HASTY, *fixed, base=base, recipe=vit_squares, name="refused")
    with pytest.raises(ValueError, match=r"text\.width stays 16: its token vectors are the embedding"):
        train_squares("method=tinyclip", HAND[1], *fixed, base=base, recipe=vit_squares, name="by_hand")


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale is 0"),
        ({"scale": "own"}, "scale"),
        ({"image": {"width": 0}}, r"image\.width"),
        ({"image": {"depth": 2}}, r"image\.depth"),
        ({"masks": {"image": 1.0}}, r"masks\.image"),
        ({"masks": {"image": 0.5}, "text": {"width": 8}}, "by hand .* or by masks, not both"),
        ({"masks": {}}, "masks of no tower"),
        ({"masks": {"image": 0.5, "ramp_share": 0.7, "fixed_share": 0.5}}, "the ramp ends before the masks are fixed"),
        ({"masks": {"over": ["patches"]}}, r"masks\.over"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.create("tinyclip", options)


def test_what_cannot_be_is_said_before_the_first_step(
    train_squares: Train, square_base: Path, vit_squares: Path, vit_base: Path
) -> None:
    with pytest.raises(ValueError, match="tinyclip starts from a checkpoint: set base"):
        train_squares("method=tinyclip")
    with pytest.raises(ValueError, match="layers = 9, but the base has 6"):
        train_squares("method=tinyclip", "method_options.image={layers=9}", base=vit_base, recipe=vit_squares)
    with pytest.raises(ValueError, match="teacher nowhere is no checkpoint, and stored models are artifact:NAME"):
        train_squares("method=tinyclip", "method_options.teacher=nowhere", base=square_base)
    with pytest.raises(ValueError, match=r"run\.gradient_checkpointing is not for a run that learns masks"):
        train_squares("method=tinyclip", HASTY, "run.gradient_checkpointing=true", base=vit_base, recipe=vit_squares)
