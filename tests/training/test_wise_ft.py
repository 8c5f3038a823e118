"""WiSE-FT: the ends to the byte, statistics between them, the choice of alpha, and the loop's curve."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from training.method import create
from training.methods.parts.low_rank import LowRankChange, LowRankTarget
from training.wise_ft import interpolate, wise_ft_curve

TrainSquares = Callable[..., Path]


def norms(seed: int) -> dict[str, torch.Tensor]:
    """A small network's state after some batches, so that its statistics are its own."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for _ in range(seed + 2):
        network(torch.randn(5, 3, 8, 8) * (seed + 1) + seed)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("alpha", "seed"), [(0.0, 0), (1.0, 1)])
def test_the_ends_come_back_to_the_byte(alpha: float, seed: int) -> None:
    found, end = interpolate(norms(0), norms(1), alpha), norms(seed)
    assert found.keys() == end.keys()
    for name in end:
        assert found[name].numpy().tobytes() == end[name].numpy().tobytes(), name


def test_between_them_statistics_move_as_weights_do() -> None:
    start, end = norms(0), norms(1)
    found = interpolate(start, end, 0.3)
    for name in ("0.weight", "1.bias", "1.running_mean", "1.running_var"):
        expected = 0.7 * start[name].double() + 0.3 * end[name].double()
        torch.testing.assert_close(found[name].double(), expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(start["1.running_var"], end["1.running_var"])
    assert found["1.num_batches_tracked"] == end["1.num_batches_tracked"] == 3


def test_neither_model_is_changed() -> None:
    start, end = norms(0), norms(1)
    for alpha in (0.0, 0.5, 1.0):
        for tensor in interpolate(start, end, alpha).values():
            tensor.zero_()
    assert all(torch.equal(start[name], norms(0)[name]) for name in start)
    assert all(torch.equal(end[name], norms(1)[name]) for name in end)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7])
def test_what_is_equal_in_both_keeps_its_bytes(alpha: float) -> None:
    """Else a tower that was not trained would be another one, and no artifact would have it."""
    start = {"weight": torch.randn(64, generator=torch.Generator().manual_seed(0))}
    found = interpolate(start, {"weight": start["weight"].clone()}, alpha)
    assert found["weight"].numpy().tobytes() == start["weight"].numpy().tobytes()
    assert ((1 - alpha) * start["weight"] + alpha * start["weight"] != start["weight"]).any()


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in .*'b'"):
        interpolate({"a": torch.ones(1)}, {"b": torch.ones(1)}, 0.5)


def curve(cures: list[float], neutrals: list[float], **options: Any) -> dict[str, Any]:
    alphas = [at / (len(cures) - 1) for at in range(len(cures))]
    measured = {
        alpha: {"relation": {"two": cure}, "single": neutral}
        for alpha, cure, neutral in zip(alphas, cures, neutrals, strict=True)
    }
    return wise_ft_curve(measured, **{"cure": "relation/two", "neutral": "single", "most_lost": 0.01, **options})


@pytest.mark.parametrize(
    ("cures", "neutrals", "chosen"),
    [
        ([0.5, 0.7, 0.9], [0.90, 0.90, 0.90], 1.0),  # nothing lost: the best cure
        ([0.5, 0.7, 0.9], [0.90, 0.89, 0.88], 0.5),  # the last loses two points, the middle exactly what is allowed
        ([0.5, 0.7, 0.9], [0.90, 0.80, 0.89], 1.0),  # a dip on the way forbids only itself
        ([0.5, 0.7, 0.7], [0.90, 0.90, 0.90], 0.5),  # a tie goes to the one nearer to the base
        ([0.5, 0.7, 0.9], [0.90, 0.10, 0.10], 0.0),  # none is allowed but the base
        ([0.5, 0.4, 0.3], [0.90, 0.95, 0.99], 0.0),  # tuning made the cure worse
    ],
)
def test_which_alpha_is_chosen(cures: list[float], neutrals: list[float], chosen: float) -> None:
    found = curve(cures, neutrals)
    assert found["chosen"]["alpha"] == chosen
    at = [point["alpha"] for point in found["curve"]].index(chosen)
    # Cure and forgetting are of the same alpha.
    assert found["chosen"]["metrics"] == {"relation": {"two": cures[at]}, "single": neutrals[at]}
    assert [(point["cure"], point["neutral"]) for point in found["curve"]] == list(zip(cures, neutrals, strict=True))


