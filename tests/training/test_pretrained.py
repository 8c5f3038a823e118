"""Training starts from weights that other people trained: a file of open_clip's or transformers' names, or a tag."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch

from training.checkpoint import load_model
from training.exporting.export import source_of_checkpoint
from training.loop import train
from training.models.towers import OpenClipDualEncoder

pytestmark = pytest.mark.torch
ARCH = "clipworks-start"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights of an architecture that open_clip knows with GELU and with QuickGELU."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "configs").mkdir()
    for name, more in ((ARCH, {}), (f"{ARCH}-quickgelu", {"quick_gelu": True})):
        (folder / "configs" / f"{name}.json").write_text(json.dumps({**CONFIG, **more}))
    open_clip.add_model_config(folder / "configs")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = open_clip.CLIP(**CONFIG).state_dict()
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def tune(squares: Path, folder: Path, weights: Path | str, *options: str) -> Path:
    recipe = squares.read_text()
    path = folder.with_suffix(".toml")
    model = f'[model]\nkind = "open_clip"\narchitecture = "{ARCH}"\npretrained = {json.dumps(str(weights))}\n'
    path.write_text(recipe[: recipe.index("[model]")] + model + recipe[recipe.index("[optim]") :])
    given = [f"run.folder={json.dumps(str(folder))}", "optim.steps=2", "optim.rate=1e-9", "data.cache_px=16"]
    train(path, [*given, *options])
    return folder


def test_a_run_starts_from_a_file(squares: Path, weights: Path, tmp_path: Path) -> None:
    moved = tmp_path / "weights.safetensors"
    moved.write_bytes(weights.read_bytes())
    run = tune(squares, tmp_path / "run", moved, "model.activation=gelu")
    moved.unlink()  # a checkpoint is whole: what it started from is not asked for again
    loaded = load_model(run)
    assert isinstance(loaded.model, OpenClipDualEncoder)
    expected = safetensors.torch.load_file(weights)
    for name, tensor in loaded.model.clip.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    assert "pretrained" not in source_of_checkpoint(loaded).structure
    assert loaded.info.config.model.model_dump()["pretrained"] == str(moved)


def test_without_them_it_starts_elsewhere(squares: Path, weights: Path, tmp_path: Path) -> None:
    """The test above would pass by itself if the seed made the same weights."""
    path = tmp_path / "recipe.toml"
    recipe = squares.read_text()
    model = f'[model]\nkind = "open_clip"\narchitecture = "{ARCH}"\n'
    path.write_text(recipe[: recipe.index("[model]")] + model + recipe[recipe.index("[optim]") :])
    train(path, [f"run.folder={json.dumps(str(tmp_path / 'run'))}", "optim.steps=1", "optim.rate=1e-9"])
    found = load_model(tmp_path / "run").model.state_dict()["clip.visual.conv1.weight"]
    assert (found - safetensors.torch.load_file(weights)["visual.conv1.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        ("", (), "say --activation gelu or --activation quickgelu"),
        ("", ("model.activation=quickgelu",), "is a clipworks-start-quickgelu: set model.architecture to it"),
        ("nowhere.safetensors", (), "model.pretrained nowhere.safetensors: .*neither a file nor a tag"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(
    squares: Path, weights: Path, tmp_path: Path, start: str, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tune(squares, tmp_path / "run", start or weights, *options)
    assert not (tmp_path / "run").exists()
