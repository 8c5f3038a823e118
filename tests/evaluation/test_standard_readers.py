"""Forms of real data, written here and read back; every broken one is named. Specifications of any text."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation.standard.captioned import read_captioned
from evaluation.standard.image_folder import parted, read_image_folder
from evaluation.standard.pairs import read_pairs
from evaluation.standard.photographs import name_the_broken
from evaluation.standard.specs import SPECS_HELP, Spec, parse, task
from evaluation.standard.word_order import shuffles

CAPTIONS = {"one.png": ["a red dot", "a dot"], "two.png": ["a blue, dark dot"], "sub/three.png": ["a dot"]}


def draw(path: Path, colour: tuple[int, int, int], *, size: tuple[int, int] = (8, 8)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path.read_bytes()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for at, name in enumerate(CAPTIONS):
        draw(tmp_path / "set" / name, (40 * at, 0, 0))
    return tmp_path / "set"


def test_every_form_gives_the_same_captioned_pictures(pictures: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]
    (pictures / "t.csv").write_text("image,caption\n" + "".join(f'{name},"{caption}"\n' for name, caption in rows))
    table = pyarrow.table({"image": [name for name, _ in rows], "caption": [caption for _, caption in rows]})
    pyarrow.parquet.write_table(table, pictures / "t.parquet")
    images = [{"id": 3 * at, "file_name": name} for at, name in enumerate(CAPTIONS)]
    ids = {image["file_name"]: image["id"] for image in images}
    annotations = [{"id": at, "image_id": ids[name], "caption": text} for at, (name, text) in enumerate(rows)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        for name, captions in CAPTIONS.items():
            for file, data in (
                (name, (pictures / name).read_bytes()),
                (name.replace(".png", ".txt"), "\n".join(captions).encode()),
            ):
                entry = tarfile.TarInfo(file)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    expected = [((pictures / name).read_bytes(), caption) for name, caption in rows]
    for path, folder in (
        (pictures / "t.csv", None),
        (pictures / "t.parquet", None),
        (tmp_path / "coco.json", pictures),
        (tmp_path / "s-{0..0}.tar", None),
    ):
        found = read_captioned(str(path), images=folder)
        assert [(photograph.shown(), caption) for photograph, caption in found.pairs] == expected, path.name
        assert len({photograph for photograph, _ in found.pairs}) == 3


def test_a_folder_of_pictures_with_texts_beside(pictures: Path) -> None:
    (pictures / "one.txt").write_text("a red dot\n\n a dot \n")
    found = read_captioned(str(pictures))
    assert [(photograph.name, caption) for photograph, caption in found.pairs] == [
        ("one.png", "a red dot"),
        ("one.png", "a dot"),
    ]
    assert found.notes == ("1 pictures have no caption beside them, such as two.png: left out",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption\nnone.png,x\n", r"1 of 1 pictures are not in .*none.png.*images=FOLDER"),
        ("image,caption\n../one.png,x\n", r"row 1: image path '../one.png' leaves the folder"),
        ("image,caption\none.png, \n", "row 1: empty caption"),
        ("image,text\none.png,x\n", "no column 'caption'; it has 'image', 'text'"),
        ("image,caption\n", "no captioned picture"),
    ],
)
def test_broken_tables_are_named(pictures: Path, text: str, message: str) -> None:
    (pictures / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        task(f"captions:{pictures / 't.csv'}")


def test_a_table_in_another_encoding_is_named(pictures: Path) -> None:
    (pictures / "t.csv").write_bytes("image,caption\none.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t.csv: not a csv table in UTF-8"):
        read_captioned(str(pictures / "t.csv"))


def folder(root: Path, counts: dict[str, int]) -> Path:
    for at, (name, count) in enumerate(counts.items()):
        for number in range(count):
            draw(root / name / f"{number}.png", (at, number % 256, 0))
    return root


def test_pictures_of_every_format_are_shown(tmp_path: Path) -> None:
    """The names and formats that the other commands read."""
    folder(tmp_path, {"class": 0, "other": 1})
    (tmp_path / "class").mkdir()
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c.AVIF", "AVIF"), ("d.bmp", "BMP"), ("e.gif", "GIF")):
        Image.new("RGB", (9, 8), (200, 10, 10)).save(tmp_path / "class" / name, kind)
    items = read_image_folder(tmp_path).items
    assert len(items) == 6
    name_the_broken([item.photograph for item in items])


def test_classes_are_sub_folders_and_names_come_from_a_file(tmp_path: Path) -> None:
    root = folder(tmp_path, {"n02": 2, "n01_big_cat": 1})
    (root / "n02" / "notes.md").write_text("x")
    found = read_image_folder(root)
    assert (found.classes, found.names) == (("n01_big_cat", "n02"), ("n01 big cat", "n02"))
    assert [item.label for item in found.items] == [0, 1, 1]
    assert found.notes == ("1 files or folders inside the classes are no pictures by their name: left out",)
    for file, text in (
        ("classes.txt", "lion\n dog \n"),
        ("classes.txt", "n02\tdog\nn01_big_cat\tlion\nn09\tunused\n"),
        ("classes.json", '["lion", "dog"]'),
        ("classes.json", '{"n02": "dog", "n01_big_cat": "lion"}'),
    ):
        (root / file).write_text(text)
        assert read_image_folder(root).names == ("lion", "dog"), text
        (root / file).unlink()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classes.txt", "lion\n", "a name for each of 2 sub-folders, got 1 names"),
        ("classes.txt", "lion\nb\tdog\n", "line 2: some lines have a tab"),
        ("classes.txt", "a\tlion\n", "no name for the folder 'b'"),
        ("classes.txt", "Lion\nlion\n", "two classes are called 'Lion'"),
        ("classes.json", "{", "not JSON"),
        ("classes.json", "3", "got int"),
        ("classes.json", '["a", 3]', "3 is no name"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    root = folder(tmp_path, {"a": 1, "b": 1})
    (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_image_folder(root)


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        read_image_folder(tmp_path / "none")
    root = folder(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match=r"at least two sub-folders.*got \['a'\]"):
        read_image_folder(root)
    (root / "b").mkdir()
    with pytest.raises(ValueError, match=r"b: no picture .* in this class"):
        read_image_folder(root)


def test_parts_are_the_folders_or_a_stable_hash(tmp_path: Path) -> None:
    plain = read_image_folder(folder(tmp_path / "plain", {"a": 100, "b": 100}))
    parts = parted(plain)
    assert sum(map(len, parts.values())) == 200
    assert not set(parts["train"]) & set(parts["test"])
    assert 90 < len(parts["train"]) < 150
    assert min(len(parts["validation"]), len(parts["test"])) > 20
    assert parted(plain) == parts
    assert parted(plain, seed=1) != parts
    root = folder(tmp_path / "parts", {"train/a": 20, "train/b": 20, "val/a": 3, "val/b": 3})
    found = parted(read_image_folder(root))
    assert Counter(item.part for item in found["test"]) == {"validation": 6}
    assert {item.part for item in found["train"]} == {item.part for item in found["validation"]} == {"train"}
    folder(root, {"test/a": 4, "test/b": 5})
    found = parted(read_image_folder(root))
    assert [len(found[part]) for part in ("train", "validation", "test")] == [40, 6, 9]


SUGAR = {"filename": "one.png", "caption": "a red dot", "negative_caption": "a blue dot"}
ARO: dict[str, Any] = {
    "image_path": "one.png",
    "true_caption": "the cat is on the mat",
    "false_caption": "the mat is on the cat",
    "bbox_x": 1,
    "bbox_y": 2,
    "bbox_w": 4,
    "bbox_h": 3,
}


def test_sugarcrepe_files_count_what_cannot_be_asked(pictures: Path) -> None:
    rows = [SUGAR, {**SUGAR, "filename": "gone.png"}, {**SUGAR, "negative_caption": "A red dot"}]
    (pictures / "swap.json").write_text(json.dumps(dict(enumerate(rows))))
    (pictures / "add.json").write_text(json.dumps({"7": SUGAR}))
    found = read_pairs("x", pictures)
    assert [(choice.group, choice.options) for choice in found.choices] == [
        ("add", ("a red dot", "a blue dot")),
        ("swap", ("a red dot", "a blue dot")),
    ]
    assert found.notes == (
        "1 of 4 rows lack their picture: left out",
        "1 of 4 rows have two equal captions: left out",
    )


def test_aro_files_show_the_box(pictures: Path) -> None:
    draw(pictures / "images" / "wide.png", (0, 0, 0), size=(6, 10))
    image = np.array(Image.open(pictures / "images" / "wide.png"))
    image[2:5, 1:5] = 200
    Image.fromarray(image).save(pictures / "images" / "wide.png")
    rows = [{**ARO, "image_path": "wide.png", "relation_name": "on"}]
    (pictures / "vg.json").write_text(json.dumps(rows))
    found = read_pairs("x", pictures / "vg.json")
    shown = found.choices[0].photograph.shown()
    assert np.array_equal(shown, np.full((3, 4, 3), 200, dtype=np.uint8))
    assert (found.groups, found.least, found.choices[0].group) == ("relations", 1, "on")
    (pictures / "vg.json").write_text(json.dumps([{**rows[0], "bbox_y": 40}]))
    with pytest.raises(ValueError, match=r"wide.png: box .* has no part of its 6 x 10 pixels"):
        read_pairs("x", pictures / "vg.json").choices[0].photograph.shown()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not JSON"),
        ([], "expected rows of SugarCrepe"),
        ([{"a": 1}], r"got fields \['a'\]"),
        ([{**SUGAR, "caption": ""}], "row 1: caption is ''"),
        ([{**SUGAR, "filename": "gone.png"}], "none of its 1 rows can be asked: 1 lack their picture"),
        ([{**SUGAR, "filename": "../one.png"}], "leaves the folder"),
        ([ARO], "row 1: attributes is None"),
        ([{**ARO, "attributes": ["a", "b"], "bbox_w": 0}], "row 1: bbox_x, .* expected a box"),
    ],
)
def test_broken_pairs_are_named(pictures: Path, data: object, message: str) -> None:
    path = pictures / "p.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(ValueError, match=message):
        task(f"pairs:{path}")


def test_files_of_two_forms_are_not_mixed(pictures: Path) -> None:
    (pictures / "a.json").write_text(json.dumps([SUGAR]))
    (pictures / "b.json").write_text(json.dumps([{**ARO, "relation_name": "on"}]))
    with pytest.raises(ValueError, match=r"several forms \(relations, types\)"):
        read_pairs("x", pictures)


def test_shuffles_keep_the_words_and_differ_in_order_only() -> None:
    caption = "A black dog runs across the wet, green grass near two small children ."
    options = shuffles(caption, seed=0)
    assert options is not None
    assert options[0] == "A black dog runs across the wet, green grass near two small children."
    assert shuffles(caption, seed=0) == options != shuffles(caption, seed=1)
    assert len({option.casefold() for option in options}) == 5
    bags = {tuple(sorted(option.casefold().replace(",", "").rstrip(".").split())) for option in options}
    assert len(bags) == 1
    assert all(option[0].isupper() and option.endswith(".") and " ," not in option for option in options)
    true, named, others = ([word.strip(",.").casefold() for word in option.split()] for option in options[:3])
    content = {"black", "dog", "wet", "green", "grass", "two", "small", "children"}
    assert [w for w in named if w not in content] == [w for w in true if w not in content]
    assert [w for w in others if w in content] == [w for w in true if w in content]


@pytest.mark.parametrize("caption", ["dog", "", "...", "a dog", "dog dog dog dog dog dog dog"])
def test_captions_without_four_shuffles_are_not_asked(caption: str) -> None:
    assert shuffles(caption, seed=0) is None


@given(st.text(max_size=60))
def test_shuffles_of_any_text_are_five_different_ones(caption: str) -> None:
    options = shuffles(caption, seed=0)
    assert options is None or len({option.casefold() for option in options}) == 5


@given(st.text() | st.from_regex(r"(folder|captions|few-shot|linear|order|pairs):[a-z/,=.{}0-9]*", fullmatch=True))
def test_any_text_is_a_specification_or_a_value_error(text: str) -> None:
    try:
        found = parse(text)
    except ValueError as error:
        said = str(error)
    else:
        said = f"{found.text!r}" if found.path and text.startswith(f"{found.kind}:{found.path}") else ""
    assert said.startswith(repr(text))


_PATHS = st.text(st.characters(codec="utf-8", exclude_characters=",\0"), min_size=1)


_OPTIONS = st.fixed_dictionaries(
    {},
    optional={"seed": st.integers(0, 999_999_999).map(str), "templates": st.sampled_from(["bare", "1", "own", "all"])},
)


@given(_PATHS, _OPTIONS)
def test_specifications_are_read_as_they_were_written(path: str, options: dict[str, str]) -> None:
    text = f"few-shot:{path}" + "".join(f",{name}={value}" for name, value in options.items())
    assert parse(text) == Spec(text, "few-shot", path, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photos", "expected KIND:PATH"),
        ("films:x", "KIND one of folder, captions, pairs, order, few-shot, shifted, linear"),
        ("folder:", "expected a path after folder:"),
        ("folder:x,seed=1", "folder has no option 'seed', it has templates"),
        ("folder:x,colour=1", "folder has no option 'colour'"),
        ("folder:x,templates=", "option 'templates' has no value"),
        ("folder:x,templates=2", "templates is '2', expected bare, 1, 7, 80, own or all"),
        ("few-shot:x,templates=all", "few-shot takes one of"),
        ("linear:x,seed=-1", "seed is '-1'"),
        ("linear:x,seed=1,seed=2", "comes twice"),
        ("folder:x", "x: no such folder"),
        ("captions:x.csv", "x.csv: no such file or folder; expected a .csv"),
        ("captions:x-{0..1}.tar", "no shard x-0.tar"),
        ("pairs:x.json", "no such file"),
        ("captions:\0", "expected a path"),
    ],
)
def test_wrong_specifications_say_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(text)


def test_a_comma_in_a_path_is_no_option(tmp_path: Path) -> None:
    root = folder(tmp_path / "cats, dogs", {"cat": 1, "dog": 1})
    assert task(f"folder:{root}").name == f"folder:{root}"
    assert all(f"{kind} (" in SPECS_HELP for kind in ("folder", "captions", "pairs", "order", "few-shot", "linear"))
