"""Names that their makers chose to act on a terminal: no error, remark or answer holds them as they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from clipworks.cli.visible import visible
from model_store.errors import ArtifactError, GraphError, RepositoryError
from tests.model_store.hub.ask import environment_of_child
from tests.model_store.hub.local_hub import local_hub

EVIL = "\x1b[31m\x1b]0;owned\x07\x9b2J\u202eevil"
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
PREPARED = {
    "size": {"shortest_edge": 8},
    "crop_size": {"height": 8, "width": 8},
    "image_mean": [0, 0, 0],
    "image_std": [1, 1, 1],
    "resample": 3,
}


def joint(op: str = "Relu", output: str = "image_embeds", location: str | None = None) -> ModelProto:
    """A graph with the inputs of a joint one."""
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((1, 3, 8, 8), np.float32), "weight")
    if location:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["pixel_values", "weight"], ["sum"]),
            helper.make_node(op, ["sum"], [output], name=EVIL),
            helper.make_node("Cast", ["input_ids"], ["text_embeds"], to=TensorProto.FLOAT),
        ],
        EVIL,
        [
            value("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8]),
            value("input_ids", TensorProto.INT64, ["batch", "length"]),
        ],
        [value(output, TensorProto.FLOAT, None), value("text_embeds", TensorProto.FLOAT, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def repository(folder: Path, model: ModelProto, **settings: object) -> Path:
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    config = {"architectures": [EVIL], "model_type": "clip", "text_config": {"max_position_embeddings": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPARED, **settings}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<unk>", "unk_token": "<unk>"}))
    vocabulary = {"<unk>": 0, EVIL: 1, "a": 2, "b": 3}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                "pre_tokenizer": None, "post_processor": None, "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
            }
        )
    )  # fmt: skip
    return folder


def several(folder: Path) -> Path:
    for name in "abcd":
        repository(folder / f"{name}{EVIL}", joint())
    return folder


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (lambda path: repository(path / "op", joint(op=EVIL)), "does not load"),
        (lambda path: repository(path / "output", joint(output=EVIL)), "gives"),
        (lambda path: repository(path / "weights", joint(location=EVIL)), "weights"),
        (lambda path: repository(path / "key", joint(), **{EVIL: 1}), "preprocessor_config.json"),
        (lambda path: repository(path / EVIL, joint()), "evil"),
        (lambda path: several(path / "many"), "4 graphs may be meant"),
    ],
    ids=["operator", "output", "sidecar", "setting", "folder", "files"],
)
def test_names_of_a_folders_files_are_shown_as_escapes(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, lay: Callable[[Path], Path], said: str
) -> None:
    code, out, err = cli("models", "pull", "--from", lay(tmp_path), "--store", tmp_path / "store")
    assert code == 3, err
    assert said in err
    assert "error: " in err
    assert not ACTS.search(out + err), repr(err)


def test_what_a_hub_says_is_shown_as_escapes(tmp_path: Path) -> None:
    repository(tmp_path / "served" / "acme" / "tiny", joint(op=EVIL))
    with local_hub(tmp_path / "served") as hub:
        for name in "abc":
            hub.faults.listed.append({"type": "file", "path": f"{name}{EVIL}.onnx", "size": 2, "oid": "0" * 40})
        done = subprocess.run(
            [sys.executable, "-m", "clipworks", "models", "pull", "acme/tiny", "--yes", "--store", tmp_path / "store"],
            env=environment_of_child(hub.environment(tmp_path / "hub")),
            capture_output=True,
            timeout=120,
            check=False,
        )
    err = done.stderr.decode()
    assert done.returncode == 3, err
    assert "4 graphs may be meant: a\\x1b[31m\\x1b]0;owned\\x07\\x9b2J\\u202eevil.onnx" in err
    assert not ACTS.search(err), repr(err)


@pytest.mark.parametrize("kind", [ArtifactError, GraphError, RepositoryError])
def test_errors_of_artifacts_are_one_line_without_control_characters(kind: type[ArtifactError]) -> None:
    text = str(kind(f"{EVIL}\nerror: another line\u2028\ud800 Straße \u3000 \U0001f44d\u200d"))
    assert not ACTS.search(text)
    assert text.splitlines() == [text]
    assert text.endswith("Straße \u3000 \U0001f44d\u200d")
    assert text.encode("utf-8")
    assert "\\x1b[31m" in text


def test_a_remark_keeps_its_lines_and_letters() -> None:
    assert visible("two\n\tlines, été \U0001f44d\u200d") == "two\n\tlines, été \U0001f44d\u200d"
    assert not ACTS.search(visible(EVIL))
