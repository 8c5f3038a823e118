"""Cached features: what the model says of pictures and captions, made again when anything they hang on moved."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.scenes.rendering import render
from model_store.identity import spec_digest
from model_store.modality.text import Tokenizer
from training.checkpoint import Checkpoint, LoadedModel
from training.config import SceneData, SmallConfig, TrainConfig, parse_config
from training.data.scenes import draw_scenes
from training.data.source import SceneSource
from training.data.vocabulary import tokenizer_of
from training.features import FeatureBatches, Features, cached_features
from training.models.building import build_model, image_spec

pytestmark = pytest.mark.torch

MODEL = {
    "kind": "small",
    "embed_dim": 16,
    "image": {"trunk": "clipworks_conv_t", "size_px": 48},
    "text": {"merges": 100, "context_length": 24, "width": 16, "layers": 1, "heads": 2, "pool": "eos+bag"},
}
ONE, TWO = {"scenes": 12, "share": 1, "count": [1, 1]}, {"scenes": 10, "share": 1, "count": [2, 2]}


def config(*, seed: int = 0, topic: str = "attributes", scenes_seed: int = 0) -> TrainConfig:
    parts = [{**ONE, "mix": {"attributes": 1}}, {**TWO, "differ_in": ["shape", "colour"], "mix": {topic: 1}}]
    return parse_config(
        {
            "name": "x", "seed": seed, "method": "base", "model": MODEL,
            "data": {"kind": "scenes", "cache_px": 48, "parts": parts, "seed": scenes_seed},
            "optim": {"batch_size": 4, "steps": 1, "rate": 1, "warmup_steps": 0, "weight_decay": 0, "clip_norm": 1,
                      "ema_decay": 0},
            "run": {"folder": "x", "report": "scenes"},
        },
        where="test",
    )  # fmt: skip


def source(recipe: TrainConfig) -> SceneSource:
    assert isinstance(recipe.data, SceneData)
    return SceneSource(draw_scenes(recipe.data, seed=recipe.seed), data=recipe.data)


def base(*, weights: str = "a" * 64, seed: int = 0) -> LoadedModel:
    recipe = config()
    assert isinstance(recipe.model, SmallConfig)
    text_spec, tokenizer = tokenizer_of(recipe.model)
    torch.manual_seed(seed)
    model = build_model(recipe.model, vocab_size=text_spec.vocab_size, end_id=text_spec.end_id or 0).eval()
    pixels = image_spec(recipe.model)
    info = Checkpoint(
        config=recipe, step=0, image_spec=pixels, text_spec=text_spec, image_spec_digest=spec_digest(pixels),
        text_spec_digest=spec_digest(text_spec), data_digest="", tokenizer_sha256="", weights_sha256=weights,
        git_sha=None, graphs={}, templates=("{}",), metrics={}, tools={},
    )  # fmt: skip
    return LoadedModel(info=info, model=model, tokenizer=Tokenizer(text_spec, tokenizer), tokenizer_bytes=tokenizer)


def features(folder: Path, model: LoadedModel, data: SceneSource, **changes: object) -> Features:
    choice = {"level": "features", "captions": 2, "negatives": True, **changes}
    return cached_features(model, data, folder=folder, device="cpu", **choice)  # type: ignore[arg-type]


def equal(left: Features, right: Features) -> bool:
    return all(np.array_equal(getattr(left, one.name), getattr(right, one.name)) for one in fields(Features))


@pytest.fixture(scope="module")
def data() -> SceneSource:
    return source(config())


def test_they_are_what_the_model_says(tmp_path: Path, data: SceneSource) -> None:
    model = base()
    found = features(tmp_path, model, data, level="dense")
    drawn = data.captions(2, negatives=True)
    assert (len(found.row), found.image.shape, len(drawn)) == (44, (22, 16), 44)
    with torch.inference_mode():
        for at in (0, 17, 43):
            row, caption = drawn[at]
            assert found.row[at] == row
            picture = torch.from_numpy(data.pixels[row][None])
            np.testing.assert_allclose(found.image[row], model.model.encode_image(picture)[0], atol=1e-5)
            np.testing.assert_allclose(found.dense[row], model.model.encode_dense(picture)[0], atol=1e-5)
            for text, vector in (
                (caption.text, found.text[at]),
                (caption.negative or caption.text, found.negative[at]),
            ):
                ids = torch.from_numpy(model.tokenizer.pad([model.tokenizer.encode(text)]))
                np.testing.assert_allclose(vector, model.model.encode_text(ids)[0], atol=1e-5)
    assert found.has_negative.tolist() == [one.negative is not None for _, one in drawn]
    texts = [one.text.casefold() for _, one in drawn]
    same = np.array([[a == b for b in texts] for a in texts])
    assert np.array_equal(found.caption_id[:, None] == found.caption_id[None, :], same)
    false = [(one.negative or one.text).casefold() for _, one in drawn]
    crossed = np.array([[a == b for b in false] for a in texts])
    assert np.array_equal(found.caption_id[:, None] == found.negative_id[None, :], crossed)
    # Validation: single things of another stream, in the order of the source's labels.
    assert len(found.validation) == len(data.labels("pair", "validation")) == len(data.pictures("validation"))


def test_they_are_equal_again_from_disk_and_worked_out_once(
    tmp_path: Path, data: SceneSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = base()
    first = features(tmp_path, model, data)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(model.model, "encode_image", None)  # a second pass over the pictures would fail
    assert equal(first, features(tmp_path, model, data))
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:1000])  # torn: made again, not trusted
    assert equal(first, features(tmp_path, model, data))


def test_the_name_of_the_file_moves_with_everything_they_depend_on(tmp_path: Path, data: SceneSource) -> None:
    model, names = base(), set[str]()

    def is_new() -> bool:
        now = {path.name for path in tmp_path.iterdir()}
        grown = len(now) == len(names) + 1
        names.update(now)
        return grown

    features(tmp_path, model, data)
    assert is_new()
    features(tmp_path, base(weights="b" * 64, seed=1), data)
    assert is_new(), "weights"
    changed = dataclasses.replace(model.info, tokenizer_sha256="other")
    features(tmp_path, dataclasses.replace(model, info=changed), data)
    assert is_new(), "tokenizer"
    features(tmp_path, model, data, captions=3)
    assert is_new(), "how many captions"
    features(tmp_path, model, data, negatives=False)
    assert is_new(), "false captions"
    features(tmp_path, model, data, level="dense")
    assert is_new(), "level"
    features(tmp_path, model, source(config(scenes_seed=1)))
    assert is_new(), "pictures"
    features(tmp_path, model, source(config(topic="mentions")))
    assert is_new(), "what captions say"
    features(tmp_path, model, source(config(seed=1)))
    assert is_new(), "which captions are drawn"
    features(tmp_path, model, source(config()))
    assert not is_new(), "the same data, read again"


def test_batches_take_a_caption_with_its_own_picture(tmp_path: Path, data: SceneSource) -> None:
    found = features(tmp_path, base(), data)
    batches = FeatureBatches(features=found, batch_size=8, seed=5)
    for step in range(3):
        batch = batches(step)
        again = FeatureBatches(features=found, batch_size=8, seed=5)(step)
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        for at in range(8):
            (caption,) = np.flatnonzero((found.text == batch["text_embeds"][at].numpy()).all(axis=1))[:1]
            assert np.array_equal(found.image[batch["row"][at]], batch["image_embeds"][at])
            assert found.caption_id[caption] == batch["caption_id"][at]
        assert set(batch) == {
            "image_embeds", "text_embeds", "row", "caption_id", "negative_embeds", "negative_id", "has_negative",
        }  # fmt: skip
    assert not torch.equal(batches(0)["row"], batches(1)["row"])
    with pytest.raises(ValueError, match="44 captions do not fill one batch of 45"):
        FeatureBatches(features=found, batch_size=45, seed=5)(0)
    assert features(tmp_path, base(), data, captions=0, negatives=False).text.size == 0


def test_labels_of_scenes_belong_to_their_pictures(data: SceneSource) -> None:
    pairs = data.labels("pair")
    assert [label is not None for label in pairs] == [True] * 12 + [False] * 10
    for split in ("train", "validation"):
        words, shapes, colours = (data.labels(name, split) for name in ("pair", "shape", "colour"))
        assert all(
            word == f"{colour} {shape}" for word, shape, colour in zip(words, shapes, colours, strict=True) if word
        )
        assert len(words) == len(data.pictures(split))
    thing = data.rows.scenes[3].things[0]
    assert pairs[3] == f"{thing.colour} {thing.shape}"
    assert np.array_equal(data.pictures("train")[3], render(data.rows.scenes[3], 48).image)
    assert data.labels("pair", "validation") != data.labels("pair", "test")
    with pytest.raises(ValueError, match="no label 'size'"):
        data.labels("size")
