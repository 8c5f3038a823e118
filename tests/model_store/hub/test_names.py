"""Names from elsewhere lead to a model, whatever stands around them."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.hub.names import KnownModel, advice, suggestion
from model_store.store import Store

ROWS = json.loads(files("model_store.hub").joinpath("names.json").read_text(encoding="utf-8"))
OPENAI_B32 = KnownModel("ViT-B-32-quickgelu", "openai", "immich-app/ViT-B-32__openai")


@pytest.mark.parametrize(
    "name",
    [
        *("openai/clip-vit-base-patch32", "ViT-B/32", "vit-b/32", "clip-ViT-B-32"),
        *("sentence-transformers/clip-ViT-B-32", "hf-hub:openai/clip-vit-base-patch32"),
        *(
            "hub:immich-app/ViT-B-32__openai",
            "openai/clip-vit-base-patch32@main",
            "https://huggingface.co/openai/clip-vit-base-patch32/",
        ),
    ],
)
def test_one_model_has_many_names(name: str) -> None:
    assert suggestion(name) == OPENAI_B32


def test_an_at_may_be_part_of_a_name() -> None:
    found = suggestion("ViT-L/14@336px")
    assert found is not None
    assert (found.arch, found.tag) == ("ViT-L-14-336-quickgelu", "openai")
    laion = suggestion("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    assert laion == KnownModel("ViT-B-32", "laion2b_s34b_b79k", "immich-app/ViT-B-32__laion2b-s34b-b79k")
    siglip = suggestion("google/siglip2-base-patch16-224")
    assert siglip == KnownModel("ViT-B-16-SigLIP2", "webli", "immich-app/ViT-B-16-SigLIP2__webli")


def test_advice_is_a_command_or_a_guess_or_nothing() -> None:
    assert advice("ViT-B/32") == (
        "ViT-B/32 is ViT-B-32-quickgelu with the weights openai of open_clip: clipworks models pull "
        "immich-app/ViT-B-32__openai, or clipworks models import ViT-B-32-quickgelu --pretrained openai --name NAME "
        "(needs torch)"
    )
    assert advice("apple/DFN2B-CLIP-ViT-B-16") == (
        "apple/DFN2B-CLIP-ViT-B-16 is ViT-B-16-quickgelu with the weights dfn2b of open_clip: clipworks models import "
        "ViT-B-16-quickgelu --pretrained dfn2b --name NAME (needs torch)"
    )
    assert advice("openai/clip-vit-base-patch23") == "is openai/clip-vit-base-patch32 meant?"
    assert advice(str(Store(None).default_name())) is None


def test_no_name_means_two_models() -> None:
    counted = Counter(name.lower() for row in ROWS for name in row["names"])
    assert [name for name, count in counted.items() if count > 1] == []
    for row in ROWS:
        for name in row["names"]:
            assert suggestion(name) == KnownModel(row["arch"], row["tag"], row["pull"])


@given(st.text(max_size=60))
def test_any_text_is_answered(name: str) -> None:
    found = suggestion(name)
    assert found is None or isinstance(advice(name), str)
