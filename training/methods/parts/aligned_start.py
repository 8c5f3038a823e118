"""A new aligned model for a method: pretrained, or as its base was."""

from __future__ import annotations

from training.aligned_config import AlignedConfig
from training.data.sentence_vocabulary import sentence_tokenizer
from training.method import Context
from training.models.aligned import AlignedDualEncoder
from training.models.pretrained import start_from_pretrained


def aligned_model(config: AlignedConfig, context: Context) -> AlignedDualEncoder:
    """On the context's device.

    Raises:
        ValueError: a source is not there, or its weights are those of another model.
    """
    model = AlignedDualEncoder(config, vocab_size=context.tokenizer.spec.vocab_size).to(context.device)
    if context.base is not None:
        model.load_state_dict(context.base.model.state_dict())
    else:
        start_aligned(model, config, context)
    return model


def start_aligned(model: AlignedDualEncoder, config: AlignedConfig, context: Context) -> None:
    """Both pretrained sources, and the text vectors that the model starts with."""
    start_from_pretrained(
        model,
        config,
        lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts]),
        kept_ids=sentence_tokenizer(config.text).kept_ids,
        captions=list(dict.fromkeys(context.source.texts())) if config.text.centre == "captions" else (),
    )
