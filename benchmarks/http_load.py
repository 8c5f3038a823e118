"""JPEG in, vector out: rate and latency of the server under closed- and open-loop load, beside the engine alone.

    make bench                                                     the embedded model, server started here
    make bench ARGS="--store DIR --model NAME --precision int8"    another model
    make bench ARGS="--url http://host:8000"                       a server that runs already

Closed loop: each of `--clients` sends its next request when the last is answered. Open loop: requests come at random
moments at shares of the rate that the closed loop reached, and a latency counts from the moment a request was due.
Server efficiency is the closed-loop rate over that of one ONNX Runtime session fed with prepared arrays, both measured
in turn, repetition by repetition.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.contenders import clipworks_server, describe
from benchmarks.figures import RESULTS, circumstances, column, ratio_of_runs, read_record, spread, write_record
from benchmarks.marked import markdown_table, publish
from benchmarks.measure import measure, must_succeed
from benchmarks.payloads import Dialect, openai_images, own_texts, photographs, raw_images, short_texts
from benchmarks.raw_session import RawSession
from benchmarks.servers import Server
from model_store.store import Store

RAW_BATCHES = (1, 2, 4, 8, 16, 32)
DEFAULT_OUT = RESULTS / "http_load.json"
OPEN_LOOP_CONNECTIONS = 512
MIN_REPETITIONS = 5


def dialects(model: str) -> dict[str, Dialect]:
    """What is sent: a raw JPEG for a .npy, a data URI for base64 JSON, one short text for a .npy."""
    images = photographs(24)
    return {
        "image, raw": raw_images(images, model),
        "image, JSON": openai_images(images, model, path="/v1/embeddings"),
        "text": own_texts(short_texts(4000), model),
    }


def default_model(url: str) -> tuple[str, dict[str, str]]:
    """(name@version, role -> precision) of the model that the server has loaded.

    Raises:
        SystemExit: it has none.
    """
    found = [each for each in httpx2.get(url + "/models", timeout=30).json()["data"] if each["loaded"]]
    if not found:
        sys.exit(f"{url} has no model loaded")
    return f"{found[0]['name']}@{found[0]['version']}", found[0]["precision"]


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": "http_load", "before": circumstances()}
    with ExitStack() as stack:
        server: Server | None = None
        url = options.url
        if url is None:
            spec = clipworks_server("clipworks", model=options.model, store=options.store, precision=options.precision)
            server = stack.enter_context(Server(spec, RESULTS / "logs" / "http_load.log"))
            record |= {"server": describe(spec), "ready_s": round(server.ready_s, 3)}
            url = spec.url
        model, precision = default_model(url) if options.model is None else (options.model, {})
        raw = _raw_session(stack, options, model, precision.get("image_encoder") or options.precision or "fp32")
        record["settings"] = {
            "model": model,
            "precision": precision or options.precision or "fp32",
            "clients": options.clients,
            "seconds": options.seconds,
            "repetitions": options.repetitions,
        }
        spoken = dialects(model)
        record["repetitions"] = []
        with Progress(console=console, transient=True) as progress:
            for _ in progress.track(range(options.repetitions), description="closed loop"):
                record["repetitions"].append(_repetition(url, server, spoken, raw, options))
        middle = statistics.median(column([r["image, raw"] for r in record["repetitions"]], "items_per_s"))
        record["open_loop"] = []
        for share in options.open_shares:
            console.print(f"open loop at {share:.0%} of {middle:.1f} images/s")
            found = measure(
                url,
                spoken["image, raw"],
                clients=OPEN_LOOP_CONNECTIONS,
                rate=share * middle,
                seconds=2 * options.seconds,
                server=server,
            )
            record["open_loop"].append({"share": share, **found})
        if server:
            record["memory_mib"] = vars(server.memory())
    return record | {"after": circumstances()}


def _raw_session(
    stack: ExitStack, options: argparse.Namespace, model: str, precision: str
) -> tuple[RawSession, int] | None:
    """The engine alone with its best batch size; None for a server elsewhere, whose machine is not this one."""
    if options.url is not None or Store(options.store).open(model).image_spec is None:
        return None
    session = stack.enter_context(
        RawSession(store=options.store, model=model, role="image_encoder", precision=precision)  # type: ignore[arg-type]
    )
    rates = {batch: session.measure(batch=batch, seconds=min(2.0, options.seconds))["rate"] for batch in RAW_BATCHES}
    return session, max(rates, key=lambda batch: rates[batch])


def _repetition(
    url: str,
    server: Server | None,
    spoken: dict[str, Dialect],
    raw: tuple[RawSession, int] | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for name, dialect in spoken.items():
        found = measure(url, dialect, clients=options.clients, seconds=options.seconds, server=server)
        runs[name] = must_succeed(found, name)
        if raw and name == "image, raw":
            runs["engine alone"] = raw[0].measure(batch=raw[1], seconds=options.seconds)
    return runs


_HEAD = ["load", "items/s", "min - max", "p50 ms", "p95 ms", "p99 ms", "batch", "CPU ms/item", "load's CPU", "failed"]


_DOCS_ONLY = ("min - max", "p99 ms", "load's CPU")  # more than a terminal of 80 columns holds


def rows(record: dict[str, Any]) -> list[list[str]]:
    found = []
    for name in record["repetitions"][0]:
        runs = [runs[name] for runs in record["repetitions"]]
        if name == "engine alone":
            rates = spread(column(runs, "rate"))
            cells = [
                f"{rates['median']:.1f}",
                f"{rates['min']:.1f} - {rates['max']:.1f}",
                "",
                "",
                "",
                f"{runs[0]['batch']:.0f}",
            ]
            found.append([name, *cells, f"{statistics.median(column(runs, 'cpu_ms')):.2f}", "", ""])
            continue
        clients = record["settings"]["clients"]
        found.append(_load_row(f"{name}, x{clients}", runs))
    return found + [_load_row(f"image, raw, open {run['share']:.0%}", [run]) for run in record["open_loop"]]


def _load_row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    rates = spread(column(runs, "items_per_s"))
    batch = next((counts["mean"] for counts in runs[-1]["batches"].values()), None)
    return [
        name,
        f"{rates['median']:.1f}",
        f"{rates['min']:.1f} - {rates['max']:.1f}",
        *(f"{statistics.median(column(runs, f'p{p}_ms')):.1f}" for p in (50, 95, 99)),
        f"{batch:.1f}" if batch else "",
        f"{statistics.median(column(runs, 'server_cpu_ms')):.2f}",
        f"{100 * statistics.median(column(runs, 'own_cpu_share')):.0f} %",
        str(sum(sum(run["errors"].values()) for run in runs)),
    ]


def efficiency(record: dict[str, Any]) -> dict[str, float] | None:
    """Spread of HTTP rate over engine rate, pair by pair; None without an engine to compare with."""
    runs = record["repetitions"]
    if "engine alone" not in runs[0]:
        return None
    http = column([each["image, raw"] for each in runs], "items_per_s")
    return ratio_of_runs(http, column([each["engine alone"] for each in runs], "rate"))


def summary(record: dict[str, Any]) -> str:
    lines = []
    if ratio := efficiency(record):
        lines.append(f"Server efficiency {ratio['median']:.3f} ({ratio['min']:.3f} - {ratio['max']:.3f}).")
    if memory := record.get("memory_mib"):
        lines.append(
            f"First answer {record['ready_s']:.1f} s after the start; {memory['resident_mib']:.0f} MiB resident after "
            f"the load, {memory['peak_mib']:.0f} MiB at most."
        )
    return " ".join(lines)


def markdown(record: dict[str, Any]) -> str:
    before, after, settings = record["before"], record["after"], record["settings"]
    facts = (
        f"{settings['model']}, {before['at_utc']}, {before['cores']} cores of {before['cpu']}, load average "
        f"{before['load_average']} before and {after['load_average']} after, onnxruntime "
        f"{before['versions'].get('onnxruntime') or before['versions'].get('onnxruntime-gpu')}; "
        f"{settings['repetitions']} repetitions of {settings['seconds']:g} s."
    )
    return "\n\n".join([facts, markdown_table(_HEAD, rows(record)), summary(record)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; without it one is started and stopped")
    parser.add_argument("--store", type=Path, help="artifact folder, beside the embedded model")
    parser.add_argument("--model", help="name or name@version; without it the server's default")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="measured time of one run, after a second of warm-up"
    )
    parser.add_argument("--repetitions", type=int, default=MIN_REPETITIONS)
    parser.add_argument("--open-shares", type=float, nargs="*", default=[0.5, 0.8, 0.95])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--write-docs", metavar="BLOCK", help="write the record into the docs' block bench:BLOCK")
    parser.add_argument("--only-docs", action="store_true", help="measure nothing, write the docs from --out")
    options = parser.parse_args()
    console = Console()
    if not options.only_docs:
        record = run(options, console)
        write_record(record, options.out)
        shown = [index for index, name in enumerate(_HEAD) if name not in _DOCS_ONLY]
        table = Table(*(_HEAD[index] for index in shown), title=record["settings"]["model"])
        for row in rows(record):
            table.add_row(*(row[index] for index in shown))
        console.print(table)
        console.print(f"{summary(record)} Record: {options.out}")
    if options.write_docs:
        record = read_record(options.out)
        if len(record["repetitions"]) < MIN_REPETITIONS:
            sys.exit(f"the docs want {MIN_REPETITIONS} repetitions, the record has {len(record['repetitions'])}")
        for path in publish(options.out, f"{options.write_docs}.json", {options.write_docs: markdown(record)}):
            console.print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
