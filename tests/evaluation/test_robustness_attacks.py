"""Attacks in their ball: linear classifiers have known worst pictures, and no attack ends at a loss that is less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.robustness.apgd import apgd
from evaluation.robustness.bounds import Ball, moved
from evaluation.robustness.classifier import F32, F64, I64, U8, Pull, VectorClassifier
from evaluation.robustness.losses import Loss, cross_entropy, margins, strongest_others, targeted_dlr
from evaluation.robustness.square import share_at, square
from evaluation.robustness.standard_attack import Attacked, AttackPlan, attacked

CLASSES, SIDE = 5, 6


@dataclass(frozen=True)
class Linear:
    """Logits = pixels @ weight + bias."""

    weight: F64
    bias: F64

    def logits(self, pixels: F32) -> F64:
        return pixels.reshape(len(pixels), -1).astype(np.float64) @ self.weight + self.bias

    def pulled(self, pixels: F32) -> tuple[F64, Pull]:
        def back(weights: NDArray[np.floating]) -> F32:
            return (weights @ self.weight.T).reshape(pixels.shape).astype(np.float32)

        return self.logits(pixels), back

    def survives(self, clean: U8, truth: I64, epsilon: float) -> NDArray[np.bool_]:
        """By arithmetic: whether no picture of the ball is misnamed."""
        flat = clean.reshape(len(clean), -1).astype(np.float64)
        up, down = np.minimum(255 - flat, epsilon), np.minimum(flat, epsilon)
        out = np.ones(len(truth), dtype=np.bool_)
        for row, true in enumerate(truth):
            for other in set(range(self.weight.shape[1])) - {int(true)}:
                apart = self.weight[:, true] - self.weight[:, other]
                clean_margin = flat[row] @ apart + self.bias[true] - self.bias[other]
                worst = clean_margin - np.where(apart > 0, down[row] * apart, -up[row] * apart).sum()
                out[row] &= worst > 0
        return out


@dataclass(frozen=True)
class Asked:
    """What answers and gives no gradient."""

    inner: Linear

    def logits(self, pixels: F32) -> F64:
        assert (pixels == np.rint(pixels)).all()
        return self.inner.logits(pixels)


@pytest.fixture(scope="module")
def case() -> tuple[Linear, U8, I64]:
    """Forty pictures, some of them near 0 and 255, named rightly by more or less."""
    rng = np.random.default_rng(1)
    model = Linear(rng.standard_normal((SIDE * SIDE * 3, CLASSES)) / 100, np.zeros(CLASSES))
    pixels = rng.integers(0, 256, (40, SIDE, SIDE, 3)).astype(np.uint8)
    return model, pixels, model.logits(pixels.astype(np.float32)).argmax(axis=1)


@pytest.fixture(scope="module")
def found(case: tuple[Linear, U8, I64]) -> list[Attacked]:
    model, pixels, truth = case
    return attacked(model, pixels, truth, epsilons=(1, 2.5, 6), plan=AttackPlan(steps=30, targets=4, queries=50))


def test_what_survives_is_what_arithmetic_says(case: tuple[Linear, U8, I64], found: list[Attacked]) -> None:
    model, pixels, truth = case
    for each in found:
        wanted = model.survives(pixels, truth, each.epsilon)
        assert 0 < wanted.sum() < len(truth)
        assert np.array_equal(each.named_as_floats, wanted), each.epsilon
        # Whole levels reach as far where the radius is whole; else they have a smaller ball.
        assert np.array_equal(each.named, model.survives(pixels, truth, np.floor(each.epsilon))), each.epsilon
    assert all((later.named <= sooner.named).all() for sooner, later in zip(found, found[1:], strict=False))
    assert {part for each in found for part in each.by} >= {"apgd-ce", ""}


def test_no_pixel_moves_further_than_epsilon_and_the_misled_are_misled(
    case: tuple[Linear, U8, I64], found: list[Attacked]
) -> None:
    model, pixels, truth = case
    for each in found:
        far = moved(pixels, each.pictures)
        assert far.largest.max() == np.floor(each.epsilon)
        assert np.array_equal(far.largest > 0, ~each.named)  # what is still named was left as it is
        assert np.array_equal(margins(model.logits(each.pictures.astype(np.float32)), truth) > 0, each.named)


def test_moved_counts_values_one_by_one() -> None:
    clean = np.full((2, 3, 3, 3), 10, dtype=np.uint8)
    pictures = clean.copy()
    pictures[1, 0, 0] = (9, 10, 14)
    far = moved(clean, pictures)
    assert far.largest.tolist() == [0, 4]
    assert far.share.tolist() == [0, 2 / 27]


@pytest.mark.parametrize("epsilon", [0.4, 1, 2.7, 300])
def test_a_ball_ends_at_its_edge_and_at_black_and_white(epsilon: float) -> None:
    rng = np.random.default_rng(0)
    clean = rng.choice([0, 1, 128, 254, 255], (3, 4, 4, 3)).astype(np.uint8)
    ball, far = Ball(clean, epsilon), rng.uniform(-600, 600, clean.shape).astype(np.float32)
    inside, shown = ball.inside(far), ball.picture(far)
    assert np.abs(inside - clean.astype(float)).max() <= epsilon + 1e-4
    assert inside.min() >= 0
    assert inside.max() <= 255
    assert moved(clean, shown).largest.max() <= epsilon
    assert np.abs(shown - inside).max() <= max(1, epsilon - np.floor(epsilon))


@pytest.mark.parametrize("loss", ["cross_entropy", "targeted"])
def test_apgd_never_ends_below_where_it_began(case: tuple[Linear, U8, I64], loss: str) -> None:
    model, pixels, truth = case
    target = strongest_others(model.logits(pixels.astype(np.float32)), truth, 1)[:, 0]

    def of(rows: NDArray[np.intp]) -> Loss:
        return cross_entropy(truth[rows]) if loss == "cross_entropy" else targeted_dlr(truth[rows], target[rows])

    tried = apgd(model, Ball(pixels, 2), truth, of, steps=10, seed=0)
    assert (tried.best_loss >= tried.first_loss).all()
    assert (tried.best_loss > tried.first_loss).mean() > 0.5
    again = apgd(model, Ball(pixels, 2), truth, of, steps=10, seed=0)
    assert np.array_equal(tried.floats, again.floats)
    assert np.array_equal(tried.pictures, again.pictures)
    missed = margins(model.logits(tried.floats), truth) <= 0
    assert (missed >= tried.floats_fool).all()


@dataclass(frozen=True)
class Wavy:
    """Two logits, one of them up and down along the way that the gradient shows."""

    weight: F64

    def logits(self, pixels: F32) -> F64:
        return self.pulled(pixels)[0]

    def pulled(self, pixels: F32) -> tuple[F64, Pull]:
        inner = pixels.reshape(len(pixels), -1) @ self.weight
        logits = np.stack([np.full(len(pixels), 2.0), np.sin(inner)], axis=1)
        return (
            logits,
            lambda weights: (
                ((weights[:, 1] * np.cos(inner))[:, None] * self.weight).reshape(pixels.shape).astype(np.float32)
            ),
        )


def test_steps_that_overshoot_are_not_what_is_kept() -> None:
    rng = np.random.default_rng(0)
    model = Wavy(rng.standard_normal(SIDE * SIDE * 3) / 20)
    pixels, truth = rng.integers(20, 230, (12, SIDE, SIDE, 3)).astype(np.uint8), np.zeros(12, dtype=np.int64)
    tried = apgd(model, Ball(pixels, 3), truth, lambda at: cross_entropy(truth[at]), steps=25, seed=0)
    assert not tried.floats_fool.any()  # 2 is above every sine
    value, _ = cross_entropy(truth)(model.logits(tried.floats))
    np.testing.assert_allclose(value, tried.best_loss, rtol=1e-6)
    assert (tried.best_loss >= tried.first_loss).all()
    top, _ = cross_entropy(truth)(np.array([[2.0, 1.0]] * 12))
    assert (tried.best_loss > 0.999 * top).mean() > 0.5  # crests, which fixed steps pass by


def test_targets_are_reached_that_the_cross_entropy_leads_away_from() -> None:
    """One class is near and out of reach, another one is further and within it, on the other side."""
    count = SIDE * SIDE * 3
    weight = np.zeros((count, 4))
    weight[:, 1], weight[:, 2] = 8 / count, -12 / count
    pixels, truth = np.full((40, SIDE, SIDE, 3), 128, dtype=np.uint8), np.zeros(40, dtype=np.int64)
    middle = 128 * weight.sum(axis=0)
    model = Linear(weight, np.array([0.0, -10, -11, -40]) - middle)
    assert not model.survives(pixels, truth, 1).any()
    left = [
        attacked(model, pixels, truth, epsilons=[1], plan=AttackPlan(steps=10, targets=targets, queries=0))[0]
        for targets in (0, 2)
    ]
    assert left[0].named.mean() > 0.5
    assert not left[1].named.any()
    assert "apgd-t" in left[1].by


def test_square_asks_for_whole_levels_and_never_misleads_what_cannot_be(case: tuple[Linear, U8, I64]) -> None:
    model, pixels, truth = case
    (found,) = attacked(Asked(model), pixels, truth, epsilons=[4], plan=AttackPlan(queries=150))
    assert (found.named >= model.survives(pixels, truth, 4)).all()
    assert np.array_equal(found.named, found.named_as_floats)
    assert 0 < found.named.sum() < len(truth)
    assert set(found.by) == {"square", ""}
    tried = square(model, Ball(pixels, 4), truth, queries=150, seed=0)
    assert (tried.best_loss >= tried.first_loss).all()
    steps = np.abs(tried.pictures.astype(int) - pixels)
    assert steps.max() == 4
    assert set(np.unique(steps[(pixels > 4) & (pixels < 251)])) <= {0, 4}  # corners of the ball
    shares = [share_at(query, 10_000) for query in (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert shares == [0.8 / 2**at for at in range(10)]


@pytest.mark.parametrize("classes", [3, 6])
def test_derivatives_of_the_losses(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, truth = rng.standard_normal((7, classes)), rng.integers(classes, size=7)
    target = (truth + 1) % classes
    for loss in (cross_entropy(truth), targeted_dlr(truth, target)):
        value, slopes = loss(logits)
        for row in range(7):
            for column in range(classes):
                step = np.zeros_like(logits)
                step[row, column] = 1e-6
                slope = (loss(logits + step)[0] - loss(logits - step)[0])[row] / 2e-6
                assert slope == pytest.approx(slopes[row, column], abs=1e-6)
        assert value.shape == (7,)
    # Of a sure answer the slope is small and not lost; and the ratio does not know the scale of the logits.
    sure = cross_entropy(np.array([0]))(np.array([[100.0, 0.0, 0.0]]))[1]
    assert sure[0, 0] == -2 * sure[0, 1] < 0
    if classes > 3:
        ratio = targeted_dlr(truth, target)
        np.testing.assert_allclose(ratio(30 * logits)[0], ratio(logits)[0])


class Squared:
    """Vectors [N, 4] = (pixels @ weight)^2, un-normalised."""

    def __init__(self) -> None:
        self.weight = np.random.default_rng(0).standard_normal((SIDE * SIDE * 3, 4)) / 50

    def pulled_vectors(self, pixels: F32) -> tuple[F32, Pull]:
        inner = pixels.reshape(len(pixels), -1) @ self.weight
        return (inner**2).astype(
            np.float32
        ), lambda weights: (2 * inner * weights @ self.weight.T).reshape(pixels.shape).astype(np.float32)


def test_cosines_are_pulled_back_through_the_norm() -> None:
    rng = np.random.default_rng(0)
    classes = rng.standard_normal((3, 4))
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    model = VectorClassifier(encoder=Squared(), classes=classes.astype(np.float32), scale=10)
    pixels, weights = rng.uniform(0, 255, (2, SIDE, SIDE, 3)).astype(np.float32), rng.standard_normal((2, 3))
    _, pull = model.pulled(pixels)
    slopes = pull(weights)
    for place in ((0, 0, 0, 0), (1, 3, 2, 1), (1, 5, 5, 2)):
        step = np.zeros_like(pixels)
        step[place] = 0.5
        change = (model.logits(pixels + step) - model.logits(pixels - step)) * weights
        assert change.sum() == pytest.approx(slopes[place], rel=0.02, abs=1e-4)


@pytest.mark.parametrize(
    ("epsilons", "plan", "said"),
    [
        ([], {}, "at least one"),
        ([2, 1], {}, "ascending"),
        ([0.0, 1], {}, "more than 0"),
        ([1], {"steps": 0}, "at least one step"),
        ([1], {"queries": -1}, "nothing below 0"),
    ],
)
def test_what_cannot_be_asked(
    case: tuple[Linear, U8, I64], epsilons: list[float], plan: dict[str, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        attacked(*case, epsilons=epsilons, plan=AttackPlan(**plan))
