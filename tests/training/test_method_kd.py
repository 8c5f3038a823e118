"""Distillation on squares: every term teaches, any stored model teaches, and answers that are kept are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evaluation.encoder import open_artifact
from model_store.manifest import Distillation
from model_store.store import Store
from training import method as methods
from training.checkpoint import load_model
from training.data.batches import BatchPlan, TextIds
from training.data.vocabulary import tokenizer_of
from training.loop import train
from training.losses import unit
from training.methods.kd import KdMethod
from training.methods.parts.masking import masked
from training.opening import open_checkpoint
from training.publish import publish_checkpoint
from training.teachers import Teacher

pytestmark = pytest.mark.torch
MakeContext = Callable[..., methods.Context]
Train = Callable[..., Path]
TERMS = ("task", "fd", "mfd", "gd", "icl", "crd", "afd")
WIDER = "model.embed_dim=24"


@pytest.fixture(scope="module")
def teacher(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells the squares' colours apart."""
    folder = tmp_path_factory.mktemp("kd") / "teacher"
    train(squares, [f"run.folder={json.dumps(str(folder))}", "optim.steps=60", "seed=11"])
    return folder


@pytest.fixture(scope="module")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("kd") / "store", builtin=False)
    publish_checkpoint(teacher, "teacher", store, precisions=("fp32",), dense="none")
    return store


def started(options: dict[str, Any], context: methods.Context) -> KdMethod:
    torch.manual_seed(0)
    method = methods.create("kd", options)
    assert isinstance(method, KdMethod)
    method.setup(context)
    for module, _ in method.modules().values():
        module.train()
    return method


def batch_of(context: methods.Context, method: KdMethod, step: int = 0) -> dict[str, Tensor]:
    plan = BatchPlan(batch_size=8, looks=method.looks, second=method.second)
    tokenize = TextIds(*tokenizer_of(context.model))
    return method.needs.of(context.source.batches(tokenize, plan)(step))


@pytest.mark.parametrize("model", [(), (WIDER,)])
@pytest.mark.parametrize("term", TERMS)
def test_every_term_falls_when_it_is_trained(
    make_context: MakeContext, teacher: Path, term: str, model: tuple[str, ...]
) -> None:
    context = make_context(*model)
    method = started({"teacher": str(teacher), "task": 0.0, term: 1.0}, context)
    parameters = [p for group in method.param_groups() for p in group.parameters.values()]
    assert bool(method.adapters.projections) == (bool(model) and term not in ("task", "crd"))
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    batches, found = [batch_of(context, method, step) for step in range(2)], list[float]()
    for step in range(40):
        optimizer.zero_grad()
        losses = method.step(batches[step % 2], step / 40)
        assert set(losses) == {term}
        losses[term].backward()
        optimizer.step()
        found.append(losses[term].item())
    assert np.mean(found[-4:]) < 0.8 * np.mean(found[:4])
    assert all(p.grad is not None for p in method.adapters.parameters()), "an adapter that nothing uses"


def test_unified_is_the_sum_that_the_paper_weighs(make_context: MakeContext, teacher: Path) -> None:
    context = make_context()
    weights = {"task": 1.0, "crd": 1.0, "icl": 1.0, "fd": 2000.0}
    found, parts = (
        started({"teacher": str(teacher), **options}, context) for options in ({"preset": "unified"}, weights)
    )
    batch = batch_of(context, found)
    losses = found.step(batch, 0.0)
    assert losses.keys() == weights.keys()
    for term, loss in parts.step(batch, 0.0).items():
        torch.testing.assert_close(losses[term], loss)
    lighter = started({"teacher": str(teacher), "preset": "unified", "fd": 20.0, "icl": 0.0}, context)
    assert lighter.step(batch, 0.0).keys() == {"task", "crd", "fd"}
    torch.testing.assert_close(lighter.step(batch, 0.0)["fd"] * 100, losses["fd"], rtol=1e-4, atol=1e-4)


def test_the_teacher_is_asked_about_the_batch_as_it_is(make_context: MakeContext, teacher: Path) -> None:
    context = make_context("augment.crop_scale=[0.5, 1.0]")
    method = started({"teacher": str(teacher), "fd": 1.0}, context)
    batch, loaded = batch_of(context, method), load_model(teacher)
    with torch.no_grad():
        image, text = unit(loaded.model.encode_image(batch["image"])), unit(loaded.model.encode_text(batch["text"]))
    found = method.teacher.vectors(batch["second_image"], batch["second_text"])
    torch.testing.assert_close(found.image, image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.text, text, rtol=1e-4, atol=1e-5)


