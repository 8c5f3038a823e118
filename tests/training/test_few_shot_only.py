"""`only`: every method that learns classes learns the named ones and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from tests.training.conftest import MakeContext  # noqa: E402
from training import method as methods  # noqa: E402
from training.features import cached_features  # noqa: E402

pytestmark = pytest.mark.torch

ONE_WORD = {"words": "a of", "n_ctx": 2}
EXTRA: dict[str, dict[str, Any]] = {
    "coop": {"n_ctx": 4},
    "cocoop": {"words": "a"},
    "vpt": {"depth": 2},
    "ivlp": ONE_WORD,
    "maple": ONE_WORD,
    "promptsrc": ONE_WORD,
}
"""What the small base wants: short names, shallow towers."""


def told(name: str) -> methods.Method | None:
    """The method for two of the four colours, or None: it has no such option."""
    options = {"label": "colour", "shots": 8, "only": ["white", "blue"], **EXTRA.get(name, {})}
    try:
        return methods.create(name, options)
    except ValueError:
        return None


LEARNS_CLASSES = [name for name in methods.available() if told(name) is not None]


def test_they_are_all_here() -> None:
    few_shot = {"coop", "cocoop", "vpt", "ivlp", "maple", "promptsrc", "clip_lora", "full", "clip_adapter"}
    assert set(LEARNS_CLASSES) >= few_shot | {"tip_adapter", "tip_adapter_f", "gda", "linear_probe"}


@pytest.mark.parametrize("name", LEARNS_CLASSES)
def test_classes_that_are_not_named_are_in_no_batch_and_no_number(
    make_context: MakeContext, prompt_squares: Path, prompt_base: Path, tmp_path: Path, name: str
) -> None:
    context = make_context(recipe=prompt_squares, base=prompt_base)
    method = told(name)
    assert method is not None
    assert context.base is not None
    if method.needs.level == "features":
        features = cached_features(
            context.base, context.source, level="features", captions=0, negatives=False, folder=tmp_path, device="cpu"
        )
        context = replace(context, features=features)
    method.setup(context)
    if isinstance(method, methods.FitMethod):
        assert context.features is not None
        method.fit(context.features)
        found = method.report()["shots"]
    else:
        assert isinstance(method, methods.StepMethod)
        validated, made = method.validated(), method.batches
        assert validated is not None
        assert made is not None
        found, batches = validated["shots"], made(batch_size=4, seed=0)
        assert batches is not None
        assert {label for step in range(4) for label in batches(step)["class_id"].tolist()} == {0, 1}
    assert (found["classes"], found["pictures"]) == (2, 16)
