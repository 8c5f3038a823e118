"""Images/s and texts/s of the distilled students and of their teacher, over HTTP and of the graphs alone, in turn.

    python benchmarks/distillation_speed.py --out benchmarks/lab/distillation/speed.json

One server and two raw sessions for each model that benchmarks/distillation.py has published (--store, a model named
--teacher first) run at once and sleep; a repetition asks each of them in turn. What counts are ratios within a
repetition. Photographs are JPEGs of 640 x 480, so over HTTP their decoding is part of every model's time; texts are
single requests.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.contenders import clipworks_server
from benchmarks.figures import RESULTS, circumstances, write_record
from benchmarks.lab_runs import RUNS
from benchmarks.measure import measure, must_succeed
from benchmarks.payloads import Dialect, own_texts, photographs, raw_images, short_texts
from benchmarks.raw_session import RawSession
from benchmarks.servers import Server
from model_store.store import Store

STORE = RUNS / "distillation" / "store"
BATCH = 8
BASE = "base"  # the teacher once more, from which what keeps its texts derives


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": "distillation_speed",
        "before": circumstances(),
        "settings": {"clients": options.clients, "seconds": options.seconds, "batch": BATCH},
    }
    images, texts = photographs(24), short_texts(4000)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        sessions: dict[str, dict[str, RawSession]] = {}
        asked: dict[str, dict[str, Dialect]] = {}
        for reference, precision in models(options.store, options.teacher, options.models):
            label, name = f"{reference} {precision}", reference.split("@")[0]
            spec = clipworks_server(label, model=name, store=options.store, precision=precision)  # type: ignore[arg-type]
            servers[label] = stack.enter_context(Server(spec, RESULTS / "logs" / f"distillation-{name}.log"))
            asked[label] = {"image, HTTP": raw_images(images, name), "text, HTTP": own_texts(texts, name)}
            sessions[label] = {
                f"{tower}, graph": stack.enter_context(
                    RawSession(
                        store=options.store,
                        model=name,
                        role=f"{tower}_encoder",  # type: ignore[arg-type]
                        precision=precision,  # type: ignore[arg-type]
                        spinning=False,
                    )
                )
                for tower in ("image", "text")
            }
        record["repetitions"] = []
        with Progress(console=console, transient=True) as progress:
            for _ in progress.track(range(options.repetitions), description="in turn"):
                found: dict[str, dict[str, float]] = {}
                for label, server in servers.items():
                    rates = {what: _rate(server, each, options) for what, each in asked[label].items()}
                    rates |= {
                        what: each.measure(batch=BATCH, seconds=options.seconds)["rate"]
                        for what, each in sessions[label].items()
                    }
                    found[label] = {what: round(rate, 2) for what, rate in rates.items()}
                record["repetitions"].append(found)
    return record | {"after": circumstances()}


def models(store: Path, teacher: str, chosen: list[str]) -> list[tuple[str, str]]:
    """(NAME@VERSION, precision): the teacher first, fp32 of everything, int8 of what was built in it."""
    published = Store(store)
    stored = {each.manifest.name for each in Store(store, builtin=False).list()}
    names = [teacher, *(chosen or sorted(stored - {teacher, BASE}))]
    found: list[tuple[str, str]] = []
    for name in names:
        artifact = published.open(name)
        precisions = ("fp32", *(["int8"] if artifact.graph_spec("image_encoder", "int8") else []))
        found += [(artifact.reference, precision) for precision in precisions]
    return found


def _rate(server: Server, dialect: Dialect, options: argparse.Namespace) -> float:
    found = measure(
        server.spec.url, dialect, clients=options.clients, seconds=options.seconds, warmup_s=0.3, server=server
    )
    return must_succeed(found, server.spec.name)["items_per_s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--teacher", default="teacher", help="what the others are divided by")
    parser.add_argument("--models", nargs="*", default=[], help="by default all of the store")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "distillation_speed.json")
    options = parser.parse_args()
    print(f"written: {write_record(run(options, Console(stderr=True)), options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
