"""The bridge from a torch model to the torch-free evaluation: embed rows as the artifact will, then ask for numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.fashion import fashion_report
from evaluation.retrieval import retrieval
from model_store.modality.text import Tokenizer
from training.data.batches import Tokenize
from training.data.rows import Row
from training.methods import Method

_CHUNK = 128


def judge(
    method: Method,
    tokenizer: Tokenizer,
    *,
    rows: Sequence[Row],
    pixels: NDArray[np.uint8],
    training_titles: frozenset[str],
    report: Literal["retrieval", "fashion"],
    device: str,
) -> dict[str, Any]:
    """Numbers of the method's current weights on `rows`, in fp32; modules are in train mode again afterwards."""
    modules = [module for module, use in method.modules().values() if use != "frozen"]
    graphs = method.artifact().graphs
    for module in modules:
        module.eval()
    try:
        encode_image, encode_text = door(method, graphs["image_encoder"]), door(method, graphs["text_encoder"])
        return judge_encoders(
            encode_image,
            encode_text,
            lambda texts: tokenizer.pad([tokenizer.encode(text) for text in texts]),
            rows=rows,
            pixels=pixels,
            training_titles=training_titles,
            report=report,
            templates=method.artifact().templates,
            device=device,
        )
    finally:
        for module in modules:
            module.train()


def judge_encoders(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Tokenize,
    *,
    rows: Sequence[Row],
    pixels: NDArray[np.uint8],
    training_titles: frozenset[str],
    report: Literal["retrieval", "fashion"],
    templates: Sequence[str] = ("{}",),
    device: str = "cpu",
) -> dict[str, Any]:
    """As `judge`, for two functions: uint8 [B, H, W, 3] -> [B, D] and int64 [B, L] -> [B, D]."""

    def embed(encode: Callable[[Tensor], Tensor], inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        parts = [inputs[i : i + _CHUNK] for i in range(0, len(inputs), _CHUNK)]
        with torch.inference_mode():
            vectors = [encode(torch.from_numpy(part).to(device)).float().cpu().numpy() for part in parts]
        return np.concatenate(vectors)

    def encode_texts(texts: Sequence[str]) -> NDArray[np.float32]:
        return embed(encode_text, tokenize(texts))

    images, titles = embed(encode_image, pixels), [row.caption for row in rows]
    if report == "retrieval":
        return {"all": {name: asdict(v) for name, v in retrieval(images, encode_texts(titles), titles).items()}}
    return fashion_report(
        images,
        encode_texts,
        titles,
        [row.labels["baseColour"] for row in rows],
        training_titles=training_titles,
        templates=templates,
    )


def door(method: Method, path: str) -> Callable[[Tensor], Tensor]:
    """The callable that `path` names, `<module>.<function>`, for example `model.encode_image`."""
    module_name, function = path.split(".", 1)
    module: nn.Module = method.modules()[module_name][0]
    return getattr(module, function)
