"""Layouts of exported models: the files of a repository that are graphs, their weights and their settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from model_store.errors import ExportRefused, TorchNeeded
from model_store.hub.graphs import ForeignGraph, Port, is_image_input, is_token_input

# Endings that exporters give to other precisions of the same graph: those are never taken.
_OTHER_PRECISIONS = (
    "fp16", "int8", "uint8", "quantized", "quantised", "q4", "q4f16", "q8", "bnb4", "q2", "q2f16", "q1", "q1f16",
)  # fmt: skip
SETTINGS = (
    "config.json",
    "preprocess_cfg.json",
    "preprocessor_config.json",
    "open_clip_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_FOLDERS = ("", "onnx")
_TORCH_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Files of a model. `graphs`: one joint graph, one tower, or two; `settings`: JSON and text files beside them."""

    graphs: tuple[str, ...]
    settings: tuple[str, ...]
    weights: tuple[str, ...]  # files beside the graphs that may hold their weights


@dataclass(frozen=True, kw_only=True)
class OpenedLayout:
    """The graphs by what they take. A joint graph is both; `name` is recorded in the artifact."""

    name: str
    image: ForeignGraph | None
    text: ForeignGraph | None

    @property
    def is_joint(self) -> bool:
        return self.image is not None and self.image is self.text

    def both(self, repository: str) -> tuple[ForeignGraph, ForeignGraph]:
        """(image, text) graphs.

        Raises:
            ExportRefused: one is missing.
        """
        if self.image is None or self.text is None:
            missing, given = ("text", "image") if self.text is None else ("image", "text")
            raise ExportRefused(
                f"{repository} holds the {given} tower alone. Its {missing} tower may be a repository of its own: "
                "name it with --with REPO"
            )
        return self.image, self.text


def find_layout(files: Iterable[str]) -> Layout:
    """Choose among the files of a listing: the fp32 graphs of one model.

    A joint graph is preferred to the split pair beside it: it holds the logit scale.

    Raises:
        ExportRefused: no graph (the message says what to do), or several that may be meant.
    """
    listed = sorted(files)
    graphs = [path for path in listed if path.endswith(".onnx")]
    full = [path for path in graphs if not _is_other_precision(path)]
    if not full:
        raise _without_graphs(listed, graphs)
    chosen = _joint(full) or _pair(full) or _single(full)
    if chosen is None:
        raise ExportRefused(
            f"{len(full)} graphs may be meant: {', '.join(full[:6])}. Download the folder of one model and give it "
            "with --from"
        )
    folders = {PurePosixPath(path).parent for path in chosen}
    above = {PurePosixPath("."), *folders, *(folder.parent for folder in folders)}
    settings = [path for path in listed if PurePosixPath(path).name in SETTINGS and PurePosixPath(path).parent in above]
    weights = [
        path
        for path in listed
        if path not in graphs and PurePosixPath(path).parent in folders and _may_be_weights(path, chosen)
    ]
    return Layout(graphs=tuple(chosen), settings=tuple(settings), weights=tuple(weights))


def needed_weights(layout: Layout, graphs: Mapping[str, ForeignGraph]) -> tuple[str, ...]:
    """Files that the graphs themselves say their weights lie in, as paths of the repository.

    Raises:
        ExportRefused: a file that the listing does not have.
    """
    named: dict[str, None] = {}
    for path, graph in graphs.items():
        for location in graph.sidecars():
            named[str(PurePosixPath(path).parent / location)] = None
    if missing := sorted(set(named) - set(layout.weights)):
        raise ExportRefused(f"weights of {layout.graphs[0]} are said to lie in {', '.join(missing[:3])}: no such file")
    return tuple(named)


def open_graphs(opened: Sequence[ForeignGraph]) -> OpenedLayout:
    """One or two graphs, told apart by what they take.

    Raises:
        ExportRefused: a graph that is neither tower of a model, or two of the same kind.
    """
    images = [graph for graph in opened if any(is_image_input(port) for port in graph.inputs)]
    texts = [graph for graph in opened if any(is_token_input(port) for port in graph.inputs)]
    for graph in opened:
        if graph not in images and graph not in texts:
            takes = ", ".join(f"{port.name} {port.dtype} {list(port.shape)}" for port in graph.inputs)
            raise ExportRefused(f"{graph.path.name} takes {takes}: neither pictures nor token ids")
    if len(images) > 1 or len(texts) > 1:
        names = " and ".join(graph.path.name for graph in opened)
        raise ExportRefused(f"{names} take the same kind of input: two models, or one twice")
    image, text = next(iter(images), None), next(iter(texts), None)
    return OpenedLayout(name=_named(image, text), image=image, text=text)


def image_input(graph: ForeignGraph) -> Port:
    (found,) = [port for port in graph.inputs if is_image_input(port)]
    return found


def _named(image: ForeignGraph | None, text: ForeignGraph | None) -> str:
    if image is text:
        return "joint graph"
    if image is None or text is None:
        return "image graph alone" if text is None else "text graph alone"
    batch = "batch of 1" if image_input(image).shape[0] == 1 else "any batch"
    return f"two graphs, {image_input(image).dtype} pictures, {batch}"


def _is_other_precision(path: str) -> bool:
    stem = PurePosixPath(path).stem
    return any(stem.endswith(f"_{ending}") for ending in _OTHER_PRECISIONS)


def _joint(full: list[str]) -> list[str] | None:
    """A graph that stands alone in its folder, or beside two that are its towers."""
    for folder in _FOLDERS:
        here = [path for path in full if str(PurePosixPath(path).parent) == (folder or ".")]
        whole = [path for path in here if PurePosixPath(path).stem == "model"]
        if whole and len(here) in (1, 3):
            return whole
    return None


def _pair(full: list[str]) -> list[str] | None:
    """Two graphs: in one folder, or in two folders side by side."""
    for folder in _FOLDERS:
        here = [path for path in full if str(PurePosixPath(path).parent) == (folder or ".")]
        if len(here) == 2:
            return here
    nested = [path for path in full if len(PurePosixPath(path).parts) == 2]
    return nested if len(nested) == 2 and len(full) == 2 else None


def _single(full: list[str]) -> list[str] | None:
    return full if len(full) == 1 else None


def _may_be_weights(path: str, graphs: list[str]) -> bool:
    """What lies beside a graph and is no graph of another runtime, no text and no settings."""
    name = PurePosixPath(path).name
    known = (".json", ".txt", ".md", ".armnn", ".rknn", ".onnx", ".gitattributes", ".py", ".model")
    return not name.endswith(known) and not name.startswith(".")


def _without_graphs(listed: list[str], graphs: list[str]) -> ExportRefused:
    if graphs:
        return ExportRefused(
            f"only other precisions are there ({', '.join(graphs[:4])}). The fp32 graph is needed: int8 is made of it "
            "with --precision int8, and its distance from it is measured"
        )
    weights = [path for path in listed if path.endswith(_TORCH_WEIGHTS)]
    if weights:
        return TorchNeeded(f"there is no ONNX graph, but weights for torch ({', '.join(weights[:3])})")
    return ExportRefused(f"there is no ONNX graph among its {len(listed)} files")