def test_without_a_neutral_the_best_cure_is_taken() -> None:
    found = curve([0.5, 0.9, 0.7], [0.9, 0.1, 0.1], neutral=None)
    assert found["chosen"]["alpha"] == 0.5
    assert found["curve"] == [{"alpha": alpha, "cure": cure} for alpha, cure in ((0, 0.5), (0.5, 0.9), (1, 0.7))]


def test_an_unknown_number_and_a_missing_base_are_refused() -> None:
    with pytest.raises(ValueError, match="no validation number 'relation/three'; there are relation/two, single"):
        curve([0.1, 0.2], [0.1, 0.2], cure="relation/three")
    with pytest.raises(ValueError, match="lack 0, the base itself"):
        wise_ft_curve({0.5: {"a": 1.0}}, cure="a", neutral="a", most_lost=0.0)


def test_a_low_rank_change_is_interpolated_as_the_weights_that_it_makes() -> None:
    method = create("clip_lora", {"label": "colour"})
    target, weights = LowRankTarget("w", (6, 5)), {"w": torch.randn(6, 5)}
    start, end = (LowRankChange((target,), rank=2, alpha=1.0, dropout=0.0) for _ in range(2))
    nn.init.normal_(end.up[0])
    states = [{f"change.{n}": t for n, t in each.state_dict().items()} for each in (start, end)]
    for alpha in (0.0, 0.3, 1.0):
        found = LowRankChange((target,), rank=2, alpha=1.0, dropout=0.0)
        between = method.between(*states, alpha)
        found.load_state_dict({name.removeprefix("change."): tensor for name, tensor in between.items()})
        expected = interpolate(weights, end.changed(weights), alpha)
        torch.testing.assert_close(found.changed(weights), {n: t.detach() for n, t in expected.items()})


WISE = '{{cure = "all/t2i_r@1/value", neutral = "all/i2t_r@1/value", most_lost = {lost}, alphas = {alphas}}}'


def wise(lost: float, *alphas: float) -> str:
    return "wise_ft=" + WISE.format(lost=lost, alphas=list(alphas))


def test_the_loop_ships_the_chosen_weights_and_writes_the_curve(train_squares: TrainSquares, square_base: Path) -> None:
    steps = ("seed=8", "optim.steps=30", "optim.rate=0.01")
    tuned = train_squares(*steps, base=square_base, name="tuned")
    mixed = train_squares(*steps, wise(1.0, 0.0, 0.25, 0.5, 1.0), base=square_base, name="mixed")
    start, end, found = (load_file(folder / "weights.safetensors") for folder in (square_base, tuned, mixed))
    info = json.loads((mixed / "checkpoint.json").read_text())
    said = info["wise_ft"]
    assert [point["alpha"] for point in said["curve"]] == [0.0, 0.25, 0.5, 1.0]
    assert info["metrics"]["validation"] == said["chosen"]["metrics"]
    expected = interpolate(start, end, said["chosen"]["alpha"])
    assert all(torch.equal(found[name], expected[name]) for name in found)
    # The ends of the curve are the base's and the tuned model's own numbers.
    for folder, point in ((square_base, said["curve"][0]), (tuned, said["curve"][-1])):
        numbers = json.loads((folder / "checkpoint.json").read_text())["metrics"]["validation"]["all"]
        assert point["cure"] == pytest.approx(numbers["t2i_r@1"]["value"])
        assert point["neutral"] == pytest.approx(numbers["i2t_r@1"]["value"])
    # What resumes is the run itself, not the interpolation.
    live = [load_file(folder / "state.safetensors") for folder in (tuned, mixed)]
    assert all(torch.equal(live[0][name], live[1][name]) for name in live[0])


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_one_end_alone_ships_its_bytes(train_squares: TrainSquares, square_base: Path, end: float) -> None:
    tuned = train_squares("seed=8", base=square_base, name="tuned")
    alphas = (0.0,) if end == 0 else (0.0, 1.0)
    mixed = train_squares("seed=8", wise(1.0, *alphas), base=square_base, name="mixed")
    chosen = json.loads((mixed / "checkpoint.json").read_text())["wise_ft"]["chosen"]["alpha"]
    source = square_base if chosen == 0 else tuned
    assert (mixed / "weights.safetensors").read_bytes() == (source / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["full", "clip_lora"])
