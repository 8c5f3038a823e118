"""Checkpoints that explain themselves: safetensors and one JSON file, never pickle.

folder/checkpoint.json      config, git sha, digests of specs and data, step, metrics: everything but numbers
folder/weights.safetensors  averaged weights of the modules to export, names like `model.trunk.stages.0...`
folder/tokenizer.txt        the tokenizer's bytes
folder/state.safetensors    live weights, averages and optimizer moments; only for resuming, may be deleted
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_store.files import sync, write_whole
from model_store.identity import sha256_file, spec_digest
from model_store.manifest import Distillation, ImageSpec, Presence, TextSpec
from model_store.modality.text import Tokenizer
from training.config import TrainConfig, parse_config
from training.data.vocabulary import TOKENIZER_FILE
from training.interrupts import signals_held
from training.models.building import build_model
from training.models.towers import DualEncoder

FORMAT = 1
INFO_FILE, WEIGHTS_FILE, STATE_FILE = "checkpoint.json", "weights.safetensors", "state.safetensors"
FILES = {TOKENIZER_FILE: "tokenizer_sha256", STATE_FILE: "state_sha256", WEIGHTS_FILE: "weights_sha256"}
HEAD_PREFIX = "class_head/"
ARRAY_PREFIX = "array/"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `checkpoint.json` says; `templates` are the default prompts, `graphs` role -> method function.

    base_sha256: digest of the weights that training started from, None without a base. inherited: roles that the base
    keeps providing. behind_base: it keeps none, and what the checkpoint holds works inside its towers nevertheless.
    labels: the classes of a head. presence: what the method fitted for scores of positions.
    """

    config: TrainConfig
    step: int
    image_spec: ImageSpec
    text_spec: TextSpec
    image_spec_digest: str
    text_spec_digest: str
    data_digest: str
    tokenizer_sha256: str
    weights_sha256: str
    git_sha: str | None
    graphs: dict[str, str]
    templates: tuple[str, ...]
    metrics: dict[str, Any]
    tools: dict[str, str]
    base_sha256: str | None = None
    inherited: tuple[str, ...] = ()
    behind_base: bool = False
    labels: tuple[str, ...] = ()
    presence: Presence | None = None
    distillation: Distillation | None = None

    @property
    def derives(self) -> bool:
        """Whether its method opens and publishes it on top of its base; else it is a model of its own."""
        return bool(self.inherited) or self.behind_base


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A checkpoint opened for inference: the model is in eval mode, fp32, on the CPU, and wants no gradients."""

    info: Checkpoint
    model: DualEncoder
    tokenizer: Tokenizer
    tokenizer_bytes: bytes


@dataclass(frozen=True, kw_only=True)
class LoadedHead:
    """A checkpoint that is a class head: float32 arrays by name, as its method's head has them.

    It means something behind the image tower of `base_sha256` only.
    """

    info: Checkpoint
    arrays: dict[str, NDArray[np.float32]]
    labels: tuple[str, ...]
    base_sha256: str


def save_checkpoint(
    folder: Path, info: dict[str, Any], *, weights: dict[str, Tensor], state: dict[str, Tensor], tokenizer: bytes
) -> None:
    """Write a checkpoint; `checkpoint.json` is replaced last and names the other files' digests.

    Everything is written beside the old checkpoint first, so what fails or interrupts the writing leaves that whole.
    The files then take its place one after the other, while Ctrl-C and SIGTERM wait; only a SIGKILL or a power cut in
    those moments leaves a torn checkpoint, which is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f"{name}.part" for name in (TOKENIZER_FILE, STATE_FILE, WEIGHTS_FILE, INFO_FILE)}
    for name, tensors in ((STATE_FILE, state), (WEIGHTS_FILE, weights)):
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, parts[name])
    info = {
        "format": FORMAT,
        **info,
        "weights_sha256": sha256_file(parts[WEIGHTS_FILE]),
        "state_sha256": sha256_file(parts[STATE_FILE]),
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
    }
    parts[TOKENIZER_FILE].write_bytes(tokenizer)
    parts[INFO_FILE].write_text(json.dumps(info, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for part in parts.values():
        sync(part)
    with signals_held():
        for name, part in parts.items():
            os.replace(part, folder / name)


def note_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Put numbers into a checkpoint that is saved already."""
    info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    info["metrics"] = metrics
    write_whole(folder / INFO_FILE, (json.dumps(info, indent=2, sort_keys=True) + "\n").encode())


def check_whole(folder: Path) -> int:
    """The step of a checkpoint that a run can resume from, all of its files as they were written.

    Raises:
        ValueError: a file is missing or another one.
    """
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        for name, key in FILES.items():
            _check(folder / name, info[key])
        return info["step"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: no whole checkpoint: {error}") from error


def read_checkpoint(folder: Path) -> Checkpoint:
    """Parse and check `checkpoint.json`.

    Raises:
        ValueError: another format, or specs that do not match their stored digests.
    """
    info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    if info.get("format") != FORMAT:
        raise ValueError(f"{folder}: checkpoint format {info.get('format')!r}, expected {FORMAT}")
    presence, taught = info.get("presence"), info.get("distillation")
    checkpoint = Checkpoint(
        config=parse_config(info["config"], where=str(folder / INFO_FILE)),
        step=info["step"],
        image_spec=ImageSpec.model_validate_json(json.dumps(info["image_spec"])),
        text_spec=TextSpec.model_validate_json(json.dumps(info["text_spec"])),
        image_spec_digest=info["image_spec_digest"],
        text_spec_digest=info["text_spec_digest"],
        data_digest=info["data_digest"],
        tokenizer_sha256=info["tokenizer_sha256"],
        weights_sha256=info["weights_sha256"],
        git_sha=info["git_sha"],
        graphs=dict(info["graphs"]),
        templates=tuple(info["templates"]),
        metrics=info["metrics"],
        tools=info["tools"],
        base_sha256=info.get("base_sha256"),
        inherited=tuple(info.get("inherited", ())),
        behind_base=info.get("behind_base", False),
        labels=tuple(info.get("labels", ())),
        presence=None if presence is None else Presence.model_validate_json(json.dumps(presence)),
        distillation=None if taught is None else Distillation.model_validate(taught),
    )
    for spec, digest in (
        (checkpoint.image_spec, checkpoint.image_spec_digest),
        (checkpoint.text_spec, checkpoint.text_spec_digest),
    ):
        if spec_digest(spec) != digest:
            raise ValueError(f"{folder}: {type(spec).__name__} has digest {spec_digest(spec)}, expected {digest}")
    return checkpoint


def load_model(folder: Path) -> LoadedModel:
    """Rebuild the exportable model of a checkpoint from its own config and averaged weights.

    Raises:
        ValueError: a file differs from its digest, or the weights do not fit the architecture.
    """
    info, weights, prefix = read_checkpoint(folder), load_weights(folder), "model."
    tokenizer_bytes = _checked(folder / TOKENIZER_FILE, info.tokenizer_sha256)
    if not any(name.startswith(prefix) for name in weights):
        made = ", ".join(sorted(weights)[:3])
        raise ValueError(f"{folder} holds no model of its own: method {info.config.method} made {made}")
    if info.text_spec.end_id is None:
        raise ValueError(f"{folder}: the text spec has no end id")
    model = build_model(info.config.model, vocab_size=info.text_spec.vocab_size, end_id=info.text_spec.end_id)
    try:
        state = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        keys = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # it lists every weight of another shape, a line each
        raise ValueError(f"{folder}: weights of another model: {str(error).splitlines()[1].strip()}") from error
    if odd := [*keys.missing_keys, *keys.unexpected_keys]:
        raise ValueError(
            f"{folder}: weights of another model: {len(keys.missing_keys)} are missing and {len(keys.unexpected_keys)} "
            f"are not known, among them {odd[0]}"
        )
    model.eval().requires_grad_(False)
    tokenizer = Tokenizer(info.text_spec, tokenizer_bytes)
    return LoadedModel(info=info, model=model, tokenizer=tokenizer, tokenizer_bytes=tokenizer_bytes)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """What a method shipped, by name, checked against the digest in `checkpoint.json`.

    Raises:
        ValueError: the file differs from its digest.
    """
    _check(folder / WEIGHTS_FILE, read_checkpoint(folder).weights_sha256)
    return load_file(folder / WEIGHTS_FILE)


def load_head(folder: Path) -> LoadedHead:
    """Open a checkpoint that a method of class heads left.

    Raises:
        ValueError: it is none, or a file differs from its digest.
    """
    info, weights, prefix = read_checkpoint(folder), load_weights(folder), f"{ARRAY_PREFIX}{HEAD_PREFIX}"
    arrays = {name.removeprefix(prefix): each.numpy() for name, each in weights.items() if name.startswith(prefix)}
    if not arrays or info.base_sha256 is None:
        raise ValueError(f"{folder} is no class head: method {info.config.method} made {sorted(weights)[:3]}")
    return LoadedHead(info=info, arrays=arrays, labels=info.labels, base_sha256=info.base_sha256)


def load_state(folder: Path) -> dict[str, Tensor]:
    """Tensors for resuming, checked against the digest in `checkpoint.json` (a run killed between the two files)."""
    info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    _check(folder / STATE_FILE, info["state_sha256"])
    return load_file(folder / STATE_FILE)


def optimizer_state(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """Moments by parameter name: keys `<name>/<moment>`."""
    tensors: dict[str, Tensor] = {}
    for parameter, moments in optimizer.state.items():
        for moment, value in moments.items():
            tensors[f"{names[parameter]}/{moment}"] = torch.as_tensor(value)  # pyright: ignore[reportArgumentType]
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], tensors: dict[str, Tensor]
) -> None:
    """Inverse of `optimizer_state`; moments keep their parameter's memory format, to resume bit-equal."""
    for parameter, name in names.items():
        moments = {key.rsplit("/", 1)[1]: value for key, value in tensors.items() if key.rsplit("/", 1)[0] == name}
        for moment, value in moments.items():
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter).copy_(value)
            optimizer.state[parameter][moment] = value


def git_sha(folder: Path) -> str | None:
    """The commit of the working tree that `folder` is in, with `+changes` if it was modified; None outside of git."""
    try:
        run = ["git", "-C", str(folder)]
        sha = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*run, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{sha}+changes" if dirty.strip() else sha


def _checked(path: Path, sha256: str) -> bytes:
    _check(path, sha256)
    return path.read_bytes()


def _check(path: Path, sha256: str) -> None:
    if (found := sha256_file(path)) != sha256:
        raise ValueError(f"{path}: sha256 is {found}, checkpoint.json says {sha256}")
