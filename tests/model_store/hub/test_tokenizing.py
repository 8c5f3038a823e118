"""Tokenizer files of a hub: ids equal those of the libraries that wrote them; what is no tokenizer is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store.errors import ExportRefused
from model_store.hub.tokenizing import Clean, FoundTokenizer, tokenizer_of
from model_store.modality.text import MAX_CHARS, Tokenizer

pytest.importorskip("torch")
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerBase  # noqa: E402

from tests.model_store.hub.layouts import tokenizer_files  # noqa: E402
from tests.model_store.hub.layouts.source_models import CLIP_MERGES, clip_tokenizer  # noqa: E402

pytestmark = pytest.mark.torch

NAUGHTY = [
    text
    for text in json.loads((Path(__file__).parents[2] / "data" / "blns" / "blns.json").read_text(encoding="utf-8"))
    if len(text) <= MAX_CHARS
]
YPOGEGRAMMENI = "\u0345"  # a mark that a pattern without regard to case takes for a letter
FAMILIES: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], Clean | None, int]] = {
    "xlm_roberta": (tokenizer_files.xlm_roberta, None, 77),
    "siglip": (tokenizer_files.t5, "canonicalize", 64),
    "siglip2": (tokenizer_files.gemma, "canonicalize", 64),
    "siglip2_transformers": (tokenizer_files.gemma, "lower", 64),
    "wordpiece": (tokenizer_files.bert, None, 77),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@dataclass(frozen=True)
class Known:
    """A tokenizer as we read it, and as open_clip and transformers read the same files."""

    found: FoundTokenizer
    ours: Tokenizer
    open_clip: Callable[[list[str]], NDArray[np.int64]]
    transformers: Callable[[list[str]], NDArray[np.int64]]


@cache
def known(family: str, context_length: int | None = None) -> Known:
    make, clean, usual = FAMILIES[family]
    length = context_length or usual
    with TemporaryDirectory() as folder:
        make().save_pretrained(folder)
        found = tokenizer_of(Path(folder), clean=clean, context_length=length, dynamic_length=False)
        reference = HFTokenizer(folder, context_length=length, clean=clean or "whitespace")
        auto = AutoTokenizer.from_pretrained(folder)
    return Known(
        found=found,
        ours=Tokenizer(found.spec, found.data),
        open_clip=lambda texts: reference(texts).numpy(),
        transformers=lambda texts: (
            auto(texts, max_length=length, padding="max_length", truncation=True, return_tensors="np").input_ids
        ),
    )


def differing(texts: list[str], ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> list[str]:
    assert ours.shape == theirs.shape
    return [text for text, a, b in zip(texts, ours, theirs, strict=True) if (a != b).any()]


@pytest.mark.parametrize("context_length", [None, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_the_naughty_strings_are_open_clips(family: str, context_length: int | None) -> None:
    assert len(NAUGHTY) > 480
    one = known(family, context_length)
    ids = one.ours(NAUGHTY)
    assert differing(NAUGHTY, ids, one.open_clip(NAUGHTY)) == []
    cut = sum(len(one.ours.encode(text)) == one.found.spec.context_length for text in NAUGHTY)
    assert cut >= (100 if context_length else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_differs_where_open_clip_cleans_a_text_first(family: str) -> None:
    """transformers repairs no broken encodings and resolves no HTML entities: given clean texts, it says the same."""
    one = known(family)
    ids = one.ours(NAUGHTY)
    cleaned = [one.ours.cleaned(text) for text in NAUGHTY]
    assert differing(NAUGHTY, ids, one.transformers(cleaned)) == []
    uncleaned = differing(NAUGHTY, ids, one.transformers(NAUGHTY))
    assert uncleaned
    assert all(one.ours.cleaned(text) != text for text in uncleaned)


@settings(max_examples=60, deadline=None)
@given(family=st.sampled_from(list(FAMILIES)), text=TEXT)
@example(family="xlm_roberta", text="<s></s><pad><mask><unk> &lt;s&gt;")
@example(family="siglip", text="</s>" * 70)
@example(family="siglip2", text="<0x41><eos>\x00")
def test_ids_of_any_text_are_open_clips(family: str, text: str) -> None:
    one = known(family)
    assert (one.ours([text]) == one.open_clip([text])).all()


@cache
def clip_found(form: str, context_length: int) -> FoundTokenizer:
    with TemporaryDirectory() as name:
        folder = Path(name)
        clip_tokenizer(CLIP_MERGES).save_pretrained(folder)
        if form == "pieces":
            model = json.loads((folder / "tokenizer.json").read_text())["model"]
            (folder / "tokenizer.json").unlink()
            (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
            pairs = (" ".join(pair) for pair in model["merges"])
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
        return tokenizer_of(folder, clean=None, context_length=context_length, dynamic_length=False)


@pytest.mark.parametrize("context_length", [77, 8])
@pytest.mark.parametrize("form", ["tokenizer.json", "pieces"])
def test_clips_own_tokenizer_is_open_clips(form: str, context_length: int) -> None:
    found = clip_found(form, context_length)
    reference = SimpleTokenizer(context_length=context_length)(NAUGHTY).numpy()
    assert differing(NAUGHTY, Tokenizer(found.spec, found.data)(NAUGHTY), reference) == []


def test_where_transformers_clip_tokenizer_is_not_open_clips() -> None:
    """What is left once the texts are clean: one combining mark, U+0345, which open_clip reads as a letter."""
    found = clip_found("tokenizer.json", 77)
    ours = Tokenizer(found.spec, found.data)
    cleaned = [ours.cleaned(text) for text in NAUGHTY]
    rows = clip_tokenizer(CLIP_MERGES)(cleaned, max_length=77, truncation=True)["input_ids"]
    different = [text for text, row in zip(cleaned, rows, strict=True) if ours.encode(text) != row]
    assert 0 < len(different) < 6
    assert all(YPOGEGRAMMENI in text for text in different)


def files(make: Callable[[], PreTrainedTokenizerBase]) -> tuple[dict[str, Any], dict[str, Any]]:
    with TemporaryDirectory() as folder:
        make().save_pretrained(folder)
        return tuple(
            json.loads((Path(folder) / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")
        )  # pyright: ignore[reportReturnType]


def read(folder: Path, tokenizer: object, config: object = None, context_length: int | None = 16) -> FoundTokenizer:
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer_of(folder, clean=None, context_length=context_length, dynamic_length=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ("{}", "cannot be read"),
        ('{"model": 3}', "cannot be read"),
        ('{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "merges": [3]}}', "cannot be read"),
        ('{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "merges": [], "vocab": []}}', "cannot be read"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"a": ' * 100_000, "cannot be read as JSON"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(ExportRefused, match=said):
        read(tmp_path, content)


def with_longest_word(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["max_input_chars_per_word"] = 1_000_000


def without_unknown(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["unk_token"] = "[NONE]"


def with_strange_id(tokenizer: dict[str, Any]) -> None:
    tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [1_000_000]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_longest_word, "max_input_chars_per_word is 1000000"),
        (without_unknown, r"cannot encode every text: WordPiece error: Missing \[UNK\]"),
        (with_strange_id, "gives id 1000000"),
    ],
)
def test_a_tokenizer_that_would_fail_later_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    tokenizer, config = files(tokenizer_files.bert)
    assert read(tmp_path, tokenizer, config)
    change(tokenizer)
    with pytest.raises(ExportRefused, match=said):
        read(tmp_path, tokenizer, config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pad_token": None}, "pad token is None"),
        ({"pad_token": "[nope]"}, r"'\[nope\]', which is no token of it"),
        ({"pad_token": {"lstrip": True}}, "pad token is None"),
        ({"padding_side": "left"}, "padding_side is 'left'"),
        ({"truncation_side": "left"}, "truncation_side is 'left'"),
    ],
)
def test_padding_that_is_not_known_is_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    tokenizer, given_config = files(tokenizer_files.bert)
    tokenizer.pop("padding", None)
    with pytest.raises(ExportRefused, match=said):
        read(tmp_path, tokenizer, {**given_config, **config})


def test_a_length_that_nobody_states_is_refused(tmp_path: Path) -> None:
    tokenizer, config = files(tokenizer_files.bert)
    for length in (None, 1e30, "77", 2, float("nan")):
        with pytest.raises(ExportRefused, match="how many tokens a text has"):
            read(tmp_path, tokenizer, {**config, "model_max_length": length}, context_length=None)
    assert read(tmp_path, tokenizer, {**config, "model_max_length": 40}, context_length=None).spec.context_length == 40
    with pytest.raises(ExportRefused, match="texts of context_length 8192 are not served"):
        read(tmp_path, tokenizer, config, context_length=8192)


def test_ids_with_gaps_need_as_many_rows_as_the_largest(tmp_path: Path) -> None:
    tokenizer, config = files(tokenizer_files.bert)
    vocabulary = tokenizer["model"]["vocab"]
    rarest = max(vocabulary, key=vocabulary.get)
    vocabulary[rarest] = 5000
    assert read(tmp_path, tokenizer, config).spec.vocab_size == 5001


@pytest.mark.parametrize(("vocabulary", "merges"), [("[]", "a b"), ("{}", "a b"), ("{", "a b"), ("{}", "\udcff")])
def test_pieces_that_are_not_clips_are_refused(tmp_path: Path, vocabulary: str, merges: str) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_bytes(merges.encode("utf-8", "surrogateescape"))
    with pytest.raises(ExportRefused):
        tokenizer_of(tmp_path, clean=None, context_length=16, dynamic_length=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**30) | st.sampled_from(["", "</s>", "[UNK]", "BPE", "\x00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "id", "content"]), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_the_files_is_read_or_refused(data: st.DataObject) -> None:
    """One value anywhere in them replaced: no exception but a refusal, and never an id without a row in the table."""
    make = data.draw(st.sampled_from([tokenizer_files.bert, tokenizer_files.xlm_roberta, tokenizer_files.gemma]))
    documents = deepcopy(_files(make))
    here: Any = documents
    for depth in range(8):
        keys = list(here) if isinstance(here, dict) else list(range(min(len(here), 4)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(here[key], (dict, list)) or (depth > 1 and data.draw(st.booleans())):
            here[key] = data.draw(JSON)
            break
        here = here[key]
    with TemporaryDirectory() as folder:
        try:
            found = read(Path(folder), documents["tokenizer"], documents["config"])
        except ExportRefused:
            return
    tokenizer = Tokenizer(found.spec, found.data)
    for text in ("", "a photo of a dog", "z" * 300, "日本 é <mask> [UNK]"):
        ids = tokenizer.encode(text)
        assert len(ids) <= found.spec.context_length
        assert all(0 <= each < found.spec.vocab_size for each in ids)


@cache
def _files(make: Callable[[], PreTrainedTokenizerBase]) -> dict[str, Any]:
    tokenizer, config = files(make)
    return {"tokenizer": tokenizer, "config": config}
