"""PromptSRC: its terms as worked out by hand, none of them is IVLP, and its average is that of the epochs' prompts."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from evaluation.zero_shot import class_matrix
from model_store.store import Store
from training import report
from training.checkpoint import load_model, read_checkpoint
from training.encoder import encoder_of
from training.loop import train
from training.method import Context, create
from training.methods.maple import MapleOptions
from training.methods.parts import prompt_runs
from training.methods.parts.prompt_averages import follow, gaussian_shares, moved_share
from training.methods.parts.prompt_learning import TwoTowerOptions
from training.methods.promptsrc import PromptSrcMethod, PromptSrcOptions
from training.methods.vpt import VptOptions
from training.opening import open_checkpoint
from training.options import Options
from training.publication import Publication
from training.saved import SavedRun

pytestmark = pytest.mark.torch

Train, MakeContext = Callable[..., Path], Callable[..., Context]

COLOURS = ("blue", "green", "red", "white")
TEMPLATES = ("plain {}", "a {} shirt")
SHOTS = (
    "method_options.label=colour",
    "method_options.shots=8",
    'method_options.words="a of"',
    "method_options.n_ctx=2",
)
NOTHING = tuple(f"method_options.{name}=0" for name in ("text_weight", "image_weight", "logit_weight", "epochs"))
DEFAULTS: dict[str, Options] = {
    "vpt": VptOptions(label="colour"),
    "ivlp": TwoTowerOptions(label="colour"),
    "maple": MapleOptions(label="colour"),
    "promptsrc": PromptSrcOptions(label="colour", templates=("a photo of a {}", "a picture of a {}", "one {}")),
}


def method_in(context: Context, **options: object) -> PromptSrcMethod:
    given = {"label": "colour", "shots": 8, "n_ctx": 2, "words": "a of", "templates": TEMPLATES, **options}
    method = create("promptsrc", given)
    assert isinstance(method, PromptSrcMethod)
    torch.manual_seed(0)
    method.setup(context)
    return method


# The average


@given(epochs=st.integers(1, 40), mean=st.floats(0.05, 1), deviation=st.floats(0.001, 2), steps=st.integers(1, 60))
def test_shares_sum_to_one_and_the_average_is_that_of_what_was_seen(
    epochs: int, mean: float, deviation: float, steps: int
) -> None:
    """Against numpy: what stood at the end of each part, times its share. A short run ends several with one step."""
    shares = gaussian_shares(epochs, mean=mean, deviation=deviation)
    assert shares.sum() == pytest.approx(1)
    places = np.arange(1, epochs + 1)
    assert abs(places[shares.argmax()] - np.clip(mean * epochs, 1, epochs)) <= 0.5 + 1e-9
    seen = np.random.default_rng(0).normal(size=steps)
    average, live = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    for step, value in enumerate(seen):
        nn.init.constant_(live.weight, value)
        if (share := moved_share(shares, step, (step + 1) / steps)) is not None:
            follow(average, live, share)
    ends = [next(step for step in range(steps) if (step + 1) * epochs >= place * steps) for place in places]
    assert average.weight.item() == pytest.approx((shares * seen[ends]).sum(), abs=1e-9)


def test_the_originals_shares_are_those_of_twenty_epochs() -> None:
    """Mean 15 and deviation 1 of 20: the thirteenth to the seventeenth are nearly all of it."""
    shares = gaussian_shares(20, mean=0.75, deviation=0.05)
    assert shares.argmax() == 14
    assert shares[13] == pytest.approx(shares[14] * np.exp(-0.5)) == shares[15]
    assert shares[12:17].sum() > 0.98
    assert gaussian_shares(0, mean=0.75, deviation=0.05).size == 0


@pytest.fixture(scope="module")
def averaged(prompt_squares: Path, prompt_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps, four epochs with shares that all count, and every step's checkpoint."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    train(prompt_squares, averaging(folder, prompt_base))
    return folder


def averaging(folder: Path, base: Path) -> list[str]:
    places = [f"run.folder={json.dumps(str(folder))}", f"base={json.dumps(str(base))}", "method=promptsrc", *SHOTS]
    average = ["method_options.epochs=4", "method_options.deviation=0.5"]
    return [*places, *average, "optim.steps=12", "optim.ema_decay=0.0", "run.checkpoint_steps=1", "run.keep=12"]


def test_what_ships_is_the_average_over_the_epochs(averaged: Path) -> None:
    shares, shipped = gaussian_shares(4, mean=0.75, deviation=0.5), load_file(averaged / "weights.safetensors")
    assert shares.min() > 0.1
    folders = [averaged / "checkpoints" / f"step-{step:08d}" for step in (3, 6, 9, 12)]
    for name in ("image.layers", "text.layers"):
        live = [load_file(folder / "state.safetensors")[f"live/prompts.{name}"].numpy() for folder in folders]
        expected = sum(share * each for share, each in zip(shares, live, strict=True))
        np.testing.assert_allclose(shipped[f"prompts.{name}"], expected, atol=1e-6)
        assert np.abs(expected - live[-1]).max() > 1e-4
        # In the middle of it, the average of what there was.
        half = load_file(folders[1] / "weights.safetensors")[f"prompts.{name}"]
        np.testing.assert_allclose(half, (shares[0] * live[0] + shares[1] * live[1]) / shares[:2].sum(), atol=1e-6)
    judged = read_checkpoint(averaged).metrics["validation"]["adapted"]
    assert report.report_split(averaged, split="validation")["adapted"] == judged


def test_a_resumed_run_ships_the_same_prompts(averaged: Path, prompt_squares: Path, prompt_base: Path) -> None:
    """From the middle of an epoch, with one and a half behind it."""
    whole = (averaged / "weights.safetensors").read_bytes()
    copied = averaged.with_name("resumed")
    for file in ("checkpoint.json", "weights.safetensors", "tokenizer.txt", "state.safetensors"):
        target = copied / "checkpoints" / "step-00000005" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((averaged / "checkpoints" / "step-00000005" / file).read_bytes())
    train(prompt_squares, averaging(copied, prompt_base), from_step=5)
    assert (copied / "weights.safetensors").read_bytes() == whole


def test_the_average_is_what_is_judged_and_opened(
    make_context: MakeContext, prompt_squares: Path, prompt_base: Path
) -> None:
    method = method_in(make_context(recipe=prompt_squares, base=prompt_base), epochs=2)
    model, before = method.modules()["model"][0], method.weights()
    moved = copy.deepcopy(method.prompts)
    with torch.no_grad():
        method.prompts.text.layers.add_(1.0)
    ids = method.ids
    was = model.encode_text(ids)
    assert all(torch.equal(each, method.weights()[name]) for name, each in before.items())
    method.stepped(0, 1 / 2)
    assert torch.equal(method.weights()["prompts.text.layers"], before["prompts.text.layers"] + 1.0)
    assert not torch.allclose(model.encode_text(ids), was, atol=1e-4)
    assert torch.equal(moved.image.layers, method.shipped.image.layers)


# The loss


def test_terms_are_what_is_worked_out_by_hand(
    make_context: MakeContext, prompt_squares: Path, prompt_base: Path
) -> None:
    method = method_in(make_context(recipe=prompt_squares, base=prompt_base))
    batch, loaded = method.batches(batch_size=5, seed=0)(0), load_model(prompt_base)
    found = {name: each.item() for name, each in method.step(batch, 0.0).items()}
    classes = class_matrix(encoder_of(loaded, name="base").encode_texts, COLOURS, TEMPLATES).astype(np.float64)

    def rows(vectors: torch.Tensor) -> np.ndarray[Any, Any]:
        there = vectors.detach().double().numpy()
        return there / np.linalg.norm(there, axis=1, keepdims=True)

    scale = loaded.model.logit_scale.exp().item()
    frozen, images = rows(loaded.model.encode_image(batch["image"])), rows(method.towers.encode_image(batch["image"]))
    texts = rows(method.towers.encode_text(method.ids))
    assert set(found) == {"cross_entropy", "text", "image", "logits"}
    assert found["text"] == pytest.approx(25 * np.abs(texts - classes).mean(), rel=1e-4)
    assert found["image"] == pytest.approx(10 * np.abs(images - frozen).mean(), rel=1e-4)
    before, now = (np.exp(scale * each) for each in (frozen @ classes.T, images @ texts.T))
    before, now = (each / each.sum(axis=1, keepdims=True) for each in (before, now))
    divergence = (before * np.log(before / now)).sum() / before.size
    assert found["logits"] == pytest.approx(divergence, rel=1e-3)
    truth = batch["class_id"].numpy()
    assert found["cross_entropy"] == pytest.approx(-np.log(now[np.arange(5), truth]).mean(), rel=1e-4)


def test_with_nothing_of_its_own_it_is_ivlp_to_the_bit(
    train_squares: Train, prompt_squares: Path, prompt_base: Path
) -> None:
    start = {"recipe": prompt_squares, "base": prompt_base}
    ivlp = train_squares("method=ivlp", *SHOTS, name="ivlp", **start)
    ours = train_squares("method=promptsrc", *SHOTS, *NOTHING, name="promptsrc", **start)
    assert (ours / "weights.safetensors").read_bytes() == (ivlp / "weights.safetensors").read_bytes()
    held = train_squares("method=promptsrc", *SHOTS, *NOTHING[1:], name="held", **start)
    assert (held / "weights.safetensors").read_bytes() != (ivlp / "weights.safetensors").read_bytes()


# Texts alone


@pytest.mark.long
def test_texts_alone_are_published_beside_the_bases_pictures(
    train_squares: Train,
    prompt_squares: Path,
    prompt_base: Path,
    prompt_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = "method_options.towers=text"
    folder = train_squares("method=promptsrc", *SHOTS, alone, recipe=prompt_squares, base=prompt_base)
    assert set(load_file(folder / "weights.safetensors")) == {"prompts.text.layers", "prompts.text.words"}
    run = SavedRun(folder=folder, info=read_checkpoint(folder))
    assert run.info.inherited == ("image_encoder",)
    monkeypatch.setattr(prompt_runs, "proofs_that_hold", lambda *_: ((), {"space proof/R@10": 0.5}))
    method = create("promptsrc", run.info.config.method_options)
    source = method.derivation(Publication(run=run, store=prompt_store))
    assert (source.image, source.image_weights, source.dense, source.proofs) == (None, None, None, ())
    assert (source.metrics["space proof/R@10"], source.templates) == (0.5, ("{}",))
    assert source.text is not None
    loaded = load_model(prompt_base)
    ids = torch.from_numpy(loaded.tokenizer.pad([loaded.tokenizer.encode(text) for text in COLOURS]))
    expected = nn.functional.normalize(source.text(ids), dim=1).detach()
    np.testing.assert_allclose(open_checkpoint(folder).encode_texts(COLOURS), expected, atol=1e-6)
    assert (nn.functional.normalize(loaded.model.encode_text(ids), dim=1) - expected).abs().max() > 1e-3
    assert (source.heads["colour"].labels, source.heads["colour"].module(expected).shape) == (COLOURS, (4, 4))


def test_texts_alone_are_learnt_behind_any_pictures(make_context: MakeContext, square_base: Path) -> None:
    """The image tower is convolutional: prompts of both are refused."""
    with pytest.raises(ValueError, match="promptsrc: deep visual prompts are extra tokens for attention layers"):
        method_in(make_context(base=square_base))
    method = method_in(make_context(base=square_base), towers="text")
    batch = method.batches(batch_size=8, seed=0)(0)
    assert set(batch) == {"image_embeds", "class_id"} == set(method.needs.fields)
    losses = method.step(batch, 0.0)
    assert set(losses) == {"cross_entropy", "text", "logits"}
    assert {name for group in method.param_groups() for name in group.parameters} == {"prompts.text.layers"}


# The page


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_pages_recipe_trains(prompt_squares: Path, prompt_base: Path, tmp_path: Path, name: str) -> None:
    """Its options are the defaults, and its settings train."""
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    ours = tomllib.loads(re.findall(rf"## {name}\n.*?```toml\n(.*?)```", page, flags=re.S)[0])
    assert type(DEFAULTS[name]).parse(ours["method_options"], method=name) == DEFAULTS[name]
    settings = [f"optim.{key}={value}" for key, value in {**ours["optim"], "steps": 2}.items()]
    places = [f"run.folder={json.dumps(str(tmp_path / 'run'))}", f"base={json.dumps(str(prompt_base))}"]
    options = SHOTS[:2] if name == "vpt" else SHOTS
    assert train(prompt_squares, [*places, f"method={name}", *options, *settings]).step == 2


def test_options_are_refused_in_plain_words() -> None:
    for wrong in ({"towers": "image"}, {"mean": 1.5}, {"deviation": 0}, {"epochs": -1}, {"text_weight": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            create("promptsrc", {"label": "colour", **wrong})
