"""A projection through every door: numpy, the artifact and HTTP agree, and no part of the server knows of it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipworks.client import Client
from evaluation.encoder import ServerEncoder, open_artifact, png
from model_store.store import Store
from tests import exporter_once  # noqa: F401
from tests.stores import TINY_STORE
from training.debias import __main__ as command

pytestmark = [pytest.mark.torch, pytest.mark.slow]

PROMPTS = ["a photo of a man", "a photo of a woman", "a photo of a child"]
PAIRS = [["a male doctor", "a female doctor"], ["a male nurse", "a female nurse"]]
TEXTS = ["a doctor", "a nurse", "a red circle"]
WEIGHT = 5.0
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Lab:
    folder: Path
    store: Store
    said: dict[str, str]
    client: Client


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(60 + at, 48, 3)).astype(np.uint8) for at in range(4)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., AbstractContextManager[str]]) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("debias")
    shutil.copytree(TINY_STORE, folder / "store")
    (folder / "prompts.json").write_text(json.dumps({"prompts": PROMPTS, "pairs": PAIRS}))
    lines = ["path,group,image,caption"]
    for at, picture in enumerate(pictures() * 3):
        Image.fromarray(picture // (at + 1)).save(folder / f"{at}.png")
        lines.append(f"{at}.png,{'AB'[at % 2]},{at}.png,one and the same caption")
    (folder / "groups.csv").write_text("\n".join(lines))
    own = ("--prompts", folder / "prompts.json")
    said = {
        "texts": run(folder, "texts", *own, "--calibrate", WEIGHT, "--captions", folder / "groups.csv"),
        "both": run(folder, "both", "--groups", folder / "groups.csv", "--sides", "both"),
    }
    options = ("--store", folder / "store", "--data", folder / "data", "--model", "texts", "--extra-models", "both")
    with serving(*options) as url, Client(url) as client:
        yield Lab(folder, Store(folder / "store", builtin=False), said, client)


def run(folder: Path, name: str, *options: object) -> str:
    """What the command prints."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        words = ["--base", "tiny", "--store", folder / "store", "--name", name, *options]
        patch.setattr(sys, "argv", ["debias", *map(str, words)])
        patch.setattr("builtins.print", lambda text, **_: lines.append(str(text)))
        assert command.main() == 0, lines
    return "\n".join(lines)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def assert_agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(expected - expected.mean(axis=0)).max() > 100 * TOLERANCE
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.long
def test_texts_alone(lab: Lab) -> None:
    base, artifact = open_artifact(lab.store.open("tiny")), lab.store.open("texts")
    prompts = base.encode_texts(PROMPTS).astype(float)
    columns = (prompts - prompts.mean(axis=0))[:2].T
    projection = np.eye(32) - columns @ np.linalg.inv(columns.T @ columns) @ columns.T
    first, second = (base.encode_texts([pair[side] for pair in PAIRS]).astype(float) for side in (0, 1))
    shaped = projection @ np.linalg.inv(np.eye(32) + WEIGHT / 2 * (first - second).T @ (first - second))
    expected = unit(base.encode_texts(TEXTS) @ shaped.T)
    assert np.abs(expected - base.encode_texts(TEXTS)).max() > 0.01
    served = ServerEncoder(lab.client, model="texts")
    assert_agree(open_artifact(artifact).encode_texts(TEXTS), expected)
    assert_agree(served.encode_texts(TEXTS), expected)
    images = base.encode_images([png(each) for each in pictures()])
    np.testing.assert_allclose(served.encode_images([png(each) for each in pictures()]), images, atol=TOLERANCE)
    # All captions are equal, so the proof holds whatever the matrix: pictures need not be indexed again.
    assert "its space is kept" in lab.said["texts"]
    assert "2 of 32 dimensions" in lab.said["texts"]
    assert served.space == base.space
    assert artifact.manifest.fingerprint.image == lab.store.open("tiny").manifest.fingerprint.image


@pytest.mark.long
def test_both_sides(lab: Lab) -> None:
    base, artifact = open_artifact(lab.store.open("tiny")), lab.store.open("both")
    seen = base.encode_images([(lab.folder / f"{at}.png").read_bytes() for at in range(12)]).astype(float)
    apart = seen[::2].mean(axis=0) - seen[1::2].mean(axis=0)
    projection = np.eye(32) - np.outer(apart, apart) / (apart @ apart)
    served, shown = ServerEncoder(lab.client, model="both"), [png(each) for each in pictures()]
    for encoder in (open_artifact(artifact), served):
        assert_agree(encoder.encode_texts(TEXTS), unit(base.encode_texts(TEXTS) @ projection))
        assert_agree(encoder.encode_images(shown), unit(base.encode_images(shown) @ projection))
    assert {graph.role for graph in artifact.manifest.graphs} == {"dense_adapter", "image_adapter", "text_adapter"}
    assert served.space != base.space
    assert artifact.manifest.base is not None
    assert artifact.manifest.base.name == "tiny"


@pytest.mark.parametrize(
    ("base", "options", "said"),
    [
        ("both", ("--prompts", "prompts.json"), "both@1 has a text_adapter of its own"),
        ("none", ("--prompts", "prompts.json"), "none"),
        ("tiny", ("--groups", "groups.csv", "--calibrate", "1"), "--calibrate and --span are for --prompts"),
        ("tiny", ("--groups", "groups.csv", "--sides", "both", "--captions", "x"), "they must"),
    ],
)
def test_what_is_refused(
    lab: Lab, base: str, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab.folder)
        patch.setattr(sys, "argv", ["debias", "--base", base, "--store", "store", "--name", "x", *options])
        assert command.main() == 1
    assert said in capsys.readouterr().err
