"""VPT, IVLP, MaPLe: prompts alone are trained, a few pictures teach names, and what is served is what was learnt."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from evaluation.encoder import open_artifact
from evaluation.metrics import normalize
from model_store.errors import ExportRefused
from model_store.store import Store
from training import report
from training.checkpoint import load_model, read_checkpoint
from training.data.source import TableSource
from training.loop import train
from training.method import Context, create
from training.methods.parts.prompt_learning import PromptMethod
from training.opening import open_checkpoint
from training.publication import Publication
from training.publish import publish_checkpoint
from training.saved import SavedRun

pytestmark = pytest.mark.torch

Train, MakeContext = Callable[..., Path], Callable[..., Context]

COLOURS = ("blue", "green", "red", "white")
METHODS = ("vpt", "ivlp", "maple")
TEXTS = [*COLOURS, "a purple shirt", "", "a very long name " * 9]
PICTURES = [np.full((16, 16, 3), colour, dtype=np.uint8) for colour in ((220, 20, 20), (20, 200, 20), (9, 9, 99))]
SHAPES = {
    "vpt": {"prompts.image.layers": (3, 2, 16)},
    "ivlp": {
        "prompts.image.layers": (3, 2, 16), "prompts.text.layers": (2, 2, 16), "prompts.text.words": (0, 16),
    },
    "maple": {
        "prompts.image.layers": (2, 2, 16), "prompts.text.layers": (2, 2, 16), "prompts.text.words": (0, 16),
    },
}  # fmt: skip


def options_of(name: str) -> dict[str, object]:
    return {"label": "colour", "shots": 8, "n_ctx": 2, **({} if name == "vpt" else {"words": "a of"})}


def recipe_of(name: str) -> list[str]:
    return [f"method={name}", *(f"method_options.{key}={json.dumps(value)}" for key, value in options_of(name).items())]


def method_in(context: Context, name: str, **options: object) -> PromptMethod:
    method = create(name, {**options_of(name), **options})
    assert isinstance(method, PromptMethod)
    torch.manual_seed(0)
    method.setup(context)
    for module, use in method.modules().values():
        module.train(use != "frozen").requires_grad_(use != "frozen")
    return method


# Training


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_what_is_worked_out_row_by_row(
    make_context: MakeContext, prompt_squares: Path, prompt_base: Path, name: str
) -> None:
    method = method_in(make_context(recipe=prompt_squares, base=prompt_base), name)
    batch, loaded = method.batches(batch_size=5, seed=0)(0), load_model(prompt_base)
    if name == "vpt":
        said = [loaded.tokenizer.encode(loaded.info.templates[0].replace("{}", colour)) for colour in COLOURS]
        texts = loaded.model.encode_text(torch.from_numpy(loaded.tokenizer.pad(said)))
    else:
        said = [loaded.tokenizer.encode(colour) for colour in COLOURS]
        texts = method.towers.encode_text(torch.from_numpy(loaded.tokenizer.pad(said)))
    texts, losses = nn.functional.normalize(texts, dim=1), list[torch.Tensor]()
    for vector, label in zip(method.towers.encode_image(batch["image"]), batch["class_id"], strict=True):
        logits = loaded.model.logit_scale.exp() * torch.stack([vector @ text for text in texts]) / vector.norm()
        losses.append(-torch.log_softmax(logits, dim=0)[label])
    (found,) = method.step(batch, 0.0).values()
    torch.testing.assert_close(found.detach(), torch.stack(losses).mean().detach())


@pytest.mark.parametrize("name", METHODS)
def test_steps_move_prompts_and_nothing_of_the_base(
    make_context: MakeContext, prompt_squares: Path, prompt_base: Path, name: str
) -> None:
    context = make_context(recipe=prompt_squares, base=prompt_base)
    method, base = method_in(context, name), context.base
    assert base is not None
    before, prompts = copy.deepcopy(base.model.state_dict()), copy.deepcopy(method.prompts.state_dict())
    moving = {name: each for group in method.param_groups() for name, each in group.parameters.items()}
    optimizer, batches = torch.optim.AdamW(moving.values(), lr=0.01), method.batches(batch_size=8, seed=0)
    for step in range(3):
        optimizer.zero_grad()
        torch.stack(list(method.step(batches(step), 0.0).values())).sum().backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert all(torch.equal(each, base.model.state_dict()[at]) for at, each in before.items())
    after = method.prompts.state_dict()
    assert {at for at in after if not torch.equal(after[at], prompts[at])} == set(prompts) - {"text.words"}
    assert {at.removeprefix("prompts.") for at in moving} == set(prompts) - {"text.words"}


@pytest.fixture(scope="module")
def learnt(prompt_squares: Path, prompt_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of all three, of a base that has hardly learnt to name."""
    folder, found = tmp_path_factory.mktemp("learnt"), dict[str, Path]()
    for name in METHODS:
        found[name] = folder / name
        places = [f"run.folder={json.dumps(str(found[name]))}", f"base={json.dumps(str(prompt_base))}"]
        train(prompt_squares, [*places, *recipe_of(name), "optim.steps=40", "optim.rate=0.03"])
    return found


