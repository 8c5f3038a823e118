"""CLIP-Adapter: zero-shot at ratio 0, the paper's formula elsewhere, and a ratio that stays or is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evaluation.metrics import normalize
from tests.training.few_shots import Problem, drawn
from training.method import create
from training.methods.clip_adapter import AdaptedClasses, ClipAdapterOptions, trained_head
from training.methods.parts.adapter_heads import AdapterHead, Bottleneck, adapter_head
from training.methods.parts.class_heads import ClassHead, LinearHead, read

pytestmark = pytest.mark.torch

QUICK = {"epochs": 30, "rate": 0.02, "batch": 16}


def chosen(problem: Problem, *, seed: int = 0, **options: Any) -> tuple[ClassHead, dict[str, Any]]:
    method = problem.of(create("clip_adapter", {"label": "x", **QUICK, **options}), seed=seed)
    return method.choose(problem.shots, problem.truth, problem.validation, problem.expected)


def trained(problem: Problem, *, ratio: float | None, seed: int = 0, **options: Any) -> ClassHead:
    given = ClipAdapterOptions.parse({"label": "x", **QUICK, **options}, method="clip_adapter")
    return trained_head(problem.zero_shot, problem.shots, problem.truth, given, ratio=ratio, seed=seed)


def loss(head: ClassHead, problem: Problem) -> float:
    logits = torch.from_numpy(head(problem.shots))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(problem.truth)))


@pytest.mark.parametrize("adapt", ["image", "text", "both"])
def test_ratio_0_is_zero_shot_to_the_bit(adapt: str) -> None:
    problem = drawn()
    head, tried = chosen(problem, adapt=adapt, ratio=[0.0])
    assert tried["ratio"] == 0
    assert (head(problem.unseen) == problem.zero_shot(problem.unseen)).all()
    # It is also where the formula leads to.
    model = AdaptedClasses(problem.zero_shot, adapt, ratio=0.0).eval()
    np.testing.assert_allclose(model.head()(problem.unseen), problem.zero_shot(problem.unseen), atol=1e-4)
    other = AdaptedClasses(problem.zero_shot, adapt, ratio=0.3).eval().head()
    assert np.abs(other(problem.unseen) - problem.zero_shot(problem.unseen)).max() > 0.1


@pytest.mark.parametrize("ratio", [0.2, 1.0])
def test_both_sides_are_the_papers_formula(ratio: float) -> None:
    problem = drawn()
    torch.manual_seed(3)
    model = AdaptedClasses(problem.zero_shot, "both", ratio=ratio).eval()
    assert model.image is not None
    assert model.text is not None

    def adapted(side: Bottleneck, vectors: np.ndarray) -> np.ndarray:
        down, up = (layer.weight.detach().numpy().astype(np.float64) for layer in (side.down, side.up))
        assert (down.shape, up.shape) == ((4, 16), (16, 4))
        changed = np.maximum(np.maximum(vectors @ down.T, 0) @ up.T, 0)
        return normalize(ratio * changed + (1 - ratio) * vectors)

    texts = problem.zero_shot.weight.T / 20
    expected = 20 * adapted(model.image, problem.unseen) @ adapted(model.text, texts).T
    head = model.head()
    np.testing.assert_allclose(head(problem.unseen), expected, atol=1e-4)
    with torch.inference_mode():
        for module in (model, head.module()):
            np.testing.assert_allclose(module(torch.from_numpy(problem.unseen)).numpy(), expected, atol=1e-4)


def test_a_gate_says_another_ratio_of_each_picture() -> None:
    problem = drawn()
    torch.manual_seed(3)
    bottleneck = Bottleneck(16, ratio=None)
    torch.nn.init.normal_(bottleneck.gate.weight, std=3.0)
    head = adapter_head(bottleneck, weight=problem.zero_shot.weight, bias=np.arange(5, dtype=np.float32))
    ratios = 1 / (1 + np.exp(-(problem.unseen @ head.gate + head.gate_bias)))
    assert ratios.std() > 0.1
    for row in (0, 1):
        alone = adapter_head(
            _fixed(bottleneck, float(ratios[row])), weight=problem.zero_shot.weight, bias=np.arange(5, dtype=np.float32)
        )
        one = problem.unseen[row : row + 1]
        np.testing.assert_allclose(head(one), alone(one), atol=1e-4)
    with torch.inference_mode():
        module = head.module()(torch.from_numpy(problem.unseen)).numpy()
    np.testing.assert_allclose(module, head(problem.unseen), atol=1e-4)


def _fixed(bottleneck: Bottleneck, ratio: float) -> Bottleneck:
    found = Bottleneck(16, ratio=ratio)
    found.down, found.up = bottleneck.down, bottleneck.up
    return found


def test_a_given_ratio_stays_and_a_learned_one_starts_at_a_fifth_and_moves() -> None:
    problem = drawn()
    fixed, learned = trained(problem, ratio=0.4), trained(problem, ratio=None)
    assert isinstance(fixed, AdapterHead)
    assert isinstance(learned, AdapterHead)
    assert (fixed.gate == 0).all()
    assert 1 / (1 + np.exp(-fixed.gate_bias)) == pytest.approx(0.4, abs=1e-6)
    assert np.abs(learned.gate).max() > 0.05
    start = Bottleneck(16, ratio=None).gate.bias
    assert float(start.detach().sigmoid()) == pytest.approx(0.2, abs=1e-6)
    assert chosen(problem, ratio="learned")[1] == {"ratio": "learned"}


@pytest.mark.parametrize("adapt", ["image", "text", "both"])
def test_training_lowers_the_loss_of_the_shots(adapt: str) -> None:
    problem = drawn()
    before = AdaptedClasses(problem.zero_shot, adapt, ratio=0.4).eval().head()
    after = trained(problem, ratio=0.4, adapt=adapt)
    assert loss(after, problem) < 0.7 * min(loss(before, problem), loss(problem.zero_shot, problem))


def test_a_text_adapter_ends_in_the_matrix_which_keeps_its_lengths() -> None:
    problem = drawn()
    head = trained(problem, ratio=0.6, adapt="text")
    assert isinstance(head, LinearHead)
    np.testing.assert_allclose(np.linalg.norm(head.weight, axis=0), 20.0, rtol=1e-5)
    assert np.abs(head.weight - problem.zero_shot.weight).max() > 1


def test_validation_chooses_the_ratio() -> None:
    problem = drawn(off=2.0)
    head, tried = chosen(problem, ratio=[0.4, 0.0, 0.8])
    ratio = tried["ratio"]
    assert ratio > 0
    expected = {0.0: problem.zero_shot, **{each: trained(problem, ratio=each) for each in (0.4, 0.8)}}
    shares = {
        f"{each:g}": float((one(problem.validation).argmax(axis=1) == problem.expected).mean())
        for each, one in expected.items()
    }
    assert tried["accuracy_by_ratio"] == shares
    assert shares[f"{ratio:g}"] == max(shares.values())
    assert (head(problem.unseen) == expected[ratio](problem.unseen)).all()
    assert problem.gain(head) > 0.05


def test_the_seed_alone_decides_and_no_other_draw_is_moved() -> None:
    problem = drawn()
    torch.manual_seed(5)
    first = trained(problem, ratio=0.4, seed=1)
    drawn_after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn_after
    again, other = trained(problem, ratio=0.4, seed=1), trained(problem, ratio=0.4, seed=2)
    assert (first(problem.unseen) == again(problem.unseen)).all()
    assert np.abs(first(problem.unseen) - other(problem.unseen)).max() > 1e-3


def test_a_stored_head_is_opened_as_what_it_is() -> None:
    problem = drawn()
    head = trained(problem, ratio=None)
    again = read([LinearHead, AdapterHead], head.arrays(), labels="abcde")
    assert isinstance(again, AdapterHead)
    assert (again(problem.unseen) == head(problem.unseen)).all()
    with pytest.raises(ValueError, match="down, up, gate and gate_bias have shapes"):
        read([AdapterHead], {**head.arrays(), "up": np.zeros((3, 16), dtype=np.float32)}, labels="abcde")


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "label"), ({"label": "x", "ratio": [1.5]}, "ratio"), ({"label": "x", "ratio": []}, "grid"),
     ({"label": "x", "ratio": "learnt"}, "ratio"), ({"label": "x", "adapt": "sound"}, "adapt")],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)method_options of clip_adapter:.*{said}"):
        create("clip_adapter", options)
