"""`python -m service`, and what `clipworks serve` calls: one uvicorn worker that starts loudly and stops quietly."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import uvicorn

from service.app import create_app, installed_version
from service.connection.connections import Connections
from service.connection.descriptors import room_for_connections
from service.connection.listening import CannotListen, listen
from service.connection.protocol import WireLimits, bounded_protocol
from service.connection.shedding import LoadShedder
from service.decoding.allocator import return_large_buffers
from service.logs import configure_logging, log_what_python_prints, say
from service.services import Services
from service.settings import (
    HUB_PREFIX,
    PREFIX,
    BadSettings,
    Settings,
    is_link,
    read_settings,
    refuse_open_by_typo,
    setting_fields,
    unknown_variables,
)
from service.telemetry import Telemetry
from service.tracing import CLOSE_S, open_tracing

log = logging.getLogger("clipworks.server")
EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2
# After the drain, a cancelled request gets this long to say 503, and a thread to end.
_LAST_WORDS_S = 0.5
_SLACK_S = 3.0
AFTER_ALL_S = CLOSE_S + _SLACK_S
"""Over all the times that settings give a stop, before it is ended by force."""


def serve(settings: Settings) -> int:
    """Serve until a signal or a fatal error; blocks. The exit status: 0 after a clean stop.

    Prints one line when the socket listens and one when requests can be answered. SIGTERM and SIGINT turn /readyz to
    503, then close the socket, then wait for requests in flight; a second signal ends the process at once.
    """
    return_large_buffers()
    form = settings.log_format
    configure_logging(settings.log_level, form=form)
    log_what_python_prints()
    _report_environment(os.environ)
    failures: list[str] = []

    def on_fatal(reason: str) -> None:
        failures.append(reason)
        server.should_exit = True

    def on_ready() -> None:
        # What was loaded stays: the collector need not go through it again and again while requests come.
        gc.collect()
        gc.freeze()
        say("ready", form=form)

    try:
        refuse_open_by_typo(settings, os.environ)
        listeners = listen(settings.host, settings.port, backlog=settings.max_connections)
        tracing = open_tracing(os.environ, version=installed_version())
        app = create_app(settings, on_ready=on_ready, on_fatal=on_fatal, tracing=tracing)
    except CannotListen as error:
        _complain(f"cannot start: {error}", form=form)
        return EXIT_FAILED
    except BadSettings as error:
        _complain(str(error), form=form)
        return EXIT_BAD_SETTINGS
    protocol = _protocol(settings, app.state.services.telemetry, app.state.shedder)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,  # pyright: ignore[reportArgumentType]
        timeout_graceful_shutdown=settings.drain_s,  # pyright: ignore[reportArgumentType]
        backlog=settings.max_connections,
    )
    server = QuietServer(config, app.state.services)
    try:
        server.run(sockets=listeners)
    except SystemExit as error:  # uvicorn: its log has said why
        return error.code if isinstance(error.code, int) and error.code else EXIT_FAILED
    finally:
        if tracing is not None:
            tracing.close()
    if failures:
        _complain(f"cannot start: {failures[0]}", form=form)
    status = EXIT_FAILED if failures else 0
    _leave_behind_native_calls(status)
    return status


def _report_environment(environment: Mapping[str, str]) -> None:
    for name, near in unknown_variables(environment).items():
        log.warning("%s is no setting of the server and is ignored%s", name, f"; is {near} meant?" if near else "")
    if is_link("PORT", environment.get(f"{PREFIX}PORT", "")):
        log.warning("%sPORT is an orchestrator's address of a service and is ignored", PREFIX)


def _protocol(settings: Settings, telemetry: Telemetry, shedder: LoadShedder) -> type[asyncio.Protocol]:
    connections = Connections(
        limit=room_for_connections(settings.max_connections),
        limit_per_address=settings.max_connections_per_address,
        max_unsent_bytes=settings.max_unread_bytes,
        count=telemetry.connection_cut,
    )
    telemetry.watch_connections(lambda: len(connections))
    limits = WireLimits(
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        write_timeout_s=settings.write_timeout_s,
        max_body_bytes=settings.max_body_bytes,
    )
    return bounded_protocol(limits, connections, shedder)


class QuietServer(uvicorn.Server):
    """A uvicorn server that announces the real port, and whose signals mean drain first; no stop takes for ever."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(UnjoinedThreads(thread_name_prefix="work"))
        await super().startup(sockets)
        if sockets:
            port = sockets[0].getsockname()[1]
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            address = f"http://{host}:{port}"
            say(f"listening on {address}", form=self._services.settings.log_format, address=address)
            self._services.announce(f"http://{_reachable(self.config.host)}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.begin_draining()
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.sleep(_LAST_WORDS_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: out. Nothing is raised again afterwards, so that a clean stop exits 0."""
        if self._services.draining:
            os._exit(128 + sig)
        self._services.draining = True
        settings = self._services.settings
        grace_s = settings.drain_grace_s if sig == signal.SIGTERM else 0.0
        end_by_force(after_s=grace_s + settings.drain_s + settings.stop_s + AFTER_ALL_S)
        if self._loop is None or not grace_s:
            self.should_exit = True
            return
        loop = self._loop
        loop.call_soon_threadsafe(loop.call_later, grace_s, self._stop_listening)

    def _stop_listening(self) -> None:
        self.should_exit = True


class UnjoinedThreads(ThreadPoolExecutor):
    """An event loop's default threads, whose end the loop does not wait for: one of them may never return."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def end_by_force(*, after_s: float) -> None:
    """End the process in so many seconds, unless it has ended by then, whatever its event loop and threads do."""

    def end() -> None:
        time.sleep(after_s)
        log.critical("the server did not stop within %g s after its signal, ending it; busy: %s", after_s, _busy())
        logging.shutdown()
        os._exit(EXIT_FAILED)

    threading.Thread(target=end, name="end by force", daemon=True).start()


def _busy() -> str:
    return ", ".join(sorted(thread.name for thread in threading.enumerate() if not thread.daemon))


def _reachable(host: str) -> str:
    """Where a process of this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _leave_behind_native_calls(status: int) -> None:
    """End the process here if a thread is stuck in a model run: Python would wait for it for ever."""
    end = time.monotonic() + _LAST_WORDS_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(end - time.monotonic(), 0.0))
            if thread.is_alive():
                log.warning("leaving %s behind, it does not return", thread.name)
                logging.shutdown()
                sys.stdout.flush()
                os._exit(status)


def _complain(what: str, *, form: str) -> None:
    say(what, form=form, stream=sys.stderr, level=logging.CRITICAL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Settings from the environment alone; any argument but --help is refused."""
    lines = [f"  {each.variable} (default: {each.default or 'unset'}): {each.description}" for each in setting_fields()]
    argparse.ArgumentParser(
        prog="python -m service",
        description="Serve models over HTTP until SIGTERM or Ctrl-C. `clipworks serve` takes the settings as flags.",
        epilog="environment variables:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    try:
        settings = read_settings({})
        if settings.model and settings.model.startswith(HUB_PREFIX):
            raise BadSettings(
                f"{PREFIX}MODEL is {settings.model}: `clipworks serve` pulls models, `python -m service` not"
            )
    except BadSettings as error:
        _complain(str(error), form=os.environ.get(f"{PREFIX}LOG_FORMAT", ""))
        return EXIT_BAD_SETTINGS
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
