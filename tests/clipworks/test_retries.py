"""Retries, timeouts and answers that make no sense, against a small server that follows a script."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from clipworks import RetryPolicy, errors
from clipworks.retry import seconds_of

Call = Callable[..., Any]
FAST = RetryPolicy(attempts=4, first_pause_s=0.01)


def answer(status: int, body: Any, headers: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content


def refusal(status: int, code: str, headers: str = "") -> bytes:
    return answer(status, {"error": {"message": "no", "type": "t", "code": code, "param": None}}, headers)


def vectors(count: int = 1, *, fingerprint: str = "f", **changes: Any) -> bytes:
    body = {
        "model": "m@1",
        "fingerprint": {"image": fingerprint, "text": "t"},
        "space": "s",
        "dim": 2,
        "data": [{"index": index, "embedding": [1.0, 0.0]} for index in range(count)],
        "usage": {"texts": count, "images": 0, "tokens": count},
    }
    return answer(200, body | changes)


FULL = refusal(429, "overloaded", "Retry-After: 0\r\n")
STARTING = refusal(503, "not_ready")
BAD_GATEWAY, GATEWAY_TIMEOUT = answer(502, b"<html>Bad Gateway</html>"), answer(504, b"")
CLOSE, HALF, SILENT, DRIP = b"close", b"half", b"silent", b"drip"


class Script:
    """What the server answers to each request in turn (the last one for ever), and when the requests came."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.times: list[float] = []
        self.bodies: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                self.bodies.append(await reader.readexactly(int(length[0].split(b":")[1])) if length else b"")
                step = self.answers[min(len(self.times), len(self.answers) - 1)]
                self.times.append(time.monotonic())
                if not await self.play(step, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def play(self, step: bytes, writer: asyncio.StreamWriter) -> bool:
        """Send it; false when the connection ends."""
        if step == CLOSE:
            return False
        if step == HALF:
            writer.write(vectors()[:-10])
            return False
        if step == SILENT:
            await asyncio.sleep(3)
            return False
        if step == DRIP:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(30):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
            return False
        writer.write(step)
        await writer.drain()
        return True


@contextmanager
def serving(script: Script) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(script.handle, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(shut(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def shut(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.mark.parametrize(
    "before",
    [(FULL,), (STARTING,), (BAD_GATEWAY,), (GATEWAY_TIMEOUT,), (CLOSE,), (HALF,), (FULL, CLOSE, STARTING)],
    ids=["429", "503", "a proxy's 502", "a proxy's 504", "closed", "half an answer", "all of them"],
)
def test_what_may_pass_is_tried_again(call: Call, before: tuple[bytes, ...]) -> None:
    script = Script(*before, vectors())
    with serving(script) as url:
        found = call(url, "embed", texts=["a"], client={"retry": FAST})
    assert found.tolist() == [[1.0, 0.0]]
    assert len(script.times) == len(before) + 1
    assert len(set(script.bodies)) == 1


@pytest.mark.parametrize(
    ("last", "error", "code"),
    [
        (FULL, errors.Overloaded, "overloaded"),
        (STARTING, errors.NotReady, "not_ready"),
        (CLOSE, errors.ConnectionFailed, "connection_failed"),
    ],
    ids=["429", "503", "closed"],
)
def test_retries_end(call: Call, last: bytes, error: type[errors.ClientError], code: str) -> None:
    script = Script(last)
    with serving(script) as url, pytest.raises(error) as caught:
        call(url, "embed", texts=["a"], client={"retry": FAST})
    assert getattr(caught.value, "code", None) == code
    assert len(script.times) == FAST.attempts


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "invalid_json", errors.RequestRefused),
        (401, "invalid_api_key", errors.Unauthorized),
        (404, "model_not_found", errors.NotFound),
        (409, "conflict", errors.Conflict),
        (422, "invalid_field", errors.InvalidInput),
        (500, "internal_error", errors.ServerFault),
        (504, "deadline_exceeded", errors.DeadlineExceeded),
        (502, "a_code_of_a_newer_server", errors.ServerFault),
    ],
)
def test_a_refusal_is_final(call: Call, status: int, code: str, error: type[errors.ClientError]) -> None:
    script = Script(refusal(status, code), vectors())
    with serving(script) as url, pytest.raises(error) as caught:
        call(url, "embed", texts=["a"], client={"retry": FAST})
    assert isinstance(caught.value, errors.ApiError)
    assert (caught.value.status, caught.value.code, len(script.times)) == (status, code, 1)


def test_retry_after_is_obeyed(call: Call) -> None:
    script = Script(refusal(429, "overloaded", "Retry-After: 1\r\n"), vectors())
    with serving(script) as url:
        call(url, "embed", texts=["a"], client={"retry": FAST})
    assert 1.0 <= script.times[1] - script.times[0] < 3


def test_a_server_that_asks_for_too_much_patience_is_left(call: Call) -> None:
    script = Script(refusal(503, "draining", "Retry-After: 3600\r\n"))
    with serving(script) as url, pytest.raises(errors.NotReady):
        call(url, "embed", texts=["a"], client={"retry": FAST})
    assert len(script.times) == 1


@pytest.mark.parametrize("step", [SILENT, DRIP], ids=["no answer", "a byte now and then"])
def test_a_slow_answer_ends_in_time_and_is_not_repeated(call: Call, step: bytes) -> None:
    script = Script(step)
    began = time.monotonic()
    with serving(script) as url:
        with pytest.raises(errors.TimedOut, match=r"within 0\.5 s"):
            call(url, "embed", texts=["a"], client={"retry": FAST, "timeout_s": 0.5})
        assert time.monotonic() - began < 2.5
    assert len(script.times) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        answer(200, b"<html>hello</html>"),
        answer(200, {"data": []}),
        answer(502, b"<html>Bad Gateway</html>"),
        answer(429, b"slow down"),
        vectors(2),
        vectors(0),
        vectors(data=[{"index": 7, "embedding": [1.0, 0.0]}]),
        vectors(data=[{"index": 0, "embedding": [1.0, 0.0, 0.0]}]),
        vectors(data=[{"index": 0, "embedding": "not base64!"}]),
        vectors(data=[{"index": 0, "embedding": "AAA="}]),
    ],
    ids=["HTML", "other JSON", "HTML 502", "text 429", "too many", "none", "index", "length", "base64", "2 bytes"],
)
def test_garbage_is_never_a_vector(call: Call, garbage: bytes) -> None:
    with serving(Script(garbage)) as url, pytest.raises(errors.BadAnswer):
        call(url, "embed", texts=["a"], client={"retry": FAST})


