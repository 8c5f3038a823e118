"""The same random weights in two libraries' formats: names, layouts and token tables."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from benchmarks.peer_weights import ARCHITECTURE, to_transformers, tokenizer_files, transformers_config  # noqa: E402

pytestmark = pytest.mark.torch


def test_every_weight_gets_a_transformers_name_and_nothing_is_lost() -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE))
    state = {name: torch.empty(tensor.shape) for name, tensor in model.state_dict().items() if name != "attn_mask"}
    converted = to_transformers(state)
    assert sum(t.numel() for t in converted.values()) == sum(t.numel() for t in state.values())
    layers = transformers_config()["vision_config"]["num_hidden_layers"]
    assert f"vision_model.encoder.layers.{layers - 1}.self_attn.q_proj.weight" in converted
    assert not any("resblocks" in name for name in converted)


def test_projections_are_transposed_and_attention_is_split() -> None:
    rows = torch.arange(12.0).reshape(6, 2)
    converted = to_transformers(
        {"visual.proj": rows, "transformer.resblocks.3.attn.in_proj_weight": rows, "logit_scale": torch.tensor(1.0)}
    )
    assert torch.equal(converted["visual_projection.weight"], rows.T)
    for part, piece in zip("qkv", (rows[:2], rows[2:4], rows[4:]), strict=True):
        assert torch.equal(converted[f"text_model.encoder.layers.3.self_attn.{part}_proj.weight"], piece)


def test_an_unknown_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match="no transformers name for 'visual.extra'"):
        to_transformers({"visual.extra": torch.zeros(1)})


def test_token_tables_hold_every_id_and_merge() -> None:
    files = tokenizer_files()
    vocab = json.loads(files["vocab.json"])
    assert sorted(vocab.values()) == list(range(49408))
    assert (vocab["<|startoftext|>"], vocab["<|endoftext|>"]) == (49406, 49407)
    merges = files["merges.txt"].splitlines()
    assert merges[1] == "i n"
    assert len(merges) == 1 + 49152 - 256 - 2
    assert all("".join(merge.split(" ")) in vocab for merge in merges[1:])
