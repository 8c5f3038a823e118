"""The text tower and the tokenizer of a sentence encoder against transformers, whole and pruned."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models
from torch.nn import functional
from transformers import BertModel, PreTrainedTokenizerFast

from model_store.modality.text import MAX_CHARS, Tokenizer
from training.aligned_config import AlignedTextConfig
from training.aligned_sources import bert_shape
from training.data.sentence_vocabulary import SentenceTokenizer, needed_ids, sentence_tokenizer
from training.models.bert import BertTower
from training.models.sentence_encoders import load_sentence_encoder

pytestmark = pytest.mark.torch

BLNS = json.loads((Path(__file__).parents[1] / "data" / "blns" / "blns.json").read_text(encoding="utf-8"))
TEXTS = ["a photo of a red shirt", "cats", "", "x", "plain white tree, green cat! and a photo of a blue shirt & so on"]


def part_of(folder: Path, **part: Any) -> AlignedTextConfig:
    return AlignedTextConfig(encoder=str(folder), context_length=20, **part)


def tower_of(folder: Path, **part: Any) -> tuple[BertTower, Tokenizer]:
    config = part_of(folder, **part)
    sentences = sentence_tokenizer(config)
    tower = BertTower(bert_shape(config), vocab_size=sentences.spec.vocab_size, context_length=20).eval()
    load_sentence_encoder(tower, config, kept_ids=sentences.kept_ids)
    return tower, Tokenizer(sentences.spec, sentences.file)


def by_transformers(folder: Path, texts: list[str], *, layers: tuple[int, ...] = ()) -> torch.Tensor:
    """Unit mean-pooled vectors [n, D], one text at a time."""
    model = BertModel.from_pretrained(folder).eval()
    if layers:
        model.encoder.layer = torch.nn.ModuleList(model.encoder.layer[at] for at in layers)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=20, padding=False, return_tensors="pt")["input_ids"]
            ids = ids[:, : int((ids != 0).sum())]
            found.append(model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(dim=1))
    return functional.normalize(torch.cat(found), dim=-1)


@pytest.mark.parametrize("layers", [(), (0, 2)])
@pytest.mark.parametrize("length", [None, 20])
def test_the_tower_is_the_published_model(sentence_encoder: Path, layers: tuple[int, ...], length: int | None) -> None:
    tower, tokenizer = tower_of(sentence_encoder, layers=layers)
    ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(text) for text in TEXTS], length))
    with torch.inference_mode():
        found = tower(ids)
        tower.centre.fill_(0.25)
        centred = tower(ids)
    expected = by_transformers(sentence_encoder, TEXTS, layers=layers)
    assert (found - expected).abs().max() < 1e-5
    assert (centred - (expected - 0.25)).abs().max() < 1e-5
    assert (expected - expected.mean(dim=0)).norm() > 0.5  # texts differ, so that equality says something


def test_a_table_of_two_factors_is_the_nearest_of_its_rank(sentence_encoder: Path) -> None:
    """Against numpy's singular values."""
    tower, tokenizer = tower_of(sentence_encoder, table_rank=12)
    whole, _ = tower_of(sentence_encoder)
    ids = torch.arange(tokenizer.spec.vocab_size)
    with torch.inference_mode():
        rows, found = whole.tokens(ids).numpy(), tower.tokens(ids).numpy()
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    np.testing.assert_allclose(found, (left[:, :12] * values[:12]) @ right[:12], atol=1e-5)
    assert np.linalg.norm(found - rows) == pytest.approx(np.linalg.norm(values[12:]), rel=1e-4)
    assert sum(p.numel() for p in tower.tokens.parameters()) == 12 * (len(ids) + 32)


