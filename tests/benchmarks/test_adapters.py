"""The study of adapters: its page says what its records say, and what it counts is counted right."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest

from benchmarks.adapters import runs
from benchmarks.adapters_judge import Answered, elsewhere, numbers, wise_ft
from benchmarks.adapters_tables import KEPT, PAGE, blocks, grouped
from benchmarks.adapters_tasks import CaptionSearch, Judging, Naming, Pictures, Question, ShownRows

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(3)
PICTURES = Pictures(
    pixels=np.zeros((40, 8, 8, 3), dtype=np.uint8), vectors=RNG.standard_normal((40, 6)).astype(np.float32)
)
LABELS = ("a", "b", "c", "d")


def some(count: int) -> ShownRows:
    return ShownRows(pictures=PICTURES, rows=np.sort(RNG.permutation(40)[:count]))


def naming() -> Naming:
    return Naming(shown=some(30), labels=LABELS, truth=RNG.integers(0, 4, 30))


def finding() -> CaptionSearch:
    relevant = np.zeros((12, 25), dtype=np.bool_)
    relevant[np.arange(12), RNG.integers(0, 25, 12)] = True
    return CaptionSearch(shown=some(25), captions=tuple("captions" * 2)[:12], relevant=relevant)


def drawn(asked: Mapping[str, Question]) -> Answered:
    shapes = {
        name: (len(each.truth), len(each.labels)) if isinstance(each, Naming) else each.relevant.shape
        for name, each in asked.items()
    }
    return Answered({name: RNG.standard_normal(shape) for name, shape in shapes.items()})


ASKED: dict[Judging, dict[str, Question]] = {
    split: {"base": naming(), "new": naming(), "other": naming(), "R@10": finding()}
    for split in ("validation", "test")  # pyright: ignore[reportAssignmentType]
}


@pytest.mark.long
def test_the_page_has_the_tables_of_the_records() -> None:
    records = json.loads(KEPT.read_text(encoding="utf-8"))
    assert set(records) <= {one.name for one in runs()}
    page = PAGE.read_text(encoding="utf-8")
    for name, text in blocks(grouped(records)).items():
        assert f"<!-- bench:{name} -->\n{text}\n<!-- /bench:{name} -->" in page, f"{name}: run --write-docs"


def test_shares_are_those_of_a_loop() -> None:
    asked = ASKED["test"]
    answered = drawn(asked)
    found = numbers(answered, asked)
    for name, question in asked.items():
        logits, right = answered.logits[name], 0
        if isinstance(question, Naming):
            right = sum(int(row.argmax() == truth) for row, truth in zip(logits, question.truth, strict=True))
        elif isinstance(question, CaptionSearch):
            for row, relevant in zip(logits, question.relevant, strict=True):
                first = sorted(range(len(row)), key=lambda at: -row[at])[:10]
                right += int(relevant[first].any())
        assert found[name]["value"] == pytest.approx(right / len(logits))
    assert elsewhere(found) == pytest.approx((found["other"]["value"] + found["R@10"]["value"]) / 2)


@pytest.mark.parametrize(("flips_at", "chosen"), [(0.1, 0.3), (0.5, 0.0)])
def test_alpha_is_the_least_of_the_best_that_lose_a_point_elsewhere_at_most(flips_at: float, chosen: float) -> None:
    """Base classes are right from `flips_at` on, everything else until one half."""

    def margins(asked: Mapping[str, Question], base: float, others: float) -> Answered:
        found = drawn(asked)
        for name, question in asked.items():
            true = question.relevant if isinstance(question, CaptionSearch) else np.eye(4)[question.truth] == 1
            found.logits[name] = np.where(true, base if name == "base" else others, 0.0)
        return found

    before = {split: margins(asked, -flips_at, 1.0) for split, asked in ASKED.items()}
    after = {split: margins(asked, 1.0 - flips_at, -1.0) for split, asked in ASKED.items()}
    found = wise_ft(
        ASKED,
        lambda alpha: {split: each.mixed(after[split], alpha) for split, each in before.items()},
        (0.0, 0.3, 0.6, 1.0),
    )
    assert found["chosen"] == chosen
    shares = {point["alpha"]: (point["test"]["base"], point["test"]["elsewhere"]) for point in found["curve"]}
    assert shares[1.0] == (1.0, 0.0)
    assert shares[0.3] == (1.0 if flips_at < 0.3 else 0.0, 1.0)
    assert found["curve"][-1]["test"]["base"] == numbers(after["test"], ASKED["test"])["base"]["value"]
