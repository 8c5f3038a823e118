"""Names that people give models elsewhere, and how to get those models here; the names are in names.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files

# What stands before the name of a repository where it is copied from.
_BEFORE = ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "hf-hub:", "hub:")


@dataclass(frozen=True)
class KnownModel:
    """arch and tag: of open_clip, for `clipworks models import`. pull: a repository with its graphs, or None."""

    arch: str
    tag: str
    pull: str | None


def suggestion(name: str) -> KnownModel | None:
    """The model that a name means elsewhere: a repository of OpenAI, LAION, Google or sentence-transformers, or a name
    of the `clip` package such as ViT-B/32. Capitals, a revision and the address of the hub do not matter.
    """
    return _table().get(_plain(name))


def advice(name: str) -> str | None:
    """How to get the model of that name, in a sentence; None for a name that is like none that is known."""
    if (known := suggestion(name)) is not None:
        made = f"clipworks models import {known.arch} --pretrained {known.tag} --name NAME"
        ways = f"clipworks models pull {known.pull}, or {made} (needs torch)" if known.pull else f"{made} (needs torch)"
        return f"{name} is {known.arch} with the weights {known.tag} of open_clip: {ways}"
    near = get_close_matches(_plain(name), _table(), n=1, cutoff=0.85)
    return f"is {near[0]} meant?" if near else None


def _plain(name: str) -> str:
    name = name.strip().lower()
    for before in _BEFORE:
        name = name.removeprefix(before)
    # A revision is behind the repository's name; "ViT-L/14@336px" has its @ in the name.
    whole = name.rstrip("/")
    return whole if whole in _table() else whole.partition("@")[0]


@cache
def _table() -> dict[str, KnownModel]:
    rows = json.loads(files("model_store.hub").joinpath("names.json").read_text(encoding="utf-8"))
    return {name.lower(): KnownModel(row["arch"], row["tag"], row["pull"]) for row in rows for name in row["names"]}
