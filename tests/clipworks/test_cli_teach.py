"""`clipworks teach` and the client's `teach`: a folder a class, in the data folder and on a server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipworks import TeachResult
from clipworks.errors import ApiError, NotFound, UnreadableInput

COLOURS = {"mab": (30, 180, 40), "pel": (30, 40, 200), "zif": (200, 30, 30)}
Cli = Callable[..., tuple[int, str, str]]


def picture(label: str, seed: int) -> bytes:
    rng = np.random.default_rng([seed, *label.encode()])
    pixels = np.clip(np.array(COLOURS[label]) + rng.normal(0, 35, (40, 56, 3)), 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, count: int, *, first: int = 0) -> Path:
    for label in COLOURS:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for seed in range(first, first + count):
            (folder / label / f"{seed}.png").write_bytes(picture(label, seed))
    return folder


def write_one(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(picture("mab", 0))


@pytest.mark.parametrize("where", ["server", "data folder"])
def test_a_folder_of_classes_is_taught_shown_and_used(where: str, cli: Cli, server_url: str, tmp_path: Path) -> None:
    place = ["--url", server_url] if where == "server" else []
    name = f"cli-{where.partition(' ')[0]}"
    classes = write(tmp_path / "classes", 4)
    (classes / "notes.txt").write_text("no class")
    (classes / ".hidden").mkdir()
    (classes / "pel" / "broken.png").write_bytes(b"no picture")
    (classes / "pel" / "readme.txt").write_text("no picture")
    code, out, err = cli("teach", classes, "--name", name, *place)
    assert code == 1, err
    assert "broken.png: not an image" in err
    assert f"taught {name}: 12 examples of 3 labels, for tiny@1" in err
    assert "1.000 [0.758, 1.000] of 12 right; from the texts alone" in err
    assert [line.split("\t")[:3] for line in out.splitlines()[1:]] == [[label, "4", "1.000"] for label in COLOURS]
    fresh = write(tmp_path / "fresh", 2, first=50)
    code, out, err = cli("classify", *(fresh / label for label in COLOURS), "--label-set", name, "--json", *place)
    assert code == 0, err
    found = [each["predictions"][0]["label"] for each in json.loads(out)["data"]]
    assert found == [label for label in COLOURS for _ in range(2)]
    code, out, err = cli("teach", fresh, "--name", name, "--add", "--json", *place)
    told = json.loads(out)
    assert (code, told["examples"], told["failures"]) == (0, 18, [])
    assert told["leave_one_out"]["tested"] == 18
    assert f"18 (version {told['version']})" in cli("label-sets", "show", name, *place)[1]
    again = json.loads(cli("teach", fresh, "--name", name, "--json", *place)[1])
    assert again["examples"] == 6, "without --add it is replaced"
    assert cli("label-sets", "delete", name, "--yes", *place)[0] == 0


@pytest.mark.parametrize("where", ["server", pytest.param("data folder", marks=pytest.mark.long)])
def test_pictures_that_cannot_be_used_do_not_replace_a_set(
    where: str, cli: Cli, server_url: str, tmp_path: Path
) -> None:
    place = ["--url", server_url] if where == "server" else []
    name = f"kept-{where.partition(' ')[0]}"
    assert cli("teach", write(tmp_path / "good", 3), "--name", name, *place)[0] == 0
    before = json.loads(cli("label-sets", "show", name, "--json", *place)[1])
    junk = tmp_path / "junk"
    for label, count in (("aaa", 40), ("bbb", 1)):
        (junk / label).mkdir(parents=True)
        for number in range(count):
            (junk / label / f"{number:02}.png").write_bytes(b"no picture %d" % number)
    for more in ((), ("--labels", "aaa,bbb")):
        code, out, err = cli("teach", junk, "--name", name, *more, *place)
        assert (code, out) == (3, ""), err
        said = " ".join(err.split())
        assert f"no example can be used, and label set {name} is as it was" in said
        assert f"{junk}/aaa/00.png: " in said
        assert f"{junk}/aaa/31.png: " in said
        assert json.loads(cli("label-sets", "show", name, "--json", *place)[1]) == before
    assert cli("teach", junk, "--name", f"{name}-new", *place)[0] == 3
    assert cli("label-sets", "show", f"{name}-new", *place)[0] == 3, "nothing was made"
    for number in range(2):
        (junk / "bbb" / f"good{number}.png").write_bytes(picture("pel", number))
    code, out, err = cli("teach", junk, "--name", name, "--json", *place)
    told = json.loads(out)
    assert (code, told["label_names"], told["examples"]) == (1, ["aaa", "bbb"], 2), "the first requests were all bad"
    assert [each["image"] for each in told["failures"]] == [
        *(f"{junk}/aaa/{number:02}.png" for number in range(40)), f"{junk}/bbb/00.png"
    ]  # fmt: skip
    assert any("no example of 'aaa'" in each or "the words alone" in each for each in told["warnings"])
    assert cli("label-sets", "delete", name, "--yes", *place)[0] == 0


def test_wrong_usage_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "a").mkdir(parents=True)
    empty = write(tmp_path / "empty", 1)
    (empty / "none").mkdir()
    for words, says in (
        ((tmp_path / "typo", "--name", "x"), "No such file"),
        ((one, "--name", "x"), "1 folders in it"),
        ((empty, "--name", "x"), "/none: no pictures in it"),
        ((write(tmp_path / "ok", 1), "--name", "x", "--add", "--labels", "a,b"), "leave --labels"),
    ):
        code, out, err = cli("teach", *words)
        assert (code, out) == (2, ""), err
        assert says in " ".join(err.split())
    assert not (tmp_path / "data").exists()
    picture_file = tmp_path / "ok" / "mab" / "0.png"
    for names, says in (
        ((" mab", "mab"), "two folders are the label 'mab'"),
        (("e\u0301", "\u00e9"), "two folders are the"),
    ):
        for name in names:
            write_one(tmp_path / says[-5:] / name)
        code, _, err = cli("teach", tmp_path / says[-5:], "--name", "x")
        assert (code, says in " ".join(err.split())) == (2, True), err
    strange = tmp_path / "strange"
    write_one(strange / "a")
    write_one(strange / os.fsdecode(b"b\xff"))
    code, _, err = cli("teach", strange, "--name", "x")
    assert (code, "has to be UTF-8" in " ".join(err.split())) == (2, True), err
    assert not (tmp_path / "data").exists()
    nowhere = ("--data", tmp_path / "typo", "--label-set", "x")
    assert cli("classify", picture_file, *nowhere)[0] == 2


def test_the_client_teaches_adds_removes_and_lists(call: Any, server_url: str) -> None:
    given = {label: [picture(label, seed) for seed in range(5)] for label in COLOURS}
    steps: dict[str, Any] = {"client": {"batch_size": 4, "concurrency": 3}}
    alone = call(server_url, "teach", "client", {**given, "none": [b"none"] * 5}, **steps)
    assert (alone.label_set.examples, len(alone.errors)) == (15, 5), "a whole request of bad pictures fails alone too"
    taught: TeachResult = call(server_url, "teach", "client", given, **steps)
    assert taught.label_set.leave_one_out
    assert taught.label_set.leave_one_out.accuracy == 1.0
    assert len(taught.ids) == len(set(taught.ids.values())) == 15
    assert taught.errors == {}
    more = call(server_url, "add_examples", "client", {"zif": [picture("zif", 9), b"none"]}, **steps)
    assert (more.label_set.examples, list(more.errors)) == (16, [("zif", 1)])
    assert isinstance(more.errors["zif", 1], ApiError)
    assert more.errors["zif", 1].code == "unsupported_image"
    less = call(server_url, "remove_examples", "client", ids=[more.ids["zif", 0]], labels=["pel"])
    assert (less.examples, less.labels) == (10, 3)
    with pytest.raises(TypeError):
        call(server_url, "remove_examples", "client", labels="zif")
    known = call(server_url, "examples", "client")
    assert {each.id for each in known} == {id for (label, _), id in taught.ids.items() if label != "pel"}
    [found] = call(server_url, "classify", [picture("mab", 77)], label_set="client")
    assert [each.label for each in found if each.label != "pel"] == ["mab", "zif"]
    call(server_url, "delete_label_set", "client")
    with pytest.raises(NotFound):
        call(server_url, "add_examples", "client", given)


def test_the_client_keeps_a_set_that_nothing_can_replace(call: Any, server_url: str, tmp_path: Path) -> None:
    given = {label: [picture(label, seed) for seed in range(2)] for label in COLOURS}
    taught = call(server_url, "teach", "client3", given)
    steps: dict[str, Any] = {"client": {"batch_size": 2}}
    for junk, error, index in (
        ({"a": [b"none", b"no"], "b": [b"nothing"]}, ApiError, None),
        ({"a": [{"item": {"collection": "none", "id": "x"}}]}, ApiError, 0),
        ({"a": [tmp_path / "none.png"]}, UnreadableInput, 0),
    ):
        with pytest.raises(error) as failed:
            call(server_url, "teach", "client3", junk, **steps)
        assert failed.value.index == index
    with pytest.raises(ApiError) as failed:
        call(server_url, "teach", "client3", {"a": [b"none", picture("zif", 1)]}, on_error="fail", **steps)
    assert (failed.value.code, failed.value.index) == ("unsupported_image", 0)
    assert call(server_url, "label_set", "client3") == taught.label_set
    late = {"a": [tmp_path / "none.png", b"none", b"no"], "b": [b"nothing", picture("pel", 1)]}
    found = call(server_url, "teach", "client3", late, **steps)
    assert list(found.ids) == [("b", 1)]
    assert list(found.errors) == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    call(server_url, "delete_label_set", "client3")


def test_the_client_takes_prompts_and_items_and_fails_where_it_is_told_to(
    call: Any, server_url: str, tmp_path: Path
) -> None:
    given = {label: [picture(label, seed) for seed in range(2)] for label in COLOURS}
    labels = {"zif": ["something red", "red noise"], "mab": "something green", "pel": "blue", "qua": "something yellow"}
    taught = call(server_url, "teach", "client2", given, labels=labels)
    assert taught.label_set.label_names == list(labels)
    assert taught.label_set.texts == 5
    assert any("no example of 'qua'" in each for each in taught.label_set.warnings)
    for wrong, error in (
        ({"zif": [tmp_path / "none.png"]}, UnreadableInput),
        ({"zif": [b"none"]}, ApiError),
        ({}, ValueError),
        ({"zif": b"one"}, TypeError),
        ({"zif": [{"text": "x"}]}, ValueError),
    ):
        with pytest.raises(error):
            call(server_url, "add_examples", "client2", wrong, on_error="fail")
    with pytest.raises(ApiError) as failed:
        call(server_url, "add_examples", "client2", {"zif": [picture("zif", 3), b"none"]}, on_error="fail")
    assert failed.value.index == 1
    missing = call(server_url, "add_examples", "client2", {
        "zif": [{"item": {"collection": "none", "id": "x"}}, picture("zif", 8)]
    })  # fmt: skip
    assert missing.errors["zif", 0].code == "collection_not_found"
    assert missing.label_set.examples == 7
    call(server_url, "delete_label_set", "client2")
