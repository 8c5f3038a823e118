"""Examples: their bytes, and adding and taking away against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import ClipworksError, InvalidImage
from service.teaching.examples import ExampleTaken, ExampleVectors, NewExample, UnreadableExamples, picture_id

DIM = 3
IDS = st.sampled_from("abcdef")
LABELS = st.sampled_from(["x", "y", "été"])


def vector(id: str) -> np.ndarray:
    return np.full(DIM, ord(id), dtype=np.float32)


@given(st.lists(st.lists(st.tuples(IDS, LABELS, st.booleans()), max_size=6), max_size=5))
def test_adding_is_a_dictionary_that_keeps_what_it_has(batches: list[list[tuple[str, str, bool]]]) -> None:
    kept: dict[str, str] = {}
    examples = ExampleVectors.none(DIM)
    for batch in batches:
        new = [NewExample(label, id, InvalidImage("no") if bad else vector(id)) for id, label, bad in batch]
        examples, outcomes = examples.with_new(new)
        for (id, label, bad), outcome in zip(batch, outcomes, strict=True):
            if bad:
                assert isinstance(outcome, InvalidImage)
            elif kept.setdefault(id, label) != label:
                assert isinstance(outcome, ExampleTaken)
            else:
                assert outcome == id
    assert dict(zip(examples.ids, examples.labels, strict=True)) == kept
    assert len(examples) == len(kept)
    np.testing.assert_array_equal(examples.vectors, np.array([vector(id) for id in kept]).reshape(-1, DIM))
    again = ExampleVectors.of_bytes(examples.to_bytes())
    assert (again.ids, again.labels, again.digest) == (examples.ids, examples.labels, examples.digest)
    for gone in ("a", "x"):
        left = examples.without(ids={gone}, labels={gone})
        assert list(left.ids) == [id for id, label in kept.items() if gone not in (id, label)]
        np.testing.assert_array_equal(left.vectors, np.array([vector(id) for id in left.ids]).reshape(-1, DIM))


@given(st.data())
def test_other_bytes_are_refused_and_never_crash(data: st.DataObject) -> None:
    examples, _ = ExampleVectors.none(DIM).with_new([NewExample("x", id, vector(id)) for id in "abc"])
    whole = bytearray(examples.to_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = ExampleVectors.of_bytes(bytes(whole))
    except UnreadableExamples:
        return
    assert len(found.ids) == len(found.labels) == len(found.vectors)
    assert found.vectors.dtype == np.float32


@given(st.binary(max_size=200))
def test_any_bytes_behind_the_head(data: bytes) -> None:
    with pytest.raises(UnreadableExamples):
        ExampleVectors.of_bytes(b"clipworks examples 1\n" + data)


def test_a_picture_is_its_bytes() -> None:
    assert picture_id(b"a") != picture_id(b"b")
    assert picture_id(b"a") == picture_id(b"a")
    assert issubclass(ExampleTaken, ClipworksError)