@pytest.mark.parametrize("towers", ["both", "text"])
def test_methods_of_few_shots_are_interpolated_by_what_they_were_trained_for(
    train_squares: TrainSquares, square_base: Path, method: str, towers: str
) -> None:
    """On the classes of validation, or on the data's judge beside them; the ends are the two models' bytes."""
    options = ("method_options={label='colour',shots=8}", f"method_options.towers={towers}")
    steps = (f"method={method}", *options, "optim.steps=20", f"optim.rate={0.003 if method == 'full' else 0.02}")
    tuned = train_squares(*steps, base=square_base, name="tuned")
    found = dict[str, Any]()
    for name, lost, alphas in (("whole", 1.0, [0, 1]), ("part", 1.0, [0, 0.7]), ("none", 0.0, [0, 0.25, 0.5])):
        neutral = ", neutral='all/t2i_r@1/value'" if name == "none" else ""
        table = f"wise_ft={{cure='adapted/class_mean', alphas={alphas}, most_lost={lost}{neutral}}}"
        folder = train_squares(*steps, table, base=square_base, name=name)
        found[name] = json.loads((folder / "checkpoint.json").read_text())
        told = found[name]["wise_ft"]
        assert told["curve"][0]["cure"] == found[name]["metrics"]["validation"]["zero_shot"]["class_mean"]
        weights = load_file(folder / "weights.safetensors")
        if told["chosen"]["alpha"] == 1:
            assert (folder / "weights.safetensors").read_bytes() == (tuned / "weights.safetensors").read_bytes()
        elif told["chosen"]["alpha"] == 0:
            assert (folder / "weights.safetensors").read_bytes() == (square_base / "weights.safetensors").read_bytes()
        else:
            start, end = (load_file(each / "weights.safetensors") for each in (square_base, tuned))
            expected = interpolate(start, end, told["chosen"]["alpha"])
            torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
            kept = [name for name in start if torch.equal(start[name], end[name])]
            assert kept
            assert all(weights[name].numpy().tobytes() == start[name].numpy().tobytes() for name in kept)
    assert found["whole"]["wise_ft"]["chosen"]["alpha"] == 1
    assert found["part"]["wise_ft"]["chosen"]["alpha"] == 0.7
    base = json.loads((square_base / "checkpoint.json").read_text())["metrics"]["validation"]["all"]
    assert found["none"]["wise_ft"]["curve"][0]["neutral"] == pytest.approx(base["t2i_r@1"]["value"])
    judged = json.loads((tuned / "checkpoint.json").read_text())["metrics"]["validation"]
    assert found["whole"]["metrics"]["validation"] == judged


@pytest.mark.parametrize("method", ["full", "clip_lora"])
def test_of_a_change_for_the_worse_the_bases_bytes_are_shipped(
    train_squares: TrainSquares, square_base: Path, method: str
) -> None:
    """Steps that are far too large; a zero keeps its sign."""
    shots = (f"method={method}", "method_options={label='colour',shots=8}", "optim.steps=4")
    rate = 0.1 if method == "full" else 1.0
    table = "wise_ft={cure='adapted/class_mean', alphas=[0, 1]}"
    folder = train_squares(*shots, f"optim.rate={rate}", table, base=square_base)
    assert json.loads((folder / "checkpoint.json").read_text())["wise_ft"]["chosen"]["alpha"] == 0
    assert (folder / "weights.safetensors").read_bytes() == (square_base / "weights.safetensors").read_bytes()


def test_without_a_base_it_is_refused(train_squares: TrainSquares) -> None:
    with pytest.raises(ValueError, match="wise_ft interpolates with a base: name one"):
        train_squares(wise(0.01, 0.0, 1.0))
