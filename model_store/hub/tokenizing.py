"""Tokenizer files of a repository as a TextSpec: CLIP's merges where they are CLIP's, else its tokenizer.json."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError
from tokenizers import Tokenizer as HubTokenizer

from model_store.errors import ExportRefused, ManifestError
from model_store.golden import GOLDEN_TEXTS
from model_store.hub.preprocessing import read_json
from model_store.manifest import TextSpec
from model_store.modality.text import END, START, WORD_END, Tokenizer, clip_vocabulary

Clean = Literal["lower", "whitespace", "canonicalize"]
_VERSION_LINE = '"bpe_simple_vocab_16e6.txt#version: 0.2'
_UNASSIGNED = "\U0010ffff"  # a character that no vocabulary has
_CLIP_SPECIALS = {"<|startoftext|>": START, "<|endoftext|>": END}


@dataclass(frozen=True, kw_only=True)
class FoundTokenizer:
    """`data` is what the spec's tokenizer file will hold."""

    spec: TextSpec
    data: bytes


def tokenizer_of(
    folder: Path, *, clean: Clean | None, context_length: int | None, dynamic_length: bool
) -> FoundTokenizer:
    """The tokenizer in `folder` (`tokenizer.json`, or `vocab.json` and `merges.txt`).

    CLIP's own vocabulary is taken as such and then tokenised as open_clip does, which the fast tokenizers of other
    libraries do not reproduce on every text.

    clean: what the model's configuration says of texts; None: it says nothing.
    context_length: of the graph or the configuration; None: the tokenizer's own limit.

    Raises:
        ExportRefused: no tokenizer, or one whose padding or length is not known.
    """
    file = folder / "tokenizer.json"
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    length = context_length or _own_length(settings)
    if length is None:
        raise ExportRefused(
            "neither the graph, nor config.json, nor tokenizer_config.json says how many tokens a text has"
        )
    content = read_json(file) if file.is_file() else _from_pieces(folder)
    merges = _clip_merges(content)
    if merges is None and not file.is_file():
        raise ExportRefused("vocab.json and merges.txt are not CLIP's, and there is no tokenizer.json")
    try:
        if merges is not None:
            return _clip(merges, clean or "lower", length, dynamic_length)
        return _hub(file.read_bytes(), content, settings, clean or "whitespace", length, dynamic_length)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ExportRefused(f"texts of {first['loc'][0]} {first['input']} are not served: {first['msg']}") from error


def _clip(merges: bytes, clean: Clean, length: int, dynamic_length: bool) -> FoundTokenizer:
    vocabulary, _ = clip_vocabulary(merges.decode("utf-8"))
    spec = TextSpec(
        kind="clip_bpe",
        tokenizer_file="tokenizer/merges.txt",
        clean=clean,
        context_length=length,
        vocab_size=len(vocabulary),
        pad_id=0,
        start_id=vocabulary[START],
        end_id=vocabulary[END],
        truncation="keep_end",
        dynamic_length=dynamic_length,
    )
    return FoundTokenizer(spec=spec, data=merges)


def _hub(
    data: bytes,
    content: Mapping[str, Any],
    settings: Mapping[str, Any],
    clean: Clean,
    length: int,
    dynamic_length: bool,
) -> FoundTokenizer:
    with _refusing("cannot be read"):
        hub = HubTokenizer.from_str(data.decode("utf-8"))
    for side in ("padding_side", "truncation_side"):
        if settings.get(side) not in (None, "right"):
            raise ExportRefused(f"tokenizer_config.json: {side} is {settings[side]!r}; only right can be served")
    pad = _pad_token(settings, content)
    pad_id = hub.token_to_id(pad) if pad else None
    if pad_id is None:
        raise ExportRefused(
            f"the tokenizer's pad token is {pad!r}, which is no token of it: how short texts end is not known"
        )
    spec = TextSpec(
        kind="tokenizers_json",
        tokenizer_file="tokenizer/tokenizer.json",
        clean=clean,
        context_length=length,
        vocab_size=max(hub.get_vocab(with_added_tokens=True).values()) + 1,  # ids may have gaps
        pad_id=pad_id,
        start_id=None,
        end_id=None,
        truncation="tokenizer",
        dynamic_length=dynamic_length,
    )
    empty = _try(spec, data)
    if pad_id in empty[:-1]:
        raise ExportRefused(f"the tokenizer begins texts with its pad token {pad!r}: where they end is not known")
    if pad_id in empty:  # padding looks like the end of a text: a mask has to end behind the first of them
        spec = spec.model_copy(update={"end_id": pad_id})
    return FoundTokenizer(spec=spec, data=data)


def _try(spec: TextSpec, data: bytes) -> list[int]:
    """Encode texts of every kind; returns the ids of an empty one.

    Raises:
        ExportRefused: one of them cannot be encoded, or to ids that the vocabulary does not have.
    """
    with _refusing("cannot encode every text"):
        tokenizer = Tokenizer(spec, data)
        rows = [tokenizer.encode(text) for text in (*GOLDEN_TEXTS, _UNASSIGNED)]
    largest = max(max(row, default=0) for row in rows)
    if largest >= spec.vocab_size or max(map(len, rows)) > spec.context_length:
        raise ExportRefused(
            f"tokenizer.json gives id {largest} and up to {max(map(len, rows))} tokens; expected ids below "
            f"{spec.vocab_size}, and no more than {spec.context_length} tokens"
        )
    return tokenizer.encode("")


def _clip_merges(content: Mapping[str, Any]) -> bytes | None:
    """CLIP's merges as a file, when the tokenizer's vocabulary is the one that they make; else None."""
    model = _object(content.get("model"))
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != WORD_END:
        return None
    try:
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
        merges = "\n".join([_VERSION_LINE, *pairs])
        vocabulary, _ = clip_vocabulary(merges)
    except (ManifestError, TypeError):  # TypeError: no list of pairs of strings
        return None
    theirs = {_CLIP_SPECIALS.get(token, token): index for token, index in _object(model.get("vocab")).items()}
    return merges.encode("utf-8") if theirs == vocabulary else None


def _from_pieces(folder: Path) -> dict[str, Any]:
    """What tokenizer.json would hold, of the older pair of files."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.is_file() or not merges.is_file():
        raise ExportRefused("there is neither a tokenizer.json nor a pair of vocab.json and merges.txt")
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise ExportRefused(f"merges.txt is no text: {error}") from error
    pairs = [line for line in lines if line and not line.startswith("#version")]
    return {"model": {"end_of_word_suffix": WORD_END, "vocab": read_json(vocabulary), "merges": pairs}}


def _own_length(settings: Mapping[str, Any]) -> int | None:
    length = settings.get("model_max_length")
    return int(length) if isinstance(length, (int, float)) and 4 <= length <= 4096 else None


def _pad_token(settings: Mapping[str, Any], content: Mapping[str, Any]) -> str | None:
    for token in (settings.get("pad_token"), _object(content.get("padding")).get("pad_token")):
        spelled = _object(token).get("content") if isinstance(token, dict) else token
        if isinstance(spelled, str) and spelled:
            return spelled
    return None


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


@contextmanager
def _refusing(what: str) -> Generator[None]:
    """Raises:
    ExportRefused: the tokenizers library failed inside. It raises plain Exceptions, and where it panics not even those.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        said = " ".join(str(error).split())[:200]  # it may quote a whole vocabulary
        raise ExportRefused(f"tokenizer.json {what}: {said}") from error
