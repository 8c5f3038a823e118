"""Turns on the threads that parse large bodies: two lines that all callers share, and who leaves them."""

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import Request

from clipworks.schemas import EmbedRequest
from service.faults import DeadlinePassed, ServiceOverloaded
from service.http.body_memory import BodyMemory
from service.http.context import ClientGone, RequestContext, put_context
from service.http.ingress import Received, off_loop, read_request
from service.http.limits import IngressLimits, ParsingTurns
from service.timing import Budget

SMALL, LARGE = 100_000, 30_000_000


def test_a_large_body_holds_up_no_ordinary_one() -> None:
    async def run() -> list[str]:
        turns, order, over = ParsingTurns(), [], asyncio.Event()

        async def parse(name: str, size_bytes: int) -> None:
            async with turns.turn(size_bytes, caller="a"):
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


class Bodies:
    """Bodies of many callers that hold their turn until all are told to end."""

    def __init__(self) -> None:
        self.turns, self.over, self.order = ParsingTurns(), asyncio.Event(), list[str]()

    async def parse(self, caller: str) -> None:
        async with self.turns.turn(SMALL, caller=caller):
            self.order.append(caller)
            await self.over.wait()

    async def begin(self, caller: str, count: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.parse(caller)) for _ in range(count)]
        await asyncio.sleep(0)
        return tasks


def test_who_comes_when_too_many_wait_is_refused_until_there_is_room() -> None:
    async def run() -> None:
        bodies = Bodies()
        waiting = await bodies.begin("first", 1)  # has its turn
        for caller in "abcd":
            waiting += await bodies.begin(caller, 64)
        with pytest.raises(ServiceOverloaded) as refused:
            await bodies.parse("e")
        still_s = refused.value.still_s
        assert still_s is not None
        assert still_s(0)
        waiting[100].cancel()  # its caller went away
        await asyncio.sleep(0)
        assert still_s(0) is None
        assert still_s(1)
        bodies.over.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.wait_for(bodies.parse("e"), 5)

    asyncio.run(run())


def test_a_caller_with_many_bodies_leaves_places_and_turns_to_others() -> None:
    async def run() -> list[str]:
        bodies = Bodies()
        tasks = await bodies.begin("many", 65)
        with pytest.raises(ServiceOverloaded) as refused:
            await bodies.parse("many")
        assert refused.value.still_s is None  # it says nothing of what others would find
        tasks += await bodies.begin("b", 2) + await bodies.begin("c", 1)
        bodies.over.set()
        await asyncio.gather(*tasks)
        return bodies.order

    order = asyncio.run(run())
    assert order[:6] == ["many", "many", "b", "c", "many", "b"]
    assert order.count("many") == 65


LIMITS = IngressLimits(max_body_bytes=2**22, max_image_bytes=2**22, max_items=4096, body_timeout_s=5)


def request_of(media_type: str, body: bytes, leaves: asyncio.Event) -> Request:
    """A request whose client stays until `leaves`."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await leaves.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b""}
    scope["headers"] = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    put_context(scope, RequestContext("id", BodyMemory(2**23).share(), caller="a"))
    return Request(scope, receive)  # type: ignore[arg-type]


async def read(media_type: str, body: bytes, leaves: asyncio.Event, deadline: Budget | None = None) -> Received[Any]:
    request = request_of(media_type, body, leaves)
    return await read_request(request, EmbedRequest, LIMITS, budget=deadline or Budget(), options={})


def request_form(json: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + json + b"\r\n--b--\r\n"


def form(parts: int, size: int) -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n%s\r\n'
    return part % bytes(size) * parts + b"--b--\r\n"


@pytest.mark.parametrize(
    ("media_type", "body", "waits"),
    [
        ("image/png", bytes(2_000_000), False),
        ("multipart/form-data; boundary=b", form(2, 100_000), False),
        ("multipart/form-data; boundary=b", form(9, 20_000), True),
        ("multipart/form-data; boundary=b", form(1, 300_000), True),
        ("multipart/form-data; boundary=b", request_form(b'{"inputs": ["%s"]}' % (b"a" * 100_000)), True),
        ("multipart/form-data; boundary=b", request_form(b'{"inputs": ["a"%s]}' % (b' ,"a"' * 3000)), True),
        ("multipart/form-data; boundary=b", request_form(b'{"inputs": ["a"%s]}' % (b' ,"a"' * 15)), False),
        ("application/json", b'{"inputs": ["%s"]}' % (b"a" * 100_000), True),
        ("application/json", b'{"inputs": ["%s"]}' % (b"a," * 20_000), True),
        ("application/json", b'{"inputs": ["a"%s]}' % (b',"a"' * 3000), True),
        ("application/json", b'{"inputs": ["%s"]}' % (b"a" * 60_000), False),
    ],
)
def test_only_what_takes_long_to_parse_waits_for_its_turn(media_type: str, body: bytes, waits: bool) -> None:
    async def run() -> None:
        reading = read(media_type, body, asyncio.Event())
        async with LIMITS.parsing.turn(SMALL, caller="a"), LIMITS.parsing.turn(LARGE, caller="a"):
            task = asyncio.create_task(reading)
            done, _ = await asyncio.wait([task], timeout=0.3 if waits else 10)
            assert bool(done) != waits
        received = await asyncio.wait_for(task, 10)
        assert received.files or received.body.inputs

    asyncio.run(run())


@pytest.mark.parametrize("how", ["deadline", "gone"])
def test_a_body_leaves_the_line_with_its_deadline_or_its_client(how: str) -> None:
    async def run() -> None:
        leaves = asyncio.Event()
        body, deadline = b'{"inputs": ["%s"]}' % (b"a" * 100_000), Budget.after(0.05 if how == "deadline" else 60)
        async with LIMITS.parsing.turn(SMALL, caller="a"):
            task = asyncio.create_task(read("application/json", body, leaves, deadline))
            await asyncio.sleep(0.01)
            if how == "gone":
                leaves.set()
            with pytest.raises(DeadlinePassed if how == "deadline" else ClientGone):
                await asyncio.wait_for(task, 10)
        async with LIMITS.parsing.turn(SMALL, caller="b"):  # nothing of it is left
            pass

    asyncio.run(run())


def test_a_turn_ends_with_its_thread_even_if_its_request_does_not_wait_for_it() -> None:
    """Else a client that comes and goes would have any number of bodies parsed at once."""
    ends, others = threading.Event(), list[str]()

    async def run() -> None:
        async def other() -> None:
            async with LIMITS.parsing.turn(SMALL, caller="b"):
                others.append("ran")

        work = off_loop(request_of("", b"", asyncio.Event()), lambda: ends.wait(10), SMALL, LIMITS, Budget())
        cancelled = asyncio.create_task(work)
        await asyncio.sleep(0.05)
        cancelled.cancel()
        waiting = asyncio.create_task(other())
        await asyncio.sleep(0.05)
        assert not others
        ends.set()
        await asyncio.wait_for(waiting, 10)
        assert cancelled.cancelled()

    asyncio.run(run())
