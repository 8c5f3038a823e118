"""Negation: what must stay stays to the byte, and denying is no cue for being wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evaluation.scenes.config import SceneConfig
from evaluation.scenes.meaning import And, Meaning, Not, is_false, is_true
from evaluation.scenes.mixing import Topic, draw_with_negative
from evaluation.scenes.sampling import sample
from training import method as methods
from training.checkpoint import load_model
from training.data.batches import BatchPlan
from training.loop import train
from training.losses import info_nce, negclip_loss
from training.opening import open_checkpoint

TrainSquares = Callable[..., Path]


def image_names(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in tensors if not name.startswith(("model.text.", "model.logit_"))}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_image_tower_is_byte_equal_to_the_base(
    train_squares: TrainSquares, square_base: Path, precision: str
) -> None:
    folder = train_squares("method=negation", f"run.precision={precision}", "optim.steps=5", base=square_base)
    before = load_file(square_base / "weights.safetensors")
    after, state = load_file(folder / "weights.safetensors"), load_file(folder / "state.safetensors")
    names = image_names(before)
    assert any(name.endswith("running_mean") for name in names)
    assert any(name.endswith("running_var") for name in names)
    assert any(name.endswith("num_batches_tracked") for name in names)
    for name in names:
        assert torch.equal(before[name], after[name]), name
        assert torch.equal(before[name], state[f"live/{name}"]), name
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.logit_scale" in moved
    assert len(moved) > 5
    assert not any(name.startswith("optimizer/model.trunk") for name in state)


def test_an_index_of_the_base_stays_valid(train_squares: TrainSquares, square_base: Path) -> None:
    folder = train_squares("method=negation", base=square_base)
    info = load_model(folder).info
    assert info.inherited == ("image_encoder",)
    assert info.base_sha256 == load_model(square_base).info.weights_sha256
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    base, tuned = open_checkpoint(square_base), open_checkpoint(folder)
    np.testing.assert_array_equal(base.encode_prepared(pixels), tuned.encode_prepared(pixels))
    assert np.abs(base.encode_texts(["plain red shirt"]) - tuned.encode_texts(["plain red shirt"])).max() > 1e-4


def test_it_starts_from_a_base_only(train_squares: TrainSquares) -> None:
    with pytest.raises(ValueError, match="method negation starts from a checkpoint: set base"):
        train_squares("method=negation")


def test_the_twin_is_one_more_column_of_its_own_picture(make_context: Callable[..., Any], square_base: Path) -> None:
    context = make_context(base=square_base)
    batch = context.source.batches(
        lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts]),
        BatchPlan(batch_size=8, negatives=True),
    )(0)
    losses = {}
    for option in (True, False):
        method = methods.create("negation", {"false_twin": option})
        assert method.needs.negatives == option
        method.setup(context)
        (losses[option],) = method.step(batch, 0.0).values()
    model = context.base.model
    image, text, twin = (
        torch.nn.functional.normalize(vectors, dim=-1)
        for vectors in (
            model.encode_image(batch["image"]),
            model.encode_text(batch["text"]),
            model.encode_text(batch["negative_text"]),
        )
    )
    same = batch["caption_id"][:, None] == batch["caption_id"][None, :]
    scale, own = model.logit_scale.exp(), torch.diag(batch["has_negative"])
    torch.testing.assert_close(losses[True], negclip_loss(image, text, twin, scale, positives=same, usable=own))
    torch.testing.assert_close(losses[False], info_nce(image, text, scale, same))
    assert losses[True] > losses[False]


def test_cached_pictures_give_the_loss_of_the_pictures(make_context: Callable[..., Any], square_base: Path) -> None:
    context = make_context("augment.crop_scale=[1.0, 1.0]", "augment.crop_aspect=1", "augment.flip=0", base=square_base)
    batch = context.source.batches(
        lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts]),
        BatchPlan(batch_size=8, negatives=True),
    )(1)
    losses: dict[bool, torch.Tensor] = {}
    for cached in (True, False):
        method = methods.create("negation", {"cached_pictures": cached})
        method.setup(context)
        (losses[cached],) = method.step(batch, 0.0).values()
        if cached:
            with pytest.raises(KeyError, match="row"):
                method.step({name: field for name, field in batch.items() if name != "row"}, 0.0)
    torch.testing.assert_close(losses[True], losses[False])


def denies(meaning: Meaning) -> bool:
    return isinstance(meaning, Not) or (isinstance(meaning, And) and any(denies(part) for part in meaning.parts))


@pytest.mark.parametrize(
    "mix",
    [
        {"negatives": 0.3, "hybrids": 0.2, "attributes": 0.2, "mentions": 0.3},
        {"negatives": 0.1, "hybrids": 0.1, "attributes": 0.4, "mentions": 0.4},
        {"negatives": 0.5, "attributes": 0.25, "places": 0.25},
    ],
)
def test_half_of_the_captions_that_deny_are_wrong(mix: dict[Topic, float]) -> None:
    config = SceneConfig(count=(2, 2), textures=("plain",), differ_in=("shape", "colour"))
    found: Counter[tuple[bool, bool]] = Counter()
    for number in range(1500):
        scene = sample(number % 300, config)
        twins = draw_with_negative(scene, number, pairs=config.pairs, mix=mix)
        assert twins is not None
        assert is_true(twins.right.meaning, scene)
        assert is_false(twins.wrong.meaning, scene)
        found[denies(twins.right.meaning), denies(twins.wrong.meaning)] += 1
    right, wrong = found[True, True] + found[True, False], found[True, True] + found[False, True]
    assert wrong / (right + wrong) == pytest.approx(0.5, abs=0.04)
    # Where only one of the two denies, it is the right one as often as not: no shortcut for who reads no picture.
    assert found[True, False] / (found[True, False] + found[False, True]) == pytest.approx(0.5, abs=0.08)
    assert min(found.values()) > 50


def test_a_mix_that_denies_nothing_has_no_denials() -> None:
    config = SceneConfig(count=(2, 2), textures=("plain",))
    mix: dict[Topic, float] = {"attributes": 0.5, "mentions": 0.5}
    for number in range(100):
        twins = draw_with_negative(sample(number, config), number, pairs=config.pairs, mix=mix)
        assert twins is None or not denies(twins.wrong.meaning)


def test_a_run_resumes_behind_its_own_base_only(
    train_squares: TrainSquares, squares: Path, square_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train_squares("method=negation", "optim.steps=4", base=square_base)
    other = train_squares("seed=9", name="other")

    def resumed(base: str) -> int:
        places = [f"run.folder={json.dumps(str(folder))}", f"base={json.dumps(base)}"]
        return train(squares, [*places, "method=negation", "optim.steps=4"], resume=True).step

    with pytest.raises(ValueError, match="has other weights than those the run started from"):
        resumed(str(other))
    monkeypatch.chdir(square_base.parent)
    assert resumed(square_base.name) == 4, "a base is its weights, however its path is written"
