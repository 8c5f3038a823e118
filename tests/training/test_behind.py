"""Functions behind a frozen base: what they are given, and that freezing the base leaves them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoint import load_model
from training.losses import unit
from training.methods.parts.behind import BehindBase

pytestmark = pytest.mark.torch


def test_functions_are_given_unit_vectors_and_a_tower_without_one_is_the_bases(square_base: Path) -> None:
    base = load_model(square_base).model
    pixels = torch.randint(0, 255, (3, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 0]])
    given: list[torch.Tensor] = []

    def shifted(vectors: torch.Tensor) -> torch.Tensor:
        given.append(vectors)
        return vectors + 1

    model = BehindBase(base, image=shifted)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_image(pixels), unit(base.encode_image(pixels)) + 1)
        assert torch.equal(model.encode_text(ids), base.encode_text(ids))
    torch.testing.assert_close(given[0].norm(dim=1), torch.ones(3))


def test_freezing_leaves_what_is_trained_alone(square_base: Path) -> None:
    trained = nn.Linear(16, 16)
    model = BehindBase(load_model(square_base).model, text=trained).requires_grad_(False).eval()
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert trained.training
    assert not any(name.startswith("trained") or "behind" in name for name in model.state_dict())
