"""Strings -> int64 token ids of a TextSpec: the only tokeniser call in the project; exact against open_clip."""

from __future__ import annotations

import html
import string
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import regex
from numpy.typing import NDArray
from tokenizers import Tokenizer as HubTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from model_store.errors import InvalidText, ManifestError
from model_store.manifest import TextSpec
from model_store.modality.repair import fix_text

START, END = "<start_of_text>", "<end_of_text>"
WORD_END = "</w>"
MAX_CHARS = 8192
_QUICK_CHARS, _QUICK_CHARS_IF_PLAIN = 32, 1000
# The order of alternatives is open_clip's; IGNORECASE matters for the specials and the contractions.
_WORDS = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORDPIECE_CHARS = 1000
_WORD_CACHE_SIZE = 32_768
_CACHED_WORD_CHARS = 32  # longer words are rare, and ids of thousands of them would be gigabytes


class Tokenizer:
    """Tokenises for one TextSpec; safe to share between threads.

    `tokenizer_bytes` is the content of the spec's tokenizer file.

    Raises:
        ManifestError: the file and the spec disagree on vocabulary or special ids.
    """

    def __init__(self, spec: TextSpec, tokenizer_bytes: bytes) -> None:
        self.spec = spec
        self._clean = _CLEAN[spec.clean]
        if spec.kind == "clip_bpe":
            self._bpe = _clip_bpe(tokenizer_bytes.decode("utf-8"))
            self._word_ids = lru_cache(maxsize=_WORD_CACHE_SIZE)(self._encode_word)
            # TextSpec guarantees both ids for clip_bpe.
            self._start_id, self._end_id = spec.start_id or 0, spec.end_id or 0
            self._encode = self._encode_clip
        else:
            self._bpe = HubTokenizer.from_str(tokenizer_bytes.decode("utf-8"))
            longest = getattr(self._bpe.model, "max_input_chars_per_word", 0)
            if longest > _WORDPIECE_CHARS:
                raise ManifestError(
                    f"tokenizer file: max_input_chars_per_word is {longest}, at most {_WORDPIECE_CHARS} served: the "
                    "time of WordPiece grows with the square of a word"
                )
            self._bpe.no_padding()
            self._bpe.enable_truncation(spec.context_length)  # pyright: ignore[reportUnknownMemberType]
            self._encode = self._encode_hub
        self._check_spec()
        unknown = getattr(self._bpe.model, "unk_token", None)
        self._unknown_id = None if unknown is None else self._bpe.token_to_id(unknown)
        self._no_word = frozenset({spec.pad_id, *self._encode(""), *([self._unknown_id] if self.has_unknown else [])})

    def encode(self, text: str) -> list[int]:
        """Ids of one text, specials included, cut to the context length, without padding.

        Raises:
            InvalidText: not a UTF-8 encodable string (lone surrogates), over MAX_CHARS characters, or of so many
                layers of escapes that cleaning it would take long (see model_store.modality.repair).
        """
        if len(text) > MAX_CHARS:
            raise InvalidText(f"text has {len(text)} characters, the limit is {MAX_CHARS}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidText("text is not valid Unicode (a lone surrogate)") from error
        return self._encode(self._clean(text))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Padded ids, int64 [len(texts), context_length]."""
        return self.pad([self.encode(text) for text in texts], length=self.spec.context_length)

    def pad(self, rows: Sequence[Sequence[int]], length: int | None = None) -> NDArray[np.int64]:
        """Stack rows to int64 [len(rows), length]; by default the shortest length the spec allows for them."""
        if length is None:
            longest = max((len(row) for row in rows), default=1)
            length = longest if self.spec.dynamic_length else self.spec.context_length
        ids = np.full((len(rows), length), self.spec.pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of ids, for error messages and reports; not an inverse of `encode`."""
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=False).replace(WORD_END, " ")

    def cleaned(self, text: str) -> str:
        """The text that is split into tokens. Raises InvalidText."""
        return self._clean(text)

    def knows(self, ids: Sequence[int]) -> bool:
        """Whether the ids of a text have a token of its words: neither a special one nor the one for unknown words."""
        return not self._no_word.issuperset(ids)

    @property
    def has_unknown(self) -> bool:
        """Whether there are words without a token of their own."""
        return self._unknown_id is not None

    def _encode_clip(self, text: str) -> list[int]:
        ids = [self._start_id]
        for match in _WORDS.finditer(text):
            word = match.group()
            ids.extend(self._word_ids(word) if len(word) <= _CACHED_WORD_CHARS else self._encode_word(word))
            if len(ids) >= self.spec.context_length:  # whatever follows is cut off
                break
        return [*ids[: self.spec.context_length - 1], self._end_id]

    def _encode_word(self, word: str) -> array[int]:
        if word == START:
            return array("I", (self._start_id,))
        if word == END:
            return array("I", (self._end_id,))
        return array("I", self._bpe.encode([word], is_pretokenized=True, add_special_tokens=False).ids)

    def _encode_hub(self, text: str) -> list[int]:
        return self._bpe.encode(text).ids

    def _check_spec(self) -> None:
        size = self._bpe.get_vocab_size(with_added_tokens=True)
        if size > self.spec.vocab_size or (self.spec.kind == "clip_bpe" and size != self.spec.vocab_size):
            raise ManifestError(f"tokenizer file has {size} tokens, the text spec says {self.spec.vocab_size}")
        if self.spec.kind == "clip_bpe":
            found = (self._bpe.token_to_id(START), self._bpe.token_to_id(END))
            if found != (self.spec.start_id, self.spec.end_id):
                raise ManifestError(
                    f"tokenizer file has start and end ids {found}, the text spec says "
                    f"({self.spec.start_id}, {self.spec.end_id})"
                )


