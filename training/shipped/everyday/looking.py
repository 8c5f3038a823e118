"""Features of the frozen trunk and vectors of the locked text tower, for pictures and texts of the recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.files import whole_file
from model_store.manifest import TensorSpec
from model_store.modality.text import Tokenizer
from model_store.session import SessionSettings, open_session
from training.exporting.graphs import EncoderGraph, write_graph
from training.models.aligned import AlignedDualEncoder
from training.models.pretrained import text_vectors

F32 = NDArray[np.float32]
F16 = NDArray[np.float16]
_CHUNK = 16


def unit_rows(rows: F32) -> F32:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)


class TrunkGraph:
    """The trunk as a graph, which ONNX Runtime runs several times as fast as torch on a CPU."""

    def __init__(self, model: AlignedDualEncoder, side_px: int) -> None:
        with torch.no_grad():
            example = model.encode_squares(torch.zeros((1, side_px, side_px, 3), dtype=torch.uint8))
        self._shape = example.shape[1:]
        tensors = (
            TensorSpec(name="pixels", dtype="uint8", shape=("batch", side_px, side_px, 3)),
            TensorSpec(name="squares", dtype="float32", shape=("batch", *self._shape)),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "squares.onnx"
            write_graph(EncoderGraph(model, "encode_squares").eval(), tensors, path)
            self._session = open_session(
                str(path), SessionSettings(intra_threads=torch.get_num_threads()), label="the trunk"
            )

    def at(self, pictures: Iterable[NDArray[np.uint8]], kept: Path, *, count: int) -> F16:
        """Features of the squares of `count` pictures, uint8 [S, S, 3] each, mapped from the file `kept`: [count, N, F]
        in half precision. If the file is there, no picture is looked at.

        Raises:
            ValueError: there are more or fewer pictures.
        """
        if not kept.exists():
            with whole_file(kept) as stream:
                shape = (count, *self._shape)
                header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
                np.lib.format.write_array_header_2_0(stream, {**header, "shape": shape})
                left, seen = iter(pictures), 0
                while chunk := list(islice(left, _CHUNK)):
                    (found,) = self._session.run(None, {"pixels": np.stack(chunk)})
                    stream.write(np.asarray(found, dtype=np.float16).tobytes())
                    seen += len(chunk)
                if seen != count:
                    raise ValueError(f"{kept.name}: {seen} pictures, expected {count}")
        return np.load(kept, mmap_mode="r", allow_pickle=False)


def pooled(squares: F16) -> F32:
    """[n, N, F] -> the means over squares, [n, F]."""
    parts = [squares[at : at + 256].astype(np.float32).mean(axis=1) for at in range(0, len(squares), 256)]
    return np.concatenate(parts)


@dataclass
class TextVectors:
    """Unit vectors of texts, each encoded once."""

    model: AlignedDualEncoder
    tokenizer: Tokenizer
    _known: dict[str, F32] = field(default_factory=dict)

    def of(self, texts: Sequence[str]) -> F32:
        """[n, D]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for chunk in _chunks(sorted(new, key=len), 256):
            ids = self.tokenizer.pad([self.tokenizer.encode(text) for text in chunk])
            vectors = unit_rows(text_vectors(self.model, lambda _, ids=ids: ids, chunk).numpy())
            self._known.update(zip(chunk, vectors, strict=True))
        return np.stack([self._known[text] for text in texts])


def _chunks(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for at in range(0, len(texts), size):
        yield texts[at : at + size]
