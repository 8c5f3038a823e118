"""Requests that a flooded server refuses by their heads: whole answers, on connections that go on."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.service.http.test_overload import grey_picture

SHED = b"server-timing: total;dur=0.00\r\n"  # what the protocol says of an answer that took no time
pytestmark = pytest.mark.parametrize("looping_store", [100_000], indirect=True)


@pytest.fixture
def server(serve: Callable[..., object], looping_store: Path):  # type: ignore[no-untyped-def]
    started = serve(
        store=looping_store,
        max_wait_s=0.5,
        max_batch_images=1,
        access_log="false",
        cors_origins="https://page.test",
        keep_alive_s=4,
    )
    started.wait_for("ready")
    return started


def post(*, chunked: bool = False, headers: str = "", body: bytes | None = None) -> bytes:
    content = body or grey_picture()
    head = f"POST /embed HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n{headers}"
    if chunked:
        return f"{head}Transfer-Encoding: chunked\r\n\r\n{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


LIVEZ = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """(status, head, body) of the next answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    length = re.search(rb"content-length: (\d+)", head)
    assert length, head
    return int(head[9:12]), head, await reader.readexactly(int(length[1]))


async def flood(port: int, over: asyncio.Event, *, chunked: bool) -> list[tuple[int, bytes, bytes]]:
    """What one client gets that sends its next request as soon as it is answered, then one of another kind."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers = []
    while not over.is_set():
        writer.write(post(chunked=chunked))
        answers.append(await answer(reader))
    writer.write(LIVEZ)
    assert (await answer(reader))[0] == 200  # the body was dropped, the connection goes on
    writer.close()
    return answers


def test_requests_refused_by_their_heads_have_whole_answers_and_are_counted(server) -> None:  # type: ignore[no-untyped-def]
    port = int(server.address.rpartition(":")[2])

    async def run() -> tuple[list[tuple[int, bytes, bytes]], list[bytes]]:
        over = asyncio.Event()
        clients = [asyncio.create_task(flood(port, over, chunked=i % 2 == 1)) for i in range(60)]
        await asyncio.sleep(1.5)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        large = post(body=bytes(3_000_000), headers="X-Request-Id: mine\r\n")
        writer.write(large + post() * 20 + LIVEZ)  # sent ahead
        ahead = [await answer(reader) for _ in range(22)]
        assert ahead[-1][0] == 200
        writer.write(post(headers="Origin: https://page.test\r\n"))
        page = await answer(reader)
        writer.close()
        # A connection that idles after such an answer is closed as any other.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        idle = []
        while not idle or SHED not in idle[-1][1]:
            writer.write(post())
            idle.append(await answer(reader))
        assert await asyncio.wait_for(reader.read(), 40) == b""
        writer.close()
        over.set()
        answers = [each for client in await asyncio.gather(*clients) for each in client] + ahead[:-1] + idle
        if SHED in ahead[0][1]:
            assert b"x-request-id: mine\r\n" in ahead[0][1]
        return [*answers, page], [page[1]]

    answers, pages = asyncio.run(asyncio.wait_for(run(), 120))
    assert {status for status, _, _ in answers} <= {200, 429, 422}
    shed = [(head, body) for status, head, body in answers if SHED in head]
    assert len(shed) > 100
    for head, body in shed:
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b'"code":"overloaded"' in body
        assert re.search(rb"\r\nretry-after: [1-9]\d*\r\n", head)
        assert b"\r\nx-request-id: " in head
        assert b"\r\ndate: " in head
    assert all(b"access-control-allow-origin: https://page.test" in head for head in pages)

    def counted() -> dict[str, int]:
        found: Counter[str] = Counter()
        pattern = r'clipworks_requests_total\{method="POST",route="[^"]+",status="(\d+)"\} ([\d.]+)'
        for status, count in re.findall(pattern, httpx2.get(f"{server.address}/metrics").text):
            found[status] += int(float(count))
        return dict(found)

    expected = dict(Counter(str(status) for status, _, _ in answers))
    until = time.monotonic() + 10
    while counted() != expected and time.monotonic() < until:
        time.sleep(0.2)
    assert counted() == expected
