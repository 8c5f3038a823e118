"""Cleaning gives what ftfy and open_clip give, and no text within the length limit takes long."""

from __future__ import annotations

import html
import json
import random
import time
from contextlib import suppress
from pathlib import Path

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer
from tokenizers.models import WordPiece

from model_store.errors import InvalidText, ManifestError
from model_store.manifest import TextSpec
from model_store.modality.repair import fix_text
from model_store.modality.text import MAX_CHARS, Tokenizer, is_quick
from model_store.store import Store
from tests.stores import SHOP_STORE

BLNS = Path(__file__).parents[1] / "data" / "blns" / "blns.json"
FRAGMENTS = [
    *("&", "amp;", "AMP;", "#38;", "#x26;", "&lt;", "lt;", "<", "&quot;", "&#56;", "&#xD800;", "＆", "ａｍｐ；", ";"),
    *("â€", "™", "Ã", "\xc2", "\xa0", "Ã\x83", "Â", "ï¿½", "é", "\x85", "\x9d", "ð", "ŸŽ", "à¸", "â€™", "Ð¿Ñ€"),
    *("\x1b[31m", "\n", "\r", "\r\n", "\u2028", " ", "\t", "\u0300", "\u0345", "\u0f71\u0f72", "ཱི", "\u1100\u1161"),
    *("ﬁ", "İ", "ß", "日", "😀", "’", "“", "\ufeff", "\u200b", "a", "'s", "red", "7", "<start_of_text>", "_"),
]
COSTLY = {
    "escapes": "&" + "amp;" * 2047,
    "numeric escapes": "&" + "#38;" * 2047,
    "wide escapes": "＆" + "amp;" * 2047,
    "escapes between lines": ("&" + "amp;" * 499 + "\n") * 4,
    "decoded wrongly": "Â" * 8000 + "™",
    "decoded wrongly, two kinds": "Â" * 8000 + "ŸŽ",
    "marks": "\u0323\u0307" * 4096,
    "marks that decompose": "ཱི" * 8192,
    "marks by entities": "&#x323;&#x307;" * 580,
    "one word": "a" * 8192,
    "one word of many pieces": "qzxv" * 2048,
    "one word of emoji": "😀" * 8192,
    "one word of kanji": "日" * 8192,
    "lines": "a\n" * 4096,
    "digits": "&#" + "9" * 8000 + ";",
    "specials": "<start_of_text>" * 546,
    "almost specials": "<start_of_tex" * 630,
    "quotes": "'" * 8192,
    "spaces": " " * 8192,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Store(SHOP_STORE, builtin=False).open("fashion-small").tokenizer()


def same(text: str) -> None:
    assert fix_text(text) == ftfy.fix_text(text)


def test_every_naughty_string_is_mended_as_by_ftfy() -> None:
    strings: list[str] = json.loads(BLNS.read_text(encoding="utf-8"))
    assert len(strings) > 400
    for text in strings:
        same(text)
    same("\n".join(strings)[:MAX_CHARS])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_mended_as_by_ftfy(text: str) -> None:
    same(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join))
def test_layers_lines_and_markup_are_mended_as_by_ftfy(text: str) -> None:
    same(text)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=12), st.sampled_from(("windows-1252", "latin-1", "macroman")), st.integers(1, 4))
def test_texts_that_were_decoded_wrongly_again_and_again_are_mended(text: str, encoding: str, layers: int) -> None:
    for _ in range(layers):
        text = html.escape(text.encode("utf-8", "ignore").decode(encoding, "replace"))
    same(text)


@settings(max_examples=60, deadline=None)
@given(st.text("aậ\u0323\u0307\u0345\u0f73\u0f71\u05b0\u3099\u0c4d\u093c가\u11a8\u20dd", min_size=64, max_size=400))
def test_long_runs_of_marks_are_composed_as_by_ftfy(text: str) -> None:
    same(text)


@pytest.mark.parametrize("name", COSTLY)
def test_what_made_texts_slow_is_quick_or_refused(tokenizer: Tokenizer, name: str) -> None:
    began = time.process_time()
    with suppress(InvalidText):
        assert len(tokenizer.encode(COSTLY[name])) <= tokenizer.spec.context_length
    assert time.process_time() - began < 1.5  # 26 s and more without the bound


def test_no_repetition_of_fragments_takes_long(tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(60):
        before, after = rng.choice(FRAGMENTS), rng.choice(FRAGMENTS)
        unit = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 4)))
        text = (before + unit * MAX_CHARS)[: MAX_CHARS - len(after)] + after
        began = time.process_time()
        with suppress(InvalidText):
            tokenizer.encode(text)
        assert time.process_time() - began < 1.5, (before, unit, after)


def test_texts_that_run_on_the_event_loop_are_quick(tokenizer: Tokenizer) -> None:
    assert is_quick("a photo of a red shirt")
    assert is_quick("赤いシャツ")
    assert not is_quick("&" + "amp;" * 249)
    assert not is_quick("Â" * 200 + "™")
    assert not is_quick("a " * 600)


def test_real_texts_of_many_layers_are_not_refused(tokenizer: Tokenizer) -> None:
    for text in (
        "&amp;" * 1600,
        "caf&amp;amp;amp;eacute; " * 200,
        "Ã¢â‚¬â„¢ " * 900,
        "zalgo" + "\u0323\u0307" * 200,
    ):
        same(text)
        tokenizer.encode(text)


def test_wordpiece_of_endless_words_is_refused() -> None:
    vocabulary = {"[UNK]": 0, "a": 1, "##a": 2, "b": 3}
    spec = TextSpec(
        kind="tokenizers_json",
        tokenizer_file="tokenizer.json",
        clean="lower",
        context_length=8,
        vocab_size=4,
        pad_id=0,
        start_id=None,
        end_id=None,
        truncation="tokenizer",
        dynamic_length=False,
    )

    def content(longest: int) -> bytes:
        model = WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=longest)
        return HubTokenizer(model).to_str().encode()

    assert Tokenizer(spec, content(100)).encode("aaa") == [1, 2, 2]
    with pytest.raises(ManifestError, match="max_input_chars_per_word"):
        Tokenizer(spec, content(100_000))
