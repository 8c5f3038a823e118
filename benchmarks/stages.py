"""The cost of each stage of a request by itself, on one thread, and what that leaves for the engine at best.

    python benchmarks/stages.py --store .runs/bench-store --model vit-b-32-random --precision fp32

The ceiling of server efficiency follows from it: every CPU millisecond that an image needs outside the engine is taken
from the engine, because all cores are busy.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.figures import RESULTS, circumstances, write_record
from benchmarks.payloads import openai_images, photographs, short_texts
from benchmarks.raw_session import RawSession
from clipworks.schemas import EmbedResponse, V1EmbeddingsRequest
from model_store.manifest import Precision
from model_store.modality.image import decode, prepare
from model_store.store import Artifact, Store

CHUNKS = 7
ENGINE_BATCHES = (1, 2, 4, 8, 16)


def cpu_ms(work: Callable[[], object], *, chunk_s: float = 0.1) -> float:
    """CPU milliseconds of one call on this thread: the median of a few chunks of calls."""
    work()
    chunks = []
    for _ in range(CHUNKS):
        calls, before, until = 0, time.thread_time(), time.perf_counter() + chunk_s
        while time.perf_counter() < until:
            work()
            calls += 1
        chunks.append(1000 * (time.thread_time() - before) / calls)
    return statistics.median(chunks)


def outside_the_engine(artifact: Artifact) -> dict[str, float]:
    """CPU milliseconds of each stage of one image or text, but for the model run and HTTP."""
    vector = np.random.default_rng(0).standard_normal(artifact.manifest.dim).astype(np.float32)
    unit = vector / np.linalg.norm(vector)
    found: dict[str, float] = {}
    if spec := artifact.image_spec:
        pictures = photographs(4)
        image = decode(pictures[0])
        body = openai_images(pictures[:1], "m", path="/").payloads[0].body
        found["parse JSON with a data URI"] = cpu_ms(lambda: V1EmbeddingsRequest.model_validate_json(body))
        uri = orjson.loads(body)["input"][0].partition(",")[2]
        found["base64 to bytes"] = cpu_ms(lambda: base64.b64decode(uri, validate=True))
        found["decode a 640 x 480 JPEG"] = cpu_ms(lambda: [decode(picture) for picture in pictures]) / len(pictures)
        found["resize and crop"] = cpu_ms(lambda: prepare(image, spec))
        array = prepare(image, spec)
        found["stack (in a batch of 8)"] = cpu_ms(lambda: np.stack([array] * 8)) / 8
    if artifact.text_spec:
        tokenizer, texts = artifact.tokenizer(), short_texts(64)
        found["tokenise a short text"] = cpu_ms(lambda: [tokenizer.encode(text) for text in texts]) / len(texts)
    found["normalise"] = cpu_ms(lambda: (vector / float(np.linalg.norm(vector))).astype(np.float32))
    found["vector to JSON numbers"] = cpu_ms(lambda: orjson.dumps(unit.tolist()))
    found["vector to base64"] = cpu_ms(lambda: base64.b64encode(unit.tobytes()))
    found["vector to .npy"] = cpu_ms(lambda: np.save(io.BytesIO(), unit[None]))
    answer = _answer(artifact, unit.tolist())
    found["answer through the schema"] = cpu_ms(lambda: EmbedResponse.model_validate(answer).model_dump_json())
    return found


def _answer(artifact: Artifact, vector: list[float]) -> dict[str, Any]:
    fingerprint = {"image": artifact.manifest.fingerprint.image, "text": artifact.manifest.fingerprint.text}
    return {
        "model": artifact.reference,
        "fingerprint": fingerprint,
        "space": artifact.manifest.space,
        "dim": artifact.manifest.dim,
        "data": [{"index": 0, "embedding": vector}],
        "usage": {"texts": 0, "images": 1, "tokens": 0},
    }


def engine(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates of the session alone by role, spinning and batch size."""
    artifact, rows = Store(options.store).open(options.model), []
    for role in ("image_encoder", "text_encoder"):
        if artifact.graph_spec(role, options.precision) is None:
            continue
        for spinning in (False, True):
            session = RawSession(
                store=options.store, model=options.model, role=role, precision=options.precision, spinning=spinning
            )
            with session:
                for batch in ENGINE_BATCHES:
                    run = session.measure(batch=batch, seconds=options.seconds)
                    rows.append({"role": role, "spinning": spinning, **run})
    return rows


def image_ceiling(stages: dict[str, float], engine_cpu_ms: float) -> float:
    """Best possible server efficiency for raw JPEG bodies when every core is busy and nothing else costs anything."""
    needed = ("decode a 640 x 480 JPEG", "resize and crop", "stack (in a batch of 8)", "normalise", "vector to .npy")
    return engine_cpu_ms / (engine_cpu_ms + sum(stages[name] for name in needed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of one engine measurement")
    parser.add_argument("--out", type=Path, default=RESULTS / "stages.json")
    options = parser.parse_args()
    precision: Precision = options.precision
    artifact = Store(options.store).open(options.model)
    record: dict[str, Any] = {"kind": "stages", "before": circumstances(), "model": artifact.reference}
    record |= {"precision": precision, "cpu_ms": outside_the_engine(artifact), "engine": engine(options)}
    record["after"] = circumstances()
    console = Console()
    table = Table("stage", "CPU ms", title=f"{artifact.reference} {precision}: one item, one thread")
    for name, value in record["cpu_ms"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    table = Table("role", "spinning", "batch", "items/s", "CPU ms/item", title="the session alone")
    for row in record["engine"]:
        cells = (row["role"], str(row["spinning"]), f"{row['batch']}", f"{row['rate']:.1f}", f"{row['cpu_ms']:.2f}")
        table.add_row(*cells)
    console.print(table)
    images = [row["cpu_ms"] for row in record["engine"] if row["role"] == "image_encoder" and not row["spinning"]]
    if images:
        record["image_ceiling"] = image_ceiling(record["cpu_ms"], min(images))
        console.print(f"server efficiency can be at most {record['image_ceiling']:.3f} here")
    console.print(f"record: {write_record(record, options.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
