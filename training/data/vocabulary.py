"""A small vocabulary for small models: the first merges of CLIP's byte-pair encoding are a tokenizer of their own."""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import open_clip

from model_store.manifest import TextSpec
from training.aligned_config import AlignedConfig
from training.config import ModelConfig, SmallConfig, StoredModel
from training.data.sentence_vocabulary import sentence_tokenizer

_BYTES_AND_WORD_ENDS, _SPECIALS = 512, 2
MOST_MERGES = 49152 - 256 - 2  # what CLIP itself uses of its file
TOKENIZER_FILE = "tokenizer.txt"


@functools.cache
def clip_merges(count: int) -> bytes:
    """CLIP's merges file cut after `count` merges; no trailing newline, which would shift every later id by one."""
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    if not 0 < count <= MOST_MERGES:
        raise ValueError(f"merges must be in 1..{MOST_MERGES}, got {count}")
    return "\n".join(lines[: count + 1]).encode("utf-8")


def clip_text_spec(merges: int, *, context_length: int) -> TextSpec:
    """The TextSpec of `clip_merges(merges)` for a causal encoder."""
    size = _BYTES_AND_WORD_ENDS + merges + _SPECIALS
    return TextSpec(
        kind="clip_bpe",
        tokenizer_file=TOKENIZER_FILE,
        clean="lower",
        context_length=context_length,
        vocab_size=size,
        pad_id=0,
        start_id=size - 2,
        end_id=size - 1,
        truncation="keep_end",
        dynamic_length=True,
    )


def tokenizer_of(model: ModelConfig) -> tuple[TextSpec, bytes]:
    """The text spec of a model and the bytes of its tokenizer file.

    Raises:
        ValueError: an open_clip architecture whose text tower is not CLIP's (it brings its own tokenizer), or a
            sentence encoder that is not there.
    """
    if isinstance(model, SmallConfig):
        return clip_text_spec(model.text.merges, context_length=model.text.context_length), clip_merges(
            model.text.merges
        )
    if isinstance(model, AlignedConfig):
        sentences = sentence_tokenizer(model.text)
        return sentences.spec, sentences.file
    if isinstance(model, StoredModel):
        raise ValueError(f"{model.reference} is a stored model, which brings its own tokenizer")
    config = open_clip.get_model_config(model.architecture)
    if config is None:
        raise ValueError(f"open_clip has no architecture {model.architecture!r}")
    text = config["text_cfg"]
    if "hf_model_name" in text or "hf_tokenizer_name" in text or "custom_text" in config or "multimodal_cfg" in config:
        raise ValueError(
            f"{model.architecture}: its text tower brings its own tokenizer, which training does not build"
        )
    return clip_text_spec(MOST_MERGES, context_length=text["context_length"]), clip_merges(MOST_MERGES)
