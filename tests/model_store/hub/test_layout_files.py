"""Which files of a listing are a model, without opening any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import ExportRefused, TorchNeeded
from model_store.hub.layouts import find_layout

IMMICH = [
    "README.md", "config.json", "textual/model.onnx", "textual/tokenizer.json", "textual/tokenizer_config.json",
    "textual/fp16/model.armnn", "visual/model.onnx", "visual/preprocess_cfg.json", "visual/rknpu/rk3588/model.rknn",
]  # fmt: skip
SPLIT = [
    "config.json", "preprocessor_config.json", "tokenizer.json", "onnx/vision_model.onnx", "onnx/text_model.onnx",
    "onnx/vision_model_fp16.onnx", "onnx/text_model_quantized.onnx",
]  # fmt: skip
SUFFIXES = ["_fp16", "_int8", "_uint8", "_quantized", "_q4", "_q4f16", "_bnb4"]
JOINT = [*SPLIT, "onnx/model.onnx", *(f"onnx/model{suffix}.onnx" for suffix in SUFFIXES)]


def test_two_folders() -> None:
    found = find_layout(IMMICH)
    assert found.graphs == ("textual/model.onnx", "visual/model.onnx")
    assert set(found.settings) == {
        "config.json", "textual/tokenizer.json", "textual/tokenizer_config.json", "visual/preprocess_cfg.json",
    }  # fmt: skip
    assert found.weights == ()


def test_weights_lie_beside_their_graph() -> None:
    outside = ["visual/model.onnx.data", "textual/model.onnx.data", "visual/onnx__MatMul_12", "other/x.data"]
    assert set(find_layout([*IMMICH, *outside]).weights) == set(outside[:3])


def test_the_joint_graph_is_preferred_and_other_precisions_never_taken() -> None:
    assert find_layout(JOINT).graphs == ("onnx/model.onnx",)
    assert find_layout(SPLIT).graphs == ("onnx/text_model.onnx", "onnx/vision_model.onnx")
    assert find_layout(["model.onnx", "config.json", "tokenizer.json"]).graphs == ("model.onnx",)


def test_only_quantised_graphs_are_refused_with_the_remedy() -> None:
    with pytest.raises(ExportRefused, match="--precision int8"):
        find_layout([f"onnx/model{suffix}.onnx" for suffix in SUFFIXES])


def test_weights_for_torch_say_so() -> None:
    with pytest.raises(TorchNeeded, match=r"open_clip_model\.safetensors"):
        find_layout(["open_clip_config.json", "open_clip_model.safetensors"])
    with pytest.raises(ExportRefused, match="no ONNX graph among its 1 files"):
        find_layout(["README.md"])


def test_several_models_are_not_guessed() -> None:
    with pytest.raises(ExportRefused, match="4 graphs may be meant"):
        find_layout([f"onnx/{size}/{tower}.onnx" for size in ("s0", "s2") for tower in ("vision", "text")])


@given(st.lists(st.sampled_from([*IMMICH, *JOINT, "a/b/c.onnx", "x.onnx", "y.onnx", "model.onnx_data"]), unique=True))
def test_any_listing_is_a_layout_or_a_refusal(files: list[str]) -> None:
    try:
        found = find_layout(files)
    except ExportRefused:
        return
    assert 1 <= len(found.graphs) <= 2
    assert {*found.graphs, *found.settings, *found.weights} <= set(files)
