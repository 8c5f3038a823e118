"""Rows, readers, splits, augmentation and batches, on pictures made here."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.manifest import ImageSpec
from model_store.modality.text import Tokenizer
from training.data.augment import CaptionAugment, ImageAugment
from training.data.batches import Batches, BatchPlan, TableRows
from training.data.reader import data_digest, load_pixels, read_table
from training.data.rows import Row, SplitRule, caption_ids, group_of
from training.data.vocabulary import clip_merges, clip_text_spec

SPEC = ImageSpec(
    height_px=16, width_px=16, resize_mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "colour"])
        for number, (name, rgb) in enumerate([("red", (250, 0, 0)), ("blue", (0, 0, 250))], start=10):
            Image.new("RGB", (20, 24), rgb).save(tmp_path / f"{number}.png")
            writer.writerow([f"{number}.png", f"a {name}, plain square ", name])
    return tmp_path


def test_csv_rows(folder: Path) -> None:
    rows = read_table(folder / "captions.csv", label_columns=("colour",))
    assert rows[0] == Row(image="10.png", caption="a red, plain square", group=10, labels={"colour": "red"})
    pixels = load_pixels(folder, rows, SPEC)
    assert pixels.shape == (2, 16, 16, 3)
    assert pixels[1, 3, 5].tolist() == [0, 0, 250]


def test_parquet_rows_equal_csv_rows(folder: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `parquet`)")
    parquet = pytest.importorskip("pyarrow.parquet")
    expected = read_table(folder / "captions.csv")
    table = arrow.table({"image": [r.image for r in expected], "caption": [r.caption for r in expected]})
    parquet.write_table(table, folder / "captions.parquet")
    assert read_table(folder / "captions.parquet") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../10.png,a caption", "leaves the folder"),
        ("/etc/10.png,a caption", "leaves the folder"),
        ("10.png,  ", "empty caption"),
        ("10.png", "no value for caption"),
        ("square.png,a caption", "no number"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "captions.csv").write_text(f"image,caption\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "captions.csv")


def test_a_broken_picture_is_named(folder: Path) -> None:
    (folder / "11.png").write_bytes((folder / "11.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"11\.png"):
        load_pixels(folder, read_table(folder / "captions.csv"), SPEC)


def test_split_is_a_rule_on_the_group_number() -> None:
    rule = SplitRule(modulo=10, validation=(2,), test=(1,))
    assert [rule.of(number) for number in (10001, 12, 7, 20)] == ["test", "validation", "train", "train"]
    with pytest.raises(ValueError, match="distinct"):
        SplitRule(modulo=10, validation=(1,), test=(1,))


def test_group_is_the_last_number_of_the_file_name() -> None:
    assert group_of("2017/shop-3-00042.jpg") == 42
    assert group_of("images/10001.jp2") == 10001


def test_captions_that_differ_in_case_share_an_id() -> None:
    assert caption_ids(["Red Cap", "blue cap", "RED cap"]).tolist() == [0, 1, 0]


def test_digest_sees_captions_and_pixels() -> None:
    rows, pixels = [Row(image="1.png", caption="x", group=1)], np.zeros((1, 4, 4, 3), np.uint8)
    other = pixels.copy()
    other[0, 0, 0, 0] = 1
    digests = {
        data_digest(rows, pixels),
        data_digest(rows, other),
        data_digest([Row(image="1.png", caption="y", group=1)], pixels),
    }
    assert len(digests) == 3


def gradient(side: int) -> np.ndarray:
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    return np.stack(
        [np.broadcast_to(ramp, (side, side)), np.broadcast_to(ramp[:, None], (side, side)), np.full((side, side), 9)],
        -1,
    ).astype(np.uint8)


def test_crop_of_everything_without_flip_is_the_picture() -> None:
    picture = gradient(16)
    same = ImageAugment(size_px=16, scale=(1.0, 1.0), flip=0.0)(picture, np.random.default_rng(0))
    np.testing.assert_array_equal(same, picture)
    mirrored = ImageAugment(size_px=16, scale=(1.0, 1.0), flip=1.0)(picture, np.random.default_rng(0))
    np.testing.assert_array_equal(mirrored, picture[:, ::-1])


def test_crops_keep_colours_and_stay_inside() -> None:
    augment = ImageAugment(size_px=12, scale=(0.5, 0.9), aspect=1.3)
    rng = np.random.default_rng(0)
    crops = np.stack([augment(gradient(32), rng) for _ in range(40)])
    assert crops.shape == (40, 12, 12, 3)
    assert crops.dtype == np.uint8
    assert (crops[..., 2] == 9).all()  # nothing but the picture: no border, no shift of colour
    assert len({crop.tobytes() for crop in crops}) == 40


def test_a_shrunk_picture_has_a_white_border() -> None:
    out = ImageAugment(size_px=16, scale=(1.5, 1.5), flip=0.0)(
        np.zeros((16, 16, 3), np.uint8), np.random.default_rng(0)
    )
    assert out.max() == 255
    # The black square keeps 1 / 1.5 of the side, so 4 / 9 of the area.
    assert (out < 128).all(-1).mean() == pytest.approx(4 / 9, abs=0.08)


def test_shift_moves_whole_pixels_over_white() -> None:
    picture = gradient(16)
    augment = ImageAugment(size_px=16, scale=(1.0, 1.0), flip=0.0, shift_px=2)
    rng = np.random.default_rng(0)
    offsets = set()
    for _ in range(200):
        out = augment(picture, rng)
        inside = out[..., 2] == 9
        down, right = np.argwhere(inside).min(axis=0) - (15 - np.argwhere(inside).max(axis=0))
        assert (out[~inside] == 255).all()
        moved = np.roll(picture, (down, right), axis=(0, 1))
        np.testing.assert_array_equal(out[inside], moved[inside])
        offsets.add((int(down), int(right)))
    assert offsets == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_caption_augmentation_drops_and_wraps_at_the_stated_rates() -> None:
    augment = CaptionAugment(templates=("a photo of a {}",), template_share=0.5, word_drop=0.25)
    rng = np.random.default_rng(0)
    texts = [augment("one two three four", rng) for _ in range(2000)]
    wrapped = [text.removeprefix("a photo of a ") for text in texts if text.startswith("a photo of a ")]
    assert len(wrapped) / 2000 == pytest.approx(0.5, abs=0.04)
    words = [len(text.removeprefix("a photo of a ").split()) for text in texts]
    assert np.mean(words) == pytest.approx(3, abs=0.08)
    assert min(words) >= 1


def test_caption_tail_keeps_the_last_words() -> None:
    augment = CaptionAugment(word_drop=0.0, tail=1.0)
    rng = np.random.default_rng(0)
    assert {augment("brand men blue shoes", rng) for _ in range(50)} == {"shoes", "blue shoes", "men blue shoes"}


def make_batches(seed: int = 0) -> Batches:
    spec = clip_text_spec(100, context_length=12)
    tokenizer = Tokenizer(spec, clip_merges(100))
    rows = [Row(image=f"{i}.png", caption=f"thing {i % 7}", group=i) for i in range(10)]
    table = TableRows(
        rows=rows,
        pixels=np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8),
        image_augment=ImageAugment(size_px=12),
        caption_augment=CaptionAugment(),
        seed=seed,
    )
    return Batches(table, tokenizer, BatchPlan(batch_size=4))


def test_a_batch_depends_on_seed_and_step_only() -> None:
    first, again, other = make_batches(), make_batches(), make_batches(seed=1)
    for step in (5, 0, 3):
        for name, tensor in first(step).items():
            assert tensor.equal(again(step)[name]), (step, name)
    assert not first(0)["image"].equal(other(0)["image"])
    assert first.steps_per_epoch == 2


def test_an_epoch_shows_each_row_at_most_once() -> None:
    ids = np.concatenate([make_batches()(step)["caption_id"].numpy() for step in (0, 1)])
    assert np.bincount(ids).max() <= 2  # captions 0, 1 and 2 have two rows each, the others one
    assert np.bincount(ids, minlength=7)[3:].max() <= 1


def test_too_few_rows_for_a_batch_are_refused() -> None:
    batches = make_batches()
    with pytest.raises(ValueError, match="do not fill one batch"):
        Batches(replace(batches.table, rows=batches.table.rows[:3]), batches.tokenize, batches.plan)


def test_a_merges_prefix_is_a_tokenizer() -> None:
    data = clip_merges(4096)
    assert not data.endswith(b"\n")
    spec = clip_text_spec(4096, context_length=16)
    assert (spec.vocab_size, spec.start_id, spec.end_id) == (4610, 4608, 4609)
    tokenizer = Tokenizer(spec, data)  # refuses a vocabulary or special ids that are off by one
    ids = tokenizer.encode("blue shoes")
    assert (ids[0], ids[-1]) == (4608, 4609)
    assert tokenizer.decode(ids[1:-1]).split() == ["blue", "shoes"]
