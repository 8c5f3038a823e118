"""Turns: first come, first served, but nobody has them all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.fair_turns import FairTurns
from service.faults import ServiceOverloaded


class Calls:
    """Calls that hold their turn until they are told to end."""

    def __init__(self, turns: FairTurns) -> None:
        self.running: list[str] = []
        self._turns = turns
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self, name: str, keys: Sequence[str]) -> None:
        self._ends[name] = asyncio.Event()

        async def call() -> None:
            async with self._turns.turn(keys):
                self.running.append(name)
                try:
                    await self._ends[name].wait()
                finally:
                    self.running.remove(name)

        self._tasks[name] = asyncio.create_task(call())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self, name: str, *, cancel: bool = False) -> None:
        if cancel:
            self._tasks[name].cancel()
        self._ends[name].set()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await asyncio.sleep(0)

    def error(self, name: str) -> BaseException | None:
        return self._tasks[name].exception()


def test_one_caller_or_collection_never_has_all_turns() -> None:
    async def life() -> None:
        calls = Calls(FairTurns(2, each=1, max_waiting=2))
        await calls.start("a1", ["caller a", "photos"])
        await calls.start("a2", ["caller a", "shoes"])
        await calls.start("b1", ["caller b", "photos"])
        assert calls.running == ["a1"]  # the second is of the same caller, the third of the same collection
        await calls.start("b2", ["caller b", "shoes"])
        assert calls.running == ["a1", "b2"]
        await calls.start("a3", ["caller a", "hats"])
        await calls.start("a4", ["caller a", "hats"])
        assert isinstance(calls.error("a4"), ServiceOverloaded)
        await calls.end("a2", cancel=True)  # it waited, and leaves nothing behind
        await calls.end("b2")
        assert calls.running == ["a1"]
        await calls.end("a1")
        assert calls.running == ["b1", "a3"]
        await calls.end("b1", cancel=True)
        await calls.end("a3")
        await calls.start("b3", ["caller b", "photos"])
        await calls.start("a5", ["caller a", "hats"])
        assert calls.running == ["b3", "a5"]
        await calls.end("b3")
        await calls.end("a5")

    asyncio.run(life())


def test_a_call_that_fails_gives_its_turn_back() -> None:
    async def life() -> None:
        turns = FairTurns(1, each=1, max_waiting=1)
        for _ in range(3):
            with pytest.raises(ValueError, match="wrong"):
                async with turns.turn(["a"]):
                    raise ValueError("wrong")

    asyncio.run(life())


def test_turns_go_round_the_callers() -> None:
    async def life() -> None:
        calls = Calls(FairTurns(1, each=1, max_waiting=9))
        for name in ("a1", "a2", "a3", "b1", "a4", "c1", "b2"):
            await calls.start(name, [name[0]])
        served: list[str] = []
        while calls.running:
            served += calls.running
            await calls.end(calls.running[0])
        assert served == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]

    asyncio.run(life())


@pytest.mark.parametrize("first", ["runs", "waits"])
def test_calls_that_are_cancelled_in_one_moment_leave_one_after_the_other(first: str) -> None:
    """As the deadlines of several calls pass at once: the turn of one must not go to another that is leaving too."""

    async def life() -> None:
        calls = Calls(FairTurns(1, each=1, max_waiting=9))
        for name in ("runs", "waits", "last"):
            await calls.start(name, [name])
        second = "waits" if first == "runs" else "runs"
        for name in (first, second):
            calls._tasks[name].cancel()
        for name in (first, second):
            await calls.end(name)
            with pytest.raises(asyncio.CancelledError):
                calls.error(name)
        assert calls.running == ["last"]
        await calls.end("last")
        await calls.start("new", ["new"])
        assert calls.running == ["new"]
        await calls.end("new")

    asyncio.run(life())
