"""Who is let in and whose turn it is, on a clock that the tests turn: no model, no waiting."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import InvalidImage
from service.engine.admission import Admission, ServiceRate, Ticket
from service.faults import DeadlinePassed, ServiceOverloaded
from service.tasks.label_places import LabelTicket
from service.tasks.pipeline import gather_outcomes
from service.timing import Budget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock, **changes: float) -> Admission:
    settings = {"window": 4, "short": 2, "max_items": 100, "max_wait_s": 2.0} | changes
    return Admission("graph", clock=clock, **settings)  # type: ignore[arg-type]


async def serve(door: Admission, clock: Clock, *, items: int, each_s: float, are_slow: bool = False) -> None:
    """Let items through one after the other, each of which takes so long."""
    for _ in range(items):
        with door.admit(1, Budget(), are_slow=are_slow) as ticket:
            async with ticket.turn(Budget()):
                clock.now += each_s


def within_loop(test: Callable[[Clock], Awaitable[None]]) -> None:
    asyncio.run(test(Clock()))  # type: ignore[arg-type]


@given(each_s=st.floats(0.02, 1.0), changed_s=st.floats(0.02, 1.0))
def test_the_rate_follows_the_time_that_an_item_takes(each_s: float, changed_s: float) -> None:
    rate = ServiceRate(memory_s=5.0)
    assert rate.per_s is None
    for seconds in (each_s, changed_s):
        for _ in range(int(30 / seconds) + 1):  # six times the memory
            rate.worked(seconds)
            rate.finished()
        assert rate.per_s == pytest.approx(1 / seconds, rel=0.25)


def test_time_without_work_is_not_held_against_the_rate() -> None:
    async def test(clock: Clock) -> None:
        door = admission(clock)
        await serve(door, clock, items=20, each_s=0.1)
        before = door.rate().per_s
        clock.now += 3600
        with door.admit(1, Budget()):
            assert door.rate().per_s == before == pytest.approx(10)

    within_loop(test)


def test_a_request_is_refused_when_it_would_wait_too_long_and_told_when_to_come_again() -> None:
    async def test(clock: Clock) -> None:
        door = admission(clock)
        await serve(door, clock, items=50, each_s=0.5)  # two items a second
        tickets = [door.admit(1, Budget()) for _ in range(4)]  # 1.5 s of wait for the last, and 2 s would be too long
        assert door.still_s() is not None  # as .85 of the rate is counted on
        with pytest.raises(ServiceOverloaded, match=r"wait would be 2\.4 s.*CLIPWORKS_MAX_WAIT_S") as refused:
            door.admit(1, Budget())
        assert refused.value.retry_after_s == pytest.approx(2 / 0.85)
        tickets[0].__exit__(None, None, None)
        assert door.still_s() is None
        door.admit(1, Budget())

    within_loop(test)


def test_an_idle_server_takes_any_request_and_a_busy_one_what_the_deadline_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(clock: Clock) -> None:
        monkeypatch.setattr("service.timing.time.monotonic", clock)
        door = admission(clock, max_items=1000)
        await serve(door, clock, items=50, each_s=0.5)
        with door.admit(256, Budget.after(1)):
            pass
        with door.admit(1, Budget()):
            door.admit(50, Budget.after(30)).__exit__(None, None, None)
            with pytest.raises(ServiceOverloaded, match=r"would take 35\.3 s, its deadline leaves 30\.0 s"):
                door.admit(60, Budget.after(30))

    within_loop(test)


def test_before_anything_was_measured_only_a_few_are_let_in_and_the_cap_always_holds() -> None:
    async def test(clock: Clock) -> None:
        door = admission(clock, max_items=6)
        for items in (3, 1):  # of each kind
            with contextlib.ExitStack() as places:
                for _ in range(4 // items):
                    places.enter_context(door.admit(items, Budget()))
                with pytest.raises(ServiceOverloaded, match="not known yet"):
                    door.admit(items, Budget())
        await serve(door, clock, items=50, each_s=0.01)
        with door.admit(6, Budget()), pytest.raises(ServiceOverloaded, match="CLIPWORKS_MAX_QUEUE_ITEMS"):
            door.admit(1, Budget())
        with door.admit(200, Budget()):  # nothing else was in work
            pass

    within_loop(test)


def test_refused_and_abandoned_items_give_their_places_back() -> None:
    async def test(clock: Clock) -> None:
        door = admission(clock)
        for error in (InvalidImage("broken"), DeadlinePassed("late")):
            with door.admit(1, Budget()) as ticket, pytest.raises(type(error)):
                async with ticket.turn(Budget()):
                    raise error
        assert door.still_s() is None
        assert door.rate().per_s is None

    within_loop(test)


class Items:
    """Items of tickets that begin when it is their turn and end when they are told to."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, ticket: Ticket, *names: str, deadline: Budget | None = None) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._one(ticket, name, deadline or Budget()))
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        for _ in range(4):
            await asyncio.sleep(0)

    async def _one(self, ticket: Ticket, name: str, deadline: Budget) -> None:
        async with ticket.turn(deadline):
            self.began.append(name)
            await self._ends[name].wait()


