"""open_clip's pretrained models as recorded data: where their weights are, their scale, and which GELU they need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model that others export. repository: of its own weights; scale: as recorded, exp applied; None: not recorded.

    quick_gelu: its weights were trained with QuickGELU, x * sigmoid(1.702 x), whatever the architecture is called.
    """

    architecture: str
    tag: str
    repository: str | None
    scale: float | None
    scale_source: str
    quick_gelu: bool


def original_of(name: str, base_models: Iterable[str] = ()) -> Original | None:
    """The model that a repository exports, told by its name or by the models that it says it was made from.

    Names are ARCH__TAG in open_clip's words, of any organisation, or a repository that is recorded.
    """
    table = _table()
    named = (_model_named(each, table) for each in (name, *base_models))
    model = next((each for each in named if each), None)
    if model is None:
        return None
    arch, tag = model
    recorded = table["scales"].get(tag)
    return Original(
        architecture=arch,
        tag=tag,
        repository=table["repositories"].get(arch, {}).get(tag),
        scale=recorded["scale"] if recorded else None,
        scale_source=recorded["source"] if recorded else "",
        quick_gelu=tag in table["quick_gelu"].get(arch, ()) or arch.endswith("-quickgelu"),
    )


def _model_named(name: str, table: dict[str, Any]) -> tuple[str, str] | None:
    if name in table["names"]:
        arch, tag = table["names"][name]
        return arch, tag
    wanted = _plain(name.rpartition("/")[2])
    models = ((arch, tag) for arch, tags in table["repositories"].items() for tag in tags)
    return next((model for model in models if wanted == _plain("__".join(model))), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


@cache
def _table() -> dict[str, Any]:
    return json.loads(files("model_store.hub").joinpath("originals.json").read_text(encoding="utf-8"))
