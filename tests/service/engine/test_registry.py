"""The watch over models outlives what it did not expect, and readiness does not turn green without it."""

import asyncio
import time
from pathlib import Path

import pytest

from model_store.store import Store
from service.engine import registry as registry_module
from service.engine.opening import EngineSettings
from service.engine.registry import Registry
from service.engine.running import OpenedModel, open_model
from service.telemetry import Telemetry


def make_registry(store: Path) -> Registry:
    settings = EngineSettings(
        device="cpu", precision=None, intra_threads=1, spinning=False, max_batch_images=2, max_batch_texts=2,
        max_queue_items=8, probe_first=False,
    )  # fmt: skip
    return Registry(Store(store, builtin=False), models=["tiny"], settings=settings, telemetry=Telemetry())


async def until(registry: Registry, ready: bool, *, timeout_s: float = 30) -> str:
    end = time.monotonic() + timeout_s
    while registry.readiness()[0] is not ready:
        assert time.monotonic() < end, registry.readiness()
        await asyncio.sleep(0.05)
    return registry.readiness()[1]


def test_a_restart_that_fails_unexpectedly_is_tried_again(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [MemoryError("no memory"), RuntimeError("a bug")]

    def open_or_fail(artifact: object, settings: EngineSettings) -> OpenedModel:
        if failures:
            raise failures.pop()
        return open_model(artifact, settings)  # type: ignore[arg-type]

    async def run() -> None:
        registry = make_registry(tiny_store)
        await registry.start()
        assert registry.readiness() == (True, "ok")
        monkeypatch.setattr(registry_module, "open_model", open_or_fail)
        monkeypatch.setattr(registry_module, "_RESTART_PAUSE_S", 0.1)
        model = registry.resolve("tiny")
        await model.batchers["text_encoder"].close("a test broke it")
        assert "a test broke it" in await until(registry, False)
        assert await until(registry, True) == "ok"
        assert not failures
        assert registry.resolve("tiny") is not model
        await registry.stop()

    asyncio.run(run())


def test_without_its_watch_a_server_is_not_ready(tiny_store: Path) -> None:
    async def run() -> None:
        registry = make_registry(tiny_store)
        await registry.start()
        [watch] = [task for task in asyncio.all_tasks() if task.get_name() == "supervisor"]
        watch.cancel()
        assert "nobody looks after" in await until(registry, False)
        await registry.stop()

    asyncio.run(run())
