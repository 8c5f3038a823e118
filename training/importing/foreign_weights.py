"""Weight files of other trainers: the model's own state dict found inside what they wrap around it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.errors import ExportRefused
from training.importing.transformers_weights import has_transformers_names, to_open_clip

T = TypeVar("T")
_WRAPPERS = frozenset({"module", "_orig_mod"})  # of DataParallel and torch.compile, anywhere in a name
_ANCHOR = "logit_scale"  # every contrastive model has one, and it stands at the model's own top
_DEEPEST = 3
_ZIP = b"PK\x03\x04"


def refuse_damaged(path: Path) -> None:
    """Raises:
    ExportRefused: the file is empty or cut off.
    """
    size = path.stat().st_size
    if size == 0:
        raise ExportRefused(f"{path.name} is empty")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return
        except SafetensorError as error:
            raise ExportRefused(f"{path.name} ({size} bytes) is cut off or damaged: {error}") from error
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP
        file.seek(-min(size, 65_557), 2)  # a zip archive ends with its directory and at most 64 KiB of comment
        if is_zip and b"PK\x05\x06" not in file.read():
            raise ExportRefused(f"{path.name} ({size} bytes) is cut off: its end is missing, copy it again")


def with_plain_file(path: Path, use: Callable[[Path], T]) -> T:
    """Call `use` with a file that holds nothing but the model's state dict: `path` itself where it does.

    Wrappers that are known: a dictionary around it (`{"model": ...}`, `{"state_dict": ...}`), `module.` of data
    parallel training, `_orig_mod.` of torch.compile, and any one prefix of all names, as Lightning's `model.`. Names of
    transformers become open_clip's.

    Raises:
        ExportRefused: several models are in the file, or two names become one.
    """
    if path.suffix == ".safetensors":
        content: Any = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
    found = dict(_models_in(content, path))
    if len(found) > 1:
        raise ExportRefused(
            f"{path.name} holds {len(found)} models ({', '.join(found)}): save the state dict of the one you mean alone"
        )
    weights = next(iter(found.values()), None)
    if weights is not None and has_transformers_names(weights):
        weights = to_open_clip(weights)
    if weights is None or (isinstance(content, Mapping) and weights.keys() == content.keys()):
        return use(path)  # nothing is wrapped around it, or what it is only the loader can say
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "weights.safetensors"
        save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, plain)
        return use(plain)


def _models_in(content: Any, path: Path, where: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(where it stands, its state dict under its own names) of every model in a checkpoint."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    tensors = _unwrapped({str(k): v for k, v in content.items() if isinstance(v, Tensor)}, path)
    for anchor in sorted(name for name in tensors if name == _ANCHOR or name.endswith(f".{_ANCHOR}")):
        prefix = anchor.removesuffix(_ANCHOR)
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        yield f"{where}{prefix}".rstrip(".") or "its top", own
    for key, inner in content.items():
        yield from _models_in(inner, path, f"{where}{key}.", depth + 1)


def _unwrapped(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    plain = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in tensors}
    if len(plain) != len(tensors):
        raise ExportRefused(f"{path.name}: two of its names are one without {' and '.join(sorted(_WRAPPERS))}")
    return {short: tensors[name] for short, name in plain.items()}
