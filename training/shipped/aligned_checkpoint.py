"""The checkpoint of an aligned model whose parts a script has trained, as `clipworks train` would have left it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from model_store.identity import spec_digest
from model_store.manifest import Distillation, ImageSpec, TextSpec
from training.checkpoint import git_sha, save_checkpoint
from training.config import TrainConfig
from training.loop import TOOLS
from training.models.aligned import AlignedDualEncoder


def save_aligned(
    out: Path,
    model: AlignedDualEncoder,
    *,
    config: TrainConfig,
    image: ImageSpec,
    text: TextSpec,
    tokenizer: bytes,
    templates: Sequence[str],
    data_digest: str,
    steps: int,
    distillation: Distillation | None = None,
) -> None:
    """data_digest: of all that the weights depend on beside `config`."""
    info = {
        "config": config.model_dump(mode="json"),
        "image_spec": image.model_dump(mode="json"),
        "text_spec": text.model_dump(mode="json"),
        "image_spec_digest": spec_digest(image),
        "text_spec_digest": spec_digest(text),
        "data_digest": data_digest,
        "git_sha": git_sha(Path(__file__).parent),
        "base_sha256": None,
        "tools": {name: importlib.metadata.version(name) for name in TOOLS},
        "step": steps,
        "metrics": {},
        "graphs": {
            "image_encoder": "model.encode_image",
            "text_encoder": "model.encode_text",
            "dense_encoder": "model.encode_dense",
        },
        "templates": list(templates),
        "labels": [],
        "inherited": [],
        "presence": None,
        "distillation": None if distillation is None else distillation.model_dump(mode="json"),
    }
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(out, info, weights=weights, state={}, tokenizer=tokenizer)
