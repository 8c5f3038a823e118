"""COCO instances and VOC folders: masks of every form, and clear words for every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from evaluation.dense.coco_instances import read_coco_instances
from evaluation.dense.scene_set import chosen_pairs, draw_scenes
from evaluation.dense.truth import BACKGROUND, UNJUDGED
from evaluation.dense.voc_folder import VOC_CLASSES, read_voc_folder
from evaluation.locating import Shown
from evaluation.scenes.captions import Caption
from evaluation.scenes.export_coco import write_coco
from evaluation.scenes.masks import encode_rle
from evaluation.scenes.meaning import Ground
from evaluation.scenes.records import SceneRecord
from evaluation.standard.specs import task
from model_store.modality.image import decode
from model_store.regions import encode_rle as packed_rle

WIDTH, HEIGHT = 40, 30


def pixels_of(shown: Shown) -> NDArray[np.uint8]:
    return np.asarray(decode(shown)) if isinstance(shown, bytes) else shown


def a_mask() -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[5:15, 10:30] = True
    return mask


def an_instances_file(folder: Path, **changes: Any) -> Path:
    """Two pictures; in the first a cat by polygon, a dog by run lengths, a crowd of dogs by packed ones."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / name)
    corner = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    corner[20:, :5] = True
    size = {"width": WIDTH, "height": HEIGHT}
    data: dict[str, Any] = {
        "images": [{"id": 7, "file_name": "a.png", **size}, {"id": 9, "file_name": "b.png", **size}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "tooth brush"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[2.0, 2, 8, 2, 8, 9, 2, 9]], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 18, "segmentation": encode_rle(a_mask()), "bbox": [10, 5, 20, 10]},
            {
                "id": 3,
                "image_id": 7,
                "category_id": 18,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": packed_rle(corner, WIDTH, HEIGHT)},
                "iscrowd": 1,
            },
        ],
        **changes,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_masks_of_every_form(tmp_path: Path) -> None:
    found = read_coco_instances(an_instances_file(tmp_path))
    assert found.labels == ("dog", "cat", "tooth brush")
    assert len(found) == 2
    sample = found.open(0)
    assert pixels_of(sample.shown).shape == (HEIGHT, WIDTH, 3)
    cat, dog, crowd = sample.truth.instances
    assert (cat.label, dog.label, crowd.label) == (1, 0, 0)
    assert (cat.crowd, dog.crowd, crowd.crowd) == (False, False, True)
    np.testing.assert_array_equal(dog.mask, a_mask())
    assert dog.box == (10, 5, 30, 15)
    assert crowd.box == (0, 20, 5, 30)  # no bbox: that of its mask
    assert crowd.mask.sum() == 50
    assert cat.mask[4, 4]
    assert cat.mask.sum() == pytest.approx(42, abs=16)
    classes = sample.truth.classes
    assert (classes[10, 20], classes[25, 2], classes[4, 4], classes[0, 39]) == (0, 0, 1, BACKGROUND)
    assert found.open(1).truth.instances == ()
    assert any("1 crowds" in note for note in found.notes)


def test_drawn_scenes_come_back_from_coco(tmp_path: Path) -> None:
    """What `write_coco` writes is what the scenes themselves say."""
    scenes = draw_scenes(seed=5, pairs=chosen_pairs("all"), pictures=3)
    records = [
        SceneRecord(key=f"s{at}", scene=scene, captions=(Caption("x", Ground("light"), "x"),))
        for at, scene in enumerate(scenes.scenes)
    ]
    write_coco(records, tmp_path, size_px=224)
    found = task(f"coco-instances:{tmp_path / 'instances.json'}")
    pictures = found.pictures  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(pictures.labels) == sorted(scenes.labels)
    for index in range(3):
        ours, theirs = scenes.open(index), pictures.open(index)
        np.testing.assert_array_equal(pixels_of(theirs.shown), ours.shown)
        names = [scenes.labels[one.label] for one in ours.truth.instances]
        assert [pictures.labels[one.label] for one in theirs.truth.instances] == names
        for one, other in zip(ours.truth.instances, theirs.truth.instances, strict=True):
            assert one.box == other.box
            np.testing.assert_array_equal(one.mask, other.mask)


