"""Bulk upsert of vectors over HTTP, by the client, beside calls of the store itself: rows a second, and whose time.

python benchmarks/retrieval_http.py --rows 10000
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.retrieval_data import clustered
from clipworks import Client, Item

BATCH = 500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(url: str, rows: int, server: psutil.Process) -> dict[str, float]:
    """Rows a second of wall time, and of processor time of the server's process tree and of the client."""
    with Client(url, timeout_s=120, batch_size=BATCH) as client:
        collection = client.create_collection("bench", index="flat")
        vectors = clustered(rows, collection.info().dim, seed=1)
        items = [Item(id=f"r{n}", vector=row, metadata={"percent": n % 100}) for n, row in enumerate(vectors)]
        tree = [server, *server.children(recursive=True)]
        before = sum(sum(each.cpu_times()[:2]) for each in tree)
        started, own = time.perf_counter(), time.process_time()
        result = collection.upsert(items)
        took, own = time.perf_counter() - started, time.process_time() - own
        if result.errors:
            sys.exit(f"{len(result.errors)} rows were refused: {result.errors[0]}")
        spent = sum(sum(each.cpu_times()[:2]) for each in tree) - before
    return {"rows_per_s": rows / took, "rows_per_server_cpu_s": rows / spent, "rows_per_client_cpu_s": rows / own}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("clipworks"), "serve", "--port", str(port), "--data", folder]
        with (Path(folder) / "server.log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 300
            while time.monotonic() < until and server.poll() is None:
                try:
                    with Client(url) as client:
                        client.embed(texts=["ready"])
                    break
                except Exception:
                    time.sleep(0.5)
            print({name: round(value) for name, value in measure(url, rows, psutil.Process(server.pid)).items()})
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
