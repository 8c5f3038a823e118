"""Artifacts -> running models: load, prove, warm up, supervise, swap, unload; owns readiness."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence

from model_store.errors import ArtifactError, ArtifactNotFound
from model_store.session import runtime_versions
from model_store.store import Artifact, Store
from service.engine.opening import EngineSettings, opened_in_time
from service.engine.running import OpenedModel, RunningModel, open_model
from service.faults import Draining, NotLoaded, ServiceNotReady, StateConflict
from service.logs import note_model
from service.telemetry import Telemetry

log = logging.getLogger("clipworks.registry")
_SUPERVISE_EVERY_S = 0.5
_RESTART_PAUSE_S = 5.0
HUNG_EXIT_CODE = 70


class Registry:
    """The models of one server. All methods belong to the event loop; blocking work runs in threads.

    hang_s: a run that lasts longer is given up: the server is not ready until a fresh session has passed the goldens.
    exit_after_s: a given-up run that lasts this much longer still ends the process, because a native call cannot be
    stopped and keeps its cores; 0 never ends it.
    """

    def __init__(
        self,
        store: Store,
        *,
        models: Sequence[str],
        settings: EngineSettings,
        telemetry: Telemetry,
        hang_s: float = 30.0,
        exit_after_s: float = 30.0,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        self.store = store
        self.settings = settings
        self.telemetry = telemetry
        self._names = tuple(models)
        self._hang_s = hang_s
        self._exit_after_s = exit_after_s
        self._end_process = end_process
        self._running: dict[str, RunningModel] = {}
        self._loaded = asyncio.Event()  # of the next model; a new one for each
        self._abandoned: list[RunningModel] = []
        self._default: str | None = None
        self._state = "starting"
        self._changing = asyncio.Lock()
        self._supervisor: asyncio.Task[None] | None = None
        self._restarting: asyncio.Task[None] | None = None
        self._restart_at: dict[str, float] = {}

    async def start(self) -> None:
        """Load the configured models, the first of which is the default; ready when all have proven themselves.

        Raises:
            ArtifactError: the first model that cannot be served.
        """
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name="supervisor")
        for name in self._names:
            model = await self.load(name)
            self._default = self._default or model.reference
        if self._state == "starting":
            self._state = "ok"

    def begin_draining(self) -> None:
        """Not ready any more; requests already admitted go on, a model that is just being opened is given up."""
        self._state = "draining"
        self.settings.stopping.set()

    async def stop(self) -> None:
        self.begin_draining()
        tasks = [task for task in (self._supervisor, self._restarting) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in self._running.values():
            await model.close("the server is stopping")

    def readiness(self) -> tuple[bool, str]:
        """(ready, "ok" or why not): goldens passed, workers alive and not hung, not draining."""
        if self._state != "ok":
            return False, self._state
        if self._supervisor is None or self._supervisor.done():
            return False, "nobody looks after the models"
        fault = next((fault for model in self._running.values() if (fault := model.fault())), None)
        return (False, fault) if fault else (True, "ok")

    def resolve(self, name: str | None) -> RunningModel:
        """The running model for a request's `model` (None: the default).

        Raises:
            ArtifactNotFound: no such model in the store.
            NotLoaded: it exists but is not loaded.
            ServiceNotReady: the server is still starting.
        """
        if name is None:
            if self._default is None or self._default not in self._running:
                raise ServiceNotReady(f"no default model is loaded ({self._state})")
            return _noted(self._running[self._default])
        candidates = [m for m in self._running.values() if name in (m.name, m.reference)]
        if candidates:
            return _noted(max(candidates, key=lambda model: model.version))
        artifact = self.store.open(name)
        if self._state == "starting":
            raise ServiceNotReady(f"model {artifact.reference} is not loaded yet")
        raise NotLoaded(f"model {artifact.reference} is not loaded: POST /models/{artifact.reference}/load (admin)")

    async def until_loaded(self, reference: str) -> RunningModel:
        """The running model of this name@version, which is waited for."""
        while reference not in self._running:
            await self._loaded.wait()
        return self._running[reference]

    async def load(self, name: str) -> RunningModel:
        """Open, prove and start a model beside those that run; an equal one that runs already is returned.

        Raises:
            ArtifactError: it cannot be served; whatever runs goes on.
            StateConflict: another load or unload is under way.
            Draining: the server stops, and gave it up.
        """
        if self._changing.locked() and self._state == "ok":
            raise StateConflict("another model is being loaded or unloaded")
        async with self._changing:
            artifact = await asyncio.to_thread(self.store.open, name)
            if artifact.reference in self._running and not self._running[artifact.reference].fault():
                return self._running[artifact.reference]
            try:
                opened = await opened_in_time(artifact, self.settings, open_model)
            except ArtifactError as error:
                if self.settings.stopping.is_set():
                    raise Draining(f"the server is stopping, {artifact.reference} was not loaded") from error
                raise
            return await self._install(opened)

    async def unload(self, name: str) -> None:
        """Stop a model and free it. The default model cannot be unloaded.

        Raises:
            ArtifactNotFound: it is not running.
            StateConflict: it is the default, or another change is under way.
        """
        if self._changing.locked():
            raise StateConflict("another model is being loaded or unloaded")
        async with self._changing:
            model = next((m for m in self._running.values() if name in (m.reference, m.name)), None)
            if model is None:
                raise ArtifactNotFound(f"model {name} is not loaded")
            if model.reference == self._default:
                raise StateConflict(f"{model.reference} is the default model and stays loaded")
            del self._running[model.reference]
            self.telemetry.model_loaded(model.reference, False)
            await model.close()

    def is_default(self, model: RunningModel) -> bool:
        return model.reference == self._default

    def running(self) -> list[RunningModel]:
        return list(self._running.values())

    def instance_of(self, artifact: Artifact) -> RunningModel | None:
        """The model that runs this artifact, if one does."""
        return self._running.get(artifact.reference)

    async def _install(self, opened: OpenedModel) -> RunningModel:
        model = RunningModel(opened, self.settings, self.telemetry)
        old = self._running.get(model.reference)
        self._running[model.reference] = model
        self.telemetry.model_loaded(model.reference, True)
        self._loaded.set()
        self._loaded = asyncio.Event()
        log.info("loaded %s %s %s", model.reference, model.precision, runtime_versions())
        if old:
            await old.close("replaced by a fresh session")
        return model

    async def _supervise(self) -> None:
        """Look after the models until the server stops; no error of one look ends it."""
        while True:
            await asyncio.sleep(_SUPERVISE_EVERY_S)
            try:
                await self._look_after_models()
            except Exception:
                log.exception("looking after the models failed, and is tried again")

    async def _look_after_models(self) -> None:
        """Replace broken sessions by fresh ones that pass the goldens; end the process when a native call hangs."""
        for model in list(self._running.values()):
            if model.longest_run_s() > self._hang_s:
                await model.close(f"a run lasted over {self._hang_s:g} s")
                self._abandoned.append(model)
            if model.fault() and not self._restarting and time.monotonic() >= self._restart_at.get(model.reference, 0):
                self._restarting = asyncio.create_task(self._restart(model), name=f"restart {model.reference}")
        self._abandoned = [model for model in self._abandoned if model.longest_run_s()]
        if self._exit_after_s and any(
            model.longest_run_s() > self._hang_s + self._exit_after_s for model in self._abandoned
        ):
            log.critical("a native call hangs for %g s, ending the process", self._hang_s + self._exit_after_s)
            self._end_process(HUNG_EXIT_CODE)

    async def _restart(self, model: RunningModel) -> None:
        """Beside the watch over the other models; what fails is tried again after a pause."""
        log.error("%s broke down (%s), opening a fresh session", model.reference, model.fault())
        try:
            async with self._changing:
                if self._running.get(model.reference) is model:  # not unloaded meanwhile
                    await self._install(await opened_in_time(model.artifact, self.settings, open_model))
        except Exception as error:
            self._restart_at[model.reference] = time.monotonic() + _RESTART_PAUSE_S
            log.error(
                "%s cannot be restarted: %s", model.reference, error, exc_info=not isinstance(error, ArtifactError)
            )
        finally:
            self._restarting = None


def _noted(model: RunningModel) -> RunningModel:
    note_model(model.reference)
    return model
