"""Errors -> one helpful line on stderr and an exit code; the only place that knows both."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperGroup

from clipworks.cli.visible import visible
from clipworks.errors import ClientError, ConnectionFailed, NotFound, UnreadableInput

FAILED_ITEMS = 1
USAGE = 2
REFUSED = 3
NOT_INSTALLED = 4
INTERRUPTED = 130

_EXTRAS = MappingProxyType(
    {
        "torch": "train,serve",
        "torchvision": "train,serve",
        "open_clip": "train,serve",
        "timm": "train,serve",
        "safetensors": "train,serve",
        "tensorboard": "train,serve",
        "fsspec": "train,serve",
        "huggingface_hub": "hub,serve",
        "onnx": "hub,serve",
        "onnxscript": "train,serve",
        "pyarrow": "parquet",
        "matplotlib": "eval",
        "sklearn": "eval",
    }
)
_SERVE_PARTS = frozenset(
    (
        *("fastapi", "starlette", "uvicorn", "httptools", "pydantic_settings", "prometheus_client", "orjson"),
        *("onnxruntime", "faiss", "apsw", "PIL", "numpy", "ftfy", "regex", "scipy", "tokenizers"),
    )
)


class UsageError(Exception):
    """The command was asked for something it cannot do; the message says what to write instead."""


class RefusedError(Exception):
    """A model or an endpoint did not do what it was asked; the message says what."""


@dataclass(frozen=True)
class Failure:
    exit_code: int
    code: str
    message: str
    param: str | None = None


class ReportingGroup(TyperGroup):
    """Runs a command and turns what it raises on purpose into a line and an exit code; anything else is a bug."""

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # Names and labels of any script, on a terminal of any encoding.
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            report(failure)
            raise typer.Exit(failure.exit_code) from error


def failure_of(error: Exception) -> Failure | None:
    """What a known error means to a person; None for what nobody expected."""
    match error:
        case UsageError():
            return Failure(USAGE, "usage", str(error))
        case RefusedError():
            return Failure(REFUSED, "refused", str(error))
        case UnreadableInput():
            return Failure(USAGE, error.code, str(error))
        case ConnectionFailed():
            return Failure(REFUSED, error.code, f"{error}; is a server running there? start one: clipworks serve")
        case NotFound(code="model_not_found"):
            return Failure(REFUSED, error.code, f"{error}; list what there is: clipworks models list")
        case NotFound(code="collection_not_found"):
            return Failure(REFUSED, error.code, f"{error}; list what there is: clipworks collections list")
        case ClientError():
            code = str(getattr(error, "code", "client_error"))
            return Failure(REFUSED, code, str(error), getattr(error, "param", None))
        case ModuleNotFoundError():
            return _not_installed(error)
        case _:
            return _of_the_rooms(error)


def report(failure: Failure) -> None:
    """To stderr: a sentence, or JSON when the command was asked for JSON."""
    if "--json" in sys.argv[1:]:
        detail = {"message": failure.message, "type": "cli_error", "code": failure.code, "param": failure.param}
        sys.stderr.write(json.dumps({"error": detail}) + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), visible(failure.message)))


def _not_installed(error: ModuleNotFoundError) -> Failure | None:
    name = (error.name or "").partition(".")[0]
    extra = "serve" if name in _SERVE_PARTS else _EXTRAS.get(name)
    if extra is None:
        return None
    return Failure(NOT_INSTALLED, "not_installed", f"this needs {name}: pip install 'clipworks[{extra}]'")


def _of_the_rooms(error: Exception) -> Failure | None:
    """Errors of model_store, service and training. Their modules are light or already loaded when they raise."""
    from model_store.errors import ClipworksError

    if isinstance(error, ClipworksError):
        return Failure(REFUSED, error.code, str(error))
    settings = sys.modules.get("service.settings")
    if settings is not None and isinstance(error, settings.BadSettings):
        return Failure(USAGE, "bad_settings", str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(USAGE, "file_error", f"{error.filename}: {error.strerror}")
    return None
