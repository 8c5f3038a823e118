"""One tower of a foreign model, cut out, wrapped and compared with the graph it was found in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model_store.errors import ExportRefused, GraphError
from model_store.hub import surgery
from model_store.hub.batch import freed_batch
from model_store.hub.foreign import ForeignRun, picture_feeds, token_feeds
from model_store.hub.graphs import ForeignGraph, Port, is_image_input
from model_store.manifest import ImageSpec, Role, TensorSpec, TextSpec
from model_store.probe import probe_outputs
from model_store.session import SessionSettings, open_session

Vectors = NDArray[np.float32]
Kind = Literal["image", "text"]
_OUTPUTS: dict[Kind, tuple[str, ...]] = {
    "image": ("image_embeds", "image_embedding", "image_embeddings", "embedding", "unnorm_image_features"),
    "text": ("text_embeds", "text_embedding", "text_embeddings", "embedding", "unnorm_text_features"),
}
_UNPROJECTED = ("pooler_output", "last_hidden_state")
_SAME_UNIT = 1e-5  # components of unit vectors: the same numbers, divided once more
_SAME_ROWS = 1e-5
_BATCH_PROBE = 3
_UNIT_LENGTH = 1e-3


@dataclass(frozen=True, kw_only=True)
class WrappedTower:
    """graph: after all changes, not yet written. reference: inputs of ours -> what the foreign graph gives, [N, D].

    normalized: the foreign graph gives unit vectors and cannot be made to give others. difference: largest component
    by which wrapped and foreign vectors differ.
    """

    role: Role
    graph: ForeignGraph
    tensors: tuple[TensorSpec, TensorSpec]
    reference: Callable[[NDArray[Any]], Vectors]
    dim: int
    normalized: bool
    difference: float


def choose_output(graph: ForeignGraph, kind: Kind, *, pooled_is_projected: bool) -> str:
    """The output that is the vector in the joint space, by its name; a lone output may have any name.

    Raises:
        ExportRefused: none is, or only what lies before the projection.
    """
    names = [port.name for port in graph.outputs]
    for name in _OUTPUTS[kind]:
        if name in names:
            return name
    if pooled_is_projected and "pooler_output" in names:
        return "pooler_output"
    if len(names) == 1 and names[0] not in _UNPROJECTED:
        return names[0]
    if any(name in _UNPROJECTED for name in names):
        raise ExportRefused(
            f"{graph.path.name} gives {', '.join(names)}: what a tower has before its projection, which cannot be "
            "compared with the other tower's. Take an export of the model with projection (image_embeds, text_embeds)"
        )
    raise ExportRefused(f"{graph.path.name} gives {', '.join(names)}: none of them is known as the {kind} vector")


def wrap_images(
    found: ForeignGraph, output: str, spec: ImageSpec, pixels: NDArray[np.uint8], scratch: Path
) -> WrappedTower:
    """An image encoder from `output` of a foreign graph; `pixels` uint8 [N, H, W, 3] are what it is compared on.

    scratch: an empty folder that lasts as long as the tower is used.

    Raises:
        ExportRefused: the wrapped graph does not give what the foreign one gives.
        GraphError: the foreign graph does not run.
    """

    def feeds(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return picture_feeds(found, rows, spec)

    _check_picture(next(port for port in found.inputs if is_image_input(port)), spec, found.path.name)
    vectors, reference, inner = _reference(found, output, feeds, pixels)
    graph = ForeignGraph.read(found.path)
    surgery.give(graph, surgery.make_room(graph, inner), surgery.IMAGE_EMBEDS, vectors.shape[1])
    surgery.take_pixels(graph, spec.mean, spec.std, (spec.height_px, spec.width_px))
    shape = (spec.height_px, spec.width_px, 3)
    return _finish(graph, "image_encoder", shape, pixels, vectors, reference, scratch)


def wrap_texts(found: ForeignGraph, output: str, spec: TextSpec, ids: NDArray[np.int64], scratch: Path) -> WrappedTower:
    """A text encoder from `output` of a foreign graph; `ids` int64 [M, context length] are what it is compared on.

    scratch: an empty folder that lasts as long as the tower is used.

    Raises:
        ExportRefused: as `wrap_images`, or its table has fewer rows than the tokenizer has tokens.
        GraphError: the foreign graph does not run.
    """
    rows = surgery.table_rows(found)
    if rows is not None and rows < spec.vocab_size:
        raise ExportRefused(
            f"the tokenizer has {spec.vocab_size} tokens, the table of {found.path.name} {rows} rows: they do not "
            "belong together"
        )

    def feeds(given: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return token_feeds(found, given, spec)

    vectors, reference, inner = _reference(found, output, feeds, ids)
    graph = ForeignGraph.read(found.path)
    surgery.give(graph, surgery.make_room(graph, inner), surgery.TEXT_EMBEDS, vectors.shape[1])
    surgery.take_ids(graph, spec)
    length: int | str = "length" if spec.dynamic_length else spec.context_length
    return _finish(graph, "text_encoder", (length,), ids, vectors, reference, scratch)


def cuts_padding(found: ForeignGraph, output: str, spec: TextSpec, rows: list[list[int]]) -> bool:
    """Whether a text has the same vector with its padding cut as with all of it, so that short texts may run short.

    It has where attention is causal or masked, and the length of the graph is free.
    """
    (tokens,) = [
        port
        for port in found.inputs
        if not is_image_input(port) and port.name not in ("attention_mask", "token_type_ids")
    ]
    if tokens.shape[1] is not None:
        return False
    short = [row for row in rows if len(row) < spec.context_length // 2][:2]
    if not short:
        return False
    full = np.full((1, spec.context_length), spec.pad_id, dtype=np.int64)
    run = ForeignRun.open(found, output, token_feeds(found, full, spec))
    for row in short:
        padded = full.copy()
        padded[0, : len(row)] = row
        whole = run(token_feeds(found, padded, spec), 1)
        try:
            cut = run(token_feeds(found, np.array([row], np.int64), spec), 1)
        except ExportRefused:  # the axis is free by name only
            return False
        if np.abs(cut - whole).max() > _SAME_ROWS * np.abs(whole).max():
            return False
    return True


def _reference(
    found: ForeignGraph, output: str, feeds: Callable[[NDArray[Any]], dict[str, NDArray[Any]]], inputs: NDArray[Any]
) -> tuple[Vectors, Callable[[NDArray[Any]], Vectors], str]:
    """(vectors of `inputs`, the function that gave them, the value in the graph that they are).

    That value is the one before the graph's own normalisation where there is one and where dividing it by its length
    really gives the output; else the output.
    """
    run = ForeignRun.open(found, output, _one(feeds(inputs[:1])))
    given = run(feeds(inputs), len(inputs))
    if bad := int((~np.isfinite(given)).any(axis=1).sum()):
        raise ExportRefused(f"{found.path.name}: {bad} of {len(given)} vectors are not finite")
    inner = surgery.before_normalisation(found, output)
    if inner is not None:
        with tempfile.TemporaryDirectory() as folder:
            opened = ForeignGraph.read(found.path)
            opened.give_also(inner)
            path = Path(folder) / found.path.name
            opened.save(path)
            before = ForeignRun.open(ForeignGraph.read(path), inner, _one(feeds(inputs[:1])))
            raw = before(feeds(inputs), len(inputs))
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
        if raw.shape == given.shape and np.abs(raw / np.maximum(lengths, 1e-12) - given).max() <= _SAME_UNIT:
            return raw, lambda rows: before(feeds(rows), len(rows)), inner
    return given, lambda rows: run(feeds(rows), len(rows)), output


def _one(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: value[:1] for name, value in feeds.items()}


def _check_picture(source: Port, spec: ImageSpec, name: str) -> None:
    height, width = source.shape[2:] if source.dtype != "uint8" else source.shape[1:3]
    if (height not in (None, spec.height_px)) or (width not in (None, spec.width_px)):
        raise ExportRefused(
            f"{name} takes pictures of {height} x {width} pixels, the preprocessing file makes {spec.height_px} x "
            f"{spec.width_px}"
        )


def _finish(
    graph: ForeignGraph,
    role: Role,
    shape: tuple[int | str, ...],
    inputs: NDArray[Any],
    expected: Vectors,
    reference: Callable[[NDArray[Any]], Vectors],
    scratch: Path,
) -> WrappedTower:
    """Free the batch where that works, and compare with the foreign graph."""
    candidates = [graph]
    if graph.inputs[0].shape[0] == 1 and (freed := freed_batch(graph, scratch)) is not None:
        candidates.insert(0, freed)
    problems: list[str] = []
    for candidate in candidates:
        together = _BATCH_PROBE if candidate.inputs[0].shape[0] != 1 else 1
        try:
            difference = _difference(candidate, inputs, expected, together)
        except (GraphError, ExportRefused) as error:
            problems.append(str(error))
            continue
        if difference <= _SAME_ROWS * float(np.abs(expected).max()):
            image = role == "image_encoder"
            batch: int | str = "batch" if together > 1 else 1
            return WrappedTower(
                role=role,
                graph=candidate,
                tensors=(
                    TensorSpec(
                        name=surgery.PIXELS if image else surgery.IDS,
                        dtype="uint8" if image else "int64",
                        shape=(batch, *shape),
                    ),
                    TensorSpec(
                        name=surgery.IMAGE_EMBEDS if image else surgery.TEXT_EMBEDS,
                        dtype="float32",
                        shape=(batch, expected.shape[1]),
                    ),
                ),
                reference=reference,
                dim=expected.shape[1],
                normalized=bool(np.abs(np.linalg.norm(expected, axis=1) - 1).max() < _UNIT_LENGTH),
                difference=difference,
            )
        problems.append(f"its vectors differ by {difference:.1e}")
    raise ExportRefused(f"{role}: the wrapped graph is not the one that was found: {'; '.join(problems)}")


def _difference(graph: ForeignGraph, inputs: NDArray[Any], expected: Vectors, together: int) -> float:
    """Largest difference of a component, some rows run alone and all of the first few run together."""
    name, output = graph.inputs[0].name, graph.outputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wrapped.onnx"
        graph.save(path)
        probe_outputs(path, [output], {name: inputs[:together]})
        run = ForeignRun(ForeignGraph(path, graph.model), output, open_session(str(path), SessionSettings(), path.name))
        count = min(len(inputs), 2 * _BATCH_PROBE)
        worst = 0.0
        for step in {1, together}:
            for start in range(0, count - step + 1, step):
                vectors = run.once({name: inputs[start : start + step]})
                difference = np.abs(vectors - expected[start : start + step]).max()
                worst = max(worst, float(difference) if np.isfinite(difference) else np.inf)
    return worst
