"""Turns on the threads that parse large bodies: two lines, and an end to how long they get."""

import asyncio

import pytest
from starlette.requests import Request

from clipworks.schemas import EmbedRequest
from service.body import BodyMemory
from service.context import Context, put_context
from service.faults import Overloaded
from service.ingress import read_request
from service.limits import IngressLimits, ParsingTurns

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
        assert still_s(0)
        waiting[100].cancel()  # its caller went away
        await asyncio.sleep(0)
        assert still_s(0) is None
        over.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.wait_for(parse(), 5)

    asyncio.run(run())


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
    limits = IngressLimits(max_body_bytes=2**22, max_image_bytes=2**22, max_items=16, body_timeout_s=5)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def run() -> None:
        scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b""}
        scope["headers"] = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
        put_context(scope, Context("id", BodyMemory(2**23).share()))
        reading = read_request(Request(scope, receive), EmbedRequest, limits, options={})  # type: ignore[arg-type]
        async with limits.parsing.turn(SMALL), limits.parsing.turn(LARGE):
            task = asyncio.create_task(reading)
            done, _ = await asyncio.wait([task], timeout=0.3 if waits else 10)
            assert bool(done) != waits
        received = await asyncio.wait_for(task, 10)
        assert received.files or received.body.inputs

    asyncio.run(run())