@pytest.mark.parametrize("name", METHODS)
def test_training_names_more_than_zero_shot_and_ships_prompts_alone(learnt: dict[str, Path], name: str) -> None:
    info, weights = read_checkpoint(learnt[name]), load_file(learnt[name] / "weights.safetensors")
    assert {at: tuple(each.shape) for at, each in weights.items()} == SHAPES[name]
    judged = info.metrics["validation"]
    assert judged["adapted"]["class_mean"] - judged["zero_shot"]["class_mean"] > 0.2, judged
    assert (info.labels, judged["shots"]["pictures"]) == (COLOURS, 32)
    # The checkpoint, opened again, says on the same split what training said.
    told = report.report_split(learnt[name], split="validation")
    assert (told["adapted"], told["zero_shot"]) == (judged["adapted"], judged["zero_shot"])


def test_a_run_is_refused_before_its_first_step(
    train_squares: Train, square_base: Path, prompt_squares: Path, prompt_base: Path
) -> None:
    for name in METHODS:
        with pytest.raises(ValueError, match=f"{name}: deep visual prompts .* this image tower is convolutional"):
            train_squares(*recipe_of(name), base=square_base, name="never")
    start = {"recipe": prompt_squares, "base": prompt_base}
    with pytest.raises(ValueError, match="vpt: prompts in front of 4 layers are wanted, and the image tower has 3"):
        train_squares(*recipe_of("vpt"), "method_options.depth=4", **start)
    with pytest.raises(ValueError, match="maple: prompts in front of 3 layers are wanted, and the smaller tower has 2"):
        train_squares(*recipe_of("maple"), "method_options.depth=3", **start)
    with pytest.raises(ValueError, match="method ivlp does not encode rows apart from its losses"):
        train_squares(*recipe_of("ivlp"), "optim.accumulate=2", **start)
    bag = train_squares('model.text.pool="bag"', "optim.steps=1", recipe=prompt_squares, name="bag")
    with pytest.raises(ValueError, match=r'ivlp: pool = "bag" adds token vectors up'):
        train_squares(*recipe_of("ivlp"), 'model.text.pool="bag"', recipe=prompt_squares, base=bag)
    with pytest.raises(ValueError, match=r"depht: there is no such option; is depth meant\?"):
        create("maple", {"label": "colour", "depht": 4})


def test_an_open_clip_base_learns_names_and_is_opened_again(
    train_squares: Train, tiny_vit: str, make_context: MakeContext, squares: Path
) -> None:
    base = train_squares(tiny_vit, "optim.steps=1", name="base")
    folder = train_squares(*recipe_of("maple"), tiny_vit, "optim.steps=2", base=base)
    encoder, loaded = open_checkpoint(folder), load_model(base)
    ids = torch.from_numpy(loaded.tokenizer.pad([loaded.tokenizer.encode(text) for text in COLOURS]))
    assert np.abs(encoder.encode_texts(COLOURS) - nn.functional.normalize(loaded.model.encode_text(ids)).numpy()).max()
    assert encoder.encode_images(PICTURES).shape == (3, 16)
    assert read_checkpoint(folder).behind_base


# Publishing


