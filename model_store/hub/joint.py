"""Joint graphs, which take a picture and a text and give logits: cut into two towers, and asked for their scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ExportRefused
from model_store.hub.foreign import ForeignRun, picture_feeds, token_feeds
from model_store.hub.graphs import ForeignGraph
from model_store.hub.scale import ScaleFound
from model_store.hub.surgery import scale_of_joint
from model_store.manifest import ImageSpec, TextSpec
from model_store.towers import normalized

_LOGITS = ("logits_per_image", "logits_per_text")
_FIT_ERROR_MAX = 1e-3  # of the logits' own spread: fp32 products of a hundred
_AGREES = 1e-3


def cut(graph: ForeignGraph, image_output: str, text_output: str, folder: Path) -> tuple[ForeignGraph, ForeignGraph]:
    """(image, text) towers of a joint graph, written to `folder` as graphs of their own; nothing in them is changed."""
    towers: list[ForeignGraph] = []
    for name, output in (("image.onnx", image_output), ("text.onnx", text_output)):
        tower = ForeignGraph.copy_of(graph)
        tower.keep(output)
        tower.save(folder / name)
        towers.append(ForeignGraph.read(folder / name))
    return towers[0], towers[1]


def scale_in_graph(
    graph: ForeignGraph,
    image_output: str,
    text_output: str,
    image_spec: ImageSpec,
    text_spec: TextSpec,
    pixels: NDArray[np.uint8],
    ids: NDArray[np.int64],
) -> ScaleFound | None:
    """Scale and bias of a joint graph from its own logits: logits = scale * cosine + bias, exact but for rounding.

    pixels uint8 [N, H, W, 3] and ids int64 [N, L], N >= 3. An initialiser called logit_scale is taken for the value
    when it agrees. None: the graph gives no logits.

    Raises:
        ExportRefused: its logits are not of that form.
    """
    given = {port.name for port in graph.outputs}
    if _LOGITS[0] not in given:
        return None
    feeds = {**picture_feeds(graph, pixels, image_spec), **token_feeds(graph, ids, text_spec)}
    logits = _run(graph, _LOGITS[0], feeds).astype(np.float64)
    images, texts = (normalized(_run(graph, output, feeds)) for output in (image_output, text_output))
    cosines = images.astype(np.float64) @ texts.astype(np.float64).T
    if logits.shape != cosines.shape:
        raise ExportRefused(f"{_LOGITS[0]} has shape {list(logits.shape)}, expected {list(cosines.shape)}")
    centred = cosines - cosines.mean()
    scale = float((centred * logits).sum() / max(float((centred**2).sum()), 1e-12))
    bias = float(logits.mean() - scale * cosines.mean())
    error = float(np.abs(scale * cosines + bias - logits).max())
    if not error <= _FIT_ERROR_MAX * max(float(np.ptp(logits)), 1e-6):
        raise ExportRefused(f"{_LOGITS[0]} is no multiple of the cosines of {image_output} and {text_output}")
    named = scale_of_joint(graph.model)
    if named is not None and abs(named[0] - scale) <= _AGREES * scale:
        return ScaleFound(scale=named[0], bias=named[1], source="the joint graph's initialiser logit_scale")
    has_bias = abs(bias) > _AGREES * abs(scale)
    return ScaleFound(scale=scale, bias=bias if has_bias else None, source="the joint graph's logits")


def _run(graph: ForeignGraph, output: str, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    run = ForeignRun.open(graph, output, feeds)
    return run.once(feeds)
