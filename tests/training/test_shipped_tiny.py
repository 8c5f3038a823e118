"""The command that distils the small shipped model: its sentences, its views, its towers, and the whole of it."""

from __future__ import annotations

import dataclasses
import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from evaluation.encoder import open_artifact
from model_store.graph import open_graph
from model_store.store import Store
from training.aligned_config import AlignedConfig
from training.aligned_sources import described
from training.checkpoint import load_model
from training.losses import unit
from training.models.aligned import AlignedDualEncoder
from training.publish import publish_checkpoint
from training.shipped.aligned_checkpoint import save_aligned
from training.shipped.everyday.__main__ import RECIPE as EVERYDAY_RECIPE
from training.shipped.everyday.__main__ import main as teach_everyday
from training.shipped.everyday_tiny.__main__ import LESSONS, RECIPE, ViewShares, main
from training.shipped.everyday_tiny.image_student import DividedTower
from training.shipped.everyday_tiny.publish import main as publish
from training.shipped.everyday_tiny.sentences import Sentences, whole_words
from training.shipped.everyday_tiny.views import PictureSet, SeenViews, seen_views
from training.teachers import Teacher

pytestmark = [pytest.mark.torch, pytest.mark.long]


def test_words_come_by_their_frequency() -> None:
    vocabulary = {"[PAD]": 0, "the": 1, "##ing": 2, "of": 3, "cat": 4, "2010": 5, "é": 6, "dog": 7}
    assert whole_words(vocabulary) == ("the", "cat", "dog")


def test_sentences_are_true_changed_joined_or_in_a_row() -> None:
    corpora = [["one two three four"], ["five six seven eight nine"]]
    words = [f"w{number}" for number in range(1000)]
    rng = random.Random(0)
    drawn = [Sentences(corpora, words).draw(rng) for _ in range(3000)]
    counted = Counter(drawn)
    assert counted["one two three four"] > 200
    assert counted["five six seven eight nine"] > 200
    assert counted["one two six seven eight nine"] >= 1
    assert any(text.startswith("one w") and text.endswith("three four") for text in drawn)
    assert any(text.startswith("a photo of a w") for text in drawn)
    used = Counter(word for text in drawn for word in text.split() if word.startswith("w"))
    assert used["w0"] > used["w1"] > 10 * used["w500"]  # Zipf's law
    assert sum(used[f"w{number}"] for number in range(500, 1000)) > 100
    alone = Sentences([["a"]], ["only"])
    assert {alone.draw(random.Random(seed)) for seed in range(500)} >= {"a", "only", "only only"}
    again = random.Random(0)
    assert [Sentences(corpora, words).draw(again) for _ in range(3000)] == drawn