def is_quick(text: str) -> bool:
    """Whether encoding it takes well under a millisecond, whatever it says: cleaning works on escapes and non-ASCII."""
    plain = len(text) <= _QUICK_CHARS_IF_PLAIN and text.isascii() and "&" not in text
    return plain or len(text) <= _QUICK_CHARS


def clip_vocabulary(merges_text: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token -> id and merge list of a CLIP merges file (first line is a version comment, no trailing newline)."""
    lines = merges_text.split("\n")[1 : 49152 - 256 - 2 + 1]
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=2):
        parts = line.split()
        if len(parts) != 2:
            raise ManifestError(f"merges file line {number} has {len(parts)} symbols, expected 2 (trailing newline?)")
        merges.append((parts[0], parts[1]))
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(a + WORD_END for a in alphabet), *(a + b for a, b in merges), START, END]
    # Like open_clip, a later token of the same spelling takes the id; BPE below only meets the same table.
    return {token: index for index, token in enumerate(tokens)}, merges


def _clip_bpe(merges_text: str) -> HubTokenizer:
    vocabulary, merges = clip_vocabulary(merges_text)
    model = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END, cache_capacity=0)
    tokenizer = HubTokenizer(model)
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's id order (printable bytes first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = 256 - len(printable)
    return [*(chr(b) for b in printable), *(chr(256 + n) for n in range(rest))]


def _clean_basic(text: str) -> str:
    """Raises InvalidText."""
    try:
        return html.unescape(html.unescape(fix_text(text))).strip()
    except ValueError:  # Python converts no number of more than 4,300 digits
        raise InvalidText("text has a character reference (&#...) of thousands of digits") from None


def _clean_whitespace(text: str) -> str:
    return " ".join(_clean_basic(text).split())


def _clean_lower(text: str) -> str:
    return _clean_whitespace(text).lower()


def _clean_canonicalize(text: str) -> str:
    """big_vision's rule: underscores are spaces, ASCII punctuation goes, lower case, single spaces."""
    text = _clean_basic(text).replace("_", " ").translate(_NO_PUNCTUATION)
    return " ".join(text.lower().split())


_CLEAN: dict[str, Callable[[str], str]] = {
    "whitespace": _clean_whitespace,
    "lower": _clean_lower,
    "canonicalize": _clean_canonicalize,
    "none": str,
}