def test_fields_of_a_newer_server_are_no_error(call: Call) -> None:
    with serving(Script(vectors(something_new=[1]))) as url:
        assert call(url, "embed", texts=["a"]).shape == (1, 2)


def test_two_models_never_share_an_array(call: Call) -> None:
    script = Script(vectors(), vectors(fingerprint="another"))
    with serving(script) as url, pytest.raises(errors.ModelChanged):
        call(url, "embed", texts=["a", "b"], client={"batch_size": 1, "concurrency": 1})


def test_after_a_refusal_nothing_more_is_sent(call: Call) -> None:
    script = Script(refusal(422, "invalid_field"))
    with serving(script) as url, pytest.raises(errors.InvalidInput):
        call(url, "embed", texts=["a"] * 200, client={"batch_size": 1, "concurrency": 2})
    assert len(script.times) < 20


def test_a_refusal_ends_the_pauses_of_other_requests(call: Call) -> None:
    script = Script(refusal(503, "not_ready", "Retry-After: 20\r\n"), refusal(422, "invalid_field"))
    began = time.monotonic()
    with serving(script) as url, pytest.raises(errors.InvalidInput):
        call(url, "embed", texts=["a", "b"], client={"batch_size": 1, "concurrency": 2})
    assert time.monotonic() - began < 10


def test_nobody_there(call: Call) -> None:
    with pytest.raises(errors.ConnectionFailed, match="3 attempts"):
        call("http://127.0.0.1:9", "models", client={"retry": RetryPolicy(attempts=3, first_pause_s=0)})


def test_pauses_grow_are_bounded_and_differ() -> None:
    policy = RetryPolicy(attempts=10, first_pause_s=1, max_pause_s=4)
    pauses = [[policy.pause_s(k, None, chance=random.Random(seed)) or 0 for k in range(1, 7)] for seed in range(20)]
    for k, longest in enumerate([1, 2, 4, 4, 4, 4]):
        column = [row[k] for row in pauses]
        assert longest / 2 <= min(column) < max(column) <= longest
    assert policy.pause_s(10, None, chance=random.Random(0)) is None
    with pytest.raises(ValueError, match="attempts"):
        RetryPolicy(attempts=0)


def test_retry_after_headers() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (seconds_of(soon) or 0) <= 30
    assert seconds_of(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0
    assert seconds_of("7") == 7
    assert [seconds_of(text) for text in (None, "", "soon", "-1", "²")] == [None] * 5
