"""clipworks beside infinity_emb 0.0.78 on one machine: the same weights, the same bytes, runs of both in turn.

infinity_emb lives in an environment of its own:

    python3.11 -m venv .runs/peer-env
    uv pip install --python .runs/peer-env/bin/python 'infinity_emb[server,torch,vision]==0.0.78' aiohttp

(its own pins give transformers 4.47.1, typer 0.12.5 and click 8.1.8; torch is the newest; it needs aiohttp for every
image, data URIs too, and no extra of it brings that).
Then, with nothing else running on the machine:

    python benchmarks/peer_weights.py --out .runs/weights --check
    clipworks models import ViT-B-32-quickgelu --pretrained .runs/weights/open_clip.safetensors \\
        --activation quickgelu --name vit-b-32-random --store .runs/bench-store
    python benchmarks/peers.py --write-docs

Every contender is up for the whole comparison (an idle one costs nothing) and a repetition visits all of them in every
scenario, in an order that turns around each time. A ratio is the median of the ratios within repetitions. Targets are
held against infinity_emb as it starts by itself (fp32); its `--dtype int8` (dynamic, torch) stands beside our int8.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.contenders import PEER_MODEL, clipworks_server, describe, infinity_server
from benchmarks.figures import RESULTS, circumstances, versions_elsewhere, write_record
from benchmarks.measure import measure, must_succeed
from benchmarks.payloads import (
    Dialect,
    openai_images,
    openai_texts,
    own_texts,
    photographs,
    raw_images,
    send,
    short_texts,
    vectors,
)
from benchmarks.peer_report import report, write_docs
from benchmarks.raw_session import RawSession
from benchmarks.servers import Server, ServerSpec

PEER, PEER_INT8 = "infinity", "infinity-int8"
PICTURES, TEXTS = 24, 4000
RAW_BATCHES = (1, 4, 8, 16)
MIN_COSINE = 0.9999  # of infinity_emb's vectors and ours at fp32, where both prepare the same pixels
MIN_REPETITIONS = 5


@dataclass(frozen=True)
class Cell:
    """One measurement of a repetition: who is asked, in which words, by how many clients."""

    scenario: str
    contender: str
    dialect: str
    words: Dialect
    clients: int
    stretch: float = 1.0  # of the measured time: batches of 16 come back 128 texts at once, which a short run rounds

    @property
    def key(self) -> str:
        return f"{self.scenario}/{self.contender}/{self.dialect}"


def cells(model: str, precisions: tuple[str, ...]) -> list[Cell]:
    """Every HTTP measurement of one repetition. "same": identical bodies for both; "lean": our own best form."""
    images, texts = photographs(PICTURES), short_texts(TEXTS)
    peer_image = openai_images(images, PEER_MODEL, path="/embeddings")
    same_image, lean_image = openai_images(images, model, path="/v1/embeddings"), raw_images(images, model)
    found = []
    for scenario, clients in (("images_8", 8), ("image_alone", 1)):
        found += [Cell(scenario, peer, "same", peer_image, clients) for peer in (PEER, PEER_INT8)]
        for precision in precisions:
            found.append(Cell(scenario, precision, "same", same_image, clients))
            found.append(Cell(scenario, precision, "lean", lean_image, clients))
    for scenario, batch, stretch in (("texts_8", 1, 1.0), ("texts_16", 16, 2.0)):
        peer_text = openai_texts(texts, PEER_MODEL, path="/embeddings", batch=batch)
        found.append(Cell(scenario, PEER, "same", peer_text, 8, stretch))
        same_text = openai_texts(texts, model, path="/v1/embeddings", batch=batch)
        found.append(Cell(scenario, "fp32", "same", same_text, 8, stretch))
        found.append(Cell(scenario, "fp32", "lean", own_texts(texts, model, batch=batch), 8, stretch))
    return found


def same_function(servers: dict[str, Server], model: str) -> dict[str, list[float]]:
    """Cosines of infinity_emb's fp32 vectors and the others' over HTTP: the load's pictures, odd sizes, texts.

    transformers' centre crop rounds an odd remainder down, open_clip's to even, so pictures of odd sizes may be a pixel
    apart; only those that both prepare alike are held to a limit.
    """
    from PIL import Image

    from benchmarks.payloads import jpeg

    rng = np.random.default_rng(0)
    sizes = ((641, 480), (333, 517), (225, 224), (500, 375), (64, 90))
    noise = [
        Image.fromarray(rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), np.uint8)).resize((w, h)) for w, h in sizes
    ]
    inputs = {
        "photographs": (openai_images, photographs(8)),
        "odd_sizes": (openai_images, [jpeg(image) for image in noise]),
        "texts": (openai_texts, [*short_texts(7), "a long text " * 9]),
    }
    found: dict[str, list[float]] = {}
    for what, (make, items) in inputs.items():
        theirs = vectors(send(servers[PEER].spec.url, make(items, PEER_MODEL, path="/embeddings", batch=len(items))))
        for name in servers.keys() - {PEER}:
            model_name, path = (PEER_MODEL, "/embeddings") if name == PEER_INT8 else (model, "/v1/embeddings")
            others = vectors(send(servers[name].spec.url, make(items, model_name, path=path, batch=len(items))))
            found[f"{what}/{name}"] = [round(float(cosine), 6) for cosine in (theirs * others).sum(axis=1)]
    for what in ("photographs", "texts"):
        if min(found[f"{what}/fp32"]) < MIN_COSINE:
            raise RuntimeError(f"the servers do not compute the same function: {what} {found[f'{what}/fp32']}")
    return found


def start_times(specs: list[ServerSpec], starts: int, logs: Path) -> dict[str, list[float]]:
    """Seconds from process start to the first embedding, in turn."""
    found: dict[str, list[float]] = {spec.name: [] for spec in specs}
    for _ in range(starts):
        for spec in specs:
            with Server(spec, logs / f"{spec.name}.log") as server:
                found[spec.name].append(round(server.ready_s, 3))
    return found


def repetition(
    order: Iterator[Cell | str], servers: dict[str, Server], raw: dict[str, tuple[RawSession, int]], seconds: float
) -> dict[str, Any]:
    """Each cell once, and each raw session (named by its precision) once."""
    runs: dict[str, Any] = {}
    for each in order:
        if isinstance(each, Cell):
            server = servers[each.contender]
            seconds_here = seconds * each.stretch
            run = measure(server.spec.url, each.words, clients=each.clients, seconds=seconds_here, server=server)
            runs[each.key] = must_succeed(run, each.key)
        else:
            session, batch = raw[each]
            runs[f"raw/{each}"] = session.measure(batch=batch, seconds=seconds)
    return runs


def compare(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The whole comparison as one record."""
    precisions = tuple(options.precisions.split(","))
    weights = options.weights / "transformers"
    specs = [infinity_server(PEER, python=options.peer_python, weights=weights)]
    specs += [infinity_server(PEER_INT8, python=options.peer_python, weights=weights, arguments=("--dtype", "int8"))]
    specs += [clipworks_server(p, model=options.model, store=options.store, precision=p) for p in precisions]
    record: dict[str, Any] = {
        "kind": "peers",
        "before": circumstances(),
        "peer_versions": versions_elsewhere(options.peer_python),
        "settings": {"seconds": options.seconds, "repetitions": options.repetitions, "model": options.model},
        "servers": {spec.name: describe(spec) for spec in specs},
    }
    logs = RESULTS / "logs"
    console.print("start-up times")
    record["ready_s"] = start_times(specs, options.starts, logs)
    with ExitStack() as stack:
        servers = {spec.name: stack.enter_context(Server(spec, logs / f"{spec.name}.log")) for spec in specs}
        for name, server in servers.items():
            record["ready_s"][name].append(round(server.ready_s, 3))
        record["cosines"] = same_function(servers, options.model)
        record["idle_memory_mib"] = {name: vars(server.memory()) for name, server in servers.items()}
        for line, values in record["cosines"].items():
            console.print(f"cosine with infinity_emb, {line}: min {min(values):.6f}")
        if options.check_only:
            return record
        raw, record["engine_rates"] = _raw_sessions(stack, options, precisions)
        work: list[Cell | str] = [*cells(options.model, precisions), *precisions]
        record["repetitions"] = []
        with Progress(console=console, transient=True) as progress:
            for index in progress.track(range(options.repetitions), description="repetitions"):
                order = work if index % 2 == 0 else work[::-1]
                record["repetitions"].append(repetition(iter(order), servers, raw, options.seconds))
        record["memory_mib"] = {name: vars(server.memory()) for name, server in servers.items()}
    record["after"] = circumstances()
    return record


