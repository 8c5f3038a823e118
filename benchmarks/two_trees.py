"""The same image load on the server of this tree and on that of another, in turns: what a change costs or gains.

    git worktree add ../before main
    python benchmarks/two_trees.py --other ../before --clients 8 --seconds 5 --repetitions 5

Both run with this environment's libraries and the embedded model. Prints one JSON object; on a machine that does other
things too (foreign_cores) it is an indication, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import clipworks_server
from benchmarks.figures import RESULTS
from benchmarks.measure import measure, must_succeed
from benchmarks.payloads import photographs, raw_images
from benchmarks.servers import Server

HERE = Path(__file__).resolve().parents[1]


def started(name: str, tree: Path, stack: ExitStack) -> Server:
    spec = clipworks_server(name, model=None, store=None, precision=None)
    command = [sys.executable, "-m", "service"]
    spec = replace(spec, command=command, environment={**spec.environment, "PYTHONPATH": str(tree.resolve())})
    return stack.enter_context(Server(spec, RESULTS / "logs" / f"two_trees.{name}.log"))


def run(other: Path, *, clients: int, seconds: float, repetitions: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"other": [], "this": []}
    cpu_ms: dict[str, list[float]] = {"other": [], "this": []}
    foreign: list[float] = []
    with ExitStack() as stack:
        servers = {"other": started("other", other, stack), "this": started("this", HERE, stack)}
        dialect = raw_images(photographs(24), None)
        for turn in range(repetitions):
            for name in sorted(servers, reverse=bool(turn % 2)):
                server = servers[name]
                found = must_succeed(
                    measure(server.spec.url, dialect, clients=clients, seconds=seconds, server=server), name
                )
                rates[name].append(found["items_per_s"])
                cpu_ms[name].append(found["server_cpu_ms"])
                foreign.append(found["foreign_cores"])
        return {
            name: {
                "images_per_s": rates[name],
                "median": statistics.median(rates[name]),
                "server_cpu_ms": statistics.median(cpu_ms[name]),
                "ready_s": round(server.ready_s, 2),
                "memory_mib": vars(server.memory()),
            }
            for name, server in servers.items()
        } | {
            "ratio": round(statistics.median(rates["this"]) / statistics.median(rates["other"]), 3),
            "foreign_cores": round(statistics.median(foreign), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--other", type=Path, required=True, help="the folder of another checkout")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one run")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    found = run(options.other, clients=options.clients, seconds=options.seconds, repetitions=options.repetitions)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
