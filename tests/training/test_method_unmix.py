"""Unmix: its losses by hand, its scores are those that are served, and it starts as the training-free scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from model_store.label_vectors import LabelVectors
from model_store.manifest import Presence
from model_store.presence import aggregate_scores, score_maps
from training import method as methods
from training.checkpoint import load_model, read_checkpoint
from training.config import TrainConfig, load_config
from training.data.protocol import Source
from training.data.source import open_source
from training.features import FeatureBatches, cached_features, dense_side_px
from training.losses import asymmetric_loss, mutual_feature_information, unit
from training.methods.parts.presence_calibration import calibrate
from training.methods.parts.unmix import (
    TextProjector,
    UnmixHeads,
    aggregated,
    directions,
    load_unmix,
    off_diagonal,
)
from training.methods.unmix import UnmixMethod, UnmixOptions
from training.models.building import image_spec
from training.opening import open_checkpoint
from training.report import report_split

pytestmark = pytest.mark.torch
RECIPE = """
name = "tiny scenes"
seed = 1
method = "base"
[data]
kind = "scenes"
cache_px = 48
[[data.parts]]
scenes = 20
share = 1.0
count = [1, 4]
mix = {mentions = 1.0}
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 48}
text = {merges = 500, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos"}
[optim]
batch_size = 32
steps = 3
rate = 1e-3
warmup_steps = 1
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.0
[run]
folder = "unset"
device = "cpu"
precision = "fp32"
threads = 1
report = "scenes"
validate_steps = 1000
checkpoint_steps = 1000
"""


def rows(*shape: int, seed: int) -> torch.Tensor:
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def test_mfi_is_nothing_for_orthonormal_rows_and_one_for_equal_ones() -> None:
    assert mutual_feature_information(torch.eye(5, 7)).item() == 0
    assert mutual_feature_information(rows(1, 7, seed=0).expand(4, 7)).item() == pytest.approx(1)
    some = rows(6, 4, seed=1).double()
    by_hand = np.mean([float(some[i] @ some[j]) ** 2 for i in range(6) for j in range(6) if i != j])
    assert mutual_feature_information(some).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("residual", [True, False])
def test_a_text_without_a_known_word_says_nothing_behind_the_projector(
    norm: Literal["layer", "batch"], residual: bool
) -> None:
    torch.manual_seed(0)
    projector = TextProjector(8, 12, 8, norm=norm, residual=residual).eval()
    for parameter in projector.parameters():
        nn.init.normal_(parameter)
    found = projector(torch.stack([torch.zeros(8), rows(8, seed=3)]))
    assert not found[0].any()
    assert found[1].norm() > 0.1


def test_mfis_other_term_is_constant_for_unit_rows() -> None:
    """The sources add the sum of (S_ii - 1)^2, which says nothing about rows that are normalised."""
    free = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    found = functional.normalize(free, dim=-1)
    diagonal = ((found @ found.T).diagonal() - 1).square().sum()
    diagonal.backward()
    assert diagonal.item() == pytest.approx(0, abs=1e-20)
    assert free.grad is not None
    torch.testing.assert_close(free.grad, torch.zeros_like(free), atol=1e-12, rtol=0)


def test_the_asymmetric_loss_without_asymmetry_is_cross_entropy() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    present = torch.rand(4, 6, generator=torch.Generator().manual_seed(4)) > 0.7
    plain = asymmetric_loss(logits, present, gamma_positive=0, gamma_negative=0, clip=0)
    expected = functional.binary_cross_entropy_with_logits(logits, present.float(), reduction="sum") / 4
    torch.testing.assert_close(plain, expected)


def test_the_asymmetric_loss_by_hand() -> None:
    # One label that is there with p = .8, one that is not with p = .3 (.25 after the shift): both terms are losses.
    logits = torch.tensor([[np.log(0.8 / 0.2), np.log(0.3 / 0.7)]])
    loss = asymmetric_loss(logits, torch.tensor([[True, False]]), gamma_positive=1, gamma_negative=4, clip=0.05)
    assert loss.item() == pytest.approx(-(0.2 * np.log(0.8)) - 0.25**4 * np.log(0.75), rel=1e-5)
    assert loss.item() > 0
    better = asymmetric_loss(logits + torch.tensor([[1.0, -1.0]]), torch.tensor([[True, False]]))
    assert better < asymmetric_loss(logits, torch.tensor([[True, False]]))
    easy = asymmetric_loss(torch.tensor([[-4.0]]), torch.tensor([[False]]))
    assert easy.item() == 0  # an absent label that is below the shift is forgotten
    extreme = torch.tensor([[200.0, -200.0]], requires_grad=True)
    asymmetric_loss(extreme, torch.tensor([[False, True]])).backward()
    assert extreme.grad is not None
    assert bool(torch.isfinite(extreme.grad).all())


@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("aggregation", ["softmax_sum", "max", "pooled"])
@pytest.mark.parametrize(
    ("similarity", "divide_by"), [("cosine", "one"), ("projection", "pooled_norm"), ("projection", "one")]
)
def test_scores_in_training_are_those_that_are_served(
    negative: bool, aggregation: str, similarity: str, divide_by: str
) -> None:
    rule = Presence.model_validate(
        {
            "positive_templates": ("a {}",),
            "negative_templates": ("no {}",) if negative else (),
            "similarity": similarity,
            "divide_by": divide_by,
            "scale": 7.0,
            "aggregation": aggregation,
        }
    )
    positive, denied = rows(5, 8, seed=5), rows(5, 8, seed=6) if negative else None
    positions = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(7))
    pooled = positions.mean(dim=(1, 2))
    found = aggregated(positions.flatten(1, 2), pooled, directions(positive, denied), rule)
    labels = LabelVectors(positive=positive.numpy(), negative=None if denied is None else denied.numpy())
    for at in range(3):
        maps = score_maps(positions[at].numpy(), labels, rule)
        expected = aggregate_scores(maps, pooled[at].numpy(), labels, rule)
        np.testing.assert_allclose(found[at].numpy(), expected, rtol=2e-4, atol=1e-5)


def test_a_constant_map_is_its_value() -> None:
    rule = UnmixOptions(similarity="projection").rule().model_copy(update={"divide_by": "one", "scale": 3.0})
    one = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(8))
    towards = rows(4, 8, seed=9)
    found = aggregated(one.expand(2, 9, 8), one[:, 0], towards, rule)
    torch.testing.assert_close(found, 3.0 * one[:, 0] @ towards.T)


def test_heads_begin_as_nothing_and_keep_the_mean() -> None:
    heads = UnmixHeads(8, 8, 5, norm="layer", residual=True)
    vectors = torch.randn(6, 8, generator=torch.Generator().manual_seed(10))
    assert torch.equal(heads.image(vectors), vectors)
    assert torch.equal(heads.text(vectors), vectors)
    moved = UnmixHeads(8, 4, 5, norm="batch", residual=False)
    torch.testing.assert_close(moved.image(vectors).mean(dim=0), moved.image(vectors.mean(dim=0)))
    with pytest.raises(ValueError, match="8 in, 4 out"):
        UnmixHeads(8, 4, 5, norm="layer", residual=True)


def test_calibration_finds_the_curve_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(2.0, 3.0, (4000, 5))
    present = rng.random((4000, 5)) < 1 / (1 + np.exp(-(0.7 * scores - 2.0)))
    found = calibrate(scores, present)
    assert found.slope == pytest.approx(0.7, rel=0.05)
    assert found.offset == pytest.approx(-2.0, rel=0.05)
    told_apart = calibrate(np.array([[0.0, 0.1], [0.9, 1.0]]), np.array([[False, False], [True, True]]))
    assert (told_apart.f1, np.isfinite(told_apart.slope)) == (1.0, True)
    p = 1 / (1 + np.exp(-(told_apart.slope * np.array([0.1, 0.9]) + told_apart.offset)))
    assert p[0] < told_apart.threshold <= p[1]


def test_options() -> None:
    sources = UnmixOptions(preset="sources", mfi=0.5)
    assert (sources.size, sources.hidden, sources.norm, sources.gamma_negative) == (256, 384, "batch", 4.0)
    assert (sources.mfi, sources.mfi_over, sources.slope) == (0.5, "sum", 5.0)  # what is given wins
    assert UnmixOptions(pooling_kept=True).rule().aggregation == "pooled"
    with pytest.raises(ValueError, match="method_options of unmix"):
        methods.create("unmix", {"lamda": 1})


Train = Callable[..., Path]


def unmix(train_squares: Train, base: Path, name: str, *overrides: str) -> Path:
    given = ("method=unmix", "method_options.label=colour", "method_options.dense_px=16", "method_options.hidden=24")
    return train_squares(*given, *overrides, base=base, name=name)


def source_of(recipe: Path, *overrides: str) -> tuple[TrainConfig, Source]:
    config = load_config(recipe, overrides)
    spec = image_spec(config.model)
    return config, open_source(config, cache_spec=spec, image_spec=spec)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("unmix") / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return source_of(path)[1]


def test_scenes_say_all_labels_of_a_picture_and_name_no_pair_that_is_held_out(scenes: Source) -> None:
    shown, validation = (scenes.labelled("pair", split, side_px=56) for split in ("train", "validation"))
    assert shown.names == validation.names
    assert len(shown.names) == 48
    assert (shown.pixels.shape, validation.pixels.shape) == ((20, 56, 56, 3), (512, 56, 56, 3))
    assert shown.present.sum(axis=1).max() > 2
    colours = scenes.labelled("colour", "train", side_px=48)
    for pairs, words in zip(shown.present, colours.present, strict=True):
        named = {shown.names[at].split()[0] for at in np.flatnonzero(pairs)}
        assert named == {colours.names[at] for at in np.flatnonzero(words)}
    with pytest.raises(ValueError, match="no label 'size'"):
        scenes.labelled("size", "train", side_px=48)


def test_cached_positions_are_those_of_the_labelled_pictures(squares: Path, square_base: Path, tmp_path: Path) -> None:
    loaded, source = load_model(square_base), source_of(squares)[1]
    given = {"level": "dense", "captions": 0, "negatives": False, "folder": tmp_path, "device": "cpu"}
    held = cached_features(loaded, source, label="colour", **given)  # type: ignore[arg-type]
    assert dense_side_px(loaded) == 112  # what the exported dense role looks at
    shown = source.labelled("colour", "validation", side_px=112)
    assert tuple(held.names) == shown.names == ("blue", "green", "red", "white")
    assert held.dense.shape == (len(source.pixels), 14, 14, 16)
    np.testing.assert_array_equal(held.validation_present, shown.present)
    with torch.inference_mode():
        positions, pooled = loaded.model.encode_dense_and_pooled(torch.from_numpy(shown.pixels[:2]))
    np.testing.assert_allclose(held.validation_dense[:2], positions.numpy(), rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(held.validation[:2], pooled.numpy(), rtol=1e-4, atol=1e-5)
    batch = FeatureBatches(features=held, batch_size=8, seed=0)(3)
    assert set(batch) == {"image_embeds", "dense_embeds", "present", "row"}
    assert torch.equal(batch["present"], torch.from_numpy(held.present[batch["row"].numpy()]))
    assert batch["dense_embeds"].dtype == torch.float32
    cached_features(loaded, source, label="colour", side_px=16, **given)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="dense without captions"):
        cached_features(loaded, source, label="colour", **{**given, "captions": 1})  # type: ignore[arg-type]


def test_no_step_is_the_training_free_score(squares: Path, square_base: Path, train_squares: Train) -> None:
    folder = unmix(train_squares, square_base, "still", "optim.steps=1", "optim.rate=1e-30", "method_options.mfi=0.5")
    loaded, base = load_unmix(folder), load_model(square_base)
    vectors = torch.randn(6, 16, generator=torch.Generator().manual_seed(11))
    torch.testing.assert_close(loaded.heads.image(vectors), vectors)
    torch.testing.assert_close(loaded.heads.text(unit(vectors)), unit(vectors))
    pixels = torch.from_numpy(source_of(squares)[1].labelled("colour", "validation", side_px=64).pixels[:3])
    with torch.inference_mode():
        found = loaded.behind(base).encode_dense_and_pooled(pixels)
        for one, other in zip(found, base.model.encode_dense_and_pooled(pixels), strict=True):
            torch.testing.assert_close(one, other)


def test_training_moves_the_heads_only_and_mfi_parts_the_texts(square_base: Path, train_squares: Train) -> None:
    before = (square_base / "weights.safetensors").read_bytes()
    cosines: dict[str, float] = {}
    for weight in ("0", "300"):
        options = ("optim.steps=40", "optim.rate=3e-3", f"method_options.mfi={weight}")
        folder = unmix(train_squares, square_base, f"mfi-{weight}", *options)
        found = read_checkpoint(folder).metrics["validation"]["presence"]
        cosines[weight] = found["text cosine"]
        assert load_unmix(folder).presence.calibration_slope != 1
    assert cosines["300"] < 0.8 * cosines["0"]
    assert (square_base / "weights.safetensors").read_bytes() == before


def test_labels_are_learnt(square_base: Path, train_squares: Train) -> None:
    folder = unmix(train_squares, square_base, "learnt", "optim.steps=150", "optim.rate=1e-2", "optim.batch_size=32")
    assert read_checkpoint(folder).metrics["validation"]["presence"]["mAP"] > 0.9


def test_a_run_with_a_checkpoint_on_the_way_ends_at_the_same_bytes(square_base: Path, train_squares: Train) -> None:
    """Validation and calibration on the way leave no trace in what is trained."""
    options = ("optim.steps=6", "method_options.norm=batch")
    whole = unmix(train_squares, square_base, "whole", *options)
    often = unmix(train_squares, square_base, "often", *options, "run.checkpoint_steps=2", "run.validate_steps=3")
    assert (whole / "weights.safetensors").read_bytes() == (often / "weights.safetensors").read_bytes()


def test_what_cannot_be_trained_or_opened_is_refused(square_base: Path, train_squares: Train) -> None:
    with pytest.raises(ValueError, match="no label 'size'"):
        unmix(train_squares, square_base, "size", "method_options.label=size")
    with pytest.raises(ValueError, match="keeps the base's size 16"):
        unmix(train_squares, square_base, "wide", "method_options.size=32")
    folder = unmix(train_squares, square_base, "sources", "method_options.preset=sources", "optim.steps=2")
    assert load_unmix(folder).heads.image.weight.shape == (256, 16)
    with pytest.raises(ValueError, match="method unmix made heads"):
        load_model(folder)
    with pytest.raises(ValueError, match="no checkpoint of heads"):
        load_unmix(square_base)
    other = load_model(square_base)
    object.__setattr__(other.info, "weights_sha256", "0" * 64)
    with pytest.raises(ValueError, match="not the base"):
        load_unmix(folder).behind(other)


def test_a_checkpoint_of_heads_is_an_encoder_and_is_judged_behind_its_base(
    square_base: Path, train_squares: Train
) -> None:
    folder = unmix(train_squares, square_base, "judged", "optim.steps=20", "optim.rate=1e-2")
    encoder, base = open_checkpoint(folder), load_model(square_base)
    heads = load_unmix(folder).heads
    pixels = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = unit(heads.image(base.model.encode_image(torch.from_numpy(pixels)).float())).numpy()
    np.testing.assert_allclose(encoder.encode_prepared(pixels), expected, atol=1e-5)
    held_out = report_split(folder, split="test")
    assert held_out["all"]["t2i_r@1"]["n"] == 12
    assert held_out != report_split(square_base, split="test")
    with pytest.raises(ValueError, match="fitted on weights"):
        report_split(folder, split="test", base=train_squares("seed=4", "optim.steps=1", name="else"))


def test_rows_of_different_labels() -> None:
    assert off_diagonal(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])) == pytest.approx(1 / 3)
    assert isinstance(methods.create("unmix", {}), UnmixMethod)
    assert isinstance(UnmixHeads(4, 4, 4, norm="batch", residual=False).text.norm, nn.BatchNorm1d)
