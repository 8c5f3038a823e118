"""Graphs that torch's two exporters write for one row, made free: equal to torch, and the same bits in any company."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="needs the train extra")
import open_clip  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from model_store.hub import surgery  # noqa: E402
from model_store.hub.batch import freed_batch  # noqa: E402
from model_store.hub.graphs import ForeignGraph  # noqa: E402
from model_store.hub.tokenizing import tokenizer_of  # noqa: E402
from tests.model_store.hub.layouts.exporting import export_traced  # noqa: E402
from tests.model_store.hub.layouts.multilingual import tiny_xlm_roberta, write_immich_multilingual  # noqa: E402
from tests.model_store.hub.layouts.source_models import tiny_siglip  # noqa: E402

pytestmark = pytest.mark.torch
Array = NDArray[np.generic]
ROWS = 7


@cache
def resnet() -> nn.Module:
    """open_clip's ModifiedResNet with AttentionPool2d, as RN50 has them, one block a stage."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
        "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = open_clip.CLIP(**config).eval()
        for parameter in model.parameters():
            parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert type(model.visual.attnpool).__name__ == "AttentionPool2d"
    return model.requires_grad_(False)


def siglip() -> nn.Module:
    """timm's ViT with its pool of attention (MAP)."""
    return tiny_siglip().model


class Pictures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(image, normalize=True)


def write(model: nn.Module, path: Path, size: int, opset: int, *, captured: bool) -> None:
    """`image` [1, 3, S, S] -> `embedding` [1, D]; captured: by the exporter that is built on torch.export."""
    example = torch.randn(1, 3, size, size)
    tower = Pictures(model).eval()  # the exporter gives the mode back that it found
    if not captured:
        export_traced(tower, tower.forward, {"image": example}, ["embedding"], path, opset=opset)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            tower, (example,), input_names=["image"], output_names=["embedding"],
            opset_version=opset, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program
    program.save(path)


def answers(path: Path, inputs: Array, together: int) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runs = [session.run(None, {name: inputs[at : at + together]})[0] for at in range(0, len(inputs), together)]
    return np.concatenate(runs)


def freed(graph: ForeignGraph, folder: Path) -> Path:
    (folder / "scratch").mkdir()
    free = freed_batch(graph, folder / "scratch")
    assert free, "a place could not be told"
    assert free.inputs[0].shape[0] is None
    return free.save(folder / "free.onnx")[0]


@pytest.mark.parametrize("model", [resnet, siglip])
@pytest.mark.parametrize(
    ("captured", "opset"), [(False, 19), (True, 18), (True, 23)], ids=["traced", "captured", "captured with Attention"]
)
def test_towers_with_a_pool_of_attention(
    tmp_path: Path, model: Callable[[], nn.Module], captured: bool, opset: int
) -> None:
    size = 64 if model is resnet else 32
    pictures = np.random.default_rng(0).standard_normal((ROWS, 3, size, size)).astype(np.float32)
    expected = model().encode_image(torch.from_numpy(pictures), normalize=True).numpy()
    write(model(), tmp_path / "model.onnx", size, opset, captured=captured)
    graph = ForeignGraph.read(tmp_path / "model.onnx")
    assert graph.inputs[0].shape[0] == 1
    free = freed(graph, tmp_path)
    alone = answers(free, pictures, 1)
    np.testing.assert_allclose(alone, expected, atol=1e-6)
    assert np.abs(expected - expected.mean(0)).max() > 1e-2, "the pictures are too much alike to tell rows apart"
    for together in (2, 3, ROWS):
        assert np.array_equal(answers(free, pictures, together), alone)


@pytest.mark.parametrize("mask", [True, False], ids=["mask given", "mask of its own"])
def test_multilingual_texts(tmp_path: Path, mask: bool) -> None:
    """XLM-R reads token types with GatherElements, and makes its mask from the tokens of all rows laid end to end."""
    source = tiny_xlm_roberta()
    write_immich_multilingual(tmp_path, source, mask=mask, normalized=False)
    texts = ["a photo of a dog", "", "two dogs and a cat on the green grass " * 9, "été", "one red car", "x", "y z"]
    ids = source.tokenize(texts).numpy()
    graph = ForeignGraph.read(tmp_path / "textual" / "model.onnx")
    spec = tokenizer_of(tmp_path / "textual", clean=None, context_length=77, dynamic_length=False).spec
    surgery.give(graph, surgery.make_room(graph, "embedding"), surgery.TEXT_EMBEDS, 32)
    surgery.take_ids(graph, spec)
    free = freed(graph, tmp_path)
    alone = answers(free, ids, 1)
    expected = source.text_vectors(texts)
    np.testing.assert_allclose(alone, expected, atol=1e-5 * np.abs(expected).max())
    for together in (2, 3, ROWS):
        np.testing.assert_allclose(answers(free, ids, together), alone, atol=2e-6 * np.abs(expected).max())
