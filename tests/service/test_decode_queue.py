"""Waiting images: fair between requests by their pixels, and bounded in memory."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import decode_queue
from service.decode_queue import FairQueue

ROOM = 10**9


@dataclass(eq=False)
class Image:
    flow: str
    is_over: bool = False


def order(queue: FairQueue[Image]) -> list[str]:
    """Flows of all images, taken one after the other."""
    found: list[str] = []
    while (taken := queue.take()) is not None:
        found.append(taken[0].flow)
        queue.done(taken[1])
    return found


def test_one_small_image_is_not_behind_all_large_ones_of_another_request() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM)
    for _ in range(256):
        queue.put("large", 50_000_000, Image("large"))
    taken = queue.take()
    assert taken is not None
    queue.put("small", 4096, Image("small"))
    assert "small" in order(queue)[:1]


def test_equal_requests_take_turns_and_none_waits_for_ever() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM)
    for flow in "abc":
        for _ in range(20):
            queue.put(flow, 1_000_000, Image(flow))
    found = order(queue)
    for start in range(0, 60, 3):
        assert sorted(found[start : start + 3]) == ["a", "b", "c"]


def test_new_requests_do_not_overtake_one_that_waits_for_ever() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM)
    for _ in range(3):
        queue.put("old", 10_000_000, Image("old"))
    found: list[str] = []
    for number in range(200):
        queue.put(number, 1_000_000, Image("new"))
        taken = queue.take()
        assert taken is not None
        queue.done(taken[1])
        found.append(taken[0].flow)
    assert found.count("old") == 3


def test_what_is_over_is_dropped() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM)
    images = [Image(str(number)) for number in range(5)]
    for image in images:
        queue.put("a", 1, image)
    images[0].is_over = images[3].is_over = True
    assert order(queue) == ["1", "2", "4"]


def test_a_larger_image_than_the_room_is_taken_alone() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=100)
    queue.put("a", 500, Image("a"))
    queue.put("b", 5, Image("b"))
    first = queue.take()
    assert first is not None
    assert first[1] == 500
    assert queue.take() is None
    queue.done(500)
    assert order(queue) == ["b"]


def test_smaller_images_pass_one_that_does_not_fit_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(decode_queue.time, "monotonic", lambda: now)
    queue: FairQueue[Image] = FairQueue(max_pixels=100)
    queue.put("a", 60, Image("a"))
    queue.put("b", 90, Image("b"))
    for _ in range(3):
        queue.put("c", 10, Image("c"))
    taken = [queue.take(), queue.take()]
    assert [each[0].flow for each in taken if each] == ["a", "c"]
    now += 60
    assert queue.take() is None
    queue.done(60)
    assert queue.take() is not None


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 60)), max_size=40),
    st.lists(st.booleans(), max_size=200),
)
def test_every_image_is_taken_once_and_never_more_than_fits(images: list[tuple[str, int]], turns: list[bool]) -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=50)
    waiting = list(images)
    in_work: list[int] = []
    taken = 0
    for add in [*turns, *[False] * 200]:
        if add and waiting:
            flow, pixels = waiting.pop()
            queue.put(flow, pixels, Image(flow))
        elif (found := queue.take()) is not None:
            in_work.append(found[1])
            taken += 1
        elif in_work:
            queue.done(in_work.pop())
        assert queue.in_work_pixels == sum(in_work)
        assert sum(in_work) <= 50 or len(in_work) == 1
    assert taken == len(images) - len(waiting)
    assert len(queue) == 0
