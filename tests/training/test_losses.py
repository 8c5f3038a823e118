"""Losses against hand numbers and against open_clip's own."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional

from training.losses import info_nce, positive_pairs, sigmoid_loss

SCALE, BIAS = torch.tensor(7.0), torch.tensor(-3.0)


def unit(*shape: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return unit(6, 5, seed=0), unit(6, 5, seed=1)


def test_positive_pairs_joins_equal_ids() -> None:
    assert positive_pairs(torch.tensor([4, 9, 4])).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_info_nce_by_hand() -> None:
    # Orthogonal pairs, scale 1: every row is softmax over (1, 0), so the loss is ln(1 + 1/e).
    eye = torch.eye(2)
    assert info_nce(eye, eye, torch.tensor(1.0)).item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_info_nce_of_two_equal_captions_by_hand() -> None:
    # Rows 0 and 1 share a caption and a vector; row 2 is alone. Logits of row 0 are (1, 1, 0), target (1/2, 1/2, 0).
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    shared = math.log(2 * math.e + 1) - 1
    alone = math.log(math.e + 2) - 1
    loss = info_nce(rows, rows, torch.tensor(1.0), positive_pairs(torch.tensor([0, 0, 1])))
    assert loss.item() == pytest.approx((2 * shared + alone) / 3)


def test_info_nce_equals_open_clip(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, text = pair
    expected = ClipLoss()(image, text, SCALE)
    torch.testing.assert_close(info_nce(image, text, SCALE), expected)
    torch.testing.assert_close(info_nce(image, text, SCALE, torch.eye(6, dtype=torch.bool)), expected)


def test_sigmoid_by_hand() -> None:
    eye = torch.eye(2)
    # Two positives of logit 1, two negatives of logit 0, divided by the batch of 2.
    expected = (2 * math.log(1 + math.exp(-1)) + 2 * math.log(2)) / 2
    assert sigmoid_loss(eye, eye, torch.tensor(1.0), torch.tensor(0.0)).item() == pytest.approx(expected)


def test_sigmoid_equals_open_clip(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, text = pair
    torch.testing.assert_close(
        sigmoid_loss(image, text, SCALE, BIAS), SigLipLoss()(image, text, SCALE, logit_bias=BIAS)
    )


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_loss_does_not_depend_on_the_order_of_rows(pair: tuple[torch.Tensor, torch.Tensor], loss: str) -> None:
    ids, order = torch.tensor([0, 1, 1, 2, 0, 3]), torch.tensor([3, 0, 5, 1, 4, 2])

    def value(order: torch.Tensor) -> torch.Tensor:
        image, text, positives = pair[0][order], pair[1][order], positive_pairs(ids[order])
        if loss == "info_nce":
            return info_nce(image, text, SCALE, positives)
        return sigmoid_loss(image, text, SCALE, BIAS, positives)

    torch.testing.assert_close(value(order), value(torch.arange(6)))


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_an_equal_caption_is_not_pushed_away(loss: str) -> None:
    """The gradient that separates two rows of one caption is there without positives and gone with them."""
    image = unit(4, 3, seed=2)
    ids = torch.tensor([0, 0, 1, 2])

    def pull(positives: torch.Tensor | None) -> torch.Tensor:
        text = unit(4, 3, seed=3).requires_grad_()
        if loss == "info_nce":
            value = info_nce(image, text, SCALE, positives)
        else:
            value = sigmoid_loss(image, text, SCALE, BIAS, positives)
        (gradient,) = torch.autograd.grad(value, text)
        return (gradient[0] * image[1]).sum()

    # More negative: text 0 moves further towards image 1, which carries the same caption.
    assert pull(positive_pairs(ids)) < pull(None)
