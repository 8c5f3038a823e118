"""Everything a running server is made of, built from its settings, started in the background and stopped in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request

from clipworks.schemas import BackendName, Health
from model_store.errors import ClipworksError
from model_store.modality.image import DecodeLimits
from model_store.session import Device, available_providers
from model_store.store import Store
from service.decoding.pool import DecodePool
from service.engine.opening import EngineSettings
from service.engine.registry import Registry
from service.faults import CollectionsOff
from service.http.limits import IngressLimits, ListLimit, ParsingTurns
from service.settings import DECODE_BYTES_PER_WORKER, BadSettings, Settings, available_cores
from service.tasks.conditional import LabelTokenizer
from service.tasks.label_sets import LabelSets
from service.tasks.prompts import Limits
from service.tasks.zero_shot import ClassCache, LabelCache, ZeroShot
from service.telemetry import Telemetry

if TYPE_CHECKING:
    from service.collections.backends import BackendSource
    from service.collections.facade import Collections
    from service.retrieval import RetrievalSettings

log = logging.getLogger("clipworks.server")
_MAX_LOSSES = 10
_LABEL_PLACES = 4  # the labels of one request take at most a fourth of an encoder's places
_STORE_SHARE = 0.9  # of the time to stop: the store then ends by itself, and says what it left
_STORE_LIBRARIES = frozenset({"apsw", "faiss"})


@dataclass
class Services:
    """The parts of one server; `failure` says why it will never be ready."""

    settings: Settings
    limits: IngressLimits
    label_set_limits: IngressLimits
    telemetry: Telemetry
    pool: DecodePool
    registry: Registry
    zero_shot: ZeroShot
    label_tokenizer: LabelTokenizer
    label_sets: LabelSets
    collections: Collections | None
    failure: str | None = None
    draining: bool = False
    ended: bool = False
    said: str = "ready"
    starting: asyncio.Task[None] | None = None

    def begin(self, *, on_ready: Callable[[], None], on_fatal: Callable[[str], None]) -> None:
        """Load the models in the background, so that /livez is answered meanwhile; exactly one callback comes."""
        self.starting = asyncio.get_running_loop().create_task(self._start(on_ready, on_fatal), name="start")

    def begin_draining(self) -> None:
        """/readyz answers 503 from now on; everything else goes on."""
        self.draining = True
        self.registry.begin_draining()

    def announce(self, address: str) -> None:
        """The server can be reached there."""
        if self.collections is not None:
            self.collections.announce(address)

    def require_collections(self) -> Collections:
        """Raises CollectionsOff: this server has none."""
        if self.collections is None:
            raise CollectionsOff("this server keeps no collections: it needs apsw and faiss-cpu (the extra serve)")
        return self.collections

    async def end(self) -> None:
        """Stop every part, within stop_s; a part that does not end in this time is left behind, and that is logged."""
        self.ended = True
        if self.starting:
            self.starting.cancel()
            await asyncio.gather(self.starting, return_exceptions=True)
        parts = {"label sets": self.label_sets.stop(), "models": self.registry.stop(), "decoding": self.pool.close()}
        if self.collections is not None:
            parts["collections"] = self.collections.stop(_STORE_SHARE * self.settings.stop_s)
        tasks = {asyncio.ensure_future(work): name for name, work in parts.items()}
        done, late = await asyncio.wait(tasks, timeout=self.settings.stop_s)
        for task in done:
            if error := task.exception():
                log.error("%s did not stop well", tasks[task], exc_info=error)
        for task in late:
            log.error(
                "%s did not stop within %g s (CLIPWORKS_STOP_S) and are left as a crash would leave them: "
                "nothing that was acknowledged is lost",
                tasks[task],
                self.settings.stop_s,
            )
            task.cancel()

    def health(self) -> Health:
        """What /readyz says."""
        if self.draining:
            return Health(status="draining")
        if self.failure:
            return Health(status="failed", detail=self.failure)
        ready, why = self.registry.readiness()
        if ready and self.collections is not None and not self.collections.is_open:
            return Health(status="starting")
        if ready and not self.label_sets.is_restored:
            return Health(status="starting", detail="label sets are being read")
        if ready and (fault := self.pool.fault()):
            return Health(status="failed", detail=fault)
        if ready:
            return Health(status="ok", detail=self._loss_detail())
        return Health(status="starting") if why == "starting" else Health(status="failed", detail=why)

    def probed(self) -> Health:
        """As `health`, for a probe: the log has one line when the answer changes, whoever asks however often."""
        state = self.health()
        has_failed = state.status == "failed"
        said = "ready" if state.status == "ok" else f"not ready: {state.status}"
        if has_failed:
            said += f", {state.detail}"
        if said != self.said:
            self.said = said
            log.log(logging.WARNING if has_failed else logging.INFO, "%s", said)
        return state

    def _loss_detail(self) -> str | None:
        """What a damaged store lost, while nobody has acknowledged it; names only where everyone may read them."""
        losses = self.collections.losses() if self.collections is not None else ()
        if not losses:
            return None
        what = [
            f"{each.collection}: {'not known' if each.kind == 'uncertain' else f'{each.reached - each.found} changes'}"
            for each in losses[:_MAX_LOSSES]
        ]
        more = ", ..." if len(losses) > _MAX_LOSSES else ""
        which = "" if self.settings.api_keys else f" ({', '.join(what)}{more})"
        verb = "may have been" if all(each.kind == "uncertain" for each in losses) else "were"
        said = f"acknowledged changes of {len(losses)} collections {verb} lost before this start"
        return f"{said}{which}; see /collections"

    async def _start(self, on_ready: Callable[[], None], on_fatal: Callable[[str], None]) -> None:
        try:
            await self._open()
            await self.label_sets.start()
        except ClipworksError as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("the server cannot start")
            self.failure = f"internal error: {type(error).__name__}"
        if self.failure:
            on_fatal(self.failure)
        else:
            on_ready()

    async def _open(self) -> None:
        """Models, a decode process and collections at the same time; the first that fails ends it."""
        work = [
            self.registry.start(),
            self.pool.begin(),
            *([self.collections.start()] if self.collections is not None else []),
        ]
        tasks = [asyncio.ensure_future(each) for each in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def services_of(request: Request) -> Services:
    return request.app.state.services


def build_services(settings: Settings, *, telemetry: Telemetry, with_collections: bool = True) -> Services:
    """Put the parts together; reads the store's manifests, starts nothing.

    Raises:
        BadSettings: no model to serve, or no such device.
    """
    store = Store(settings.store, builtin=settings.builtin)
    cores = available_cores()
    device = _device(settings.device)
    engine = EngineSettings(
        device=device,
        precision=None if settings.precision == "auto" else settings.precision,
        intra_threads=settings.intra_threads or cores,
        spinning=settings.spinning,
        max_batch_images=settings.max_batch_images,
        max_batch_pixels=settings.max_batch_pixels,
        prepack=settings.prepack,
        dense_prepack=settings.dense_prepack,
        max_batch_texts=settings.max_batch_texts,
        max_queue_items=settings.max_queue_items,
        max_wait_s=settings.max_wait_s,
        load_timeout_s=settings.load_timeout_s,
        probe_first=settings.probe,
        probe_log=settings.store / ".probed" if settings.store else None,
        arena=settings.arena,
        memory_limit_bytes=settings.gpu_memory_bytes,
    )
    pool = _decode_pool(settings, workers=settings.decode_workers or cores)
    registry = Registry(
        store,
        models=[settings.model or default_model(store), *settings.extra_models],
        settings=engine,
        telemetry=telemetry,
        hang_s=settings.hang_s,
        exit_after_s=settings.exit_after_s,
    )
    inline_labels = ListLimit(
        settings.max_label_texts, "CLIPWORKS_MAX_LABEL_TEXTS", "; store more labels with PUT /label-sets/{name}"
    )
    limits = _ingress_limits(settings, inline_labels, ParsingTurns())
    services = Services(
        settings=settings,
        limits=limits,
        label_set_limits=_ingress_limits(
            settings, ListLimit(settings.max_label_set_texts, "CLIPWORKS_MAX_LABEL_SET_TEXTS"), limits.parsing
        ),
        telemetry=telemetry,
        pool=pool,
        registry=registry,
        zero_shot=ZeroShot(
            limits=Limits(
                texts=settings.max_label_texts,
                chars=settings.max_label_chars,
                texts_setting="CLIPWORKS_MAX_LABEL_TEXTS",
                chars_setting="CLIPWORKS_MAX_LABEL_CHARS",
                advice=": store them with PUT /label-sets/{name}",
            ),
            cache=ClassCache(max_entries=settings.class_cache, max_bytes=settings.class_cache_bytes),
            max_places=max(1, settings.max_queue_items // _LABEL_PLACES),
        ),
        label_tokenizer=LabelTokenizer(
            cache=LabelCache(max_entries=settings.class_cache, max_bytes=settings.class_cache_bytes),
            max_texts=settings.max_conditional_texts,
        ),
        label_sets=LabelSets(
            settings.data / "label-sets" if settings.data else None,
            registry,
            limits=Limits(
                texts=settings.max_label_set_texts,
                chars=settings.max_label_set_chars,
                texts_setting="CLIPWORKS_MAX_LABEL_SET_TEXTS",
                chars_setting="CLIPWORKS_MAX_LABEL_SET_CHARS",
            ),
            max_sets=settings.max_label_sets,
            max_examples=settings.max_examples,
        ),
        collections=_collections(settings, registry, pool) if with_collections else None,
    )
    telemetry.watch_readiness(lambda: services.health().status == "ok")
    return services


def _decode_pool(settings: Settings, *, workers: int) -> DecodePool:
    return DecodePool(
        workers=workers,
        limits=DecodeLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_pixels,
            max_side_px=settings.max_side_px,
            max_aspect=settings.max_aspect,
            formats=settings.image_formats,
        ),
        timeout_s=settings.decode_timeout_s,
        memory_bytes=settings.decode_memory_bytes or workers * DECODE_BYTES_PER_WORKER,
        max_request_pixels=settings.max_request_pixels,
    )


def _collections(settings: Settings, registry: Registry, pool: DecodePool) -> Collections | None:
    """None where the store's libraries are missing: everything else is served without them."""
    try:
        from service.collections.facade import Collections
        from service.retrieval import RetrievalSettings
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _STORE_LIBRARIES:
            raise
        log.warning("no collections: %s", error)
        return None
    store = RetrievalSettings(
        threads=settings.search_threads,
        readers=settings.collection_readers,
        scanners=settings.collection_scanners,
        checkpoint_s=settings.checkpoint_s,
        max_results=settings.max_offset,
        max_collections=settings.max_collections,
    )
    return Collections(
        backend_of(settings, store),
        registry=registry,
        pool=pool,
        settings=store,
        media_root=settings.media_root,
        media_slots=2 * (settings.decode_workers or available_cores()),
    )


