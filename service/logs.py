"""The server's log: one record a line, as text or as JSON, each with the id of the request that it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, TextIO

_APART = frozenset(" =")
_STRAY = logging.getLogger("clipworks.server")


class RequestNotes:
    """What the log says of the request in whose context a record is made."""

    __slots__ = ("model", "request_id", "trace_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.model: str | None = None
        self.trace_id: str | None = None


_CURRENT: ContextVar[RequestNotes | None] = ContextVar("request", default=None)


def begin_notes(request_id: str) -> RequestNotes:
    """Records made from here on in this context, and in tasks that it starts, belong to that request."""
    notes = RequestNotes(request_id)
    _CURRENT.set(notes)
    return notes


def note_model(reference: str) -> None:
    """The request of this context is answered by that model."""
    if (notes := _CURRENT.get()) is not None:
        notes.model = reference


def of_no_request() -> Context:
    """For tasks and timers that outlive the request that happens to start them: `create_task(..., context=...)`."""
    return Context()


def configure_logging(level: str, *, form: str, stream: TextIO | None = None) -> None:
    """Send every logger to `stream` (stderr by default), one record a line; `form` is "text" or "json"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _KeyValueLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn's own words about connections say nothing that the access log does not.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))
    logging.getLogger("uvicorn.access").disabled = True
    # FAISS reports each instruction set that it was not built for as a library that could not be loaded.
    logging.getLogger("faiss.loader").setLevel(max(logging.WARNING, root.level))


def log_what_python_prints() -> None:
    """Warnings and uncaught exceptions become records too; Python would print them on several lines."""
    logging.captureWarnings(True)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _STRAY.critical("uncaught exception", exc_info=(kind, error, trace))

    def uncaught_in_thread(of: threading.ExceptHookArgs) -> None:
        if of.exc_value is not None and of.exc_type is not SystemExit:
            name = of.thread.name if of.thread else "a thread"
            _STRAY.critical("uncaught exception in %s", name, exc_info=(of.exc_type, of.exc_value, of.exc_traceback))

    def unraisable(of: sys.UnraisableHookArgs) -> None:
        error = of.exc_value
        found = (type(error), error, of.exc_traceback) if error is not None else None
        _STRAY.error("%s", of.err_msg or "an exception was ignored", exc_info=found)

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, uncaught_in_thread, unraisable


def say(message: str, *, form: str, stream: TextIO | None = None, level: int = logging.INFO, **fields: Any) -> None:
    """A line for whoever started the server, whatever the log's level: on stdout, as the log where that is JSON."""
    if form == "json":
        record = logging.LogRecord(_STRAY.name, level, "", 0, message, None, None)
        record.fields = fields
        line = _JsonLines().format(record)
    else:
        line = f"clipworks: {message}"
    print(line, file=stream or sys.stdout, flush=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII only, whatever a client sent


class _KeyValueLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [_utc(record.created), record.levelname.lower(), record.name, _message(record.getMessage())]
        parts += [f"{name}={_quoted(str(value))}" for name, value in _fields(record).items()]
        line = " ".join(parts)
        if record.exc_info:  # every line of a traceback is marked, so that none can pass for a record
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    | {_printable(each)}" for each in trace)
        return line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The request of the context, then named values given as `extra={"fields": {...}}`."""
    found: dict[str, Any] = {}
    if (notes := _CURRENT.get()) is not None:
        found["request_id"] = notes.request_id
        if notes.trace_id is not None:
            found["trace_id"] = notes.trace_id
    return found | getattr(record, "fields", {})


def _utc(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"


def _quoted(text: str) -> str:
    """As it is if it is one plain word, else in quotes with quotes, backslashes and the unprintable escaped."""
    escaped = _printable(text.replace("\\", "\\\\").replace('"', '\\"'))
    return text if escaped == text and text and not _APART.intersection(text) else f'"{escaped}"'


def _message(text: str) -> str:
    """In quotes if it could pass for fields."""
    return _quoted(text) if "=" in text or '"' in text else _printable(text)


def _printable(text: str) -> str:
    """Control characters, line separators and lone surrogates as escapes: a client cannot forge a line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
