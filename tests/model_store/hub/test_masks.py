"""The mask that a wrapped graph derives from token ids is the one that the model's own tokenizer gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model_store.errors import ExportRefused
from model_store.hub.foreign import mask_of
from model_store.hub.graphs import ForeignGraph
from model_store.hub.surgery import IDS, take_ids
from model_store.hub.tokenizing import tokenizer_of
from model_store.modality.text import Tokenizer
from tests.model_store.hub import test_publishing as publishing

pytest.importorskip("torch")
from transformers import PreTrainedTokenizerBase  # noqa: E402

from tests.model_store.hub.layouts import multilingual, tokenizer_files  # noqa: E402
from tests.model_store.hub.layouts.captions import taught_captions  # noqa: E402
from tests.model_store.hub.layouts.source_models import TINY_MERGES, SourceModel, clip_tokenizer  # noqa: E402

pytestmark = pytest.mark.torch
LONG = "a very long text about nothing " * 20
TEXTS = ["", "two", "a photo of a dog", "!", "! a red shoe !!", "what?!", "été 日本", LONG]
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "xlm_roberta": tokenizer_files.xlm_roberta,
    "padded_with_its_end": tokenizer_files.t5,
    "wordpiece": tokenizer_files.bert,
    "clip": lambda: clip_tokenizer(TINY_MERGES),  # its token 0 is "!", and open_clip pads with 0
}


def masking_graph(folder: Path, opset: int = 14, dtype: int = TensorProto.INT32) -> ForeignGraph:
    """A text tower whose vector is its mask."""
    nodes = [
        helper.make_node("Sub", ["input_ids", "input_ids"], ["nothing"]),
        helper.make_node("Add", ["attention_mask", "nothing"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["text_embeds"], to=TensorProto.FLOAT),
    ]
    ports = [helper.make_tensor_value_info(name, dtype, ["b", "n"]) for name in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, ["b", "n"])
    model = helper.make_model(
        helper.make_graph(nodes, "text", ports, [output]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    onnx.save(model, folder / "text.onnx")
    return ForeignGraph.read(folder / "text.onnx")


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_derived_mask_is_the_tokenizers_own(tmp_path: Path, name: str, dtype: int) -> None:
    theirs = TOKENIZERS[name]()
    theirs.save_pretrained(tmp_path)
    found = tokenizer_of(tmp_path, clean=None, context_length=32, dynamic_length=False)
    tokenizer = Tokenizer(found.spec, found.data)
    ids = tokenizer(TEXTS)
    expected = theirs(
        [tokenizer.cleaned(text) for text in TEXTS],
        max_length=32,
        padding="max_length",
        truncation=True,
        return_attention_mask=True,
        return_tensors="np",
    ).attention_mask
    assert len({int(row.sum()) for row in expected}) > 4
    graph = masking_graph(tmp_path, dtype=dtype)
    take_ids(graph, found.spec)
    onnx.checker.check_model(graph.model, full_check=True)
    session = onnxruntime.InferenceSession(graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (mask,) = session.run(None, {IDS: ids})
    assert np.array_equal(mask, expected)
    assert np.array_equal(mask_of(ids, found.spec), expected)


def test_a_mask_of_an_old_graph_is_refused_where_its_operators_are_missing(tmp_path: Path) -> None:
    clip_tokenizer(TINY_MERGES).save_pretrained(tmp_path)
    found = tokenizer_of(tmp_path, clean=None, context_length=32, dynamic_length=False)
    with pytest.raises(ExportRefused, match="opset 10; deriving its mask needs 11"):
        take_ids(masking_graph(tmp_path, opset=10), found.spec)


def test_padding_that_looks_like_the_beginning_is_refused(tmp_path: Path) -> None:
    tokenizer_files.bert().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "[CLS]"}))
    with pytest.raises(ExportRefused, match=r"begins texts with its pad token '\[CLS\]'"):
        tokenizer_of(tmp_path, clean=None, context_length=32, dynamic_length=False)


@cache
def multilingual_source() -> SourceModel:
    return taught_captions(multilingual.tiny_xlm_roberta())


@pytest.mark.parametrize(
    "form",
    [
        pytest.param({}, id="fixed"),
        pytest.param({"free_batch": True}, id="free"),
        pytest.param({"mask": False, "normalized": False}, id="own_mask", marks=pytest.mark.slow),
    ],
)
def test_a_multilingual_model_is_the_torch_model(tmp_path: Path, form: dict[str, Any]) -> None:
    source = multilingual_source()
    multilingual.write_immich_multilingual(tmp_path, source, **form)
    artifact = publishing.published(tmp_path, tmp_path / "store")
    images, texts = publishing.distances(artifact, source)
    assert max(images, texts) < publishing.CENTRED_MAX
    graph = artifact.manifest.graph("text_encoder", "fp32")
    assert graph
    assert (graph.inputs[0].shape[0], graph.batch_invariant) == ("batch", True)
    assert artifact.manifest.text
    assert (artifact.manifest.text.clean, artifact.manifest.text.pad_id) == ("whitespace", 1)
    shown = [text for text in TEXTS if text]
    alone = publishing.vectors(artifact, "text_encoder", artifact.tokenizer()(shown))
    expected = source.text_vectors(shown)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(alone - expected).max() < 1e-4


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    """A tokenizer of another model: its ids would be looked up behind the end of the table."""
    source = multilingual_source()
    multilingual.write_immich_multilingual(tmp_path, replace(source, hub_tokenizer=tokenizer_files.gemma()))
    with pytest.raises(ExportRefused, match=r"the tokenizer has \d+ tokens, the table of model.onnx \d+ rows"):
        publishing.published(tmp_path, tmp_path / "store")
