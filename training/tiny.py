"""A seeded random CLIP of a few hundred kilobytes: the whole contract in seconds, and no knowledge at all."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.tokenizer import default_bpe

from model_store.manifest import Precision
from model_store.store import Artifact, Store
from training.importing.importer import import_model

MERGES = 500
IMAGE_SIZE_PX = 48
CONTEXT_LENGTH = 24


def tiny_config(*, quick_gelu: bool = False, sigmoid: bool = False) -> dict[str, Any]:
    """An open_clip model configuration: 48 px, 2 + 2 layers, 500 BPE merges."""
    config: dict[str, Any] = {
        "embed_dim": 32,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": IMAGE_SIZE_PX,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 12,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 2 * 256 + MERGES + 2,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "mlp_ratio": 2.0,
        },
    }
    return config | {"init_logit_bias": -10.0} if sigmoid else config


def merges_prefix(count: int) -> bytes:
    """The first `count` merges of CLIP's vocabulary, as a file that open_clip and this project read alike."""
    with gzip.open(default_bpe()) as stream:
        lines = stream.read().decode("utf-8").split("\n")
    return "\n".join(lines[: count + 1]).encode("utf-8")  # no newline at the end: it would count as a merge


def write_tiny_source(folder: Path, *, seed: int = 0, quick_gelu: bool = False, sigmoid: bool = False) -> Path:
    """Write what open_clip reads as `local-dir:`: configuration and random weights, and the merges beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(quick_gelu=quick_gelu, sigmoid=sigmoid)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (folder / "merges.txt").write_bytes(merges_prefix(MERGES))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    return folder


def build_tiny_artifact(
    store_root: Path,
    *,
    name: str = "tiny",
    seed: int = 0,
    sigmoid: bool = False,
    precisions: tuple[Precision, ...] = ("fp32", "int8"),
) -> Artifact:
    """Publish a tiny random model into the store at `store_root`; the same seed gives the same fingerprints."""
    store = Store(store_root, builtin=False)
    with store.staging() as folder:
        source = write_tiny_source(folder / "source", seed=seed, sigmoid=sigmoid)
        return import_model(
            f"local-dir:{source}",
            name=name,
            store=store,
            tokenizer=source / "merges.txt",
            precisions=precisions,
            licence="Apache-2.0",
            limits="Random weights: it knows nothing. For tests of the machinery only.",
        )


def _main(store_root: Path) -> None:
    """Replace the committed fixture: `python -m training.tiny tests/fixtures/tiny_store`."""
    shutil.rmtree(store_root, ignore_errors=True)
    artifact = build_tiny_artifact(store_root)
    shutil.rmtree(store_root / ".staging", ignore_errors=True)
    sys.stdout.write(f"{artifact.folder}\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
