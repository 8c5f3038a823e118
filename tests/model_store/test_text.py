"""The tokeniser's promises that need no reference; equality with open_clip is in tests/training/test_parity*."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from model_store.errors import InvalidText, ManifestError
from model_store.manifest import TextSpec
from model_store.modality.text import END, MAX_CHARS, START, Tokenizer, clip_vocabulary

MERGES = "#version: 0.2\nt h\nth e</w>\na n\nc a\nca t</w>"
SPEC = TextSpec(
    kind="clip_bpe",
    tokenizer_file="merges.txt",
    clean="lower",
    context_length=8,
    vocab_size=512 + 5 + 2,
    pad_id=0,
    start_id=517,
    end_id=518,
    truncation="keep_end",
    dynamic_length=True,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(SPEC, MERGES.encode())


def test_words_are_merged_and_framed(tokenizer: Tokenizer) -> None:
    vocabulary, _ = clip_vocabulary(MERGES)
    expected = [vocabulary[token] for token in (START, "the</w>", "cat</w>", END)]
    assert tokenizer.encode(" The  CAT\n") == expected


def test_a_long_text_keeps_its_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat " * 20)
    assert len(ids) == 8
    assert ids[-1] == SPEC.end_id


def test_padding_goes_to_the_longest_row_or_the_context(tokenizer: Tokenizer) -> None:
    rows = [tokenizer.encode("the"), tokenizer.encode("the cat the")]
    assert tokenizer.pad(rows).shape == (2, 5)
    fixed = Tokenizer(SPEC.model_copy(update={"dynamic_length": False}), MERGES.encode())
    assert fixed.pad(rows).shape == (2, 8)
    assert tokenizer(["the"]).tolist() == [[*rows[0], 0, 0, 0, 0, 0]]


def test_a_trailing_newline_in_the_merges_is_refused() -> None:
    with pytest.raises(ManifestError, match="trailing newline"):
        Tokenizer(SPEC, MERGES.encode() + b"\n")


@pytest.mark.parametrize("change", [{"vocab_size": 520}, {"start_id": 1}, {"end_id": 1}])
def test_a_spec_that_disagrees_with_the_file_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ManifestError):
        Tokenizer(SPEC.model_copy(update=change), MERGES.encode())


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "x" * (MAX_CHARS + 1)])
def test_what_is_no_text_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidText):
        tokenizer.encode(text)


@given(st.text(max_size=200))
def test_any_unicode_text_gives_ids_of_the_vocabulary(text: str) -> None:
    tokenizer = Tokenizer(SPEC, MERGES.encode())
    ids = np.array(tokenizer.encode(text))
    assert ids[0] == SPEC.start_id
    assert ids[-1] == SPEC.end_id
    assert len(ids) <= SPEC.context_length
    assert ((ids >= 0) & (ids < SPEC.vocab_size)).all()


@pytest.mark.parametrize(
    "text", ["a" * MAX_CHARS, " " * MAX_CHARS, "\u0301" * MAX_CHARS, "👨‍👩‍👧" * 1000, "&amp;" * 1600]
)
def test_pathological_texts_end(tokenizer: Tokenizer, text: str) -> None:
    assert len(tokenizer.encode(text)) <= SPEC.context_length


def test_a_text_of_nothing_but_unknown_words_is_told_apart() -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": 4, "##s": 5}
    hub = HubTokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    hub.pre_tokenizer = WhitespaceSplit()
    hub.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    spec = SPEC.model_copy(update={"kind": "tokenizers_json", "vocab_size": 6, "start_id": None, "end_id": None})
    wordpiece = Tokenizer(spec, hub.to_str().encode())
    assert wordpiece.has_unknown
    for text, known in (("cats", True), ("dog cat", True), ("dog", False), ("dog bird", False), ("", False)):
        ids = wordpiece.encode(text)
        assert wordpiece.knows(ids) is known, text
        assert wordpiece.knows(wordpiece.pad([ids], 8)[0].tolist()) is known, text


def test_bytes_leave_no_word_unknown(tokenizer: Tokenizer) -> None:
    assert not tokenizer.has_unknown
    assert tokenizer.knows(tokenizer.encode("\N{SNOWMAN}"))
    assert not tokenizer.knows(tokenizer.encode(" "))
