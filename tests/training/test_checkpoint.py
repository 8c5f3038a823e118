"""Checkpoints: a round trip keeps every bit, and nothing torn, altered or unknown is opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.identity import sha256_file, spec_digest
from training.checkpoint import (
    INFO_FILE,
    WEIGHTS_FILE,
    load_model,
    load_state,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
)
from training.config import load_config
from training.data.vocabulary import tokenizer_of
from training.models.building import build_model, image_spec

CONFIG = load_config(
    Path(__file__).parents[2] / "training" / "configs" / "fashion.toml",
    [
        "data.folder=x",
        "model.image.trunk=clipworks_conv_t",
        "model.text.merges=50",
        "model.text.width=16",
        "model.embed_dim=16",
    ],
)


def write(folder: Path) -> torch.nn.Module:
    text_spec, tokenizer = tokenizer_of(CONFIG.model)
    torch.manual_seed(0)
    model = build_model(CONFIG.model, vocab_size=text_spec.vocab_size, end_id=text_spec.end_id or 0)
    pixels = image_spec(CONFIG.model)
    info: dict[str, Any] = {
        "config": CONFIG.model_dump(mode="json"),
        "image_spec": pixels.model_dump(mode="json"),
        "text_spec": text_spec.model_dump(mode="json"),
        "image_spec_digest": spec_digest(pixels),
        "text_spec_digest": spec_digest(text_spec),
        "data_digest": "0" * 64,
        "git_sha": None,
        "graphs": {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"},
        "templates": ["{}"],
        "metrics": {},
        "tools": {},
        "step": 7,
    }
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(folder, info, weights=weights, state={"live/x": torch.ones(2)}, tokenizer=tokenizer)
    return model


def edit(folder: Path, **changes: object) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(tmp_path: Path) -> None:
    model = write(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.info.config == CONFIG
    assert loaded.info.step == 7
    assert not loaded.model.training
    for (name, before), after in zip(model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    assert load_state(tmp_path)["live/x"].tolist() == [1, 1]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.txt"])
def test_an_altered_file_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: sha256 is"):
        load_model(tmp_path)


def test_torn_state_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    edit(tmp_path, state_sha256="0" * 64)
    with pytest.raises(ValueError, match="state.safetensors: sha256"):
        load_state(tmp_path)


def test_another_format_or_spec_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    edit(tmp_path, format=2)
    with pytest.raises(ValueError, match="format 2, expected 1"):
        load_model(tmp_path)
    info = json.loads((tmp_path / "checkpoint.json").read_text())
    edit(tmp_path, format=1, image_spec={**info["image_spec"], "interpolation": "bilinear"})
    with pytest.raises(ValueError, match="ImageSpec has digest"):
        load_model(tmp_path)


def test_weights_of_another_model_are_refused_in_one_sentence(tmp_path: Path) -> None:
    write(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    names = sorted(weights)
    wider = {name: torch.zeros(3, *tensor.shape) for name, tensor in weights.items()}
    for changed, words in (
        ({name: weights[name] for name in names[:1]}, r"\d\d are missing and 0 are not known"),
        ({**weights, "model.odd": torch.ones(1)}, "0 are missing and 1 are not known, among them odd"),
        (wider, "size mismatch for"),
    ):
        save_file(changed, tmp_path / WEIGHTS_FILE)
        edit(tmp_path, weights_sha256=sha256_file(tmp_path / WEIGHTS_FILE))
        with pytest.raises(ValueError, match=words) as refused:
            load_model(tmp_path)
        assert len(str(refused.value)) < 400
        assert "\n" not in str(refused.value)


def test_optimizer_moments_survive_by_name() -> None:
    def make() -> tuple[torch.optim.AdamW, dict[torch.nn.Parameter, str]]:
        torch.manual_seed(1)
        conv, linear = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), torch.nn.Linear(2, 2)
        names = {p: f"m.{i}" for i, p in enumerate([*conv.parameters(), *linear.parameters()])}
        return torch.optim.AdamW(names), names

    def step(optimizer: torch.optim.AdamW, names: dict[torch.nn.Parameter, str], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in names:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    first, first_names = make()
    step(first, first_names, 0)
    saved = {key: value.clone() for key, value in optimizer_state(first, first_names).items()}
    second, second_names = make()
    with torch.no_grad():
        for to, source in zip(second_names, first_names, strict=True):
            to.copy_(source)
    restore_optimizer(second, second_names, saved)
    step(first, first_names, 1)
    step(second, second_names, 1)
    for left, right in zip(first_names, second_names, strict=True):
        assert torch.equal(left, right)
        assert second.state[right]["exp_avg"].stride() == right.stride()


def test_a_save_that_fails_half_way_leaves_the_old_checkpoint(square_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(square_base, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    info = json.loads((folder / INFO_FILE).read_text())
    broken = torch.empty(2, device="meta")  # cannot be written: it holds no numbers
    with pytest.raises(Exception, match="meta"):
        save_checkpoint(folder, info, weights={"a": broken}, state={"b": torch.zeros(2)}, tokenizer=b"new")
    assert {name: (folder / name).read_bytes() for name in before} == before
    load_model(folder)
