"""Named prompt templates of the field: "none", "simple" (7) and "imagenet" (80, OpenAI's, MIT licence)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

BARE = ("{}",)
DEFAULT_TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "{}")  # of models that bring none
NAMES = ("none", "simple", "imagenet")


def named_templates(name: str) -> tuple[str, ...]:
    """The templates called `name`, each with one {}.

    Raises:
        ValueError: not one of NAMES.
    """
    if name == "none":
        return BARE
    if name not in NAMES:
        raise ValueError(f"no templates called {name!r}, there are {NAMES}")
    return _stored()[name]


@cache
def _stored() -> dict[str, tuple[str, ...]]:
    content = json.loads(files("model_store").joinpath("templates.json").read_text(encoding="utf-8"))
    return {name: tuple(content[name]) for name in NAMES if name != "none"}
