"""Tiny tokenisers of the families that text towers use, in transformers' own classes."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

_LINES = (
    "a photo of a red shoe on a table",
    "two dogs run over the green grass, and a cat sleeps",
    "An x-ray of 12 small birds: UPPER and lower case, été, naïve, Straße",
    "ein Haus mit Garten; красная машина; 赤い 車 と 犬",
)
_BYTES = tuple(f"<0x{number:02X}>" for number in range(256))


def xlm_roberta() -> PreTrainedTokenizerBase:
    """`<s> text </s>`, padding with an id of its own, capitals kept."""
    pieces = _unigram(("<s>", "<pad>", "</s>", "<unk>"))
    return XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)], model_max_length=512)


def t5() -> PreTrainedTokenizerBase:
    """SigLIP's: `text </s>`, padded with `</s>`."""
    return T5Tokenizer(vocab=_unigram(("<pad>", "</s>", "<unk>")), extra_ids=0, pad_token="</s>", model_max_length=64)


def gemma() -> PreTrainedTokenizerBase:
    """SigLIP 2's: BPE that falls back to bytes, `text <eos>`, padded on the right."""
    model = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_BYTES], show_progress=False
    )
    trained = _trained(model, trainer, normalizers.Replace(" ", "▁"), None)
    return GemmaTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
        model_max_length=64,
    )


def bert() -> PreTrainedTokenizerBase:
    """WordPiece: `[CLS] text [SEP]`, lower case, without accents."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=specials, show_progress=False)
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trained = _trained(models.WordPiece(unk_token="[UNK]"), trainer, normalizer, splitter)
    return BertTokenizer(vocab=trained["vocab"], model_max_length=77)


@cache
def _unigram(specials: tuple[str, ...]) -> list[tuple[str, float]]:
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=list(specials), unk_token="<unk>", show_progress=False
    )
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trained = _trained(models.Unigram(), trainer, normalizers.NFKC(), splitter)
    return [(piece, score) for piece, score in trained["vocab"]]


def _trained(model: Any, trainer: Any, normalizer: Any, splitter: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    if splitter:
        tokenizer.pre_tokenizer = splitter
    tokenizer.train_from_iterator([*_LINES, *(line.lower() for line in _LINES)], trainer)
    return json.loads(tokenizer.to_str())["model"]
