"""Starting the servers of a comparison: clipworks at a precision, and infinity_emb in its own environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.payloads import Dialect, openai_images, photographs
from benchmarks.servers import ServerSpec, free_port
from model_store.manifest import Precision

# infinity_emb sends usage statistics unless told otherwise, and looks weights up on a hub.
PEER_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "INFINITY_LOG_LEVEL": "warning",
}
PEER_MODEL = "peer"
ROOT = Path(__file__).parent.parent.resolve()


def clipworks_server(
    name: str,
    *,
    model: str | None,
    store: Path | None,
    precision: Precision | None,
    settings: dict[str, str] | None = None,
) -> ServerSpec:
    """This project's server as `clipworks serve` starts it, with its defaults but for what is named.

    `settings` are further CLIPWORKS_ variables without the prefix. Variables of the caller's environment that begin so
    are not passed on: they would be a setting that nobody recorded.
    """
    port = free_port()
    chosen = {
        "port": str(port),
        "model": model,
        "store": str(store.resolve()) if store else None,
        "precision": precision,
    }
    chosen |= {"access_log": "false", "data": "memory"} | (settings or {})
    hidden = {key: "" for key in os.environ if key.startswith("CLIPWORKS_")}
    return ServerSpec(
        name=name,
        command=[str(Path(sys.executable).parent / "clipworks"), "serve"],
        port=port,
        first=first_image(model, path="/v1/embeddings"),
        environment={**hidden, **{f"CLIPWORKS_{key.upper()}": value for key, value in chosen.items() if value}},
    )


def infinity_server(name: str, *, python: Path, weights: Path, arguments: tuple[str, ...] = ()) -> ServerSpec:
    """infinity_emb with its own defaults on the CPU, warm-up included, as its command line starts it."""
    port = free_port()
    command = [str(python.parent / "infinity_emb"), "v2", "--model-id", str(weights.resolve())]
    command += ["--served-model-name", PEER_MODEL, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    return ServerSpec(
        name=name,
        command=[*command, *arguments],
        port=port,
        first=first_image(PEER_MODEL, path="/embeddings"),
        environment={**PEER_ENVIRONMENT, "INFINITY_HOME": str(weights.resolve().parent)},
    )


def first_image(model: str | None, *, path: str) -> Dialect:
    """The embedding that ends a server's start-up: one picture, in the dialect that both speak."""
    return openai_images(photographs(1), model, path=path)


def describe(spec: ServerSpec) -> dict[str, object]:
    """What a record says about how a server was started, without the place of this checkout."""

    def portable(text: str) -> str:
        return text.replace(f"{ROOT}/", "")

    return {
        "command": [portable(part) for part in spec.command],
        "environment": {name: portable(value) for name, value in spec.environment.items() if value},
    }