def test_the_largest_units_of_a_layer_are_kept(sentence_encoder: Path, tmp_path: Path) -> None:
    """A unit that adds nothing goes first: without it the tower says the same."""
    folder = copied(sentence_encoder, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    silent = {f"encoder.layer.{layer}.output.dense.weight": [layer, 5, 40] for layer in range(3)}
    for name, units in silent.items():
        weights[name][:, units] = 0
    save_file(weights, folder / "model.safetensors")
    whole, tokenizer = tower_of(folder)
    part, _ = tower_of(folder, hidden=45)
    ids = torch.from_numpy(tokenizer.pad([tokenizer.encode(text) for text in TEXTS]))
    with torch.inference_mode():
        assert (part(ids) - whole(ids)).abs().max() < 1e-5
        assert (tower_of(folder, hidden=40)[0](ids) - whole(ids)).abs().max() > 1e-3
    assert part.layers[0].mlp_in.weight.shape == (45, 32)


def test_ids_are_those_of_the_published_tokenizer(sentence_encoder: Path) -> None:
    _, tokenizer = tower_of(sentence_encoder)
    reference = HubTokenizer.from_file(str(sentence_encoder / "tokenizer.json"))
    reference.no_padding()
    reference.enable_truncation(20)
    texts = [text for text in BLNS if len(text) <= MAX_CHARS]
    assert len(texts) > 480
    assert [text for text in texts if tokenizer.encode(text) != reference.encode(text).ids] == []
    spec = tokenizer.spec
    assert (spec.start_id, spec.end_id, spec.pad_id, spec.dynamic_length) == (3, 4, 0, True)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("listed") / "words.txt"
    path.write_text("a photo of a red shirt\ncats", encoding="utf-8")
    return str(path)


@cache
def both(folder: Path, vocabulary: str) -> tuple[SentenceTokenizer, HubTokenizer, HubTokenizer]:
    config = AlignedTextConfig(encoder=str(folder), vocabulary=vocabulary)
    sentences = sentence_tokenizer(config)
    whole = HubTokenizer.from_file(str(folder / "tokenizer.json"))
    part = HubTokenizer.from_str(sentences.file.decode())
    for each in (whole, part):
        each.no_padding()
    return sentences, whole, part


def test_listed_texts_keep_their_pieces_and_vectors(sentence_encoder: Path, listed: str) -> None:
    sentences, whole, part = both(sentence_encoder, listed)
    assert len(sentences.kept_ids) < whole.get_vocab_size()
    assert "tree" not in part.get_vocab()
    assert all(part.token_to_id(token) is not None for token in ("red", "##s", "[PAD]", "[MASK]", "e", "##e"))
    for text in ("a photo of a red shirt", "cats", "red cats"):
        assert part.encode(text).tokens == whole.encode(text).tokens
        assert [sentences.kept_ids[number] for number in part.encode(text).ids] == whole.encode(text).ids
    towers = [tower_of(sentence_encoder, vocabulary=vocabulary) for vocabulary in ("", listed)]
    vectors = [
        tower(torch.from_numpy(tokenizer.pad([tokenizer.encode("red cats")]))).detach() for tower, tokenizer in towers
    ]
    assert torch.equal(*vectors)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("abetrcs日é09 .!'"), max_size=12) | st.text(max_size=12))
def test_what_could_be_spelt_still_can(sentence_encoder: Path, listed: str, text: str) -> None:
    _, whole, part = both(sentence_encoder, listed)
    if text.encode("utf-8", "replace").decode() == text and "[UNK]" not in whole.encode(text).tokens:
        assert "[UNK]" not in part.encode(text).tokens


def test_a_token_whose_characters_have_no_piece_is_kept(sentence_encoder: Path) -> None:
    """There is "ét" and "##é" but no "é": without "ét" the word could not be spelt."""
    file = (sentence_encoder / "tokenizer.json").read_bytes()
    vocabulary = json.loads(file)["model"]["vocab"]
    kept = needed_ids(file, [])
    assert vocabulary["ét"] in kept
    assert vocabulary["tree"] not in kept


def test_tokens_of_ascii_say_the_same_alone(sentence_encoder: Path) -> None:
    sentences, whole, part = both(sentence_encoder, "ascii")
    kept = set(part.get_vocab())
    assert {token for token in whole.get_vocab() if token not in kept} == {
        token for token in whole.get_vocab() if not token.isascii() or token == "[unused]"
    }
    for text in ("red cats", "a photo of a red shirt!", "x1"):
        assert part.encode(text).tokens == whole.encode(text).tokens
        assert [sentences.kept_ids[number] for number in part.encode(text).ids] == whole.encode(text).ids


def copied(folder: Path, to: Path, **changes: object) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mpnet"}, "model_type is 'mpnet'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"pad_token_id": 1}, "pad_token_id is 1"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"max_position_embeddings": 8}, "8 positions, context_length is 20"),
    ],
)
def test_other_encoders_are_refused(
    sentence_encoder: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    folder = copied(sentence_encoder, tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=said):
        bert_shape(part_of(folder))


def test_another_pooling_and_another_vocabulary_are_refused(sentence_encoder: Path, tmp_path: Path) -> None:
    folder = copied(sentence_encoder, tmp_path / "other")
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ValueError, match="pools by"):
        bert_shape(part_of(folder))
    with pytest.raises(ValueError, match="layers 0 to 2"):
        bert_shape(part_of(sentence_encoder, layers=(0, 3)))
    with pytest.raises(ValueError, match="48 units in each MLP, hidden is 49"):
        bert_shape(part_of(sentence_encoder, hidden=49))
    with pytest.raises(ValueError, match="embeddings of 32 components, table_rank is 32"):
        bert_shape(part_of(sentence_encoder, table_rank=32))
    with pytest.raises(ValueError, match="cannot be pruned"):
        needed_ids(HubTokenizer(models.BPE()).to_str().encode(), [])


def test_weights_of_another_shape_are_refused(sentence_encoder: Path, tmp_path: Path) -> None:
    folder = copied(sentence_encoder, tmp_path / "other", intermediate_size=40)
    with pytest.raises(ValueError, match="weights of another model"):
        tower_of(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        tower_of(folder)


@pytest.mark.parametrize("vocabulary", ["", "listed"])
def test_every_id_has_a_row(sentence_encoder: Path, listed: str, vocabulary: str) -> None:
    tower, tokenizer = tower_of(sentence_encoder, vocabulary=listed if vocabulary else "")
    ids = np.arange(tokenizer.spec.vocab_size)
    assert torch.isfinite(tower.tokens(torch.from_numpy(ids))).all()
