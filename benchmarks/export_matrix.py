"""Every named architecture from a weights file to a published artifact: parameters, seconds, sizes, fidelity.

    python benchmarks/export_matrix.py [ARCH ...] [--out FOLDER] [--keep ARCH ...] [--threads N] [--docs FILE]

Weights are seeded random ones, saved to disk and imported as a stranger's file would be. Each architecture runs in a
child process of its own; its files are deleted afterwards unless it is kept. Writes `export_matrix.json` and prints a
markdown table. Random weights differ from trained ones: they have no loud channels, so int8 fidelity looks better here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ARCHITECTURES = (
    "tiny",
    "ViT-B-32",
    "RN50",
    "convnext_base",
    "ViT-B-16-SigLIP",
    "ViT-B-32-quickgelu",
    "ViT-B-16",
    "ViT-L-14",
)
SEED = 0
MARKERS = ("<!-- export-matrix -->", "<!-- /export-matrix -->")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--store", type=Path, default=Path(".runs/store"))
    parser.add_argument("--weights", type=Path, default=Path(".runs/weights"))
    parser.add_argument("--keep", nargs="*", default=["ViT-B-32"], help="architectures whose files stay")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--docs", type=Path, help="markdown file whose table between the markers is replaced")
    parser.add_argument("--table-only", action="store_true", help="run nothing, print what earlier runs found")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        row = import_one(arguments.child, store=arguments.store, weights=arguments.weights, threads=arguments.threads)
        sys.stdout.write(json.dumps(row) + "\n")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = arguments.out / "export_matrix.json"
    rows = {row["architecture"]: row for row in json.loads(report.read_text())["rows"]} if report.exists() else {}
    for architecture in [] if arguments.table_only else arguments.architectures:
        rows[architecture] = run_child(architecture, arguments)
        if architecture not in arguments.keep:
            shutil.rmtree(arguments.store / artifact_name(architecture), ignore_errors=True)
            weights_file(architecture, arguments.weights).unlink(missing_ok=True)
        ordered = [rows[name] for name in ARCHITECTURES if name in rows]
        report.write_text(json.dumps({"machine": machine(arguments.threads), "rows": ordered}, indent=1) + "\n")
        (arguments.out / "export_matrix.md").write_text(table(ordered) + "\n")
    final = table([rows[name] for name in ARCHITECTURES if name in rows])
    if arguments.docs:
        insert(arguments.docs, final)
    sys.stdout.write(final + "\n")
    return 0 if all("error" not in row for row in rows.values()) else 1


def run_child(architecture: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One import in a process of its own: memory is given back, and a crash costs one row."""
    command = [sys.executable, __file__, "--child", architecture, "--threads", str(arguments.threads)]
    command += ["--store", str(arguments.store), "--weights", str(arguments.weights)]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": str(arguments.threads)}
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if child.returncode:
        return {"architecture": architecture, "error": f"child ended with status {child.returncode}"}
    return json.loads(child.stdout.strip().splitlines()[-1])