def class_probabilities(
    run: Path, templates: tuple[str, ...], images: NDArray[np.float32], scale: float
) -> NDArray[np.float32]:
    """Of the colours, by the texts of a checkpoint."""
    said = [template.replace("{}", colour) for colour in COLOURS for template in templates]
    classes = open_checkpoint(run).encode_texts(said).reshape(len(COLOURS), len(templates), -1).mean(axis=1)
    logits = scale * images @ normalize(classes).T
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.long
def test_prompts_of_both_towers_are_published_inside_both(learnt: dict[str, Path], prompt_store: Store) -> None:
    before = prompt_store.open("base").manifest
    artifact = publish_checkpoint(learnt["maple"], "maple", prompt_store, precisions=("fp32",))
    found, encoder, ours = artifact.manifest, open_artifact(artifact), open_checkpoint(learnt["maple"])
    assert found.kind == "derivation"
    assert {graph.role for graph in found.graphs} == {"image_encoder", "dense_encoder", "class_head", "text_encoder"}
    assert found.fingerprint.image != before.fingerprint.image
    assert found.fingerprint.text != before.fingerprint.text
    assert (found.space == before.space, found.space_proofs) == (False, ())
    assert (found.templates, found.heads[0].labels) == (("{}",), COLOURS)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), ours.encode_texts(TEXTS), atol=2e-5)
    images = ours.encode_images(PICTURES)
    np.testing.assert_allclose(encoder.encode_images(PICTURES), images, atol=2e-5)
    for other in (learnt["ivlp"], None):
        others = open_checkpoint(other).encode_images(PICTURES) if other else images.mean(axis=0)
        assert np.abs(images - others).max() > 1e-2
    expected = class_probabilities(learnt["maple"], ("{}",), images, before.logit_scale or 0)
    np.testing.assert_allclose(encoder.class_scores("colour", PICTURES), expected, atol=1e-4)


@pytest.mark.long
def test_prompts_of_pictures_leave_the_texts_to_the_base(learnt: dict[str, Path], prompt_store: Store) -> None:
    run = SavedRun(folder=learnt["vpt"], info=read_checkpoint(learnt["vpt"]))
    source = create("vpt", run.info.config.method_options).derivation(Publication(run=run, store=prompt_store))
    before = prompt_store.open("base").manifest
    assert (source.text, source.proofs, source.templates) == (None, (), before.templates)
    assert source.image is not None
    vectors = source.image(torch.from_numpy(np.stack(PICTURES))).detach().numpy()
    images = open_checkpoint(learnt["vpt"]).encode_images(PICTURES)
    np.testing.assert_allclose(normalize(vectors), images, atol=1e-6)
    logits = source.heads["colour"].module(torch.from_numpy(images)).detach()
    expected = class_probabilities(learnt["vpt"], before.templates, images, before.logit_scale or 0)
    np.testing.assert_allclose(logits.softmax(dim=1), expected, atol=1e-4)
    assert source.image_weights is not None
    assert {at for at in source.image_weights if "prompts" in at} == {"1.transformer.prompts.layers"}
    assert not [at for at in source.image_weights if "text" in at]


def test_pictures_prove_their_space_with_captions_alone(
    learnt: dict[str, Path], prompt_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a few classes, whose pictures are drawn together, and of too few pictures nothing is proved."""
    run = SavedRun(folder=learnt["vpt"], info=read_checkpoint(learnt["vpt"]))
    method = create("vpt", run.info.config.method_options)
    source = method.derivation(Publication(run=run, store=prompt_store))
    assert {at for at in source.metrics if at.startswith("space proof/")} == {"space proof/R@1", "space proof/R@10"}
    assert source.proofs == ()
    monkeypatch.setattr(TableSource, "captioned", False)
    source = method.derivation(Publication(run=run, store=prompt_store))
    assert not [at for at in source.metrics if at.startswith("space proof/")]
    assert source.proofs == ()


def test_what_works_behind_its_base_is_refused_what_derivations_are(learnt: dict[str, Path], tmp_path: Path) -> None:
    empty = Store(tmp_path / "store", builtin=False)
    with pytest.raises(ExportRefused, match="ivlp works behind its base: leave --text-precision out"):
        publish_checkpoint(learnt["ivlp"], "ivlp", empty, text_precisions=("fp32",))
    with pytest.raises(ExportRefused, match="no artifact of the store is the base of this checkpoint"):
        publish_checkpoint(learnt["ivlp"], "ivlp", empty)
