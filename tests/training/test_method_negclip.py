"""NegCLIP: its losses against plain cross entropies, which negatives count, hard batches, and the method on squares."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from training import method as methods
from training.checkpoint import load_model
from training.data.batches import BatchPlan, shared_ids
from training.data.rows import Drawn
from training.loop import train
from training.losses import focal_negative_loss, info_nce, negclip_loss, positive_pairs, usable_negatives
from training.methods.parts.neighbours import image_neighbours
from training.opening import open_checkpoint

SCALE = torch.tensor(7.0)
IDS = torch.tensor([0, 1, 1, 2, 0, 3])
NEGATIVE_IDS = torch.tensor([4, 5, 0, 6, 7, 3])
HAS = torch.tensor([True, True, True, False, True, True])


def unit(count: int, *, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return unit(6, seed=0), unit(6, seed=1), unit(6, seed=2)


def test_without_negatives_it_is_info_nce(vectors: tuple[torch.Tensor, ...]) -> None:
    image, text, negative = vectors
    positives, none = positive_pairs(IDS), torch.zeros(6, 6, dtype=torch.bool)
    expected = info_nce(image, text, SCALE, positives)
    torch.testing.assert_close(negclip_loss(image, text, negative, SCALE, positives=positives, usable=none), expected)
    some = negclip_loss(image, text, negative, SCALE, positives=positives, usable=~none)
    assert some > expected + 0.01


def test_rows_choose_among_twice_as_many_texts_and_columns_do_not(vectors: tuple[torch.Tensor, ...]) -> None:
    image, text, negative = vectors
    labels, every = torch.arange(6), torch.ones(6, 6, dtype=torch.bool)
    rows = functional.cross_entropy(7 * image @ torch.cat([text, negative]).T, labels)
    columns = functional.cross_entropy(7 * text @ image.T, labels)
    found = negclip_loss(image, text, negative, SCALE, positives=torch.eye(6, dtype=torch.bool), usable=every)
    torch.testing.assert_close(found, (rows + columns) / 2)


def test_the_order_of_negatives_does_not_matter(vectors: tuple[torch.Tensor, ...]) -> None:
    image, text, negative = vectors
    order, positives = torch.tensor([3, 0, 5, 1, 4, 2]), positive_pairs(IDS)
    usable = usable_negatives(IDS, NEGATIVE_IDS, HAS, own_only=False)
    torch.testing.assert_close(
        negclip_loss(image, text, negative[order], SCALE, positives=positives, usable=usable[:, order]),
        negclip_loss(image, text, negative, SCALE, positives=positives, usable=usable),
    )


def test_two_rows_by_hand() -> None:
    # Image 0 sees texts at cosine (1, 0) and negatives at (1, 0): e / (2e + 2); columns are (1, 0): e / (e + 1).
    eye, every = torch.eye(2), torch.ones(2, 2, dtype=torch.bool)
    found = negclip_loss(eye, eye, eye, torch.tensor(1.0), positives=eye.bool(), usable=every)
    assert found.item() == pytest.approx((math.log(2 * math.e + 2) - 1 + math.log(math.e + 1) - 1) / 2)


def test_which_negatives_count() -> None:
    # Negative 2 is the text of rows 0 and 4, negative 5 that of its own row, negative 3 is missing.
    found = usable_negatives(IDS, NEGATIVE_IDS, HAS, own_only=False)
    left_out = {(i, 3) for i in range(6)} | {(0, 2), (4, 2), (5, 5)}
    assert {(i, j) for i in range(6) for j in range(6) if not found[i, j]} == left_out
    own = usable_negatives(IDS, NEGATIVE_IDS, HAS, own_only=True)
    assert {(i, j) for i in range(6) for j in range(6) if own[i, j]} == {(0, 0), (1, 1), (2, 2), (4, 4)}


def test_a_negative_left_out_is_not_pushed_away(vectors: tuple[torch.Tensor, ...]) -> None:
    image, text, negative = vectors
    negative.requires_grad_()
    usable = usable_negatives(IDS, NEGATIVE_IDS, HAS, own_only=False)
    loss = negclip_loss(image, text, negative, SCALE, positives=positive_pairs(IDS), usable=usable)
    (gradient,) = torch.autograd.grad(loss, negative)
    assert torch.isfinite(gradient).all()
    assert [bool(row.any()) for row in gradient] == [True, True, True, False, True, True]


def test_an_excused_pair_is_neither_right_nor_wrong(vectors: tuple[torch.Tensor, ...]) -> None:
    image, text, negative = vectors
    positives, usable = positive_pairs(IDS), usable_negatives(IDS, NEGATIVE_IDS, HAS, own_only=False)
    plain = negclip_loss(image, text, negative, SCALE, positives=positives, usable=usable)
    none = torch.zeros(6, 12, dtype=torch.bool)
    known = torch.cat([positives, torch.zeros_like(positives)], dim=1)
    for excused in (none, known):  # a true pair stays one
        found = negclip_loss(image, text, negative, SCALE, positives=positives, usable=usable, excused=excused)
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(
            info_nce(image, text, SCALE, positives, excused=excused[:, :6]), info_nce(image, text, SCALE, positives)
        )
    # Picture 0 leaves text 3 and negative 1 out: by hand, both from the picture's side and from text 3's.
    some = none.clone()
    some[0, 3] = some[0, 7] = True
    logits = 7 * image @ torch.cat([text, negative]).T
    kept = torch.cat([torch.ones(6, 6, dtype=torch.bool), usable], dim=1) & ~some
    rows = [-(logits[i, positives[i].nonzero()] - logits[i, kept[i]].logsumexp(0)).mean() for i in range(6)]
    columns = [-(logits[positives[j].nonzero(), j] - logits[kept[:, j], j].logsumexp(0)).mean() for j in range(6)]
    expected = (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2
    found = negclip_loss(image, text, negative, SCALE, positives=positives, usable=usable, excused=some)
    torch.testing.assert_close(found, expected)
    assert found < plain


def test_ids_of_true_and_false_captions_meet() -> None:
    drawn = [Drawn("a red hat", "A Blue Hat"), Drawn("a blue hat", None), Drawn("a red hat", "no hat")]
    true, false = shared_ids(drawn)
    assert true[0] == true[2] != true[1]
    assert (false[0], false[1]) == (true[1], true[1])
    assert false[2] not in true


def test_focal_loss_is_a_two_way_choice(vectors: tuple[torch.Tensor, ...]) -> None:
    image, text, negative = vectors
    margins = 7 * ((image * text).sum(dim=1) - (image * negative).sum(dim=1))
    plain = functional.softplus(-margins)
    found = focal_negative_loss(image, text, negative, SCALE, has_negative=HAS, gamma=0.0, smoothing=0.0)
    torch.testing.assert_close(found, plain[HAS].mean())
    wrong = torch.sigmoid(-margins)
    target = 0.9 * wrong**2 * plain + 0.1 * (1 - wrong) ** 2 * functional.softplus(margins)
    found = focal_negative_loss(image, text, negative, SCALE, has_negative=HAS, gamma=2.0, smoothing=0.2)
    torch.testing.assert_close(found, target[HAS].mean())
    assert focal_negative_loss(image, text, negative, SCALE, has_negative=~HAS & HAS) == 0


def test_the_fields_of_a_table(make_context: Callable[..., Any], square_base: Path) -> None:
    context = make_context()
    batches = context.source.batches(
        lambda texts: context.tokenizer.pad([context.tokenizer.encode(text) for text in texts]),
        BatchPlan(batch_size=24, negatives=True),
    )
    batch = batches(0)
    texts = {tuple(ids.tolist()): int(i) for ids, i in zip(batch["text"], batch["caption_id"], strict=True)}
    false = zip(batch["negative_text"], batch["negative_id"], batch["has_negative"], batch["caption_id"], strict=True)
    met = 0
    for ids, negative_id, has, own in false:
        assert bool(has) == (negative_id != own)
        if tuple(ids.tolist()) in texts:
            assert texts[tuple(ids.tolist())] == negative_id
            met += bool(has)
    assert met > 3
    assert 0 < batch["has_negative"].sum() < 24


def test_neighbours_are_the_nearest_of_another_caption(make_context: Callable[..., Any], square_base: Path) -> None:
    context, base = make_context(base=square_base), load_model(square_base)
    groups = np.arange(96) % 4
    found = image_neighbours(base, context.source.pixels, groups=groups, count=5, device="cpu")
    vectors = open_checkpoint(square_base).encode_prepared(context.source.pixels)
    cosines = np.where(groups[:, None] == groups[None, :], -2.0, vectors @ vectors.T)
    expected = -np.sort(-cosines, axis=1)[:, :5]
    np.testing.assert_allclose(np.take_along_axis(cosines, found, axis=1), expected, atol=1e-6)
    assert (groups[found] != groups[:, None]).all()
    with pytest.raises(ValueError, match=r"neighbours = 73: a picture has only 72 others"):
        image_neighbours(base, context.source.pixels, groups=groups, count=73, device="cpu")


def test_from_scratch_it_starts_as_the_base_method_does(make_context: Callable[..., Any]) -> None:
    started = []
    for name in ("base", "negclip"):
        torch.manual_seed(5)
        method = methods.create(name, {})
        method.setup(make_context())
        started.append(method.weights())
    assert started[0].keys() == started[1].keys()
    assert all(torch.equal(started[0][name], started[1][name]) for name in started[0])


@pytest.mark.parametrize("options", [[], ["method_options.loss=focal"], ["method_options.own_negatives_only=true"]])
def test_it_learns_to_tell_the_twins_apart(
    train_squares: Callable[..., Path], square_base: Path, options: list[str]
) -> None:
    folder = train_squares("method=negclip", "optim.steps=30", "optim.rate=0.01", *options, base=square_base)
    losses = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()[1:]]
    loss = [float(value) for _, series, name, value in losses if (series, name) == ("train", "loss")]
    assert np.mean(loss[-10:]) < 0.7 * np.mean(loss[:5])
    encoder = open_checkpoint(folder)
    images = encoder.encode_images(
        [np.full((16, 16, 3), colour, np.uint8) for colour in ((220, 20, 20), (20, 20, 220))]
    )
    scores = images @ encoder.encode_texts(["plain red shirt 0", "plain blue shirt 0"]).T
    assert (scores.argmax(axis=1) == [0, 1]).all()


def test_a_locked_image_tower_keeps_its_bytes(train_squares: Callable[..., Path], square_base: Path) -> None:
    folder = train_squares(
        "method=negclip", "method_options.lock_image=true", "method_options.neighbours=4", base=square_base
    )
    before, after = load_file(square_base / "weights.safetensors"), load_file(folder / "weights.safetensors")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    image = {name for name in before if not name.startswith(("model.text.", "model.logit_"))}
    assert image <= kept
    assert any("running_var" in name for name in image)
    assert {"model.text.projection.weight", "model.logit_scale"} & kept == set()
    assert load_model(folder).info.inherited == ("image_encoder",)


@pytest.mark.parametrize("option", ["method_options.lock_image=true", "method_options.neighbours=3"])
def test_what_needs_a_base_says_so(train_squares: Callable[..., Path], option: str) -> None:
    with pytest.raises(ValueError, match="starts from a checkpoint: set base"):
        train_squares("method=negclip", option)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="method_options of negclip"):
        methods.create("negclip", {"loss": "triplet"})


def test_a_table_without_false_captions_is_refused(squares: Path) -> None:
    bare = squares.with_name("bare.toml")
    bare.write_text(squares.read_text().replace('negative_column = "false_caption"\n', ""))
    with pytest.raises(ValueError, match="name data.negative_column"):
        train(bare, ["method=negclip", f"run.folder='{squares.parent / 'never'}'"])
