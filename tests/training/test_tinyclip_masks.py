"""Learned masks: gates by hand, and a masked tower is the tower without what is masked."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from training.config import ModelConfig, OpenClipConfig, SmallConfig
from training.methods.parts.gates import HardConcrete, Multipliers, TowerGates, block_parameters
from training.methods.parts.masked_towers import MaskedDualEncoder, MaskedLayerNorm
from training.models.building import build_model
from training.models.tower_plans import SIDES, Side, plan_of, shape_of
from training.models.towers import DualEncoder
from training.models.trunks import sine_positions
from training.slim_config import SlimShape, SlimTower

pytestmark = pytest.mark.torch
VOCAB, END = 500, 499
PIXELS = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[497, 5, 6, 7, END, 0, 0, 0, 0, 0, 0, 0], [497, 9, END, *[0] * 9], [497, *range(20, 30), END]])
CASES = ("mean", "attention", "flat", "open_clip", "open_clip_text", "second")


def config_of(case: str, folder: Path) -> ModelConfig:
    if case.startswith("open_clip"):
        name = f"clipworks-masked-{case.replace('_', '-')}"
        config: dict[str, Any] = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8},
            "text_cfg": {"context_length": 12, "vocab_size": VOCAB, "width": 16, "heads": 2, "layers": 2},
        }
        if case == "open_clip_text":  # a text tower of its own, with a bias behind it; no norm before the blocks
            config["custom_text"] = True
            config["text_cfg"] |= {"proj_bias": True}
            config["vision_cfg"] |= {"no_ln_pre": True, "pool_type": "avg", "ls_init_value": 0.5}
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)
        return OpenClipConfig(kind="open_clip", architecture=name)
    image = {"trunk": "clipworks_vit_t", "size_px": 16, "pool": "mean" if case == "second" else case}
    text = {"merges": 200, "context_length": 16, "width": 16, "layers": 2, "heads": 2, "pool": "eos+bag"}
    config = SmallConfig.model_validate({"kind": "small", "embed_dim": 16, "image": image, "text": text})
    if case != "second":
        return config
    towers = SlimShape(
        image=SlimTower(
            width=20, head_width=8, heads=(3, 1, 2), mlp=(9, 30, 31), position_channels=tuple(range(5, 125, 6))
        ),
        text=SlimTower(width=9, head_width=4, heads=(2, 3), mlp=(11, 12)),
    )
    return config.model_copy(update={"slim": towers})


def built(config: ModelConfig, slim: SlimShape | None = None) -> DualEncoder:
    torch.manual_seed(0)
    config = config if slim is None else config.model_copy(update={"slim": slim})
    model = build_model(config, vocab_size=VOCAB, end_id=END).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms that start as 0 and 1 would hide what is cut wrongly
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def masked(model: DualEncoder, *, start: float, seed: int | None = None) -> MaskedDualEncoder:
    """Gates over a copy of both towers; with a seed, log_alpha is random around `start`."""
    gates: dict[Side, TowerGates] = {
        side: TowerGates(shape_of(model, plan_of(model, side)), start=start) for side in SIDES
    }
    if seed is not None:
        stream = torch.Generator().manual_seed(seed)
        for tower in gates.values():
            for gate in tower.gates():
                gate.log_alpha.data += 2 * torch.randn(gate.log_alpha.shape, generator=stream)
    return MaskedDualEncoder(copy.deepcopy(model), gates).eval()


@pytest.mark.parametrize("case", CASES)
def test_open_masks_give_the_outputs_of_the_model(case: str, tmp_path: Path) -> None:
    model = built(config_of(case, tmp_path))
    found = masked(model, start=12.0)
    torch.testing.assert_close(found.encode_image(PIXELS), model.encode_image(PIXELS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.encode_text(IDS), model.encode_text(IDS), rtol=1e-4, atol=1e-5)
    state, _ = found.pruned()
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    found.train()
    for gates in (found.tower_gates(side) for side in SIDES):
        gates.draw(torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.encode_text(IDS), model.encode_text(IDS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_a_masked_model_is_the_pruned_one(case: str, seed: int, tmp_path: Path) -> None:
    config = config_of(case, tmp_path)
    model = built(config)
    found = masked(model, start=-1.0, seed=seed)
    state, shapes = found.pruned()
    pruned = built(config, SlimShape(image=shapes["image"], text=shapes["text"]))
    pruned.load_state_dict(state)
    for side in SIDES:
        whole = shape_of(model, plan_of(model, side))
        assert shapes[side].width < whole.width
        assert block_parameters(shapes[side]) < 0.7 * block_parameters(whole)
        assert len({*shapes[side].mlp}) > 1 or len(shapes[side].mlp) == 1, "layers keep what they need, not one number"
    torch.testing.assert_close(pruned.encode_image(PIXELS), found.encode_image(PIXELS), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(pruned.encode_text(IDS), found.encode_text(IDS), rtol=1e-4, atol=2e-5)
    assert (found.encode_image(PIXELS) - model.encode_image(PIXELS)).abs().max() > 0.1
    assert (found.encode_text(IDS) - model.encode_text(IDS)).abs().max() > 0.1
    if not case.startswith("open_clip"):
        torch.testing.assert_close(pruned.encode_dense(PIXELS), found.encode_dense(PIXELS), rtol=1e-4, atol=2e-5)


def test_half_open_gates_reach_every_weight_they_stand_for(tmp_path: Path) -> None:
    found = masked(built(config_of("attention", tmp_path)), start=0.0).train()
    for side in SIDES:
        found.tower_gates(side).draw(torch.Generator().manual_seed(1))
    (found.encode_image(PIXELS).square().sum() + found.encode_text(IDS).square().sum()).backward()
    for name, parameter in found.gates.named_parameters():
        assert parameter.grad is not None, name
        # Where a sample is 0 or 1, it has no gradient; half of them are in between.
        assert (parameter.grad != 0).float().mean() > 0.2 or len(parameter) <= 4, name
    assert sum(float(parameter.grad.abs().sum()) for parameter in found.gates.parameters()) > 0.1  # type: ignore[union-attr]


def test_a_gate_of_a_channel_multiplies_the_stream(tmp_path: Path) -> None:
    found = masked(built(config_of("mean", tmp_path)), start=1.0).train()
    trunk, gates = found.dense.trunk, found.tower_gates("image")
    gates.layers.log_alpha.data.fill_(-30.0)  # type: ignore[operator]
    gates.draw(torch.Generator().manual_seed(1))
    stream = gates.values().channels
    assert ((stream > 0) & (stream < 1)).sum() > 10
    open_ = (stream > 0).nonzero().flatten()
    x = trunk.patches(found.pixel_input(found.pixel_input.unit_range(PIXELS))).flatten(2).mT  # type: ignore[operator]
    x = ((x + sine_positions(2, 2, 128)) * stream)[..., open_]
    norm = torch.nn.functional.layer_norm(x, (len(open_),), trunk.norm.weight[open_], trunk.norm.bias[open_])  # type: ignore[index, union-attr]
    head = found.dense.image_projection
    expected = norm.mean(dim=1) @ head.weight[:, open_].T + head.bias  # type: ignore[index, union-attr]
    torch.testing.assert_close(found.encode_image(PIXELS), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_over_open_channels_is_a_norm_of_those_channels() -> None:
    norm = torch.nn.LayerNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 6)
    found = MaskedLayerNorm(norm)
    torch.testing.assert_close(found(x), norm(x))
    found.open = torch.tensor([1.0, 0, 1, 1, 0, 1])
    at = [0, 2, 3, 5]
    expected = torch.nn.functional.layer_norm(x[..., at], (4,), norm.weight[at], norm.bias[at])
    torch.testing.assert_close(found(x)[..., at], expected)
    assert found(x)[..., [1, 4]].abs().max() == 0


def test_samples_are_hard_concrete() -> None:
    gate = HardConcrete(200_000, start=0.7, learned=True)
    gate.draw(torch.Generator().manual_seed(0))
    z = gate.sampled()
    assert 0 == z.min() < z.max() == 1
    # Louizos et al., 2018, equation 12: sigmoid(log_alpha - beta log(-gamma / zeta)), beta 2/3, gamma -.1, zeta 1.1.
    open_ = 1 / (1 + math.exp(-(0.7 + 2 / 3 * math.log(11))))
    torch.testing.assert_close(gate.open_probability(), torch.full((200_000,), open_))
    assert float((z > 0).float().mean()) == pytest.approx(open_, abs=0.003)
    full = 1 / (1 + math.exp(-(0.7 - 2 / 3 * math.log(11))))
    assert float((z == 1).float().mean()) == pytest.approx(full, abs=0.003)
    again = HardConcrete(200_000, start=0.7, learned=True)
    again.draw(torch.Generator().manual_seed(0))
    assert torch.equal(again.sampled(), z)


def test_as_many_gates_stay_as_are_open_on_average_and_one_at_least() -> None:
    gate = HardConcrete(4, start=0.0, learned=True)
    gate.log_alpha.data = torch.tensor([1.0, -6.0, 5.0, -1.7])  # open with .93, .01, .999 and .48
    assert gate.decided().tolist() == [True, False, True, False]
    gate.log_alpha.data = torch.tensor([1.0, -6.0, 5.0, -1.2])  # the last one with .60: 2.54 on average
    assert gate.decided().tolist() == [True, False, True, True]
    gate.log_alpha.data = torch.tensor([-9.0, -8.0, -9.0, -9.0])
    assert gate.decided().tolist() == [False, True, False, False]
    shut = HardConcrete(3, start=-9.0, learned=False)
    assert shut.decided().all()
    assert shut.sampled().tolist() == shut.open_probability().tolist() == [1, 1, 1]
    assert not shut.log_alpha.requires_grad


def test_roundings_do_not_add_up(tmp_path: Path) -> None:
    """Every layer keeps 1.7 of 2 heads on average; all of them rounded up would be a larger tower."""
    gates = TowerGates(SlimTower(width=64, head_width=8, heads=(2,) * 6, mlp=(16,) * 6), start=9.0)
    for gate in gates.heads:
        gate.log_alpha.data.fill_(0.1)  # type: ignore[union-attr]
    expected = float(gates.sparsity().detach())
    for at, gate in enumerate(gates.heads):
        assert gate.decided().all()  # type: ignore[operator]
        gate.log_alpha.data += 0.01 * at  # type: ignore[operator]
    kept = gates.kept()
    assert {*map(len, kept.heads)} == {1, 2}
    left = SlimTower(width=64, head_width=8, heads=tuple(map(len, kept.heads)), mlp=tuple(map(len, kept.mlp)))
    assert 1 - block_parameters(left) / block_parameters(gates.shape) == pytest.approx(expected, abs=0.05)


def test_sparsity_is_the_share_of_the_blocks_parameters(tmp_path: Path) -> None:
    config = config_of("mean", tmp_path)
    model = built(config)
    plan = plan_of(model, "image")
    shape = shape_of(model, plan)
    counted = sum(p.numel() for block in plan.blocks(model) for p in block.parameters())
    assert block_parameters(shape) == counted
    gates = TowerGates(shape, start=30.0)
    assert float(gates.sparsity().detach()) == pytest.approx(0, abs=1e-6)
    for gate, closed in ((gates.channels, 28), (gates.layers, 2), (gates.heads[1], 3), (gates.mlp[2], 500)):
        gate.log_alpha.data[:closed] = -30.0  # type: ignore[union-attr]
    found = masked(model, start=0.0)
    found.gates["image"] = gates
    state, shapes = found.pruned()
    pruned = built(config, SlimShape(image=shapes["image"], text=shapes["text"]))
    left = sum(p.numel() for block in plan_of(pruned, "image").blocks(pruned) for p in block.parameters())
    assert float(gates.sparsity().detach()) == pytest.approx(1 - left / counted, abs=1e-5)
    assert shapes["image"].heads == (4, 4, 4, 4)
    assert shapes["image"].mlp == (12, 512, 512, 512), "layer 0 and 1 are gone, the third kept 12 of 512"


def test_multipliers_push_one_way_only() -> None:
    multipliers = Multipliers(10.0)
    sparsity = torch.tensor(0.2, requires_grad=True)
    loss = multipliers(sparsity, 0.5)
    assert float(loss.detach()) == pytest.approx(10 * 0.3 + 10 * 0.09)
    loss.backward()
    assert float(sparsity.grad) == pytest.approx(-10 - 20 * 0.3)  # type: ignore[arg-type]
    assert [float(p.grad) for p in multipliers.parameters()] == pytest.approx([0.3, 0.09])  # type: ignore[arg-type]
    assert float(multipliers(torch.tensor(0.6), 0.5).detach()) == 0


def test_fixed_gates_do_not_change_any_more(tmp_path: Path) -> None:
    gates = TowerGates(SlimTower(width=8, head_width=4, heads=(2, 2), mlp=(9, 9)), start=0.0)
    for gate in gates.gates():
        gate.log_alpha.data.normal_(-1, 2)
    gates.train()
    kept = gates.kept()
    gates.fix()
    for gate in gates.gates():
        gate.log_alpha.data.neg_()
    gates.draw(torch.Generator().manual_seed(0))
    gates.fix()
    assert gates.kept() == kept
    assert {*gates.values().channels.tolist()} <= {0.0, 1.0}
    assert not gates.values().channels.requires_grad
