"""Waiting images: fair between requests by their pixels, and bounded in memory."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding import queue as decode_queue
from service.decoding.queue import HUGE_PX, SMALL_PX, FairQueue

ROOM = 10**9
MP = 10**6


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
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM, max_huge=9)
    for _ in range(256):
        queue.put("large", 50_000_000, Image("large"))
    taken = queue.take()
    assert taken is not None
    queue.put("small", 4096, Image("small"))
    assert "small" in order(queue)[:1]


def test_equal_requests_take_turns_and_none_waits_for_ever() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM, max_huge=9)
    for flow in "abc":
        for _ in range(20):
            queue.put(flow, 1_000_000, Image(flow))
    found = order(queue)
    for start in range(0, 60, 3):
        assert sorted(found[start : start + 3]) == ["a", "b", "c"]


def test_new_requests_do_not_overtake_one_that_waits_for_ever() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM, max_huge=9)
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
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM, max_huge=9)
    images = [Image(str(number)) for number in range(5)]
    for image in images:
        queue.put("a", 1, image)
    images[0].is_over = images[3].is_over = True
    assert order(queue) == ["1", "2", "4"]


def test_a_larger_image_than_the_room_is_taken_alone() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=20 * MP, max_huge=1)
    queue.put("a", 25 * MP, Image("a"))
    queue.put("b", 5 * MP, Image("b"))
    first = queue.take()
    assert first is not None
    assert first[1] == 25 * MP
    assert queue.take() is None
    queue.done(25 * MP)
    assert order(queue) == ["b"]


def test_ordinary_images_pass_huge_ones_and_small_ones_pass_all() -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=120 * MP, max_huge=1)
    for number in range(4):
        queue.put(number, 70 * MP, Image("huge"))
    taken = queue.take()
    assert taken is not None
    assert taken[0].flow == "huge"
    assert queue.take() is None  # there would be room, but not for a second huge one
    queue.put("a", HUGE_PX, Image("ordinary"))
    queue.put("b", HUGE_PX, Image("ordinary"))
    queue.put("c", SMALL_PX, Image("small"))
    found = [queue.take(), queue.take(), queue.take()]
    assert [each[0].flow for each in found if each] == ["ordinary", "small"]  # the other ordinary one waits for room
    queue.done(HUGE_PX)
    queue.done(70 * MP)
    assert [each[0].flow for each in (queue.take(), queue.take()) if each] == ["huge", "ordinary"]


def test_a_huge_image_that_waits_for_another_one_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(decode_queue.time, "monotonic", lambda: now)
    queue: FairQueue[Image] = FairQueue(max_pixels=ROOM, max_huge=1)
    for number in range(3):
        queue.put(number, 50 * MP, Image("huge"))
    assert queue.take()
    for _ in range(3):
        assert queue.take() is None
        now += 60
    queue.put("a", 20 * MP, Image("ordinary"))
    assert queue.take()


def test_smaller_images_pass_one_that_does_not_fit_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(decode_queue.time, "monotonic", lambda: now)
    queue: FairQueue[Image] = FairQueue(max_pixels=25 * MP, max_huge=1)
    queue.put("a", 15 * MP, Image("a"))
    queue.put("b", 20 * MP, Image("b"))
    for _ in range(3):
        queue.put("c", 5 * MP, Image("c"))
    taken = [queue.take(), queue.take()]
    assert [each[0].flow for each in taken if each] == ["a", "c"]
    now += 60
    assert queue.take() is None
    queue.put("d", SMALL_PX, Image("small"))
    small = queue.take()
    assert small is not None
    assert small[0].flow == "small"
    queue.done(15 * MP)
    queue.done(5 * MP)
    after = queue.take()
    assert after is not None
    assert after[0].flow == "b"


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 60)), max_size=40),
    st.lists(st.booleans(), max_size=200),
)
def test_every_image_is_taken_once_and_never_more_than_fits(images: list[tuple[str, int]], turns: list[bool]) -> None:
    queue: FairQueue[Image] = FairQueue(max_pixels=50 * MP, max_huge=1)
    waiting = list(images)
    in_work: list[int] = []
    taken = 0
    for add in [*turns, *[False] * 200]:
        if add and waiting:
            flow, pixels = waiting.pop()
            queue.put(flow, pixels * MP, Image(flow))
        elif (found := queue.take()) is not None:
            in_work.append(found[1])
            taken += 1
        elif in_work:
            queue.done(in_work.pop())
        counted = [pixels for pixels in in_work if pixels > SMALL_PX]
        assert queue.in_work_pixels == sum(counted)
        assert queue.in_work_huge == sum(pixels > HUGE_PX for pixels in in_work) <= 1
        assert sum(counted) <= 50 * MP or len(counted) == 1
    assert taken == len(images) - len(waiting)
    assert len(queue) == 0
