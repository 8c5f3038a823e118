"""Turns on the threads that parse large bodies: two lines, and an end to how long they get."""

import asyncio

import pytest

from service.faults import Overloaded
from service.limits import ParsingTurns

SMALL, LARGE = 100_000, 30_000_000


def test_a_large_body_holds_up_no_ordinary_one() -> None:
    async def run() -> list[str]:
        turns, order, over = ParsingTurns(), [], asyncio.Event()

        async def parse(name: str, size_bytes: int) -> None:
            async with turns.turn(size_bytes):
                if size_bytes == LARGE:
                    await over.wait()
                order.append(name)

        large = [asyncio.create_task(parse(name, LARGE)) for name in ("large", "second large")]
        await asyncio.sleep(0)
        await asyncio.wait_for(parse("small", SMALL), 5)
        over.set()
        await asyncio.gather(*large)
        return order

    assert asyncio.run(run()) == ["small", "large", "second large"]


def test_who_comes_when_too_many_wait_is_refused_until_there_is_room() -> None:
    async def run() -> None:
        turns, over = ParsingTurns(), asyncio.Event()

        async def parse() -> None:
            async with turns.turn(SMALL):
                await over.wait()

        waiting = [asyncio.create_task(parse()) for _ in range(257)]  # one of them has its turn
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await parse()
        still_s = refused.value.still_s
        assert still_s is not None
        assert still_s()
        waiting[100].cancel()  # its caller went away
        await asyncio.sleep(0)
        assert still_s() is None
        over.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.wait_for(parse(), 5)

    asyncio.run(run())
