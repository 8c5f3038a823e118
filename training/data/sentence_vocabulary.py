"""The tokenizer of a sentence encoder, with all of its vocabulary or the part that some texts need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HubTokenizer

from model_store.manifest import TextSpec
from training.aligned_config import AlignedTextConfig
from training.aligned_sources import PAD_ID
from training.locations import located

SENTENCE_TOKENIZER_FILE = "tokenizer.json"
ASCII = "ascii"
_CONTINUED = "##"


@dataclass(frozen=True, kw_only=True)
class SentenceTokenizer:
    """kept_ids: which rows of the encoder's own token embeddings are used, in the order of the new ids."""

    spec: TextSpec
    file: bytes
    kept_ids: tuple[int, ...]


def sentence_tokenizer(config: AlignedTextConfig) -> SentenceTokenizer:
    """Read the encoder's tokenizer.json and keep what `config.vocabulary` asks for.

    Raises:
        ValueError: a file is not there, or is none that is known here.
    """
    path = located(config.encoder) / SENTENCE_TOKENIZER_FILE
    try:
        data = path.read_bytes()
        whole = HubTokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path}: {error}") from error
    kept = tuple(range(whole.get_vocab_size(with_added_tokens=True)))
    if config.vocabulary:
        if config.vocabulary == ASCII:
            kept = ascii_ids(data)
        else:
            kept = needed_ids(data, Path(config.vocabulary).read_text(encoding="utf-8").splitlines())
        data = pruned(data, kept)
        whole = HubTokenizer.from_str(data.decode("utf-8"))
    whole.no_padding()
    empty = whole.encode("").ids
    if len(empty) != 2 or whole.id_to_token(PAD_ID) is None or PAD_ID in empty:
        raise ValueError(f"{path}: an empty text has the ids {empty}, expected a first and a last token, not {PAD_ID}")
    spec = TextSpec(
        kind="tokenizers_json",
        tokenizer_file=SENTENCE_TOKENIZER_FILE,
        clean="none",
        context_length=config.context_length,
        vocab_size=len(kept),
        pad_id=PAD_ID,
        start_id=empty[0],
        end_id=empty[1],
        truncation="tokenizer",
        dynamic_length=True,
    )
    return SentenceTokenizer(spec=spec, file=data, kept_ids=kept)


def ascii_ids(tokenizer: bytes) -> tuple[int, ...]:
    """Ids, ascending, of special tokens and of those that are spelt in ASCII; other characters become [UNK], unless the
    tokenizer strips their accents. Tokens in brackets, such as [unused1], never come from a text.

    Raises:
        ValueError: no WordPiece vocabulary.
    """
    parts = json.loads(tokenizer)
    vocabulary = _wordpieces(parts)
    special = {each["id"] for each in parts["added_tokens"]} | {vocabulary[parts["model"]["unk_token"]]}
    plain = {n for token, n in vocabulary.items() if token.isascii() and not (token[0] == "[" and len(token) > 1)}
    return tuple(sorted(special | plain))


def needed_ids(tokenizer: bytes, lines: list[str]) -> tuple[int, ...]:
    """Ids, ascending, of the tokens of `lines`, of all single characters, and of special tokens.

    WordPiece takes the longest piece that fits, so a word that the whole vocabulary can spell is spelt by single
    characters at worst; tokens with a character that has no piece of its own are kept for that reason too.

    Raises:
        ValueError: no WordPiece vocabulary.
    """
    parts = json.loads(tokenizer)
    vocabulary = _wordpieces(parts)
    whole = HubTokenizer.from_str(tokenizer.decode("utf-8"))
    whole.no_padding()
    whole.no_truncation()
    kept = {each["id"] for each in parts["added_tokens"]} | {vocabulary[parts["model"]["unk_token"]]}
    for encoding in whole.encode_batch(lines):
        kept.update(encoding.ids)
    for token, number in vocabulary.items():
        letters = token.removeprefix(_CONTINUED) or token
        inner = letters[1:] if letters == token else letters
        spelt = all(f"{_CONTINUED}{letter}" in vocabulary for letter in inner) and letters[0] in vocabulary
        if len(letters) == 1 or not spelt:
            kept.add(number)
    return tuple(sorted(kept))


def pruned(tokenizer: bytes, kept: tuple[int, ...]) -> bytes:
    """The tokenizer file with the tokens `kept` only, numbered anew in this order.

    Raises:
        ValueError: its special tokens are added by a rule that is not known here.
    """
    parts = json.loads(tokenizer)
    renumbered = {old: new for new, old in enumerate(kept)}
    vocabulary = _wordpieces(parts)
    parts["model"]["vocab"] = {
        token: renumbered[number]
        for token, number in sorted(vocabulary.items(), key=lambda item: item[1])
        if number in renumbered
    }
    for each in parts["added_tokens"]:
        each["id"] = renumbered[each["id"]]
    rule = parts["post_processor"] or {}
    if rule.get("type") == "TemplateProcessing":
        for each in rule["special_tokens"].values():
            each["ids"] = [renumbered[number] for number in each["ids"]]
    elif rule.get("type") == "BertProcessing":
        for name in ("sep", "cls"):
            rule[name][1] = renumbered[rule[name][1]]
    else:
        raise ValueError(f"a post-processor of type {rule.get('type')!r} cannot be renumbered here")
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _wordpieces(parts: dict[str, Any]) -> dict[str, int]:
    model = parts["model"]
    if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix") != _CONTINUED:
        raise ValueError(
            f"a vocabulary of type {model.get('type')!r} cannot be pruned: WordPiece with {_CONTINUED} can"
        )
    return model["vocab"]
