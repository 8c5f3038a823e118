"""Maps for search inside one modality: numpy, checkpoint, artifact and server agree."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from clipworks.client import Client
from clipworks.errors import Conflict
from evaluation.encoder import ArtifactEncoder, ServerEncoder, png
from model_store.intra_modal import centred, isoclip, principal
from model_store.store import Store
from training.checkpoint import load_model, read_checkpoint
from training.config import load_config
from training.loop import train
from training.method import create
from training.methods.parts.projections import projections_of
from training.models.building import build_model
from training.opening import open_checkpoint
from training.publish import publish_checkpoint

pytestmark = pytest.mark.torch

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
WORDS = ["red", "green square", "a very long boat", "shirt 2", "7", "blue blue"]
RNG = np.random.default_rng(0)
PICTURES = list(RNG.integers(0, 256, (7, 4, 4, 3), dtype=np.uint8).repeat(15, axis=1).repeat(15, axis=2))


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors @ vectors.T


def fitted(squares: Path, folder: Path, *options: str, base: str) -> Path:
    """The checkpoint of maps behind a stored base (artifact:NAME) or a checkpoint."""
    recipe = squares.read_text(encoding="utf-8")
    path = folder.with_suffix(".toml")
    path.write_text(recipe[: recipe.index("[model]")] + recipe[recipe.index("[optim]") :], encoding="utf-8")
    train(path, [f"run.folder={json.dumps(str(folder))}", f"base={json.dumps(base)}", "method=intra_modal", *options])
    return folder


@pytest.mark.long
def test_a_stored_models_maps_are_served_in_a_space_of_their_own(
    squares: Path, tmp_path: Path, serving: Callable[..., AbstractContextManager[str]]
) -> None:
    store = Store(Path(shutil.copytree(TINY_STORE, tmp_path / "store")), builtin=False)
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n\n", encoding="utf-8")
    words, root = (json.dumps(str(tmp_path / name)) for name in ("words.txt", "store"))
    options = (f"method_options.vocabulary={words}", "method_options.keep=[5]", f"run.store={root}")
    run = fitted(squares, tmp_path / "maps", *options, base="artifact:tiny")
    artifact = publish_checkpoint(run, "tiny-intra", store, precisions=("fp32",))

    base = store.open("tiny")
    assert (artifact.manifest.dim, base.manifest.dim) == (5, 32)
    assert artifact.manifest.space != base.manifest.space
    assert {graph.role for graph in artifact.manifest.graphs} == {"image_adapter", "text_adapter"}
    plain = ArtifactEncoder(base)
    prompts = [template.replace("{}", word) for word in WORDS for template in base.manifest.templates]
    maps = principal(plain.encode_texts(prompts), keep=5)
    expected = maps.image(plain.encode_images(PICTURES)), maps.text(plain.encode_texts(prompts))
    with (
        serving("--store", store.root, "--model", "tiny-intra", "--extra-models", "tiny") as url,
        Client(url) as client,
    ):
        server, checkpoint = ServerEncoder(client, model="tiny-intra"), open_checkpoint(run)
        for door in (ArtifactEncoder(artifact), server):
            np.testing.assert_allclose(door.encode_images(PICTURES), checkpoint.encode_images(PICTURES), atol=2e-5)
            np.testing.assert_allclose(door.encode_texts(prompts), checkpoint.encode_texts(prompts), atol=2e-5)
        # Directions have no sign, so numpy's are compared by what they make of cosines.
        for found, wanted in zip((server.encode_images(PICTURES), server.encode_texts(prompts)), expected, strict=True):
            np.testing.assert_allclose(cosines(found), cosines(wanted), atol=1e-4)
        assert np.abs(cosines(expected[0]) - cosines(plain.encode_images(PICTURES))).max() > 0.01
        album = client.create_collection("album", model="tiny-intra")
        album.upsert_images([png(picture) for picture in PICTURES], ids=[str(number) for number in range(7)])
        answers = album.search([png(picture) for picture in PICTURES], top_k=7)
        for answer, row in zip(answers, cosines(expected[0]), strict=True):
            np.testing.assert_allclose([hit.score for hit in answer.hits], sorted(row, reverse=True), atol=1e-4)
            assert answer.hits[0].score == pytest.approx(1, abs=1e-5)
        with pytest.raises(Conflict, match="space"):
            album.search(["red"], model="tiny")


def test_validation_chooses_how_much_is_kept(squares: Path, square_base: Path, tmp_path: Path) -> None:
    options = ("method_options.fit=isoclip", "method_options.keep=[2,9,16]", 'method_options.label=["colour"]')
    run = fitted(squares, tmp_path / "band", *options, base=str(square_base))
    report = read_checkpoint(run).metrics["validation"]
    base, encoder = open_checkpoint(square_base), open_checkpoint(run)
    pictures = [square(number) for number in range(8)]
    ends = projections_of(load_model(square_base).model)
    tried = report["mAP by knobs"]
    assert report["keep"] == max((2, 9, 16), key=lambda keep: (tried[f"keep {keep}, top 0"], keep))
    assert tried["keep 16, top 0"] == pytest.approx(report["base pictures"]["mAP"], abs=1e-6)  # nothing was left out
    maps = isoclip(ends.image, ends.text, top=0, keep=report["keep"])
    np.testing.assert_allclose(encoder.encode_images(pictures), maps.image(base.encode_images(pictures)), atol=1e-5)
    assert report["pictures"]["mAP"] == tried[f"keep {report['keep']}, top 0"]


def square(number: int) -> NDArray[np.uint8]:
    return np.full((16, 16, 3), (number * 30, 255 - number * 20, number * number), dtype=np.uint8)


def test_each_modality_loses_its_own_mean_of_training(squares: Path, square_base: Path, tmp_path: Path) -> None:
    run = fitted(squares, tmp_path / "centred", "method_options.fit=mean", base=str(square_base))
    base, found = open_checkpoint(square_base), open_checkpoint(run)
    with (squares.parent / "captions.csv").open(encoding="utf-8") as stream:
        rows = [row for number, row in enumerate(csv.DictReader(stream)) if number % 10 not in (1, 2)]
    shown = [np.asarray(Image.open(squares.parent / row["image"])) for row in rows]
    maps = centred(base.encode_images(shown), base.encode_texts([row["caption"] for row in rows]))
    pictures, texts = [square(3), square(5)], ["red", "blue shirt"]
    np.testing.assert_allclose(found.encode_images(pictures), maps.image(base.encode_images(pictures)), atol=1e-5)
    np.testing.assert_allclose(found.encode_texts(texts), maps.text(base.encode_texts(texts)), atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "flat", "attention"])
@pytest.mark.parametrize("reading", ["eos", "bag", "eos+bag"])
def test_vectors_are_projections_of_what_comes_before(squares: Path, pool: str, reading: str) -> None:
    """With a projection cut to rank 3, vectors of any inputs lie in its range and span all of it."""
    options = [f"model.image.pool={pool}", f"model.text.pool={reading}"]
    config = load_config(squares, [*options, 'run.folder="unused"']).model
    model = build_model(config, vocab_size=300, end_id=299).eval()
    pixels = torch.from_numpy(RNG.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    ids = torch.from_numpy(np.column_stack([RNG.integers(0, 299, (40, 9)), np.full(40, 299)]))
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if "projection" in name:
                parameter.copy_(torch.randn(parameter.shape))
                if parameter.shape[-1] == 16 or parameter.shape[0] == 16:
                    axis = -1 if pool == "flat" and name == "image_projection.weight" else 0
                    parameter.index_fill_(axis, torch.arange(3, 16), 0.0)
        ends, vectors = projections_of(model), (model.encode_image(pixels), model.encode_text(ids))
    for end, found in zip((ends.image, ends.text), vectors, strict=True):
        assert end.shape[0] == 16
        assert not end[3:].any()
        assert np.linalg.matrix_rank(end) == 3
        assert not found[:, 3:].any()


def test_what_has_no_projection_is_refused(squares: Path, tmp_path: Path) -> None:
    options = ["model.text.pool=bag", "model.text.bag_projection=false", 'run.folder="unused"']
    bag = build_model(load_config(squares, options).model, vocab_size=300, end_id=299)
    with pytest.raises(ValueError, match="adds token embeddings up without a projection"):
        projections_of(bag)
    store = json.dumps(str(TINY_STORE))
    with pytest.raises(ValueError, match="StoredTowers: its towers do not end in projections"):
        fitted(squares, tmp_path / "x", "method_options.fit=isoclip", f"run.store={store}", base="artifact:tiny")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": [2, 3]}, "several values of keep or top are chosen from on validation"),
        ({"fit": "mean", "keep": [2]}, "mean keeps every direction"),
        ({"fit": "random", "top": [1]}, "top belongs to isoclip"),
        ({"keep": []}, "name one number at least"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("intra_modal", options)
