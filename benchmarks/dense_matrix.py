"""The dense role of named architectures, from a weights file to a published artifact: parity, grid, disk.

    python benchmarks/dense_matrix.py [ARCH[:ATTENTION] ...] [--out FILE] [--docs FILE] [--table-only]

Weights are seeded random ones, saved to disk and imported in fp32 as a stranger's file would be, each in a child
process and a folder that is deleted afterwards. The published graphs are then compared with the torch module made anew
from the same file: on a picture of the encoder's own size, on the default size (14 cells or more on the short side) and
on a wide one. Positions and pooled vectors are judged by the largest difference of a component, relative to the longest
vector. Disk is both graphs and their weights, over what the image encoder alone reads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.export_matrix import declared_activation, save_random_weights
from benchmarks.marked import markdown_table, replace_blocks

RUNS = (
    "RN50",
    "convnext_base",
    "ViT-B-32:naclip",
    "ViT-B-32:maskclip",
    "ViT-B-32:sclip",
    "ViT-B-16:naclip",
    "ViT-B-16:maskclip",
    "ViT-B-16:sclip",
)
MARKS = "dense-matrix"
HEADER = ("architecture", "attention", "export", "default grid", "parity of positions", "of pooled vectors", "disk")


def measure_one(run: str) -> dict[str, Any]:
    """Export and judge one architecture in this process."""
    import torch

    from model_store.store import Store
    from training.importing.importer import import_model
    from training.importing.openclip_weights import find_weights, load_model

    architecture, _, attention = run.partition(":")
    torch.set_num_threads(1)
    activation: Any = declared_activation(architecture)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "weights.safetensors"
        save_random_weights(architecture, file)
        started = time.monotonic()
        artifact = import_model(
            architecture,
            pretrained=str(file),
            activation=activation,
            name="measured",
            store=Store(Path(name) / "store", builtin=False),
            precisions=["fp32"],
            dense=attention or "naclip",  # pyright: ignore[reportArgumentType]
            progress=lambda stage: print(f"{run} {time.monotonic() - started:6.0f} s {stage}", file=sys.stderr),
        )
        seconds = time.monotonic() - started
        row: dict[str, Any] = {"run": run, "seconds": round(seconds)}
        if artifact.manifest.dense is None:
            return row | {"error": "; ".join(each.reason for each in artifact.manifest.skipped)}
        visual = load_model(find_weights(architecture, str(file), activation=activation, cache_dir=None)).visual
        return row | parity(artifact, visual, attention or "naclip") | {"disk": round(disk_share(artifact), 4)}


def parity(artifact: Any, visual: Any, attention: Any) -> dict[str, Any]:
    """Largest differences, relative to the longest vector, between the published graphs and the torch module."""
    import numpy as np
    import torch

    from model_store.session import SessionSettings
    from model_store.towers import open_dense_tower, open_tower
    from training.models.dense import DenseSource, dense_of_openclip

    spec = artifact.dense_spec
    source = dense_of_openclip(visual, artifact.image_spec, attention)
    if not isinstance(source, DenseSource):
        raise TypeError(f"the torch module has no dense role: {source}")
    settings = SessionSettings(intra_threads=1)
    dense, image = open_dense_tower(artifact, "fp32", settings), open_tower(artifact, "image_encoder", "fp32", settings)
    own = (artifact.image_spec.height_px, artifact.image_spec.width_px)
    wide = (spec.short_px, 2 * spec.short_px)
    worst = {"positions": 0.0, "pooled": 0.0}
    for height, width in (own, (spec.short_px, spec.short_px), wide):
        pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = [each.numpy() for each in source.module.eval()(torch.from_numpy(pixels))]
        found = dense(pixels)
        pairs = {"positions": [(found.positions, expected[0])], "pooled": [(found.pooled, expected[1])]}
        if (height, width) == own:
            pairs["pooled"].append((found.pooled, image(pixels)))
        for name, each in pairs.items():
            for got, want in each:
                off = float(np.abs(got - want).max() / np.linalg.norm(want, axis=-1).max())
                worst[name] = max(worst[name], off)
    cells = spec.short_px // spec.stride_px
    return {"grid": f"{cells} x {cells}", "short_px": spec.short_px, **worst}


def disk_share(artifact: Any) -> float:
    """Bytes of both graphs and of the weights they share, over those that the image encoder reads."""
    import onnx

    encoder = artifact.manifest.graph("image_encoder", "fp32")
    dense = artifact.manifest.graph("dense_encoder", "fp32")
    model = onnx.load(artifact.folder / encoder.file, load_external_data=False)
    alone = artifact.entry(encoder.file).size_bytes
    for tensor in model.graph.initializer:
        alone += sum(int(each.value) for each in tensor.external_data if each.key == "length")
    both = {*encoder.files, *dense.files}
    return sum(artifact.entry(path).size_bytes for path in both) / alone


def run_child(run: str) -> dict[str, Any]:
    """One export in a process of its own: memory is given back, and a crash costs one row."""
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", run]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if child.returncode:
        return {"run": run, "error": f"child ended with status {child.returncode}"}
    return json.loads(child.stdout.strip().splitlines()[-1])


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines: list[list[str]] = []
    for row in rows:
        architecture, _, attention = row["run"].partition(":")
        if "error" in row:
            lines.append([architecture, attention, row["error"], "", "", "", ""])
            continue
        numbers = [f"{row['positions']:.1e}", f"{row['pooled']:.1e}", f"{row['disk']:.3f}x"]
        grid = f"{row['grid']} ({row['short_px']} px)"
        lines.append([architecture, attention or "its own", f"{row['seconds']} s", grid, *numbers])
    return markdown_table(list(HEADER), lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=list(RUNS), metavar="ARCH[:ATTENTION]")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dense_matrix.json"))
    parser.add_argument("--docs", type=Path, help=f"markdown file whose table between the {MARKS} marks is replaced")
    parser.add_argument("--table-only", action="store_true", help="run nothing, print what earlier runs found")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure_one(chosen.child)))
        return 0
    rows = {row["run"]: row for row in json.loads(chosen.out.read_text())} if chosen.out.exists() else {}
    for run in [] if chosen.table_only else chosen.runs:
        rows[run] = run_child(run)
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    found = table([rows[run] for run in RUNS if run in rows])
    if chosen.docs:
        page = chosen.docs.read_text(encoding="utf-8")
        chosen.docs.write_text(replace_blocks(page, {MARKS: found}), encoding="utf-8")
    print(found)
    return 0 if all("error" not in row for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