def annotation(**changes: Any) -> dict[str, Any]:
    found = {"id": 5, "image_id": 7, "category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 9]], **changes}
    return {"annotations": [{key: value for key, value in found.items() if value is not None}]}


SIZE = {"width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"instances.json is no COCO file of instances: images: Input should be a valid list"),
        ({"categories": []}, r"categories: List should have at least 1 item"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "2 categories have 1 different ids"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]}, "category name 'a' occurs twice"),
        ({"images": [{"id": 7, "file_name": "a.png", **SIZE}] * 2, "annotations": []}, "2 images have 1 different ids"),
        ({"images": [], "annotations": []}, "has no images"),
        ({"images": [{"id": 7, "file_name": "../a.png", **SIZE}]}, r"image 7 has path '../a.png', expected one in the"),
        ({"images": [{"id": 7, "file_name": "c.png", **SIZE}]}, r"1 of 1 pictures are not in .* such as 'c.png'"),
        (annotation(image_id=8), "annotation 5 is of image 8, which the file does not have"),
        (annotation(category_id=1), "annotation 5 is of category 1, which the file does not have"),
        (annotation(segmentation=None), r"annotations.0.segmentation: Field required"),
        (annotation(iscrowd=2), r"annotations.0.iscrowd: Input should be less than or equal to 1"),
        (annotation(bbox=[1, 2, 3]), r"annotations.0.bbox.3: Field required"),
        (annotation(bbox=[1, 2, 3, float("nan")]), r"annotations.0.bbox.3: Input should be a finite number"),
        (annotation(bbox=[1, 2, float("inf"), 3]), r"annotations.0.bbox.2: Input should be a finite number"),
    ],
)
def test_a_broken_file_says_what_and_where(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = an_instances_file(tmp_path)
    data = {**json.loads(path.read_text()), **changes}
    if "images" in changes and "annotations" not in changes and changes["images"]:
        data["annotations"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        read_coco_instances(path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "annotation 5 of a.png: no segmentation"),
        ([[1, 2, 3, 4]], "a polygon needs three or more x, y pairs, got 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "got 7 numbers"),
        ([[1, 2, 3, 1e9, 5, 6]], r"a polygon from y = 2 to 1e\+09 in a picture of 30 px"),
        ({"size": [30, 40], "counts": [1, 2]}, "run lengths add up to 3, the picture has 1200"),
        ({"size": [40, 30], "counts": [1200]}, r"run lengths are for size \(?\[?40, 30"),
        ({"size": [30, 40], "counts": "\x7f"}, "does not occur in packed run lengths"),
    ],
)
def test_a_mask_that_does_not_fit_names_its_annotation(tmp_path: Path, segmentation: Any, message: str) -> None:
    found = read_coco_instances(an_instances_file(tmp_path, **annotation(segmentation=segmentation)))
    with pytest.raises(ValueError, match=message):
        found.open(0)


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([1e308, 2, 6, 7], r"a box from x = 1e\+308 to 1e\+308 in a picture of 40 px"),
        ([1e308, 2, 1e308, 7], r"a box from x = 1e\+308 to inf in a picture of 40 px"),
        ([2, -31, 6, 40], "a box from y = -31 to 9 in a picture of 30 px"),
        ([2, 2, 6, 59], "a box from y = 2 to 61 in a picture of 30 px"),
        ([40, 2, 6, 7], "a box from x = 40 to 46 has no part in a picture of 40 px"),
        ([2, -7, 6, 7], "a box from y = -7 to 0 has no part in a picture of 30 px"),
        ([2, 2, 6, -7], "a box of 6 x -7 px, expected more than 0"),
    ],
)
def test_a_box_that_is_none_of_its_picture_names_its_annotation(
    tmp_path: Path, bbox: list[float], message: str
) -> None:
    found = read_coco_instances(an_instances_file(tmp_path, **annotation(bbox=bbox)))
    with pytest.raises(ValueError, match=f"instances.json: annotation 5 of a.png: {message}"):
        found.open(0)


def test_a_box_of_no_width_is_that_of_the_mask(tmp_path: Path) -> None:
    empty = read_coco_instances(an_instances_file(tmp_path, **annotation(bbox=[2, 2, 0, 7]))).open(0).truth
    without = read_coco_instances(an_instances_file(tmp_path, **annotation(bbox=None))).open(0).truth
    assert empty.instances[0].box == without.instances[0].box
    assert empty.instances[0].box[0] < empty.instances[0].box[2]


def test_a_box_that_sticks_out_ends_with_the_picture(tmp_path: Path) -> None:
    path = an_instances_file(tmp_path, **annotation(bbox=[-0.5, 3, 41, 27.01]))
    (instance,) = read_coco_instances(path).open(0).truth.instances
    assert instance.box == (0, 3, WIDTH, HEIGHT)


def test_a_file_that_is_a_list_says_so(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list.json is no COCO file of instances: Input should be a valid dict"):
        read_coco_instances(tmp_path / "list.json")


def test_text_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"x.json is not JSON"):
        read_coco_instances(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x.json is not JSON"):
        read_coco_instances(tmp_path / "x.json")
    with pytest.raises(ValueError, match="cannot be read"):
        task(f"coco-instances:{tmp_path / 'missing.json'}")


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    """One value anywhere in the file is replaced: a ValueError or a sample, nothing else."""
    path = an_instances_file(tmp_path)
    content = json.loads(path.read_text())
    at: Any = content
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.integers(0, 3)) == 0:
            at[key] = data.draw(junk)
            break
        at = at[key]
    path.write_text(json.dumps(content))
    try:
        found = read_coco_instances(path)
        for index in range(len(found)):
            truth = found.open(index).truth
            assert all(one.mask.shape == (truth.height, truth.width) for one in truth.instances)
            for x0, y0, x1, y1 in (one.box for one in truth.instances):
                assert 0 <= x0 < x1 <= truth.width
                assert 0 <= y0 < y1 <= truth.height
    except ValueError:
        pass


