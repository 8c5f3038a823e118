"""The penalty on what neutral texts say of a group: its formula by plain loops, and its effect on a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training import method as methods
from training.losses import group_covariance, unit
from training.methods.base import BaseMethod

MakeContext = Callable[..., methods.Context]
OPTIONS = {"group": "colour", "queries": ["plain shirt"], "weight": 20.0}


def test_it_is_the_formula_spelt_out() -> None:
    rng = np.random.default_rng(0)
    scores, groups, classes = rng.normal(size=(50, 2)), rng.integers(-1, 3, size=50), rng.integers(-1, 2, size=50)
    groups[classes == 1] = 1  # a class of one group says nothing
    found: list[float] = []
    for label in range(1):
        for query in range(2):
            total = 0.0
            own = (classes == label) & (groups >= 0)
            for group in range(3):
                share = (groups[own] == group).mean()
                indicator = ((groups[own] == group) - share) / np.sqrt(share * (1 - share))
                total += np.mean((scores[own, query] - scores[own, query].mean()) * indicator) ** 2
            found.append(total)
    given = (torch.from_numpy(each) for each in (scores, groups, classes))
    assert group_covariance(*given).item() == pytest.approx(np.mean(found), rel=1e-5)


def test_gap_of_two_groups_and_nothing_to_compare() -> None:
    groups, classes = torch.tensor([0, 0, 0, 1]), torch.zeros(4, dtype=torch.int64)
    scores = torch.tensor([[1.0], [1], [1], [3]], requires_grad=True)
    assert group_covariance(scores, groups, classes).item() == pytest.approx(2 * 0.75 * 0.25 * 2**2)  # of both groups
    for none in (torch.zeros(4, dtype=torch.int64), -torch.ones(4, dtype=torch.int64)):
        loss = group_covariance(scores, none, classes)
        loss.backward()
        assert loss.item() == 0


def started(context: methods.Context, **options: Any) -> BaseMethod:
    torch.manual_seed(0)
    method = methods.create("base", options)
    assert isinstance(method, BaseMethod)
    method.setup(context)
    return method


def test_steps_take_the_group_out_of_a_neutral_text(make_context: MakeContext) -> None:
    context = make_context()
    method = started(context, decorrelation=OPTIONS)
    assert "row" in method.needs.fields
    pixels = torch.from_numpy(context.source.pixels[:48])
    rows = torch.arange(len(pixels))
    names = sorted(set(context.source.labels("colour")), key=str)
    groups = np.array([names.index(label) for label in context.source.labels("colour")[:48]])

    def gap() -> float:
        """The largest difference of the groups' mean score, by numpy."""
        query = torch.from_numpy(context.tokenizer.pad([context.tokenizer.encode("plain shirt")]))
        with torch.no_grad():
            images, text = unit(method.model.encode_image(pixels)), unit(method.model.encode_text(query))
        scores = (images @ text.T).numpy()[:, 0]
        return float(np.ptp([scores[groups == group].mean() for group in range(len(names))]))

    before = gap()
    moved = torch.optim.Adam(method.model.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(12):
        moved.zero_grad()
        assert method._decorrelation is not None  # noqa: SLF001
        loss = method._decorrelation.penalty(method.model, unit(method.model.encode_image(pixels)), rows)  # noqa: SLF001
        loss.backward()
        moved.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert gap() < 0.5 * before


def test_a_step_has_it_beside_the_contrastive_loss(make_context: MakeContext) -> None:
    context = make_context()
    batch = {
        "image": torch.from_numpy(context.source.pixels[:8]),
        "row": torch.arange(8),
        "caption_id": torch.arange(8),
    }
    batch["text"] = torch.from_numpy(context.tokenizer.pad([context.tokenizer.encode(f"text {at}") for at in range(8)]))
    with_it, without = started(context, decorrelation=OPTIONS), started(context)
    found, plain = with_it.step(batch, 0.0), without.step({k: v for k, v in batch.items() if k != "row"}, 0.0)
    assert found["info_nce"].item() == plain["info_nce"].item()
    assert set(found) == {"info_nce", "decorrelation"}
    images = unit(with_it.model.encode_image(batch["image"])).detach()
    query = torch.from_numpy(context.tokenizer.pad([context.tokenizer.encode("plain shirt")]))
    names = sorted(set(context.source.labels("colour")), key=str)
    groups = torch.tensor([names.index(label) for label in context.source.labels("colour")[:8]])
    scores = images @ unit(with_it.model.encode_text(query)).detach().T
    expected = 20 * group_covariance(scores, groups, torch.zeros(8, dtype=torch.int64))
    assert found["decorrelation"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"group": "size"}, "no label 'size'"), ({"queries": []}, "queries"), ({"weight": 0}, "weight"), ({"x": 1}, "x")],
)
def test_what_is_refused(make_context: MakeContext, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        started(make_context(), decorrelation={**OPTIONS, **options})


def test_one_group_is_no_group(make_context: MakeContext, squares: Path) -> None:
    lines = (squares.parent / "captions.csv").read_text(encoding="utf-8").splitlines()
    (squares.parent / "one.csv").write_text("\n".join([f"{lines[0]},shop", *(f"{line},here" for line in lines[1:])]))
    context = make_context("data.table=one.csv", 'data.label_columns=["shop"]')
    with pytest.raises(ValueError, match="label 'shop' of the training rows has fewer than two values"):
        started(context, decorrelation={**OPTIONS, "group": "shop"})
