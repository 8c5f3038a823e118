"""Refusing by the head: a storm, a loop that is behind, and everything that must still come through."""

import asyncio
from collections.abc import Callable

import pytest

from service.connection.shedding import LOOKED_AT, LoadShedder, Pulse, Refusals, Shedding
from service.faults import ServiceOverloaded
from service.http.errors import OVERLOADED


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class App:
    """Refuses every request for lack of room, as the handler of errors does, and counts them."""

    def __init__(self, still_s: Callable[[int], float | None]) -> None:
        self.seen = 0
        self._still_s = still_s

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        self.seen += 1
        scope[OVERLOADED] = ServiceOverloaded("full", still_s=self._still_s)


def scope(
    path: str = "/embed",
    method: str = "POST",
    media_type: bytes = b"application/json",
    length: int = 20_000,
    looked_at: bool = False,
) -> dict[str, object]:
    headers = [(b"content-type", media_type), (b"content-length", str(length).encode())]
    found = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    return {**found, LOOKED_AT: True} if looked_at else found


def shedding(app: App) -> Shedding:
    return Shedding(app, shedder=LoadShedder(lambda route, count: None))


def ask(layer: Shedding, times: int, **request: object) -> list[tuple[int, dict[bytes, bytes]]]:
    """(status, headers) of those that the layer itself answered."""
    answers: list[tuple[int, dict[bytes, bytes]]] = []

    async def send(message) -> None:  # type: ignore[no-untyped-def]
        if message["type"] == "http.response.start":
            answers.append((message["status"], dict(message["headers"])))

    async def receive() -> dict[str, object]:
        raise AssertionError("the layer must not read bodies")

    async def run() -> None:
        for _ in range(times):
            await layer(scope(**request), receive, send)  # type: ignore[arg-type]

    asyncio.run(run())
    return answers


def test_in_a_storm_requests_of_a_refused_kind_are_refused_by_their_heads_while_there_is_no_room() -> None:
    wait_s: list[float | None] = [7.2]
    app = App(lambda ahead: wait_s[0])
    layer = shedding(app)
    assert ask(layer, 40) == []  # so many are refused one by one, with full knowledge
    answers = ask(layer, 200)
    assert len(answers) > 150
    assert {status for status, _ in answers} == {429}
    assert answers[0][1][b"retry-after"] == b"8"
    seen = app.seen
    assert ask(layer, 1, media_type=b"image/jpeg") == []
    assert ask(layer, 1, path="/classify") == []
    assert ask(layer, 5, method="GET") == []
    wait_s[0] = None  # there is room again
    assert ask(layer, 5) == []
    assert app.seen == seen + 12


def test_requests_that_come_in_one_moment_do_not_all_count_on_the_same_place() -> None:
    head = ("/embed", b"", [(b"content-type", b"image/png")])

    async def run() -> None:
        shedder = LoadShedder(lambda route, count: None)
        for _ in range(100):
            shedder.learn(*head, route="/embed", still_s=lambda ahead: None if ahead < 3 else 5.0)
        for _ in range(2):
            assert [shedder.look_at(*head) is None for _ in range(10)] == [True] * 3 + [False] * 7
            await asyncio.sleep(0)  # they are on their way
            assert shedder.look_at(*head) is not None
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # they have taken their places, or not

    asyncio.run(run())


@pytest.mark.parametrize("step_s", [0.3, 1.0, 1.7])
def test_refusals_are_counted_over_the_last_second(step_s: float) -> None:
    clock = Clock()
    refusals = Refusals(clock)
    for _ in range(100):
        refusals.add()
    assert refusals.per_s == 100
    clock.now += step_s
    assert refusals.per_s == pytest.approx(max(0.0, 100 * (1 - step_s % 1)) if step_s >= 1 else 100)
    clock.now += 2
    assert refusals.per_s == 0


def test_the_loop_is_behind_when_it_was_late_for_a_while_and_still_is() -> None:
    clock = Clock()

    async def run() -> None:
        pulse = Pulse(clock)

        def turn(seconds: float) -> None:
            clock.now += seconds
            pulse.beat()
            pulse.use()

        pulse.use()
        clock.now += 5  # one large body
        turn(0)
        assert not pulse.is_behind
        for _ in range(6):
            turn(0.15)
        assert not pulse.is_behind  # this round has only begun
        clock.now += 0.15
        assert pulse.is_behind
        turn(0)
        turn(0.02)  # in time again
        clock.now += 0.15
        assert not pulse.is_behind

    asyncio.run(run())


def test_a_storm_of_images_in_json_turns_away_no_short_text() -> None:
    app = App(lambda ahead: 7.2)
    layer = shedding(app)
    ask(layer, 60)
    seen = app.seen
    assert ask(layer, 1)
    assert app.seen == seen
    assert not ask(layer, 1, length=40)
    assert app.seen == seen + 1


def test_a_request_that_the_protocol_let_in_is_not_looked_at_again() -> None:
    app = App(lambda ahead: 7.2)
    layer = shedding(app)
    ask(layer, 60)
    seen = app.seen
    assert not ask(layer, 1, looked_at=True)
    assert app.seen == seen + 1


def test_a_late_end_of_an_old_burst_does_not_count_an_hour_later() -> None:
    clock = Clock()

    async def run() -> None:
        pulse = Pulse(clock)
        pulse.use()
        clock.now += 0.15
        pulse.beat()  # late, and used since
        clock.now += 0.15
        pulse.beat()  # late again, and the last for now
        clock.now += 3600
        pulse.use()
        clock.now += 0.15
        assert not pulse.is_behind

    asyncio.run(run())
