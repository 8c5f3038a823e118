"""Facts read from an aligned model's sources: the shape of a sentence encoder, the names of a trunk's classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.aligned_config import AlignedConfig, BertConfig
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
        shape = bert_shape(text.encoder, context_length=text.context_length, layers=text.layers)
        text = text.model_copy(update={"shape": shape})
    if mapped is not None and mapped.count is None:
        count = IMAGENET_COUNT if mapped.classes == IMAGENET else len(class_lines(mapped.classes))
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


def bert_shape(encoder: str, *, context_length: int, layers: Sequence[int] = ()) -> BertConfig:
    """The shape that `encoder` (see AlignedTextConfig) has when only these of its layers are kept.

    Raises:
        ValueError: it is no BERT, pools otherwise than by the mean, or has not so many positions or layers.
    """
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
    return BertConfig(
        width=config["hidden_size"],
        layers=len(layers) or count,
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        norm_epsilon=config["layer_norm_eps"],
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
