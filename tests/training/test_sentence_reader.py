"""The reader of meanings: its code says what the oracle says, and pictures that hold a pair teach it that pair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.scenes.meaning import And, Enumeration, Not, Place, What, is_true
from training import method as methods
from training.config import SceneData, ScenePart
from training.data.batches import BatchPlan
from training.data.meaning_code import MeaningCode, affirmed_and_denied
from training.data.scenes import SceneRows, draw_scenes
from training.data.source import SceneSource
from training.methods.parts.sentence_reader import fit_reader

CIRCLE, SQUARE = What(shape="circle", colour="red"), What(shape="square", colour="blue")
DATA = SceneData(
    kind="scenes",
    cache_px=48,
    parts=(
        ScenePart(
            scenes=600,
            share=1,
            count=(2, 2),
            differ_in=("shape", "colour"),
            words="varied",
            mix={"mentions": 0.35, "negatives": 0.3, "hybrids": 0.35},
        ),
    ),
)


@pytest.fixture(scope="module")
def rows() -> SceneRows:
    return draw_scenes(DATA, seed=1)


def test_a_code_says_what_is_affirmed_and_what_is_denied() -> None:
    code = MeaningCode((("circle", "red"), ("square", "blue")))
    things = code.things
    assert things == (
        ("circle", "red"),
        ("square", "blue"),
        ("circle", None),
        ("square", None),
        (None, "red"),
        (None, "blue"),
    )
    meanings = [
        Enumeration((CIRCLE, SQUARE)),
        Not(Enumeration((What(shape="circle"),))),
        And((Enumeration((SQUARE,)), Not(Enumeration((CIRCLE,))))),
        Place(CIRCLE, "left"),
        Enumeration((What(shape="star", colour="red"),)),
        Enumeration((What(shape="circle", colour="red", texture="striped"),)),
        Not(Enumeration((CIRCLE, SQUARE))),
        None,
    ]
    codes, known = code.of(meanings)
    assert codes.shape == (8, code.size) == (8, 15)
    assert known.tolist() == [True, True, True, False, False, False, False, False]
    assert not codes[3:].any()
    affirmed, denied, kind = codes[:, :6], codes[:, 6:12], codes[:, 12:]
    assert affirmed[:3].tolist() == [[1, 1, 0, 0, 0, 0], [0] * 6, [0, 1, 0, 0, 0, 0]]
    assert denied[:3].tolist() == [[0] * 6, [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert kind[:3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_codes_of_drawn_captions_are_the_oracle(rows: SceneRows) -> None:
    """A caption is true of a scene exactly where all that is affirmed is there, and all that is denied is not."""
    checked = 0
    for row in range(100):
        drawn = rows.draw(row, 3, negative=True)
        shown = {(thing.shape, thing.colour) for thing in rows.scenes[row].things}
        for meaning in (drawn.meaning, drawn.negative_meaning):
            if meaning is None or (said := affirmed_and_denied(meaning)) is None:
                continue
            there = [(what.shape, what.colour) in shown for what in said[0]]
            absent = [(what.shape, what.colour) not in shown for what in said[1]]
            assert is_true(meaning, rows.scenes[row]) == all([*there, *absent])
            checked += 1
    assert checked > 150


@pytest.mark.long
def test_a_reader_finds_the_true_caption_of_pictures_it_never_saw(rows: SceneRows) -> None:
    rng = np.random.default_rng(0)
    pair_of = {pair: at for at, pair in enumerate(rows.pairs)}
    shown = np.zeros((len(rows.scenes), len(rows.pairs)), dtype=np.float32)
    for row, scene in enumerate(rows.scenes):
        shown[row, [pair_of[thing.shape, thing.colour] for thing in scene.things]] = 1
    vectors = shown @ rng.normal(size=(len(rows.pairs), 64)).astype(np.float32) + 2.0
    pictures = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1)
    captions = SceneSource(rows, data=DATA).captions(3, negatives=True)
    before = pictures.clone()
    reader = fit_reader(pictures, [each for each in captions if each[0] < 500], rows.code, seed=0, steps=600)
    assert torch.equal(pictures, before)
    assert not any(parameter.requires_grad for parameter in reader.parameters())

    def share_right(read: Callable[[torch.Tensor], torch.Tensor]) -> float:
        right: list[bool] = []
        for row, drawn in captions:
            codes, known = rows.code.of([drawn.meaning, drawn.negative_meaning])
            if row >= 500 and known.all():
                texts = torch.nn.functional.normalize(read(torch.from_numpy(codes)), dim=-1)
                true, false = (texts @ pictures[row]).tolist()
                right.append(true > false)
        assert len(right) > 200
        return float(np.mean(right))

    torch.manual_seed(0)
    assert share_right(reader) > 0.9
    assert share_right(torch.nn.Linear(rows.code.size, 64)) < 0.7
    again = fit_reader(pictures, [each for each in captions if each[0] < 500], rows.code, seed=0, steps=600)
    assert torch.equal(reader.weight, again.weight)


def test_it_needs_false_twins(rows: SceneRows) -> None:
    captions = SceneSource(rows, data=DATA).captions(1, negatives=False)
    with pytest.raises(ValueError, match="captions with hard negatives"):
        fit_reader(torch.eye(len(rows.scenes)), captions, rows.code, seed=0)


def test_batches_carry_codes_of_captions_and_twins(rows: SceneRows) -> None:
    source = SceneSource(rows, data=DATA)
    batch = source.batches(
        lambda texts: np.zeros((len(texts), 4), dtype=np.int64),
        BatchPlan(batch_size=16, negatives=True, codes=True),
    )(0)
    picks = rows.pick(0, 16)
    assert torch.equal(batch["row"], torch.from_numpy(picks))
    drawn = [rows.draw(int(row), 0, negative=True) for row in picks]
    for field, meanings in (
        ("meaning_code", [one.meaning for one in drawn]),
        ("negative_code", [one.negative_meaning or one.meaning for one in drawn]),
    ):
        assert torch.equal(batch[field], torch.from_numpy(rows.code.of(meanings)[0]))
    assert not torch.equal(batch["meaning_code"], batch["negative_code"])


def test_a_table_knows_no_meanings(make_context: Callable[..., Any], square_base: Path) -> None:
    with pytest.raises(ValueError, match="reader_weight needs cached_pictures"):
        methods.create("negation", {"reader_weight": 1})
    method = methods.create("negation", {"reader_weight": 1, "cached_pictures": True})
    with pytest.raises(ValueError, match="a table does not"):
        method.setup(make_context(base=square_base))