def _raw_sessions(
    stack: ExitStack, options: argparse.Namespace, precisions: tuple[str, ...]
) -> tuple[dict[str, tuple[RawSession, int]], dict[str, Any]]:
    """One session a precision with the batch size and the kind of waiting that suit it best: the toughest rate."""
    raw, tried = {}, {}
    for precision in precisions:
        rates: dict[tuple[bool, int], float] = {}
        sessions = {}
        for spinning in (False, True):
            session = RawSession(
                store=options.store,
                model=options.model,
                role="image_encoder",
                precision=precision,  # type: ignore[arg-type]
                spinning=spinning,
            )
            sessions[spinning] = stack.enter_context(session)
            for batch in RAW_BATCHES:
                rates[spinning, batch] = session.measure(batch=batch, seconds=1.5)["rate"]
        tried[precision] = {f"batch {b}{', spinning' if s else ''}": rate for (s, b), rate in rates.items()}
        spinning, batch = max(rates, key=lambda key: rates[key])
        raw[precision] = (sessions[spinning], batch)
    return raw, tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, default=Path(".runs/peer-env/bin/python"))
    parser.add_argument("--weights", type=Path, default=Path(".runs/weights"))
    parser.add_argument("--store", type=Path, default=Path(".runs/bench-store"))
    parser.add_argument("--model", default="vit-b-32-random")
    parser.add_argument("--precisions", default="fp32,int8")
    parser.add_argument("--repetitions", type=int, default=MIN_REPETITIONS)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="measured time of one run, after one second of warm-up"
    )
    parser.add_argument("--starts", type=int, default=2, help="more starts of each server, for its time to be ready")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    parser.add_argument(
        "--check-only", action="store_true", help="start the servers and compare their vectors, no load"
    )
    parser.add_argument("--write-docs", action="store_true", help="put the numbers of --out into the docs when done")
    parser.add_argument("--only-docs", action="store_true", help="measure nothing, write the docs from --out")
    options = parser.parse_args()
    console = Console()
    if not options.only_docs:
        record = compare(options, console)
        write_record(record, options.out)
        console.print(f"record: {options.out}")
        if options.check_only:
            return 0
        report(record, console)
        if options.repetitions < MIN_REPETITIONS and options.write_docs:
            console.print(f"docs want {MIN_REPETITIONS} repetitions, this run has {options.repetitions}: not written")
            return 1
    if options.write_docs or options.only_docs:
        for path in write_docs(options.out):
            console.print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
