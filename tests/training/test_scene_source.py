"""Drawn scenes as training data: what a batch depends on, which pairs it may name, and that its twins are false."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluation.scenes.config import all_pairs
from evaluation.scenes.meaning import is_false, is_true, judge
from evaluation.scenes.mixing import draw_with_negative
from evaluation.scenes.palette import COLOURS, SHAPES
from training.config import SceneData, ScenePart
from training.data.batches import BatchPlan
from training.data.protocol import StepBatches
from training.data.scenes import SceneRows, draw_scenes, scene_splits
from training.data.source import SceneSource

LETTERS = 300
_PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b")


def tokenize(texts: Sequence[str]) -> NDArray[np.int64]:
    """Texts as their characters: an encoding that can be read back."""
    return np.array([[ord(letter) for letter in text.ljust(LETTERS)] for text in texts], dtype=np.int64)


def read(ids: torch.Tensor) -> list[str]:
    return ["".join(chr(letter) for letter in row).rstrip() for row in ids.tolist()]


DATA = SceneData(
    kind="scenes",
    cache_px=48,
    held_out=0.25,
    parts=(
        ScenePart(scenes=60, share=3, count=(1, 1), mix={"attributes": 0.6, "negatives": 0.4}),
        ScenePart(
            scenes=90,
            share=1,
            count=(2, 2),
            differ_in=("shape", "colour"),
            decided_pair=True,
            mix={"mentions": 0.3, "relations": 0.3, "hybrids": 0.2, "counts": 0.2},
        ),
    ),
)


@pytest.fixture(scope="module")
def rows() -> SceneRows:
    return draw_scenes(DATA, seed=5)


def batches(
    rows: SceneRows,
    *,
    negatives: bool = True,
    truth: bool = False,
    neighbours: NDArray[np.int64] | None = None,
    captions: int = 1,
) -> StepBatches:
    source = SceneSource(rows, data=DATA)
    return source.batches(
        tokenize,
        BatchPlan(batch_size=24, negatives=negatives, truth=truth, neighbours=neighbours, captions=captions),
    )


def test_several_captions_are_about_one_picture(rows: SceneRows) -> None:
    batch = batches(rows, captions=4, truth=True)(2)
    assert batch["row"].unique().numel() == 6
    assert torch.equal(batch["image"], torch.from_numpy(rows.pixels[batch["row"].numpy()]))
    texts = np.array(read(batch["text"])).reshape(6, 4)
    assert np.mean([len(set(of_one)) for of_one in texts]) > 3
    blocks = batch["excused"][:, :24].view(6, 4, 6, 4)
    assert all(blocks[at, :, at].all() for at in range(6)), "a true caption of the picture counts as wrong"
    false = batch["excused"][:, 24:].view(6, 4, 6, 4)
    given = batch["has_negative"].view(6, 4)
    assert not any(false[at][:, at][:, given[at]].any() for at in range(6)), "a hard negative is excused"


def test_a_batch_holds_whole_pictures(rows: SceneRows) -> None:
    with pytest.raises(ValueError, match="a batch of 24 cannot hold 5 captions of each picture"):
        batches(rows, captions=5)


def test_a_batch_depends_on_seed_and_step_only(rows: SceneRows) -> None:
    first, again = batches(rows), batches(draw_scenes(DATA, seed=5))
    late = first(7)
    for step in (3, 0):
        first(step)  # what was asked before does not matter
    for name, tensor in again(7).items():
        assert torch.equal(tensor, late[name]), name
    assert not torch.equal(late["text"], first(8)["text"])
    other = batches(draw_scenes(DATA, seed=6))(7)
    assert read(other["text"]) != read(late["text"])


def test_the_seed_of_a_run_does_not_change_the_pictures(rows: SceneRows) -> None:
    other = draw_scenes(DATA, seed=6)
    np.testing.assert_array_equal(other.pixels, rows.pixels)
    elsewhere = draw_scenes(DATA.model_copy(update={"seed": 1}), seed=5)
    assert not np.array_equal(elsewhere.pixels, rows.pixels)
    assert elsewhere.digest() != rows.digest()


def test_held_out_pairs_are_neither_drawn_nor_named(rows: SceneRows) -> None:
    held = set(scene_splits(DATA).heldout.pairs)
    assert held | set(rows.pairs) == set(all_pairs())
    assert 0.15 < len(held) / len(all_pairs()) < 0.35
    drawn = {(thing.shape, thing.colour) for scene in rows.scenes for thing in scene.things}
    assert drawn.isdisjoint(held)
    draw = batches(rows)
    named: set[tuple[str, str]] = set()
    for step in range(40):
        batch = draw(step)
        for text in (*read(batch["text"]), *read(batch["negative_text"])):
            named |= {(shape, colour) for colour, shape in _PAIR.findall(text)}
    for text in rows.texts():
        named |= {(shape, colour) for colour, shape in _PAIR.findall(text)}
    assert len(named) > 0.8 * len(rows.pairs)  # the pattern does find names
    assert named.isdisjoint(held)


def test_a_recipe_says_which_pairs_are_held_out() -> None:
    held = [set(scene_splits(DATA.model_copy(update={"split_seed": seed})).heldout.pairs) for seed in (0, 1, 2)]
    assert held[0] == set(scene_splits(DATA).heldout.pairs), "recipes of before hold out what they always did"
    assert len({frozenset(each) for each in held}) == 3
    other = draw_scenes(DATA.model_copy(update={"split_seed": 1}), seed=5)
    assert {(thing.shape, thing.colour) for scene in other.scenes for thing in scene.things}.isdisjoint(held[1])
    assert "split_seed" not in DATA.model_dump(), "a recipe that says nothing keeps its digest"


def test_captions_are_true_and_their_twins_plainly_false(rows: SceneRows) -> None:
    with_twin = 0
    for row in range(0, len(rows.scenes), 3):
        for number in (0, 9):
            scene, mix = rows.scenes[row], rows.parts[rows.part_of[row]].mix
            drawn = rows.draw(row, number, negative=True)
            seed = (rows.seed * 2**20 + number) & (2**62 - 1)
            twins = draw_with_negative(scene, seed, pairs=rows.pairs, mix=mix)
            if twins is None:
                assert drawn.negative is None
                continue
            with_twin += 1
            assert (drawn.text, drawn.negative) == (twins.right.text, twins.wrong.text)
            assert is_true(twins.right.meaning, scene)
            assert is_false(twins.wrong.meaning, scene)
            assert drawn.negative.casefold() != drawn.text.casefold()
            assert rows.draw(row, number, negative=False).text == drawn.text
    assert with_twin > 80


def test_a_batch_holds_its_rows_pictures_and_captions(rows: SceneRows) -> None:
    picks = rows.pick(4, 24)
    batch = batches(rows)(4)
    np.testing.assert_array_equal(batch["image"].numpy(), rows.pixels[picks])
    drawn = [rows.draw(int(row), 4, negative=True) for row in picks]
    assert read(batch["text"]) == [one.text for one in drawn]
    assert read(batch["negative_text"]) == [one.negative or one.text for one in drawn]
    assert batch["has_negative"].tolist() == [one.negative is not None for one in drawn]
    ids, texts = batch["caption_id"].tolist(), [one.text for one in drawn]
    assert all((ids[a] == ids[b]) == (texts[a] == texts[b]) for a in range(24) for b in range(24))
    false = [one.negative or one.text for one in drawn]
    others = batch["negative_id"].tolist()
    assert all((ids[a] == others[b]) == (texts[a] == false[b]) for a in range(24) for b in range(24))


def test_parts_come_by_their_shares(rows: SceneRows) -> None:
    taken = [int(np.count_nonzero(rows.part_of[rows.pick(step, 24)] == 0)) for step in range(200)]
    assert np.mean(taken) / 24 == pytest.approx(0.75, abs=0.02)
    for step in range(20):
        picks = rows.pick(step, 24)
        assert len(set(picks.tolist())) == 24


def test_without_negatives_there_are_no_fields_of_them(rows: SceneRows) -> None:
    assert set(batches(rows, negatives=False)(0)) == {"image", "row", "text", "caption_id"}


def test_what_is_excused_is_what_the_oracle_does_not_call_false(rows: SceneRows) -> None:
    picks = rows.pick(4, 24)
    drawn = [rows.draw(int(row), 4, negative=True) for row in picks]
    excused = batches(rows, truth=True)(4)["excused"]
    assert excused.shape == (24, 48)
    for at, row in enumerate(picks):
        for column, one in enumerate(drawn):
            for meaning, found in (
                (one.meaning, excused[at, column]),
                (one.negative_meaning, excused[at, 24 + column]),
            ):
                if meaning is not None:
                    assert bool(found) == (judge(meaning, rows.scenes[row]) is not False)
    assert excused.diagonal().all()
    own_twins = [bool(excused[at, 24 + at]) for at in range(24) if drawn[at].negative is not None]
    assert own_twins
    assert not any(own_twins)
    assert excused[:, :24].sum() > 24 + 50  # "no red circle" is true of most pictures
    assert batches(rows, truth=True, negatives=False)(4)["excused"].shape == (24, 24)


def test_half_of_a_batch_are_neighbours_of_the_other_half(rows: SceneRows) -> None:
    neighbours = (np.arange(150)[:, None] + np.array([1, 2, 3])) % 150
    plain = rows.pick(2, 24)
    batch = batches(rows, neighbours=neighbours)(2)
    np.testing.assert_array_equal(batch["image"][:12].numpy(), rows.pixels[plain[:12]])
    steps = set()
    for at, anchor in enumerate(plain[:12]):
        near = [
            k for k in (1, 2, 3) if np.array_equal(batch["image"][12 + at].numpy(), rows.pixels[(anchor + k) % 150])
        ]
        assert near, at
        steps |= set(near)
    assert steps == {1, 2, 3}


def test_only_scenes_of_one_thing_have_labels(rows: SceneRows) -> None:
    source = SceneSource(rows, data=DATA)
    shapes, colours, pairs = (source.labels(name) for name in ("shape", "colour", "pair"))
    for scene, shape, colour, pair in zip(rows.scenes, shapes, colours, pairs, strict=True):
        if len(scene.things) == 1:
            assert (shape, colour) == (scene.things[0].shape, scene.things[0].colour)
            assert pair is not None
            assert {shape, colour} == set(pair.split())
        else:
            assert (shape, colour, pair) == (None, None, None)
    with pytest.raises(ValueError, match="no label 'texture'"):
        source.labels("texture")
