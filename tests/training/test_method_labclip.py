"""LABCLIP: the identity is the base, the folded tower is the map applied after, and the image tower keeps its bytes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from training.checkpoint import load_model, read_checkpoint
from training.config import TextTowerConfig
from training.loop import train
from training.method import create
from training.methods.labclip import LabclipMethod, TextMap, whitening
from training.models.text_fold import check_fold, folded, text_ends
from training.models.towers import DualEncoder, OpenClipDualEncoder, PixelInput, SmallDualEncoder, TextTower

pytestmark = pytest.mark.torch

RECIPE = """
name = "pairs"
seed = 3
method = "base"
[data]
folder = "."
cache_px = 16
negative_column = "wrong"
split = {modulo = 10, test = [1], validation = [2]}
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 16}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos+bag"}
[optim]
batch_size = 16
steps = 6
rate = 3e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.9
[run]
folder = "unset"
device = "cpu"
threads = 1
"""
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}


class Towers(SmallDualEncoder):
    """A small text tower alone: what is folded has nothing to do with pictures."""

    def __init__(self, tower: TextTower) -> None:
        nn.Module.__init__(self)
        self.text = tower


def small(**changes: object) -> Towers:
    settings = {"merges": 60, "context_length": 8, "width": 12, "layers": 1, "heads": 2, **changes}
    tower = TextTower(TextTowerConfig.model_validate(settings), vocab_size=50, end_id=49, embed_dim=12)
    if hasattr(tower, "projection"):
        nn.init.normal_(tower.projection.weight)
    return Towers(tower.eval())


def open_clips() -> OpenClipDualEncoder:
    model = OpenClipDualEncoder.__new__(OpenClipDualEncoder)
    nn.Module.__init__(model)
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 12, "heads": 2, "layers": 1}
    model.clip = open_clip.CLIP(embed_dim=10, vision_cfg=vision, text_cfg=text).eval()
    model.pixel_input = PixelInput((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return model


def ids() -> torch.Tensor:
    rows = torch.randint(1, 48, (5, 8), generator=torch.Generator().manual_seed(0))
    rows[:, 6] = 49
    return rows


@pytest.mark.parametrize(
    "model",
    [*(small(pool=pool) for pool in ("eos", "eos+bag", "bag")), small(pool="bag", bag_projection=False), open_clips()],
    ids=["eos", "eos+bag", "bag", "bag without projection", "open_clip"],
)  # fmt: skip
def test_a_folded_tower_is_the_map_applied_after(model: DualEncoder) -> None:
    ends, before = text_ends(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain = model.encode_text(ids())
        matrix = torch.randn(plain.shape[1], plain.shape[1], generator=torch.Generator().manual_seed(1))
        model.load_state_dict(folded(before, ends, matrix))
        torch.testing.assert_close(model.encode_text(ids()), plain @ matrix.T, rtol=1e-4, atol=1e-5)
    same = folded(before, ends, torch.eye(plain.shape[1]))
    assert all(torch.equal(same[name], before[name]) for name in before)
    model.load_state_dict(before)
    check_fold(model, ends, ids())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_towers_that_take_no_map_are_refused() -> None:
    with pytest.raises(ValueError, match="bag_projection = true can take it"):
        text_ends(small(pool="eos+bag", bag_projection=False))
    with pytest.raises(ValueError, match="not linear in text.ln_final.weight"):
        check_fold(small(pool="eos"), {"text.ln_final.weight": "rows"}, ids())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of two colours, left and right; a false caption has them swapped. With a base of a few steps."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "wrong"])
        for number in range(80):
            left, right = rng.choice(list(COLOURS), 2, replace=False)
            pixels = np.zeros((16, 16, 3), dtype=np.uint8)
            pixels[:, :8], pixels[:, 8:] = COLOURS[left], COLOURS[right]
            Image.fromarray(pixels).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", f"{left} then {right}", f"{right} then {left}" if number % 5 else ""])
    (folder / "base.toml").write_text(RECIPE.replace('folder = "."', f"folder = {json.dumps(str(folder))}"))
    train(folder / "base.toml", [f"run.folder={json.dumps(str(folder / 'base'))}"])
    text = (folder / "base.toml").read_text().replace('method = "base"', 'method = "labclip"')
    (folder / "map.toml").write_text(f"base = {json.dumps(str(folder / 'base'))}\n{text}")
    return folder


def run(pairs: Path, folder: Path, *sets: str) -> Path:
    train(pairs / "map.toml", [f"run.folder={json.dumps(str(folder))}", *sets])
    return folder


def texts(folder: Path) -> torch.Tensor:
    loaded = load_model(folder)
    said = loaded.tokenizer.pad([loaded.tokenizer.encode(f"{a} then {b}") for a in COLOURS for b in COLOURS if a != b])
    return loaded.model.encode_text(torch.from_numpy(said))


def test_a_run_changes_the_text_tower_and_not_a_byte_of_the_image_tower(pairs: Path, tmp_path: Path) -> None:
    folder = run(pairs, tmp_path / "map")
    before, after = (load_file(path / "weights.safetensors") for path in (pairs / "base", folder))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert changed == {"model.text.projection.weight", "model.text.bag_projection.weight", "model.logit_scale"}
    info = read_checkpoint(folder)
    assert (info.inherited, info.base_sha256) == (
        ("image_encoder",), load_model(pairs / "base").info.weights_sha256,
    )  # fmt: skip
    assert info.graphs == {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"}
    # What is shipped is the averaged map behind the base's tower.
    state = load_file(folder / "state.safetensors")
    matrix = torch.eye(16) + state["average/map.change"] @ state["average/map.basis"]
    assert not torch.equal(state["average/map.change"], state["live/map.change"])
    torch.testing.assert_close(texts(folder), texts(pairs / "base") @ matrix.T, rtol=1e-4, atol=1e-5)
    assert float(after["model.logit_scale"]) == float(state["average/map.log_scale"])
    # Validation judged these very weights.
    assert info.metrics["validation"]["all"]["t2i_r@10"]["n"] > 0


def test_a_map_that_has_not_moved_is_the_base(pairs: Path, tmp_path: Path) -> None:
    folder = run(pairs, tmp_path / "still", "optim.rate=1e-30", "optim.weight_decay=0.5", "optim.steps=2")
    torch.testing.assert_close(texts(folder), texts(pairs / "base"), rtol=0, atol=0)
    for metric in ("t2i_r@1", "i2t_r@10"):
        told = [read_checkpoint(each).metrics["validation"]["all"][metric] for each in (folder, pairs / "base")]
        assert told[0] == told[1]


def test_whitened_texts_vary_equally_in_every_direction() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([3.0, 1.0, 0.1, 0.03])
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    vectors = ((rng.normal(size=(20000, 4)) * lengths) @ turn + 5).astype(np.float32)
    basis = whitening(vectors).double().numpy()
    np.testing.assert_allclose(basis, basis.T, rtol=1e-3)
    found = np.cov(vectors @ basis.T, rowvar=False)
    np.testing.assert_allclose(found / found[0, 0], np.eye(4), atol=0.05)
    assert np.linalg.eigvalsh(basis).min() == pytest.approx(1, rel=1e-3)  # the largest keeps its length
    assert torch.equal(whitening(np.ones((5, 3), dtype=np.float32)), torch.eye(3))


def test_the_loss_is_what_is_worked_out_row_by_row() -> None:
    """One negative is another row's own caption, one row has none."""
    method = create("labclip", {})
    assert isinstance(method, LabclipMethod)
    rng = torch.Generator().manual_seed(0)
    image, text, negative = (torch.randn(4, 6, generator=rng) for _ in range(3))
    batch = {
        "image_embeds": image, "text_embeds": text, "negative_embeds": negative,
        "caption_id": torch.tensor([0, 1, 2, 3]), "negative_id": torch.tensor([7, 8, 0, 3]),
        "has_negative": torch.tensor([True, True, True, False]),
    }  # fmt: skip
    method.map = TextMap(6, log_scale=2.0)
    found = method.step(batch, 0.0)["negclip"]
    scale = torch.tensor(2.0).exp()
    image, text, negative = (functional.normalize(each, dim=-1) for each in (image, text, negative))
    rows = []
    for at in range(4):
        # The third negative is the first row's own caption, so it does not count there; the fourth is none.
        against = [scale * image[at] @ negative[n] for n in ((0, 1) if at == 0 else (0, 1, 2))]
        logits = torch.stack([*(scale * image[at] @ each for each in text), *against])
        rows.append(functional.cross_entropy(logits[None], torch.tensor([at])))
    columns = functional.cross_entropy(scale * text @ image.T, torch.arange(4))
    torch.testing.assert_close(found, (torch.stack(rows).mean() + columns) / 2)


def test_without_false_captions_it_says_what_to_do(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text((pairs / "map.toml").read_text().replace('negative_column = "wrong"', ""))
    with pytest.raises(ValueError, match="name data.negative_column"):
        train(tmp_path / "bare.toml", [f"run.folder={json.dumps(str(tmp_path / 'a'))}"])
    train(
        tmp_path / "bare.toml",
        [f"run.folder={json.dumps(str(tmp_path / 'b'))}", "method_options.hard_negatives=false", "optim.steps=2"],
    )
    with pytest.raises(ValueError, match="labclip starts from a checkpoint|set base to its checkpoint"):
        train(pairs / "base.toml", ['method="labclip"', f"run.folder={json.dumps(str(tmp_path / 'c'))}"])
    with pytest.raises(ValueError, match="start_scale"):
        create("labclip", {"start_scale": 0.1})
