"""Plain fine-tuning: no step is the base, the named towers move and nothing else, and statistics stay."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from model_store.manifest import SpaceProof
from model_store.store import Store
from training.bases import StoredTowers
from training.checkpoint import load_model, read_checkpoint
from training.loop import train
from training.method import Context, Produced, create
from training.methods.full import FullMethod, FullOptions
from training.methods.parts import text_tower
from training.methods.parts.tower_parameters import Towers, tower_parameters
from training.publication import Publication
from training.saved import SavedRun

pytestmark = pytest.mark.torch

Train, MakeContext = Callable[..., Path], Callable[..., Context]

SHOTS = ("method=full", "method_options.label=colour", "method_options.shots=8", "optim.rate=0.003")


def begun(context: Context, **options: object) -> FullMethod:
    """As the loop has it in front of the first step."""
    method = create("full", {"label": "colour", "shots": 2, **options})
    assert isinstance(method, FullMethod)
    method.setup(context)
    method.model.train()
    return method


def stored(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: each.numpy().tobytes() for name, each in tensors.items()}


@pytest.mark.parametrize("kind", ["conv", "vit"])
@pytest.mark.parametrize("towers", ["both", "image", "text"])
def test_no_step_is_the_base_to_the_bit(
    make_context: MakeContext, squares: Path, vit_squares: Path, square_base: Path, vit_base: Path, kind: str,
    towers: Towers,
) -> None:  # fmt: skip
    base, recipe = (square_base, squares) if kind == "conv" else (vit_base, vit_squares)
    method, before = begun(make_context(base=base, recipe=recipe), towers=towers), load_model(base).model
    assert stored(method.weights()) == stored(load_file(base / "weights.safetensors"))
    batch = method.batches(batch_size=8, seed=0)(0)
    expected = before.encode_image(batch["image"]), before.encode_text(method.ids)
    for name, found, same in zip("it", method.encoded(batch["image"], method.ids), expected, strict=True):
        torch.testing.assert_close(found, same, rtol=0, atol=1e-5, msg=name)  # in train mode, but for the statistics
    judged = method.validated()
    assert judged["zero_shot"] == judged["adapted"]
    assert method.model.training
    method.model.eval()
    with torch.inference_mode():  # gradients take other kernels
        found = method.encoded(batch["image"], method.ids)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_loss_is_what_is_worked_out_row_by_row(make_context: MakeContext, square_base: Path) -> None:
    method, loaded = begun(make_context(base=square_base), templates=["a {}"]), load_model(square_base)
    batch = method.batches(batch_size=5, seed=0)(0)
    said = [loaded.tokenizer.encode(f"a {name}") for name in ("blue", "green", "red", "white")]
    images = nn.functional.normalize(loaded.model.encode_image(batch["image"]), dim=1)
    texts = nn.functional.normalize(loaded.model.encode_text(torch.from_numpy(loaded.tokenizer.pad(said))), dim=1)
    losses = [
        -torch.log_softmax(loaded.model.logit_scale.exp() * torch.stack([image @ text for text in texts]), dim=0)[label]
        for image, label in zip(images, batch["class_id"], strict=True)
    ]
    (found,) = method.step(batch, 0.0).values()
    torch.testing.assert_close(found.detach(), torch.stack(losses).mean())


def test_the_tower_that_is_not_named_has_no_dropout(make_context: MakeContext, square_base: Path) -> None:
    loaded = load_model(square_base)
    model = loaded.model
    model.text.dropout.p = model.image_projection.dropout.p = 0.5
    for towers, moving in (("image", (True, False)), ("text", (False, True)), ("both", (True, True))):
        method = begun(replace(make_context(base=square_base), base=loaded), towers=towers)
        pixels = method.batches(batch_size=4, seed=0)(0)["image"]
        for at in (0, 1):
            twice = [method.encoded(pixels, method.ids)[at] for _ in range(2)]
            assert torch.equal(*twice) != moving[at], (towers, at)


@pytest.fixture(scope="module")
def learnt(squares: Path, square_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of each choice of towers, and of statistics that move."""
    folder, found = tmp_path_factory.mktemp("learnt"), dict[str, Path]()
    options = {name: (f"method_options.towers={name}",) for name in ("both", "image", "text")}
    options["train"] = ("method_options.batch_norms=train",)
    for name, chosen in options.items():
        found[name] = folder / name
        places = [f"run.folder={json.dumps(str(found[name]))}", f"base={json.dumps(str(square_base))}"]
        train(squares, [*places, *SHOTS, "optim.steps=30", *chosen])
    return found


