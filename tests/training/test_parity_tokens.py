"""Token ids against open_clip's own tokeniser: naughty strings, fuzzed text, every character, merges prefixes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from torch import Tensor

from model_store.manifest import TextSpec
from model_store.modality.text import MAX_CHARS, Tokenizer
from training.importing.tokenizer_import import import_tokenizer

pytestmark = pytest.mark.torch

BLNS = json.loads((Path(__file__).parents[1] / "data" / "blns" / "blns.json").read_text(encoding="utf-8"))
SPECIALS = (
    "<start_of_text>",
    "<END_OF_TEXT>",
    "<end_of_text>",
    "'s",
    "'LL",
    "&amp;lt;",
    "\u0130",
    "\ufb01",
    "\u2028",
    "\x00",
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SENTENCES = st.lists(TEXT | st.sampled_from(SPECIALS) | st.from_regex(r"[a-z]{1,12}( [a-z]{1,9}){0,5}"), max_size=6)


@cache
def imported(clean: str = "lower", context_length: int = 77) -> tuple[Tokenizer, Callable[[list[str]], Tensor]]:
    found = import_tokenizer(
        {"tokenizer_kwargs": {"clean": clean}},
        file=None,
        context_length=context_length,
        table_rows=49_408,
        dynamic_length=True,
    )
    return Tokenizer(found.spec, found.data), found.reference


def differing(texts: list[str], clean: str = "lower", context_length: int = 77) -> list[str]:
    ours, theirs = imported(clean, context_length)
    return [t for t, a, b in zip(texts, ours(texts), theirs(texts).numpy(), strict=True) if not (a == b).all()]


def test_the_reference_is_open_clips_default_tokeniser() -> None:
    _, reference = imported()
    texts = ["a photo of a cat", *BLNS[:50]]
    assert (reference(texts) == SimpleTokenizer()(texts)).all()


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_naughty_strings(clean: str) -> None:
    texts = [text for text in BLNS if len(text) <= MAX_CHARS]
    assert len(texts) > 480
    assert differing(texts, clean) == []


def test_naughty_strings_cut_short() -> None:
    assert differing(BLNS, context_length=8) == []


@given(SENTENCES)
@example(["<end_of_text>", " tail"])
@example(["\u0130stanbul", "STRASSE", "\u00df"])
@settings(max_examples=400)
def test_fuzzed_text(parts: list[str]) -> None:
    text = " ".join(parts)
    assert differing([text, "".join(parts)]) == []


def test_every_character_alone() -> None:
    """All assigned code points of the first two planes, forty to a text, with letters between."""
    points = [chr(c) for c in range(0x20000) if not 0xD800 <= c <= 0xDFFF]
    texts = ["a".join(points[start : start + 24]) for start in range(0, len(points), 24)]
    assert differing(texts[::7]) == []


def test_a_comparison_that_skips_cleaning_fails() -> None:
    """The same strings, without ftfy and entities, or without lower(): the comparison must see it."""
    ours, theirs = imported()
    raw: Any = SimpleTokenizer()
    raw.clean_fn = lambda text: text.strip()
    assert (raw(BLNS) != theirs(BLNS)).any(dim=1).sum() >= 20
    whitespace, _ = imported("whitespace")
    assert (whitespace(BLNS) != ours(BLNS)).any(axis=1).sum() >= 20


@pytest.mark.parametrize("merges", [300, 2000])
def test_prefixes_of_the_merges(tmp_path: Path, merges: int) -> None:
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    data = "\n".join(lines[: merges + 1]).encode()
    packed = tmp_path / "merges.gz"
    packed.write_bytes(gzip.compress(data))
    reference = SimpleTokenizer(bpe_path=str(packed), context_length=32)
    spec = TextSpec(
        kind="clip_bpe",
        tokenizer_file="merges.txt",
        clean="lower",
        context_length=32,
        vocab_size=512 + merges + 2,
        pad_id=0,
        start_id=512 + merges,
        end_id=513 + merges,
        truncation="keep_end",
        dynamic_length=True,
    )
    assert (Tokenizer(spec, data)(BLNS) == reference(BLNS).numpy()).all()