def import_one(architecture: str, *, store: Path, weights: Path, threads: int) -> dict[str, Any]:
    """Save random weights, import them, and describe the artifact."""
    import resource

    import torch

    from model_store.store import Store
    from training.importing.importer import import_model
    from training.tiny import write_tiny_source

    torch.set_num_threads(threads)
    file = weights_file(architecture, weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    name = artifact_name(architecture)
    shutil.rmtree(store / name, ignore_errors=True)
    options: dict[str, Any] = {"licence": "random weights", "limits": "Random weights: it knows nothing."}
    arch, pretrained = architecture, str(file)
    if architecture == "tiny":
        source = write_tiny_source(weights / "tiny-source")
        arch, pretrained = f"local-dir:{source}", None
        options["tokenizer"] = source / "merges.txt"
        parameters = sum(t.numel() for t in _state_of(source / "open_clip_model.safetensors").values())
    else:
        parameters = save_random_weights(architecture, file)
        if "SigLIP" in architecture:
            options["tokenizer"] = train_tokenizer(weights / "siglip-tokenizer", vocab_size=32_000)
    options["activation"] = declared_activation(architecture)
    stages: list[tuple[str, float]] = []
    started = time.monotonic()

    def progress(stage: str) -> None:
        stages.append((stage, time.monotonic() - started))
        sys.stderr.write(f"{architecture} {stages[-1][1]:7.1f} s  {stage}\n")

    artifact = import_model(
        arch, pretrained=pretrained, name=name, store=Store(store, builtin=False), progress=progress, **options
    )
    seconds = time.monotonic() - started
    return {
        "architecture": architecture,
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "stages": [(stage, round(at, 1)) for stage, at in stages],
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "graphs": [
            {
                "role": graph.role,
                "precision": graph.precision,
                "bytes": sum(artifact.entry(path).size_bytes for path in graph.files),
                "fidelity": graph.fidelity.model_dump() if graph.fidelity else None,
                "batch_invariant": graph.batch_invariant,
                "batch_difference": graph.batch_difference,
            }
            for graph in artifact.manifest.graphs
        ],
        "skipped": [variant.model_dump() for variant in artifact.manifest.skipped],
    }


def save_random_weights(architecture: str, file: Path) -> int:
    """open_clip's own initialisation under a fixed seed, saved as safetensors; returns the number of parameters."""
    import open_clip
    import safetensors.torch
    import torch

    torch.manual_seed(SEED)
    config: dict[str, Any] = open_clip.get_model_config(architecture) or {}
    custom_text = config.pop("custom_text", False)
    model = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    return sum(parameter.numel() for parameter in model.parameters())


def declared_activation(architecture: str) -> str | None:
    """What a user would declare for the architecture's own form; None where there is only one."""
    import open_clip

    base = architecture.removesuffix("-quickgelu")
    if f"{base}-quickgelu" not in open_clip.list_models():
        return None
    return "quickgelu" if architecture != base else "gelu"


def train_tokenizer(folder: Path, *, vocab_size: int) -> Path:
    """A unigram tokenizer.json shaped like SigLIP's, trained on the spot on this repository's own prose and code."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    root = Path(__file__).parents[1]
    files = [p for folder_name in ("docs", "training", "model_store") for p in (root / folder_name).rglob("*.[mp][dy]")]
    tokenizer.train_from_iterator((p.read_text(encoding="utf-8") for p in sorted(files)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "</s>"}))
    return folder


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per graph."""
    lines = [
        "| architecture | parameters | import | graph | file | min cosine | centred min | centred rel. L2 | company |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['architecture']} | | | {row['error']} | | | | | |")
            continue
        head = f"{row['architecture']} | {row['parameters'] / 1e6:.1f} M | {row['seconds']:.0f} s"
        for graph in row["graphs"]:
            f = graph["fidelity"]
            label = f"{graph['role'].removesuffix('_encoder')} {graph['precision']}"
            numbers = f"{f['cosine_min']:.5f} | {f['centred_cosine_min']:.5f} | {f['centred_relative_l2']:.1e}"
            company = f"{graph['batch_difference']:.1e}" if graph["batch_difference"] else "0"
            lines.append(f"| {head} | {label} | {graph['bytes'] / 1e6:.1f} MB | {numbers} | {company} |")
            head = " | | "
        for variant in row["skipped"]:
            label = f"{variant['role'].removesuffix('_encoder')} {variant['precision']}"
            lines.append(f"| {head} | {label} not built | | {variant['reason']} | | | |")
            head = " | | "
    return "\n".join(lines)


def insert(document: Path, content: str) -> None:
    """Replace what stands between the two markers."""
    before, _, rest = document.read_text(encoding="utf-8").partition(MARKERS[0])
    _, found, after = rest.partition(MARKERS[1])
    if not found:
        raise SystemExit(f"{document} has no {MARKERS[0]} ... {MARKERS[1]}")
    document.write_text(f"{before}{MARKERS[0]}\n{content}\n{MARKERS[1]}{after}", encoding="utf-8")


def artifact_name(architecture: str) -> str:
    return f"{architecture.lower().replace('_', '-')}-random"


def weights_file(architecture: str, folder: Path) -> Path:
    return folder / f"{artifact_name(architecture)}.safetensors"


def machine(threads: int) -> dict[str, Any]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].partition(":")[2].strip() if models else platform.processor()
    return {"cpu": cpu, "threads": threads, "load_average": os.getloadavg(), "python": platform.python_version()}


def _state_of(file: Path) -> dict[str, Any]:
    import safetensors.torch

    return safetensors.torch.load_file(file)


if __name__ == "__main__":
    sys.exit(main())
