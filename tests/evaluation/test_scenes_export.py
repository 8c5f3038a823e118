"""What is written and read back is the same truth."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from evaluation.scenes.config import SceneConfig
from evaluation.scenes.export_coco import read_coco, write_coco
from evaluation.scenes.export_folder import read_image_folder, write_image_folder
from evaluation.scenes.export_webdataset import read_webdataset, write_webdataset
from evaluation.scenes.masks import decode_segmentation, encode_rle
from evaluation.scenes.meaning import Enumeration, What, is_true
from evaluation.scenes.mixing import draw_records
from evaluation.scenes.negation import exceptions
from evaluation.scenes.phrases import caption
from evaluation.scenes.records import (
    SceneRecord,
    StoredScene,
    meaning_from_json,
    meaning_to_json,
    record_from_json,
    record_to_json,
)
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import SceneError

RECORDS = list(draw_records(SceneConfig(count=(2, 3), overlap="allowed"), range(7)))
SINGLES = list(draw_records(SceneConfig(count=(1, 1)), range(5)))
SIZE_PX = 64


def same_truth(stored: list[StoredScene], records: list[SceneRecord]) -> None:
    assert [one.record for one in stored] == records
    for one, record in zip(stored, records, strict=True):
        rendered = render(record.scene, SIZE_PX)
        assert np.array_equal(one.image, rendered.image)
        assert np.array_equal(one.owner, rendered.owner)
        assert one.owner.dtype == np.int8
        assert all(is_true(said.meaning, one.record.scene) for said in one.record.captions)


def test_webdataset_round_trip(tmp_path: Path) -> None:
    shards = write_webdataset(iter(RECORDS), tmp_path / "a", size_px=SIZE_PX, per_shard=3)
    assert [shard.name for shard in shards] == [f"scenes-00000{n}.tar" for n in range(3)]
    same_truth([one for shard in shards for one in read_webdataset(shard)], RECORDS)
    with tarfile.open(shards[0]) as tar:
        names = tar.getnames()
    assert names[:4] == ["00000000.png", "00000000.owner.png", "00000000.txt", "00000000.json"]
    again = write_webdataset(RECORDS, tmp_path / "b", size_px=SIZE_PX, per_shard=3)
    assert [sha256(path) for path in again] == [sha256(path) for path in shards]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [shard.name for shard in shards]


def test_coco_round_trip(tmp_path: Path) -> None:
    write_coco(RECORDS, tmp_path, size_px=SIZE_PX)
    same_truth(read_coco(tmp_path), RECORDS)
    data = json.loads((tmp_path / "instances.json").read_text())
    rendered = render(RECORDS[0].scene, SIZE_PX)
    first = data["annotations"][0]
    left, top, right, bottom = rendered.boxes[0].tolist()
    assert first["bbox"] == [left, top, right - left, bottom - top]
    assert first["area"] == rendered.visible_px[0]
    thing = RECORDS[0].scene.things[0]
    names = {category["id"]: category["name"] for category in data["categories"]}
    assert names[first["category_id"]] == f"{thing.colour} {thing.shape}"
    assert len(names) == 64
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert [a["caption"] for a in captions["annotations"] if a["image_id"] == 2] == [
        c.text for c in RECORDS[1].captions
    ]
    write_coco(RECORDS, tmp_path / "shapes", size_px=SIZE_PX, category="shape")
    by_shape = json.loads((tmp_path / "shapes" / "instances.json").read_text())
    assert [category["name"] for category in by_shape["categories"]][:2] == ["circle", "square"]


def test_image_folder_round_trip(tmp_path: Path) -> None:
    write_image_folder(SINGLES, tmp_path, size_px=SIZE_PX)
    back = read_image_folder(tmp_path)
    same_truth([stored for _, stored in back], SINGLES)
    for (label, _), record in zip(back, SINGLES, strict=True):
        thing = record.scene.things[0]
        assert label == f"{thing.colour} {thing.shape}"
        assert (tmp_path / label.replace(" ", "_") / f"{record.key}.png").is_file()
    classes = {path.name for path in tmp_path.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert classes == {label.replace(" ", "_") for label, _ in back}
    with pytest.raises(SceneError, match="has no single class"):
        write_image_folder(RECORDS, tmp_path / "many", size_px=SIZE_PX)
    with pytest.raises(SceneError, match="no folder name"):
        write_image_folder(SINGLES, tmp_path / "bad", size_px=SIZE_PX, label=lambda scene: "../up")


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans())
def test_records_survive_json(seed: int, alike: bool) -> None:
    config = SceneConfig(count=(2, 4), share=("shape",) if alike else ())
    record = next(draw_records(config, [seed]))
    assert record_from_json(json.loads(json.dumps(record_to_json(record)))) == record
    for said in exceptions(sample(seed, config)):
        assert meaning_from_json(json.loads(json.dumps(meaning_to_json(said.meaning)))) == said.meaning


def test_damaged_records_are_refused() -> None:
    good = record_to_json(RECORDS[0])
    for damage, message in (
        ({"scene": {**good["scene"], "more": 1}}, "scene has keys"),
        ({"scene": {**good["scene"], "things": [{"shape": "circle"}]}}, "thing has keys"),
        ({"captions": [{"text": "x", "frame": "", "meaning": {"says": "sonnet"}}]}, "cannot say 'sonnet'"),
        ({"captions": [{"text": "x"}]}, "not a record"),
        ({"captions": []}, "has no caption"),
        ({"key": "../1"}, "letters, digits"),
        ({"key": "only-letters"}, "at least one digit"),
    ):
        with pytest.raises(SceneError, match=message):
            record_from_json({**good, **damage})


def test_keys_are_unique(tmp_path: Path) -> None:
    twice = [RECORDS[0], RECORDS[0]]
    with pytest.raises(SceneError, match="twice"):
        write_webdataset(twice, tmp_path, size_px=SIZE_PX)
    with pytest.raises(SceneError, match="twice"):
        write_coco(twice, tmp_path, size_px=SIZE_PX)
    assert not list(tmp_path.glob("*.tar"))


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_round_trip(mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    rle = encode_rle(mask)
    assert sum(rle["counts"]) == mask.size
    assert np.array_equal(decode_segmentation(rle, height=height, width=width), mask)


def test_run_lengths_go_down_the_columns() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)
    assert encode_rle(mask) == {"size": [2, 3], "counts": [2, 3, 1]}
    assert encode_rle(~mask) == {"size": [2, 3], "counts": [0, 2, 3, 1]}


PACKED = "g;i0<000000000000000000^OF9:GF9:90000000000000000000000000000000000k>XO"


def test_packed_run_lengths_are_pycocotools_own() -> None:
    """The string is what pycocotools 2.0 makes of this mask."""
    mask = np.zeros((37, 53), dtype=bool)
    mask[5:30, 10:40] = True
    mask[12:14, 20:22] = False
    mask[36, 52] = True
    packed = {"size": [37, 53], "counts": PACKED}
    assert np.array_equal(decode_segmentation(packed, height=37, width=53), mask)


def test_polygons_are_filled() -> None:
    square, triangle = [2, 3, 9, 3, 9, 8, 2, 8], [20.0, 0.0, 29.0, 0.0, 20.0, 9.0]
    mask = decode_segmentation([square, triangle], height=20, width=30)
    assert mask[3:9, 2:10].all()
    assert mask.sum() == pytest.approx(6 * 8 + 50, abs=6)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 4], "counts": [12]}, r"for size \[3, 4\]"),
        ({"size": [4, 4], "counts": [12]}, "add up to 12"),
        ({"size": [4, 4], "counts": [20, -4]}, "whole numbers"),
        ({"size": [4, 4]}, "whole numbers"),
        ({"size": [4, 4], "counts": "!"}, "does not occur"),
        ({"size": [4, 4], "counts": "P"}, "middle of a number"),
        ([[1, 2, 3, 4]], "three or more"),
    ],
)
def test_broken_masks_are_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_segmentation(segmentation, height=4, width=4)  # pyright: ignore[reportArgumentType]


def test_a_record_needs_a_true_caption_only_from_its_maker() -> None:
    """Records do not judge: a data set of false captions is somebody's business."""
    false = caption(Enumeration((What(colour="red", shape="circle"), What(colour="blue", shape="circle"))))
    assert SceneRecord(key="1", scene=RECORDS[0].scene, captions=(false,)).captions[0] is false


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
