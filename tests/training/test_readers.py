"""Readers of COCO json and webdataset shards, on scenes written here and, where it is at hand, on COCO itself."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.scenes.config import SceneConfig
from evaluation.scenes.export_coco import write_coco
from evaluation.scenes.export_webdataset import write_webdataset
from evaluation.scenes.mixing import draw_records
from evaluation.scenes.rendering import render
from evaluation.standard.shards import shard_paths, shard_samples, streamed_samples
from model_store.manifest import ImageSpec
from model_store.modality.image import decode, prepare
from tests.tars import tar_bytes
from training.data.coco import read_captions, read_instances
from training.data.reader import load_pixels
from training.data.rows import Row

RECORDS = list(draw_records(SceneConfig(count=(2, 3), overlap="allowed"), range(10, 16)))
SPEC = ImageSpec(
    height_px=48, width_px=48, resize_mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_coco(RECORDS, folder, size_px=48)
    return folder


def test_coco_captions_are_the_scenes_captions(coco: Path) -> None:
    rows = read_captions(coco / "captions.json")
    assert [row.caption for row in rows] == [c.text for record in RECORDS for c in record.captions]
    assert rows[0] == Row(image="images/00000010.png", caption=RECORDS[0].captions[0].text, group=1)
    first = read_captions(coco / "captions.json", per_image="first")
    assert [row.group for row in first] == [1, 2, 3, 4, 5, 6]
    pixels = load_pixels(coco, first, SPEC)
    assert np.array_equal(pixels, np.stack([render(record.scene, 48).image for record in RECORDS]))


def test_coco_instances_are_the_scenes_things(coco: Path) -> None:
    read = read_instances(coco / "instances.json")
    assert len(read) == len(RECORDS)
    for one, record in zip(read, RECORDS, strict=True):
        rendered = render(record.scene, 48)
        assert one.labels == tuple(f"{thing.colour} {thing.shape}" for thing in record.scene.things)
        assert np.array_equal(one.boxes, rendered.boxes)
        assert np.array_equal(one.masks(), rendered.masks)
        assert not one.crowd.any()
        assert (one.width_px, one.height_px) == (48, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"id": 7, "image_id": 99, "caption": "x"}]}, "annotation 7 is of unknown image 99"),
        ({"annotations": [{"id": 7, "image_id": 1, "caption": " "}]}, "annotation 7 has no caption"),
        ({"images": [{"id": 1, "file_name": "../a.png"}]}, "expected one in the folder"),
        ({"images": [{"id": 1, "file_name": "/a.png"}]}, "expected one in the folder"),
    ],
)
def test_broken_coco_captions_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a picture"}],
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(good))
    assert len(read_captions(path)) == 1
    path.write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=message):
        read_captions(path)


def test_other_files_are_not_coco(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, message in (("{", "is not JSON"), ("[]", "has no images"), ('{"images": []}', "has no annotations")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_captions(path)
    images = [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}]
    instance = {"id": 3, "image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]}
    for categories, box, message in (
        ([], [0, 0, 1, 1], "unknown category"),
        ([{"id": 5, "name": "cat"}], [1], "no .x, y"),
    ):
        annotations = [{**instance, "bbox": box}]
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        with pytest.raises(ValueError, match=message):
            read_instances(path)


def test_an_image_without_instances_has_empty_arrays(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 5, "height": 4}]
    (tmp_path / "i.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    (one,) = read_instances(tmp_path / "i.json")
    assert one.boxes.shape == (0, 4)
    assert one.masks().shape == (0, 4, 5)


@pytest.mark.skipif("CLIPWORKS_TEST_DATA" not in os.environ, reason="CLIPWORKS_TEST_DATA is not set")
def test_coco_itself() -> None:
    folder = Path(os.environ["CLIPWORKS_TEST_DATA"]) / "coco-mini"
    rows = read_captions(folder / "annotations" / "captions_val2017.json")
    assert len(rows) > 5 * len({row.image for row in rows}) - 1
    read = read_instances(folder / "annotations" / "instances_val2017.json")
    assert sum(len(one.labels) for one in read) > 100
    checked = 0
    for one in read[:30]:
        for mask, (left, top, right, bottom), crowd in zip(one.masks(), one.boxes, one.crowd, strict=True):
            rows_px, columns_px = np.nonzero(mask)
            edges = (columns_px.min(), rows_px.min(), columns_px.max() + 1, rows_px.max() + 1)
            assert np.abs(np.array(edges) - (left, top, right, bottom)).max() <= 3, (one.image, crowd)
            checked += 1
    assert checked > 50


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_webdataset(RECORDS, tmp_path_factory.mktemp("shards"), size_px=48, per_shard=4)


def test_shards_are_the_scenes(shards: list[Path]) -> None:
    samples = [sample for shard in shards for sample in shard_samples(shard)]
    pixels = np.stack([prepare(decode(sample.data), SPEC) for sample in samples])
    assert np.array_equal(pixels, np.stack([render(record.scene, 48).image for record in RECORDS]))
    assert [sample.caption for sample in samples] == [record.captions[0].text for record in RECORDS]
    assert samples[0].name == "scenes-000000.tar/00000010.png"
    assert samples[5].meta["key"] == "00000015"
    assert samples[1].meta["scene"]["seed"] == 11
    data = shards[0].read_bytes()
    for sample in samples[:4]:
        assert data[sample.start : sample.start + len(sample.data)] == sample.data
        at_once = streamed_samples(io.BytesIO(data[sample.at :]), "scenes-000000.tar", at=sample.at)
        assert next(at_once) == sample


def test_shard_patterns(shards: list[Path]) -> None:
    assert shard_paths(str(shards[0].parent / "scenes-{000000..000001}.tar")) == shards
    assert shard_paths(str(shards[1])) == [shards[1]]
    with pytest.raises(ValueError, match=r"no shard .*scenes-000002\.tar"):
        shard_paths(str(shards[0].parent / "scenes-{000000..000002}.tar"))
    with pytest.raises(ValueError, match="runs backwards"):
        shard_paths("x-{3..1}.tar")


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.write_bytes(tar_bytes(members))
    return path


def picture(kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (60, 50), (10, 200, 30)).save(out, format=kind)
    return out.getvalue()


def test_shards_of_others(tmp_path: Path) -> None:
    """Folders in keys, capital extensions, a caption in the json, hidden members, a link."""
    path = tar_of(
        tmp_path / "a.tar",
        {
            "train/._0001.jpg": b"junk",
            "train/0001.JPG": picture(),
            "train/0001.json": json.dumps({"caption": "a green thing", "colour": "green"}).encode(),
            "train/0002.webp": picture("WEBP"),
            "train/0002.txt": b" another \n",
        },
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("train/0003.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    first, second = shard_samples(path)
    assert (first.caption, first.name, first.meta["colour"]) == ("a green thing", "a.tar/train/0001.jpg", "green")
    assert (second.caption, second.meta) == ("another", {})
    assert prepare(decode(first.data), SPEC)[20, 20].tolist() == pytest.approx([10, 200, 30], abs=3)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.txt": b"a"}, "1 has no picture, only txt"),
        ({"1.jpg": b"", "1.json": b"{}"}, "1 has no caption"),
        ({"1.jpg": b"", "1.json": b"{"}, "text of 1 cannot be read"),
        ({"1.jpg": b"", "1.txt": b"\xff"}, "text of 1 cannot be read"),
        ({"1.jpg": b"", "1.json": b"[]"}, "text of 1 cannot be read|has no caption"),
        ({"1.jpg": b"", "1.json": b'{"caption": "\\ud800"}'}, "text of 1 cannot be read"),
        ({"1.jpg": b"x" * (2**25 + 1), "1.txt": b"a"}, r"1\.jpg has 33554433 bytes, limit"),
    ],
)
def test_broken_samples_are_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(shard_samples(tar_of(tmp_path / "a.tar", members)))


@pytest.mark.parametrize("kept", [0, 700, 1500, 5000])
def test_cut_shards_are_named(tmp_path: Path, shards: list[Path], kept: int) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shards[0].read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.tar"):
        list(shard_samples(cut))