def a_voc_folder(folder: Path, *, names: tuple[str, ...] = ("one", "two"), mode: str = "P") -> Path:
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    classes = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    classes[5:15, 10:30] = 12
    classes[20:, :5] = 15
    classes[4, 10:30] = 255
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / "JPEGImages" / f"{name}.jpg")
        drawn = Image.fromarray(classes)
        if mode == "P":
            drawn.putpalette([value for index in range(256) for value in (index, 128, 255 - index)])
        (drawn if mode in ("P", "L") else drawn.convert(mode)).save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_voc_folder(tmp_path: Path, mode: str) -> None:
    found = read_voc_folder(a_voc_folder(tmp_path, mode=mode))
    assert len(found) == 2
    assert found.labels == VOC_CLASSES
    assert len(VOC_CLASSES) == 20
    sample = found.open(1)
    assert [found.labels[label] for label in sample.truth.labels] == ["dog", "person"]
    classes = sample.truth.classes
    assert (classes[4, 15], classes[10, 15], classes[0, 0]) == (UNJUDGED, 11, BACKGROUND)
    assert not found.boxed


def test_own_classes_and_lists(tmp_path: Path) -> None:
    folder = a_voc_folder(tmp_path)
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("two\n")
    names = [f"class {index}" for index in range(1, 16)]
    (tmp_path / "names.txt").write_text("\n".join(["background", *names]))
    found = task(f"voc-seg:{folder},split=train,classes={tmp_path / 'names.txt'}")
    pictures = found.pictures  # pyright: ignore[reportAttributeAccessIssue]
    assert len(pictures) == 1
    assert [pictures.labels[label] for label in pictures.open(0).truth.labels] == ["class 12", "class 15"]
    (tmp_path / "names.txt").write_text("\n".join(names[:14]))
    with pytest.raises(ValueError, match="two.png: class 15, expected 0 to 14 or 255"):
        read_voc_folder(folder, part="train", classes=tmp_path / "names.txt").open(0)


def damage(folder: Path, kind: str) -> None:
    lists = folder / "ImageSets" / "Segmentation"
    png = folder / "SegmentationClass" / "one.png"
    if kind == "no folder":
        (folder / "JPEGImages").rename(folder / "Pictures")
    elif kind == "other list":
        (lists / "val.txt").rename(lists / "a.txt")
        (lists / "b.txt").write_text("one")
    elif kind == "listed twice":
        (lists / "val.txt").write_text("one\none\n")
    elif kind == "path":
        (lists / "val.txt").write_text("../one\n")
    elif kind == "no picture":
        (folder / "JPEGImages" / "one.jpg").unlink()
    elif kind == "no png":
        png.unlink()
    elif kind == "not a png":
        png.write_bytes(b"PNG?")
    elif kind == "cut":
        png.write_bytes(png.read_bytes()[:-30])
    elif kind == "colours":
        Image.new("RGB", (WIDTH, HEIGHT)).save(png)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", "no folder JPEGImages, expected"),
        ("other list", "no list chosen, it has a, b; choose with split=NAME"),
        ("listed twice", "val.txt: 2 names, 1 of them different"),
        ("path", r"val.txt: '../one', expected the name of a picture"),
        ("no picture", "one has no picture in JPEGImages"),
        ("no png", "one has no SegmentationClass/one.png"),
        ("not a png", r"one.png: cannot be read as PNG \(Pillow knows no such format\)$"),
        ("cut", "one.png: cannot be read as PNG"),
        ("colours", "one.png: a PNG of mode RGB, expected a palette or 8-bit grey"),
    ],
)
def test_a_broken_voc_folder_says_what_and_where(tmp_path: Path, kind: str, message: str) -> None:
    damage(a_voc_folder(tmp_path), kind)
    with pytest.raises(ValueError, match=message):
        read_voc_folder(tmp_path).open(0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.integers(0, 400), st.integers(0, 255), st.binary(max_size=4))
def test_a_damaged_png_is_read_or_refused_in_words(tmp_path: Path, at: int, value: int, more: bytes) -> None:
    folder = tmp_path / "voc"
    if not folder.exists():
        a_voc_folder(folder, names=("one",))
        (tmp_path / "whole.png").write_bytes((folder / "SegmentationClass" / "one.png").read_bytes())
    data = bytearray((tmp_path / "whole.png").read_bytes())
    data[at % len(data)] = value
    data[at % len(data) : at % len(data)] = more
    (folder / "SegmentationClass" / "one.png").write_bytes(data)
    try:
        refused = ""
        read_voc_folder(folder).open(0)
    except ValueError as error:
        refused = str(error)
    assert not refused or ("one.png" in refused and "BytesIO" not in refused)