def test_answers_that_are_kept_are_those_of_the_teacher(
    make_context: MakeContext, teacher: Path, tmp_path: Path
) -> None:
    context = replace(
        make_context("augment.crop_scale=[0.5, 1.0]", "augment.word_drop=0.4"),
        features_folder=tmp_path,
        data_key="squares",
    )
    method = started({"teacher": str(teacher), "fd": 1.0, "looks": 3}, context)
    assert method.vectors is not None
    assert method.vectors.image.shape == (len(context.source.pixels), 3, 16)
    look = method.teacher.look()
    tokenize = TextIds(*tokenizer_of(context.model))
    batch = context.source.batches(tokenize, BatchPlan(batch_size=8, looks=3, second=look))(4)
    live = method.teacher.vectors(batch["second_image"], batch["second_text"])
    kept = method.vectors.of(batch["row"], batch["look"])
    for found, expected in zip(kept, live, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Another look, another answer; and the pictures that training sees are those that the teacher saw.
    other = method.vectors.of(batch["row"], (batch["look"] + 1) % 3)
    assert (other.image - kept.image).abs().max() > 1e-3
    assert torch.equal(method.needs.of(batch)["image"], batch["second_image"])


def test_a_file_of_answers_is_used_again_and_never_for_something_else(
    make_context: MakeContext, teacher: Path, square_base: Path, tmp_path: Path
) -> None:
    def keep(folder: Path, looks: int, key: str) -> None:
        Teacher.open(str(folder)).cached(source, looks=looks, data_key=key, folder=tmp_path)

    source = make_context().source
    keep(teacher, 2, "a")
    (first,) = tmp_path.iterdir()
    written = first.stat().st_mtime_ns
    keep(teacher, 2, "a")
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [written]
    for number, changed in enumerate(((square_base, 2, "a"), (teacher, 1, "a"), (teacher, 2, "b")), start=2):
        keep(*changed)
        assert len(list(tmp_path.iterdir())) == number
    first.write_bytes(first.read_bytes()[:-100])  # another crash left it unreadable
    keep(teacher, 2, "a")
    assert first.stat().st_mtime_ns != written


def test_an_artifact_teaches_what_its_checkpoint_does(make_context: MakeContext, teacher: Path, store: Store) -> None:
    context = make_context()
    options = {"preset": "unified", "gd": 1.0}
    live = started({"teacher": str(teacher), **options}, context)
    stored = started({"teacher": "artifact:teacher", "store": str(store.root), **options}, context)
    batch = batch_of(context, live)
    expected, found = live.step(batch, 0.0), stored.step(batch, 0.0)
    for term in expected:
        torch.testing.assert_close(found[term], expected[term], rtol=1e-3, atol=1e-4)


def test_masked_pictures_have_grey_patches_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(200, 256, (8, 16, 16, 3), dtype=torch.uint8)
    hidden = masked(pixels, share=0.5, patch_px=4, mean=torch.tensor([0.4, 0.5, 0.6]))
    changed = (hidden != pixels).any(dim=3).view(8, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(8, 16, 16)
    assert (changed.any(dim=2) == changed.all(dim=2)).all(), "a patch that is grey in part"
    assert (changed.any(dim=2).sum(dim=1) == 8).all()
    assert hidden[(hidden != pixels).any(dim=3)].unique(dim=0).tolist() == [[102, 128, 153]]
    assert len({tuple(row) for row in changed.any(dim=2).tolist()}) > 1, "every picture has the same mask"


def test_masked_pictures_leave_no_trace_in_the_norms(make_context: MakeContext, teacher: Path) -> None:
    """The student will be shown whole pictures: statistics of masked ones would make it another model."""
    kept: list[dict[str, torch.Tensor]] = []
    for term in ("fd", "mfd"):
        context = make_context()
        method = started({"teacher": str(teacher), term: 1.0, "mask_px": 4}, context)
        before = {name: each.clone() for name, each in method.model.state_dict().items() if "running" in name}
        method.step(batch_of(context, method), 0.0)
        kept.append({name: method.model.state_dict()[name] for name in before})
        assert any(not torch.equal(kept[-1][name], each) for name, each in before.items())
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@pytest.mark.long
def test_a_student_of_another_size_is_a_plain_checkpoint_that_is_served(
    train_squares: Train, store: Store, tmp_path: Path
) -> None:
    options = {"teacher": "artifact:teacher", "store": str(store.root), "preset": "unified", "afd": 1, "looks": 2}
    folder = train_squares(
        "method=kd", WIDER, "optim.steps=8", *(f"method_options.{name}={json.dumps(v)}" for name, v in options.items())
    )
    assert {name.partition(".")[0] for name in load_file(folder / "weights.safetensors")} == {"model"}
    published = publish_checkpoint(folder, "student", store, precisions=("fp32",), dense="none")
    fingerprint = store.open("teacher").manifest.fingerprint
    assert published.manifest.provenance.distillation == Distillation(
        teacher="teacher@1",
        teacher_digest=f"{fingerprint.image} {fingerprint.text}",
        terms={"task": 1.0, "fd": 2000.0, "icl": 1.0, "crd": 1.0, "afd": 1.0},
    )
    checkpoint, artifact = open_checkpoint(folder), open_artifact(store.open("student"))
    texts = ["plain red shirt 1", "plain blue shirt 2"]
    np.testing.assert_allclose(artifact.encode_texts(texts), checkpoint.encode_texts(texts), atol=2e-5)
    pictures = [np.full((20, 20, 3), shade, dtype=np.uint8) for shade in (30, 200)]
    np.testing.assert_allclose(artifact.encode_images(pictures), checkpoint.encode_images(pictures), atol=2e-5)
    assert artifact.encode_texts(texts).shape == (2, 24)


def test_a_student_comes_near_its_teacher(train_squares: Train, teacher: Path) -> None:
    """Vectors in the teacher's own space: the student's pictures are nearest to the teacher's of the same colour."""
    folder = train_squares(
        "method=kd",
        "optim.steps=150",
        f"method_options.teacher={json.dumps(str(teacher))}",
        "method_options.preset=unified",
        "method_options.looks=2",
    )
    colours = [(220, 20, 20), (20, 200, 20), (20, 20, 220), (240, 240, 240)]
    pictures = [np.full((16, 16, 3), colour, dtype=np.uint8) for colour in colours]
    student, own = open_checkpoint(folder).encode_images(pictures), open_checkpoint(teacher).encode_images(pictures)
    assert ((student @ own.T).argmax(axis=1) == np.arange(4)).all()
    assert (student * own).sum(axis=1).min() > 0.9


@pytest.mark.parametrize("looks", [0, 2])
def test_a_resumed_student_is_bit_equal(squares: Path, teacher: Path, tmp_path: Path, looks: int) -> None:
    options = [
        "method=kd",
        'method_options={preset = "unified", mfd = 1.0, afd = 1.0, teacher = '
        + json.dumps(str(teacher))
        + f", looks = {looks}}}",
        WIDER,
        "run.checkpoint_steps=3",
        "run.keep=3",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(squares, [f"run.folder={json.dumps(str(whole))}", *options, "optim.steps=6"])
    train(squares, [f"run.folder={json.dumps(str(parts))}", *options, "optim.steps=6"])
    train(squares, [f"run.folder={json.dumps(str(parts))}", *options, "optim.steps=6"], from_step=3)
    first, second = load_file(whole / "weights.safetensors"), load_file(parts / "weights.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_teach_is_refused(
    make_context: MakeContext, train_squares: Train, teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="every term has weight 0"):
        methods.create("kd", {"teacher": str(teacher), "task": 0.0})
    with pytest.raises(ValueError, match="artifact:nobody"):
        started({"teacher": "artifact:nobody", "store": str(tmp_path), "fd": 1.0}, make_context())
    with pytest.raises(ValueError, match="is no checkpoint, and stored models are artifact:NAME"):
        started({"teacher": str(tmp_path), "fd": 1.0}, make_context())
    with pytest.raises(ValueError, match="takes pictures of 16 px, and data.cache_px keeps 8"):
        train_squares(
            "method=kd", "data.cache_px=8", f"method_options={{teacher = {json.dumps(str(teacher))}, fd = 1}}"
        )
