"""Facts read from an aligned model's sources: the shape of a sentence encoder, the names of a trunk's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.aligned_config import AlignedConfig, AlignedTextConfig, BertConfig
from training.locations import located

IMAGENET, IMAGENET_COUNT = "imagenet", 1000
PAD_ID = 0


def described(config: AlignedConfig) -> AlignedConfig:
    """`config` with what its sources say: the shape of the text tower, the number of classes. What a checkpoint says
    already stays, so that its sources need not be there.

    Raises:
        ValueError: a source is not there, or is none that is known here.
    """
    text, mapped = config.text, config.class_map
    if text.shape is None:
        shape = bert_shape(text)
        text = text.model_copy(update={"shape": shape})
    if mapped is not None and mapped.count is None:
        count = IMAGENET_COUNT if mapped.classes == IMAGENET else len(class_lines(mapped.classes))
        if mapped.merged is not None and mapped.merged > count:
            raise ValueError(f"class_map.merged is {mapped.merged}, there are {count} classes")
        count = mapped.merged or count
        mapped = mapped.model_copy(update={"count": count})
    return config.model_copy(update={"text": text, "class_map": mapped})


def class_lines(where: str) -> tuple[tuple[str, ...], ...]:
    """The texts of every class: a line of the file holds those of one, with semicolons between.

    Raises:
        ValueError: no such file, or a line without a text.
    """
    try:
        lines = located(where).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"class_map.classes {where}: {error}") from error
    classes = tuple(tuple(part.strip() for part in line.split(";") if part.strip()) for line in lines)
    if not classes or not all(classes):
        raise ValueError(f"class_map.classes {where}: expected a text in every line")
    return classes


def bert_shape(text: AlignedTextConfig) -> BertConfig:
    """The shape that its encoder has when only a part of it is kept, as `text` says.

    Raises:
        ValueError: it is no BERT, pools otherwise than by the mean, or has less of something than is to be kept.
    """
    encoder, context_length, layers = text.encoder, text.context_length, text.layers
    folder = located(encoder)
    config = _json(folder / "config.json")
    expected = {"model_type": "bert", "hidden_act": "gelu", "pad_token_id": PAD_ID}
    found = {key: config.get(key) for key in expected}
    odd = [f"{key} is {found[key]!r}, expected {want!r}" for key, want in expected.items() if found[key] != want]
    if config.get("position_embedding_type", "absolute") != "absolute":
        odd.append(f"position_embedding_type is {config['position_embedding_type']!r}, expected 'absolute'")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.exists() and (modes := _pooling_modes(_json(pooling))) != ["mean_tokens"]:
        odd.append(f"it pools by {modes}, expected ['mean_tokens']")
    if odd:
        raise ValueError(f"{encoder} is no BERT sentence encoder that is known here: {'; '.join(odd)}")
    if context_length > config["max_position_embeddings"]:
        raise ValueError(
            f"{encoder} has {config['max_position_embeddings']} positions, context_length is {context_length}"
        )
    count = config["num_hidden_layers"]
    if any(not 0 <= layer < count for layer in layers) or len(set(layers)) != len(layers):
        raise ValueError(f"{encoder} has layers 0 to {count - 1}, layers is {list(layers)}")
    width, hidden = config["hidden_size"], config["intermediate_size"]
    if text.hidden is not None and text.hidden > hidden:
        raise ValueError(f"{encoder} has {hidden} units in each MLP, hidden is {text.hidden}")
    if text.table_rank is not None and text.table_rank >= width:
        raise ValueError(f"{encoder} has token embeddings of {width} components, table_rank is {text.table_rank}")
    return BertConfig(
        width=width,
        layers=len(layers) or count,
        heads=config["num_attention_heads"],
        hidden=text.hidden or hidden,
        norm_epsilon=config["layer_norm_eps"],
        table_rank=text.table_rank,
    )


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    prefix = "pooling_mode_"
    return [key.removeprefix(prefix) for key, on in config.items() if key.startswith(prefix) and on is True]


def _json(path: Path) -> dict[str, Any]:
    """Raises:
    ValueError: no such file, or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return found
