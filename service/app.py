"""The ASGI application: middleware, routes and life cycle. Importing this module does nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.middleware import Middleware

from service.connection.shedding import LoadShedder, Shedding
from service.http.body_memory import BodyMemory
from service.http.envelope import Envelope
from service.http.errors import install_handlers
from service.http.gate import Gate
from service.http.openapi import install_openapi
from service.routes import (
    aliases,
    classify,
    collection_items,
    collection_search,
    collection_thumbnails,
    collection_upkeep,
    collections,
    embed,
    label_sets,
    localize,
    models,
    openai,
    operations,
    rerank,
    ui,
)
from service.services import Services, build_services
from service.settings import Settings
from service.telemetry import Telemetry
from service.tracing import Tracing

_DESCRIPTION = (
    "Vectors of images and texts, zero-shot classification, localisation of labels, durable collections with search. "
    "Errors: {error: {message, type, code, param}}."
)


def create_app(
    settings: Settings,
    *,
    on_ready: Callable[[], None] | None = None,
    on_fatal: Callable[[str], None] | None = None,
    with_collections: bool = True,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The whole server behind one ASGI callable; models are loaded in the background once it runs.

    `on_ready` is called when /readyz turns 200, `on_fatal` with the reason when it never will.
    with_collections: False leaves the data folder's collections to another process; /collections is a 503 then.
    tracing: whoever opened it closes it.

    Raises:
        BadSettings: the settings name no model or device that is there.
    """
    telemetry = Telemetry()
    bodies = BodyMemory(settings.max_bodies_bytes)
    telemetry.watch_bodies(lambda: bodies.held_bytes)
    shedder = LoadShedder(telemetry.shed)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        if app.state.services.ended:  # started again, as test clients do: the old parts are used up
            app.state.services = build_services(settings, telemetry=telemetry, with_collections=with_collections)
        services: Services = app.state.services
        services.begin(on_ready=on_ready or _nothing, on_fatal=on_fatal or _ignore)
        yield
        await services.end()

    app = FastAPI(
        title="clipworks",
        version=installed_version(),
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
        middleware=[
            Middleware(Envelope, telemetry=telemetry, bodies=bodies, access_log=settings.access_log, tracing=tracing),
            Middleware(
                Gate,
                api_keys=[key.get_secret_value() for key in settings.api_keys],
                admin_keys=[key.get_secret_value() for key in settings.admin_keys],
                origins=settings.cors_origins,
            ),
            Middleware(Shedding, shedder=shedder),
        ],
    )
    app.state.shedder = shedder
    app.state.services = build_services(settings, telemetry=telemetry, with_collections=with_collections)
    for module in (
        embed,
        classify,
        localize,
        rerank,
        label_sets,
        collections,
        collection_thumbnails,  # before those whose ids hold slashes
        collection_items,
        collection_search,
        collection_upkeep,
        aliases,
        models,
        openai,
        operations,
        ui,
    ):
        # The routes as they are: include_router would wrap each, match it twice, and hide its methods from a 405.
        app.router.routes.extend(module.router.routes)
    install_handlers(app)
    install_openapi(app)
    return app


def installed_version() -> str:
    try:
        return version("clipworks")
    except PackageNotFoundError:
        return "0"


def _nothing() -> None: ...


def _ignore(reason: str) -> None: ...