def test_a_long_request_and_short_ones_take_turns_and_the_long_one_leaves_room() -> None:
    async def test(clock: Clock) -> None:
        door, items = admission(clock, max_items=1000, max_wait_s=100), Items()
        names = [f"long{i}" for i in range(8)]
        await items.start(door.admit(8, Budget()), *names)
        assert items.began == names[:3]  # of 4 places
        door.rate().worked(1)
        door.rate().finished()
        for i in range(4):
            await items.start(door.admit(1, Budget()), f"short{i}")
        assert items.began[3:] == ["short0"]
        await items.end("short0")
        await items.end("long0")
        await items.end("long1")
        assert items.began[4:] == ["short1", "long3", "short2"]

    within_loop(test)


def test_slow_items_say_nothing_about_how_long_others_wait() -> None:
    async def test(clock: Clock) -> None:
        door = admission(clock, window=16)
        await serve(door, clock, items=50, each_s=0.02)
        await serve(door, clock, items=20, each_s=4.0, are_slow=True)
        assert door.rate().per_s == pytest.approx(50)
        assert door.rate(is_long=True).per_s == pytest.approx(0.25, rel=0.1)
        with door.admit(1, Budget(), are_slow=True):
            with pytest.raises(ServiceOverloaded, match="wait would be"):
                door.admit(1, Budget(), are_slow=True)
            assert door.still_s() is None
            for _ in range(50):
                door.admit(1, Budget())

    within_loop(test)


def test_who_has_waited_too_long_is_refused_if_those_behind_can_still_be_answered_in_time() -> None:
    async def test(clock: Clock) -> None:
        door, items = admission(clock, window=1), Items()
        await serve(door, clock, items=50, each_s=0.01)
        for i in range(4):
            await items.start(door.admit(1, Budget()), f"{i}")
        clock.now += 3  # the machine has become slow
        await items.end("0")
        assert items.began == ["0", "1"]  # there is nobody else
        clock.now += 0.1
        await items.start(door.admit(1, Budget()), "new")
        await items.end("1")
        assert items.began == ["0", "1", "new"]
        for late in ("2", "3"):
            error = items.tasks[late].exception()
            assert isinstance(error, ServiceOverloaded)
            assert error.retry_after_s >= 1
        await items.end("new")
        assert door.waiting == 0

    within_loop(test)


def test_nobody_is_refused_for_somebody_who_is_gone() -> None:
    async def test(clock: Clock) -> None:
        door, items = admission(clock, window=1), Items()
        await serve(door, clock, items=50, each_s=0.01)
        for i in range(3):
            await items.start(door.admit(1, Budget()), f"{i}")
        clock.now += 3
        await items.start(door.admit(1, Budget()), "gone")
        items.tasks["gone"].cancel()
        await asyncio.sleep(0)
        await items.end("0")
        await items.end("1")
        assert items.began == ["0", "1", "2"]

    within_loop(test)


def test_a_request_is_late_as_a_whole() -> None:
    async def test(clock: Clock) -> None:
        door, items = admission(clock, window=1), Items()
        await serve(door, clock, items=50, each_s=0.01)
        await items.start(door.admit(1, Budget()), "0")
        ticket = door.admit(2, Budget())
        await items.start(ticket, "a0")
        clock.now += 1
        await items.start(ticket, "a1")  # its second item asks later
        clock.now += 2
        await items.start(door.admit(1, Budget()), "new")
        await items.end("0")
        assert items.began == ["0", "new"]
        assert all(isinstance(items.tasks[each].exception(), ServiceOverloaded) for each in ("a0", "a1"))

    within_loop(test)