@pytest.mark.parametrize("name", ["both", "image", "text", "train"])
def test_training_names_more_than_zero_shot_and_moves_the_named_towers_alone(
    learnt: dict[str, Path], square_base: Path, name: str
) -> None:
    judged = read_checkpoint(learnt[name]).metrics["validation"]
    assert judged["adapted"]["class_mean"] - judged["zero_shot"]["class_mean"] > 0.2, judged
    before, after = (stored(load_file(each / "weights.safetensors")) for each in (square_base, learnt[name]))
    assert before.keys() == after.keys()
    model = load_model(square_base).model
    towers: Towers = "both" if name == "train" else name
    expected = {f"model.{each}" for each in tower_parameters(model, towers)}
    moved = {each for each in before if before[each] != after[each]}
    statistics = {each for each in before if "running_" in each or "num_batches" in each}
    assert statistics
    assert moved - expected == (statistics if name == "train" else set())
    # Rows of tokens that no class name has are without a gradient; all else moves.
    assert expected - moved <= {"model.text.positional_embedding"}
    assert not moved & {"model.logit_scale", "model.logit_bias"}
    assert {each.startswith("model.text.") for each in moved} == {
        "text": {True}, "image": {False},
    }.get(name, {True, False})  # fmt: skip


@pytest.mark.parametrize("method", ["full", "clip_lora"])
@pytest.mark.parametrize(("value", "holds"), [(0.8, True), (0.1, False)])
def test_texts_that_leave_the_bases_space_have_one_of_their_own(
    learnt: dict[str, Path], monkeypatch: pytest.MonkeyPatch, method: str, value: float, holds: bool
) -> None:
    proof = SpaceProof(
        tower="text", statement="as measured", n=50, metric="R@10", value=value, at_least=0.72, base_value=0.8
    )
    monkeypatch.setattr(text_tower, "space_proof", lambda *_, **__: proof)
    monkeypatch.setattr(Publication, "base_with_image_tower", lambda *_: None)
    run = SavedRun(folder=learnt["text"], info=read_checkpoint(learnt["text"]))
    publication = Publication(run=run, store=Store(learnt["text"] / "store", builtin=False))
    source = create(method, {"label": "colour", "towers": "text"}).derivation(publication)
    assert source.proofs == ((proof,) if holds else ())
    assert source.metrics["space proof/R@10"] == value
    # A method whose promise is the base's space says so to the exporter, which then refuses.
    strict = create("negation", {}).derivation(publication)
    assert strict.proofs == (proof,)


@pytest.mark.parametrize("towers", ["both", "image", "text"])
def test_it_is_a_model_and_texts_alone_beside_the_bases_pictures(
    make_context: MakeContext, square_base: Path, towers: Towers
) -> None:
    graphs = {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"}
    inherited = ("image_encoder",) if towers == "text" else ()
    found = begun(make_context(base=square_base), towers=towers, templates=["a {}"]).artifact()
    assert found == Produced(graphs=graphs, templates=("a {}",), inherited=inherited)


def test_what_cannot_be_trained_is_refused(make_context: MakeContext, square_base: Path) -> None:
    with pytest.raises(ValueError, match="full starts from a checkpoint"):
        create("full", {"label": "colour"}).setup(make_context())
    context = make_context(base=square_base)
    graph = StoredTowers.__new__(StoredTowers)
    nn.Module.__init__(graph)
    assert context.base is not None
    for method in ("full", "clip_lora"):
        with pytest.raises(ValueError, match=f"{method}: a stored model is a graph.*take its checkpoint as base"):
            create(method, {"label": "colour"}).setup(replace(context, base=replace(context.base, model=graph)))
    with pytest.raises(ValueError, match="templates"):
        create("full", {"label": "colour", "templates": ["{}", "a {}"]})


def test_the_pages_recipe_trains(squares: Path, square_base: Path, tmp_path: Path) -> None:
    """Its options are the defaults, and its settings train, with the interpolation."""
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
    ours = tomllib.loads(re.findall(r"## full\n.*?```toml\n(.*?)```", page, flags=re.S)[0])
    told = FullOptions.parse(ours["method_options"], method="full")
    assert told == FullOptions(label="colour", templates=("a photo of a {}",))
    assert set(FullOptions.model_fields) - set(ours["method_options"]) == {"least", "only"}
    settings = [f"optim.{name}={value}" for name, value in {**ours["optim"], "steps": 2}.items()]
    table = [f"wise_ft.{name}={json.dumps(value)}" for name, value in ours["wise_ft"].items()]
    places = [f"run.folder={json.dumps(str(tmp_path / 'run'))}", f"base={json.dumps(str(square_base))}"]
    assert train(squares, [*places, *SHOTS, *settings, *table]).step == 2