@pytest.fixture(scope="module")
def recipes(aligned_model_table: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The shipped recipe with sources of a few kilobytes, few scenes, few views and few steps."""
    folder = tmp_path_factory.mktemp("recipes")
    text = RECIPE.read_text(encoding="utf-8")
    start, end = text.index("[model]"), text.index("[optim]")
    image = '[model.image]\nstages = ["blocks.0"]\nhead = "linear"\nunit = true\ngate = [0.5, 8.0]'
    part = 'layers = [0, 2]\nhidden = 40\ntable_rank = 20\nvocabulary = "ascii"\ntable = "int8"\nmatrices = "int8"'
    model = aligned_model_table.replace("[model.image]", image).replace("size_px = 32", "size_px = 64")
    model = model.replace("[model.class_map]", '[model.class_map]\ntemplate = "{}"\nmerged = 3')
    model = model.replace('kind = "aligned"', 'kind = "aligned"\nstorage = "int8"') + part + "\n\n"
    text = text[:start] + model + text[end:]
    smaller = {
        "cache_px = 160": "cache_px = 64",
        "steps = 2000": "steps = 40",
        "warmup_steps = 100": "warmup_steps = 2",
    }
    scenes = {f"scenes = {count}": "scenes = 30" for count in (700, 900, 400)}
    lessons = LESSONS.read_text(encoding="utf-8")
    for there, here in {**smaller, **scenes}.items():
        assert there in text
        text = text.replace(there, here)
    views = {
        "photographs = 16000": "photographs = 60",
        "products = 10000": "products = 90",
        "scenes = 2000": "scenes = 30",
    }
    for there, here in {**views, "steps = 4000": "steps = 40", "kept_blocks = 3": "kept_blocks = 2"}.items():
        assert there in lessons
        lessons = lessons.replace(there, here)
    (folder / "model.toml").write_text(text, encoding="utf-8")
    (folder / "lessons.toml").write_text(lessons, encoding="utf-8")
    return folder / "model.toml", folder / "lessons.toml"


@pytest.fixture(scope="module")
def teacher(everyday_data: Path, aligned_model_table: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the model that the recipe of everyday-small makes of sources of a few kilobytes."""
    folder = tmp_path_factory.mktemp("teacher")
    text = EVERYDAY_RECIPE.read_text(encoding="utf-8")
    start, end = text.index("[model]"), text.index("[optim]")
    text = text[:start] + aligned_model_table + text[end:]
    for count in (700, 900, 400):
        text = text.replace(f"scenes = {count}", "scenes = 30")
    text = text.replace("= 256", "= 64").replace("size_px = 32", "size_px = 64").replace("steps = 600", "steps = 10")
    image = '[model.image]\nhead = "linear"\nunit = true\ngate = [0.0, 8.0]'
    text = text.replace("[model.image]", image).replace(
        "[model.class_map]", '[model.class_map]\ntemplate = "{}"\nlinear = 0.8'
    )
    (folder / "model.toml").write_text(text, encoding="utf-8")
    assert teach_everyday(arguments(everyday_data, folder / "run", "--recipe", folder / "model.toml")) == 0
    return folder / "run"


def arguments(data: Path, out: Path, *more: str | Path) -> list[str]:
    places = ("--coco", data / "coco", "--products", data / "shop", "--out", out)
    return [str(word) for word in (*places, *more)]


@pytest.fixture(scope="module")
def store(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With the teacher as an artifact."""
    found = Store(tmp_path_factory.mktemp("store"), builtin=False)
    publish_checkpoint(teacher, "teacher", found, precisions=["fp32"], dense="none")
    return found


@pytest.fixture(scope="module")
def distil(everyday_data: Path, store: Store, recipes: tuple[Path, Path]) -> Callable[[Path], int]:
    model, lessons = recipes
    more = ("--teacher", "artifact:teacher", "--store", store.root or "", "--recipe", model, "--lessons", lessons)
    return lambda out: main(arguments(everyday_data, out, *more))


def test_the_command_writes_a_student_that_is_near_its_teacher(
    distil: Callable[[Path], int],
    teacher: Path,
    aligned_model_table: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert distil(run) == 0
    said = capsys.readouterr().out
    loaded, taught = load_model(run), load_model(teacher)
    assert isinstance(loaded.model, AlignedDualEncoder)
    assert loaded.info.distillation is not None
    assert loaded.info.distillation.teacher == "teacher@1"
    assert loaded.info.distillation.terms == {"image fd": 1.0, "text fd": 1.0, "text tokens": 1.0}
    assert sum(p.numel() for p in loaded.model.text.parameters()) < sum(
        p.numel() for p in taught.model.text.parameters()
    )
    nearness = [float(found) for found in re.findall(r"text step \d+: cosine classes (-?[\d.]+)", said)]
    assert nearness[-1] > nearness[0]
    # The first blocks are as they came, the others are not.
    came = load_file(tomllib.loads(aligned_model_table)["model"]["image"]["weights"])
    moved = {name for name, tensor in loaded.model.trunk.state_dict().items() if not torch.equal(tensor, came[name])}
    assert {name.split(".")[1] for name in moved if name.startswith("blocks.")} == {"2", "3", "4"}
    assert not any(name.startswith(("conv_stem", "bn1")) or "running" in name for name in moved)
    # A second run reads what the teacher said of the views, and ends at the same weights.
    before = (run / "weights.safetensors").read_bytes()
    views = {path: path.stat().st_mtime_ns for path in (run / "views").iterdir()}
    assert len(views) == 9
    assert distil(run) == 0
    assert (run / "weights.safetensors").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in (run / "views").iterdir()} == views


@pytest.mark.slow
def test_a_student_is_published_small_and_is_its_checkpoint(
    distil: Callable[[Path], int],
    everyday_data: Path,
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is far from its teacher: the proofs are kept as numbers, and the space is its own."""
    run = tmp_path / "run"
    assert distil(run) == 0
    more = ("--name", "far", "--store", store.root or "", "--limits", "knows nothing")
    assert publish([str(run), *arguments(everyday_data, run, *more)[:4], *map(str, more)]) == 0
    assert "a space of its own" in capsys.readouterr().out
    published = store.open("far")
    manifest = published.manifest
    assert manifest.kind == "base"
    assert manifest.space != store.open("teacher").manifest.space
    assert manifest.provenance.distillation is not None
    assert manifest.provenance.limits == "knows nothing"
    assert sum(name.startswith("space proof/") for name in manifest.metrics) == 6
    assert {graph.role for graph in manifest.graphs} == {"image_encoder", "text_encoder"}
    # Trained weights are moved by little: 8 bits of each, and of large arrays nothing else is kept.
    loaded, tokenizer = load_model(run), published.tokenizer()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    ids = tokenizer.pad([tokenizer.encode(text) for text in ("a red shirt", "cat")])
    for role, inputs, encode in (
        ("image_encoder", pixels, loaded.model.encode_image),
        ("text_encoder", ids, loaded.model.encode_text),
    ):
        graph = manifest.graph(role, "fp32")
        assert graph is not None
        found, expected = open_graph(published, graph)(inputs), encode(torch.from_numpy(inputs)).numpy()
        assert 0 < np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
        kept = onnx.load(published.path(graph.file), load_external_data=False).graph.initializer
        large = [each for each in kept if np.prod(each.dims) >= 1024]
        assert large
        assert {each.data_type for each in large} == {onnx.TensorProto.INT8}


@pytest.mark.slow
def test_a_student_that_proves_it_is_published_in_its_teachers_space(
    everyday_data: Path, teacher: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its towers are the teacher's with weights of 8 bits."""
    taught = load_model(teacher)
    recipe = taught.info.config
    assert isinstance(recipe.model, AlignedConfig)
    assert isinstance(taught.model, AlignedDualEncoder)
    text = recipe.model.text.model_copy(update={"table": "int8", "matrices": "int8"})
    model = recipe.model.model_copy(update={"storage": "int8", "text": text})
    save_aligned(
        tmp_path / "run",
        taught.model,
        config=recipe.model_copy(update={"model": model}),
        image=taught.info.image_spec,
        text=taught.info.text_spec,
        tokenizer=taught.tokenizer_bytes,
        templates=taught.info.templates,
        data_digest="0" * 64,
        steps=1,
        distillation=Teacher.stored(store.open("teacher")).taught({"image fd": 1.0}),
    )
    more = ("--name", "near", "--store", store.root or "")
    assert publish([str(tmp_path / "run"), *arguments(everyday_data, tmp_path)[:4], *map(str, more)]) == 0
    assert "a space of its own" not in capsys.readouterr().out
    published, above = store.open("near"), store.open("teacher")
    manifest = published.manifest
    assert (manifest.kind, manifest.space) == ("derivation", above.manifest.space)
    assert manifest.fingerprint != above.manifest.fingerprint
    assert {proof.tower for proof in manifest.space_proofs} == {"image", "text"}
    assert all(proof.at_least is not None and proof.value >= proof.at_least for proof in manifest.space_proofs)
    assert published.tokenizer().encode("a red shirt") == above.tokenizer().encode("a red shirt")
    sizes = [sum(each.size_bytes for each in found.manifest.files) for found in (published, above)]
    assert sizes[0] < sizes[1]
    encoders = [open_artifact(found) for found in (published, above)]
    vectors = [each.encode_texts(["a red shirt", "a blue cat"]) for each in encoders]
    assert 0 < np.abs(vectors[0] - vectors[1]).max() < 0.1


def test_a_divided_tower_is_the_model(aligned_model_table: str, everyday_data: Path) -> None:
    """What is kept of the first blocks and what the rest makes of it is what the whole model says."""
    recipe = tomllib.loads(aligned_model_table)["model"]
    recipe["image"] |= {"stages": ["blocks.0", "blocks.1"], "size_px": 64, "unit": True, "gate": [0.5, 8.0]}
    config = described(AlignedConfig.model_validate(recipe))
    torch.manual_seed(0)
    model = AlignedDualEncoder(config, vocab_size=50).eval()
    assert model.class_map is not None
    torch.nn.init.normal_(model.class_map.vectors)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    with torch.no_grad():
        expected = unit(model.encode_image(torch.from_numpy(pixels)))
        tower = DividedTower(model, kept=2)
        maps, stages = tower.look(pixels)
        assert maps.dtype == np.float16
        found = tower(torch.from_numpy(maps).float(), torch.from_numpy(stages))
    assert (found - expected).abs().max() < 2e-3  # of halves
    assert (expected - expected.mean(dim=0)).norm() > 0.01
    with pytest.raises(ValueError, match=r"blocks\.1.* lie behind the 1 blocks"):
        DividedTower(model, kept=1)


def test_teacher_and_student_see_the_same_views(teacher: Path, tmp_path: Path) -> None:
    """The student's view is the teacher's at a smaller size: the same part, mirrored, lighter and mixed alike."""
    rng = np.random.default_rng(0)
    rough = [Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)) for _ in range(3)]
    smooth = [each.resize((240, 200), Image.Resampling.BICUBIC) for each in rough]
    pictures = PictureSet("smooth", [lambda each=each: each for each in smooth], "d", 64, least=0.5)
    its, looked, asked = Teacher.open(str(teacher)), list[np.ndarray](), list[np.ndarray]()

    class Watched(Teacher):
        def image_vectors(self, pixels: torch.Tensor) -> torch.Tensor:
            asked.append(pixels.numpy())
            return super().image_vectors(pixels)

    watched = Watched(**{field.name: getattr(its, field.name) for field in dataclasses.fields(its)})

    def look(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        looked.append(pixels)
        return pixels[:, None, :, :, 0].astype(np.float16), pixels.reshape(len(pixels), -1)[:, :3].astype(np.float32)

    def views(**changes: str) -> SeenViews:
        of = dataclasses.replace(pictures, **changes)
        return seen_views(of, [of], watched, look, size_px=24, seed=0, key="k", folder=tmp_path)

    found = views()
    own, large = np.concatenate(looked), np.concatenate(asked)
    assert (own.shape, large.shape) == ((64, 24, 24, 3), (64, 64, 64, 3))
    reduced = np.stack([np.asarray(Image.fromarray(each).resize((24, 24), Image.Resampling.BICUBIC)) for each in large])
    apart = np.abs(own.astype(float) - reduced).mean(axis=(1, 2, 3))
    others = np.abs(own.astype(float) - np.roll(reduced, 1, axis=0)).mean(axis=(1, 2, 3))
    assert apart.max() < 4
    assert np.median(others) > 20
    np.testing.assert_allclose(found.vectors, its.image_vectors(torch.from_numpy(large)).numpy(), atol=1e-6)
    assert np.array_equal(views().vectors, found.vectors)
    assert len(looked) == 2  # the second time they were read
    views(digest="of other files")
    assert len(looked) == 4


def test_shares_are_of_a_whole() -> None:
    with pytest.raises(ValueError, match="shares whose sum is 1"):
        ViewShares(photographs=0.5, products=0.3, scenes=0.1)


def test_what_does_not_fit_is_a_sentence(
    everyday_data: Path,
    teacher: Path,
    recipes: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, lessons = recipes
    more = ["--teacher", teacher, "--recipe", model, "--lessons", lessons]
    assert main(arguments(everyday_data, tmp_path, *more, "--teacher", tmp_path / "none")) == 1
    assert "is no checkpoint" in capsys.readouterr().err
    for there, here, said in (
        ('template = "{}"', 'template = "not at all {}"', "says something else of texts"),
        ("gate = [0.5, 8.0]", "", "expected a student with a class map, and a linear head with a gate"),
        ("merged = 3", "linear = 0.8", "class_map.linear, dropout, head_weights and ema_decay are not known here"),
    ):
        other = tmp_path / "other.toml"
        other.write_text(model.read_text(encoding="utf-8").replace(there, here), encoding="utf-8")
        assert main(arguments(everyday_data, tmp_path, *more, "--recipe", other)) == 1
        assert said in capsys.readouterr().err
