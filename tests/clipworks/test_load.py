"""The load generator against a server whose speed and failures are known."""

import asyncio
from typing import Any

import pytest

from clipworks.load import LoadResult, Payload, percentile, run_load

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n\r\n"


async def with_server(delay_s: float, answers: list[bytes], **options: Any) -> LoadResult:
    """Load on a server that waits `delay_s` and answers in turn; b"" closes the connection."""
    count = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(2)
                await asyncio.sleep(delay_s)
                step = answers[count % len(answers)]
                count += 1
                if not step:
                    break
                writer.write(step)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/embed?x=1"
        result = await run_load(url, [Payload(body=b"{}", items=3)], **options)
    await asyncio.sleep(0.05)
    return result


def plain(status: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode()


@pytest.mark.parametrize("answer", [plain(200), CHUNKED], ids=["length", "chunked"])
def test_a_closed_loop_measures_what_the_server_does(answer: bytes) -> None:
    result = asyncio.run(with_server(0.05, [answer], concurrency=4, duration_s=1.0, warmup_s=0.2))
    assert result.failed == 0
    assert result.p50_ms is not None
    assert 50 <= result.p50_ms < 200
    assert 20 <= result.requests <= 84  # 4 clients, 20 requests a second each at best
    assert result.items == 3 * result.requests
    assert result.own_cpu_share < 1


def test_an_open_loop_keeps_its_rate_and_counts_the_queue() -> None:
    options = {"mode": "open", "rate": 50, "duration_s": 1.0, "warmup_s": 0.0}
    free = asyncio.run(with_server(0.01, [plain(200)], concurrency=64, **options))
    assert 25 <= free.requests <= 80
    queued = asyncio.run(with_server(0.1, [plain(200)], concurrency=1, **options))
    assert queued.p95_ms is not None
    assert queued.p95_ms > 1000  # 10 a second are served, 50 arrive: a latency counts from when it was due


def test_failures_are_counted_by_kind() -> None:
    answers = [plain(200), plain(429), b"", plain(500)]
    result = asyncio.run(with_server(0.005, answers, concurrency=2, duration_s=0.5, warmup_s=0.0))
    assert set(result.errors) == {"429", "500", "connection"}
    assert result.requests > 0
    stuck = asyncio.run(with_server(5, [plain(200)], concurrency=2, duration_s=0.5, warmup_s=0.0, timeout_s=0.3))
    assert stuck.errors == {"timeout": 2} or stuck.errors == {"timeout": 4}
    assert (stuck.requests, stuck.p50_ms) == (0, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"payloads": []},
        {"concurrency": 0},
        {"mode": "open"},
        {"rate": 5.0},
        {"url": "ftp://x"},
        {"headers": {"a": "b\nc"}},
    ],
)
def test_arguments_that_make_no_sense(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"url": "http://127.0.0.1:9/x", "payloads": [Payload(body=b"{}")]} | wrong
    with pytest.raises(ValueError, match=r"\w"):
        asyncio.run(run_load(arguments.pop("url"), arguments.pop("payloads"), **arguments))


def test_percentiles() -> None:
    assert [percentile(range(1, 101), share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) is None