def backend_of(settings: Settings, store: RetrievalSettings) -> BackendSource:
    """How the collections are opened, once the server runs. Raises BadSettings."""
    from service.collections import backends

    def milvus() -> BackendSource:
        token = settings.milvus_token.get_secret_value() if settings.milvus_token else None
        return backends.milvus(settings.milvus_uri, token=token, database=settings.milvus_database, settings=store)

    sources: Mapping[BackendName, Callable[[], BackendSource]] = {
        "embedded": lambda: backends.embedded(settings.data, store),
        "milvus": milvus,
    }
    try:
        return sources[settings.collections_backend]()
    except backends.BadBackend as error:
        raise BadSettings(str(error)) from None


def default_model(store: Store) -> str:
    """The model of requests that name none.

    Raises:
        BadSettings: there is none, or no way to choose.
    """
    if name := store.default_name():
        return name
    if names := sorted({artifact.manifest.name for artifact in store.list()}):
        raise BadSettings(f"CLIPWORKS_MODEL (--model): the store has {', '.join(names)}; say which is the default")
    problems = "".join(f"\n  {problem}" for problem in store.problems())
    raise BadSettings(f"there is no model to serve: import one, or set CLIPWORKS_STORE{problems}")


def _device(wanted: str) -> Device:
    if wanted == "cpu":
        return "cpu"
    has_provider = "CUDAExecutionProvider" in available_providers()
    if wanted == "cuda":
        if not has_provider:
            raise BadSettings("CLIPWORKS_DEVICE (--device): cuda needs the extra serve-gpu in place of serve")
        return "cuda"
    return "cuda" if has_provider and Path("/proc/driver/nvidia").exists() else "cpu"


def _ingress_limits(settings: Settings, labels: ListLimit, parsing: ParsingTurns) -> IngressLimits:
    inputs = ListLimit(settings.max_items, "CLIPWORKS_MAX_ITEMS")
    rows = ListLimit(settings.max_upsert_items, "CLIPWORKS_MAX_UPSERT_ITEMS")
    return IngressLimits(
        max_body_bytes=settings.max_body_bytes,
        max_image_bytes=settings.max_image_bytes,
        max_items=settings.max_items,
        body_timeout_s=settings.body_timeout_s,
        max_parsed_bytes=settings.max_parsed_bytes,
        lists={
            "inputs": inputs,
            "queries": inputs,
            "examples": inputs,
            "documents": inputs,
            "input": ListLimit(settings.max_v1_inputs, "CLIPWORKS_MAX_V1_INPUTS"),
            "labels": labels,
            "templates": labels,
            "heatmap_labels": ListLimit(settings.max_heatmaps, "CLIPWORKS_MAX_HEATMAPS"),
            "include": ListLimit(16),
            "items": rows,
            "ids": rows,
        },
        parsing=parsing,
    )