def test_places_of_label_texts_are_handed_on_also_by_texts_that_fail() -> None:
    async def test(clock: Clock) -> None:
        door = admission(clock, window=4, max_items=2)
        await serve(door, clock, items=50, each_s=0.01)
        ticket = door.admit(2, Budget())  # as admit_labels takes them
        with LabelTicket(door, 2, more=4, is_long=ticket.is_long) as labels:
            for _ in range(4):
                with contextlib.suppress(InvalidImage):
                    async with labels.turn(Budget()):
                        clock.now += 0.01
                        raise InvalidImage("of this item alone")
                with pytest.raises(ServiceOverloaded):
                    door.admit(1, Budget())  # both places are taken as long as there are more
        door.admit(1, Budget())
        assert door.expected_wait_s() == pytest.approx(0.01, rel=0.5)

    within_loop(test)


def test_a_request_of_which_no_item_had_its_turn_is_overloaded_as_a_whole() -> None:
    async def item(error: Exception) -> None:
        raise error

    async def test(clock: Clock) -> None:
        late = ServiceOverloaded("late")
        with pytest.raises(ServiceOverloaded):
            await gather_outcomes([item(late), item(ServiceOverloaded("late too"))], Budget())
        broken = InvalidImage("broken")
        assert await gather_outcomes([item(broken), item(late)], Budget()) == [broken, late]

    within_loop(test)


@pytest.mark.parametrize("others", [0, 2])
def test_one_item_ends_as_it_would_among_others(others: int) -> None:
    async def item(result: object, seconds: float = 0.0) -> object:
        await asyncio.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        return result

    async def outcomes(result: object, seconds: float = 0.0) -> list[object]:
        company = [item(result, seconds) for _ in range(others)]
        found = await gather_outcomes([item(result, seconds), *company], Budget.after(0.1))
        assert len(found) == 1 + others
        return found[:1]

    async def test(clock: Clock) -> None:
        broken = InvalidImage("broken")
        assert await outcomes(7) == [7]
        assert await outcomes(broken) == [broken]
        for result, seconds, expected in (
            (7, 5.0, DeadlinePassed),
            (DeadlinePassed("late"), 0.0, DeadlinePassed),
            (ServiceOverloaded("full"), 0.0, ServiceOverloaded),
            (ZeroDivisionError(), 0.0, ZeroDivisionError),
            (TimeoutError("of its own"), 0.0, TimeoutError),
        ):
            with pytest.raises(expected):
                await outcomes(result, seconds)

    within_loop(test)


def test_a_request_that_has_begun_is_served_whole() -> None:
    async def test(clock: Clock) -> None:
        door, items = admission(clock, window=1), Items()
        await serve(door, clock, items=50, each_s=0.01)
        await items.start(door.admit(2, Budget()), "a0", "a1")
        clock.now += 3
        await items.start(door.admit(1, Budget()), "new")
        await items.end("a0")
        assert items.began == ["a0", "a1"]

    within_loop(test)


def test_who_gave_up_waiting_is_passed_over_and_leaves_no_place_taken() -> None:
    async def test(clock: Clock) -> None:
        door, items = admission(clock, window=1), Items()
        await serve(door, clock, items=50, each_s=0.01)
        tickets = [door.admit(1, Budget()) for _ in range(4)]
        for i, ticket in enumerate(tickets):
            late = Budget.after(-1) if i == 2 else Budget()
            await items.start(ticket, f"{i}", deadline=late)
        items.tasks["1"].cancel()
        await items.end("0")
        assert items.began == ["0", "3"]  # 1 is gone, and the deadline of 2 has passed
        assert isinstance(items.tasks["2"].exception(), DeadlinePassed)
        await items.end("3")
        for ticket in tickets:
            ticket.__exit__(None, None, None)
        assert (door.waiting, door.still_s()) == (0, None)
        assert door.expected_wait_s() == 0
        await items.start(door.admit(1, Budget()), "5")
        assert items.began[-1] == "5"
        await items.end("5")

    within_loop(test)


def test_broken_items_neither_raise_nor_lower_the_rate() -> None:
    async def test(clock: Clock) -> None:
        door = admission(clock)
        await serve(door, clock, items=20, each_s=0.2)
        before = door.rate().per_s
        assert before == pytest.approx(5, rel=0.05)
        for _ in range(200):
            with contextlib.suppress(InvalidImage), door.admit(1, Budget()) as ticket:
                async with ticket.turn(Budget()):
                    clock.now += 0.005
                    raise InvalidImage("broken")
        assert door.rate().per_s == pytest.approx(before, rel=0.05)

    within_loop(test)
