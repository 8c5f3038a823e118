"""The trained scale and bias of a contrastive model, which most ONNX exports leave out, found without its weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from model_store.errors import RepositoryError
from model_store.hub.originals import original_of
from model_store.hub.remote import HubRepository
from model_store.hub.repository import Repository

SCALE, BIAS = "logit_scale", "logit_bias"
_WHOLE = ("open_clip_model.safetensors", "model.safetensors")
_INDEX = "model.safetensors.index.json"
_LARGEST_LOGARITHM = 14.0  # a scale of a million; trained ones are about 100
_FIRST_READ_BYTES = 100_000  # holds the header of most files
_LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, kw_only=True)
class ScaleFound:
    """`scale` multiplies cosines, exp() applied, and `bias` is added (sigmoid models); `source` says where they stand.

    scale is None where nothing was found, and `source` is then the reason.
    """

    scale: float | None
    bias: float | None
    source: str


@dataclass(frozen=True)
class _Form:
    """A number in a file: `size_bytes` of it, and what goes before them to make what struct's `code` reads."""

    code: str
    size_bytes: int
    before: bytes = b""


_FORMS = {"F64": _Form("<d", 8), "F32": _Form("<f", 4), "F16": _Form("<e", 2), "BF16": _Form("<f", 2, b"\0\0")}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """An entry of a safetensors header; `start` and `end` are positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def trained_scale(
    repository: Repository, *, open_repository: Callable[[str], Repository] = HubRepository
) -> ScaleFound:
    """Scale and bias of the model that a repository exports: from its own weights, else from those it was made from.

    The original is known by ARCH__TAG in the repository's name (open_clip's names), by the models that its README.md
    names as its base, or by the name itself; a few range reads of the original's safetensors then give the numbers.
    For the tags whose value is recorded, no weights are needed.

    Raises:
        RepositoryError: the repository itself cannot be read.
    """
    own = scale_in(repository)
    if own is not None:
        return own
    original = original_of(repository.name, repository.base_models)
    reasons = [f"{repository.name} has no safetensors with {SCALE}"]
    for name in dict.fromkeys(
        [original.repository, *repository.base_models] if original and original.repository else repository.base_models
    ):
        try:
            found = scale_in(open_repository(name))
        except RepositoryError as error:
            reasons.append(str(error))
            continue
        if found is not None:
            return found
        reasons.append(f"nor has {name}")
    if original is None or original.scale is None:
        return ScaleFound(scale=None, bias=None, source="; ".join(reasons))
    where = f"recorded for {original.architecture}__{original.tag}: {original.scale_source}"
    return ScaleFound(scale=original.scale, bias=None, source=where)


def scale_in(repository: Repository) -> ScaleFound | None:
    """Scale and bias of the safetensors at the root of a repository; None where it has none, or none of that name.

    Raises:
        RepositoryError: it cannot be read, or is no safetensors file.
    """
    path = _file_with_scale(repository)
    if path is None:
        return None
    tensors = read_header(repository, path)
    scale, bias = _only(tensors, SCALE), _only(tensors, BIAS)
    if scale is None:
        return None
    logarithm = _scalar(repository, path, scale)
    if logarithm > _LARGEST_LOGARITHM:
        raise RepositoryError(f"{repository.name}/{path}: {SCALE} is {logarithm}, which is no logarithm of a scale")
    at = f"@{repository.revision}" if repository.revision else ""
    return ScaleFound(
        scale=math.exp(logarithm),
        bias=None if bias is None else _scalar(repository, path, bias),
        source=f"{repository.name}{at}/{path}",
    )


def read_header(repository: Repository, path: str) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, with one range read, or two where the header is long.

    Raises:
        RepositoryError: it is no safetensors file, or cannot be read.
    """
    size = repository.files()[path].size_bytes
    first = repository.read_range(path, 0, min(size, _FIRST_READ_BYTES))
    try:
        length = header_length(first, size)
        if 8 + length > len(first):
            first = repository.read_range(path, 0, 8 + length)
        return parse_header(first[8 : 8 + length], data_start=8 + length, size=size)
    except ValueError as error:
        raise RepositoryError(f"{repository.name}/{path} is no safetensors file: {error}") from error


def header_length(data: bytes, size: int) -> int:
    """Bytes of the JSON header, from the first 8 bytes of a file of `size` bytes.

    Raises:
        ValueError
    """
    if len(data) < 8:
        raise ValueError(f"it has {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_LONGEST_HEADER_BYTES, size - 8):
        raise ValueError(f"its header would have {length} bytes, of {size} in all")
    return length


def parse_header(header: bytes, *, data_start: int, size: int) -> dict[str, StoredTensor]:
    """The tensors that a header describes, in a file of `size` bytes whose data begin at `data_start`.

    Raises:
        ValueError: it is no JSON of that form, or a tensor lies outside of the file.
    """
    try:
        content: Any = json.loads(header)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("its header is no object")
    found: dict[str, StoredTensor] = {}
    for name, entry in cast("dict[str, Any]", content).items():
        if name != "__metadata__":
            found[name] = _tensor(name, entry, data_start, size)
    return found


def _tensor(name: str, entry: Any, data_start: int, size: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            isinstance(extent, int) for extent in cast("list[object]", shape)
        ):
            extents = tuple(cast("list[int]", shape))
        case _:
            raise ValueError(f"the entry {name[:60]!r} of its header is not one")
    if not 0 <= begin <= end <= size - data_start:
        raise ValueError(f"the tensor {name[:60]!r} lies at {begin} to {end}, outside of the file")
    return StoredTensor(dtype=dtype, shape=extents, start=data_start + begin, end=data_start + end)


def _scalar(repository: Repository, path: str, tensor: StoredTensor) -> float:
    form, size = _FORMS.get(tensor.dtype), tensor.end - tensor.start
    if form is None or math.prod(tensor.shape) != 1 or size != form.size_bytes:
        raise RepositoryError(f"{repository.name}/{path}: a {tensor.dtype} of shape {tensor.shape} is no scale or bias")
    (value,) = cast(
        "tuple[float]", struct.unpack(form.code, form.before + repository.read_range(path, tensor.start, size))
    )
    if not math.isfinite(value):
        raise RepositoryError(f"{repository.name}/{path}: {value} is no scale or bias")
    return value


def _file_with_scale(repository: Repository) -> str | None:
    listed = repository.files()
    for path in _WHOLE:
        if path in listed:
            return path
    if _INDEX not in listed:
        return None
    try:
        content: Any = json.loads((repository.fetch([_INDEX]) / _INDEX).read_bytes())
        places = cast("dict[str, Any]", content["weight_map"])
        path = next((place for name, place in places.items() if name.rpartition(".")[2] == SCALE), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(f"{repository.name}/{_INDEX} is no index of weights") from error
    return path if path in listed else None


def _only(tensors: Mapping[str, StoredTensor], name: str) -> StoredTensor | None:
    """The tensor of a name under whatever prefix; None where there is none or several, as with two models in a file."""
    found = [tensor for full, tensor in tensors.items() if full.rpartition(".")[2] == name]
    return found[0] if len(found) == 1 else None
