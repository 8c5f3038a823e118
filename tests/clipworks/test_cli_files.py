"""Which files of a folder are taken: one rule for every command, and nothing that is left out goes unmentioned."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipworks.cli.file_names import name_of, text_of
from clipworks.cli.picture_files import LeftOut, PictureFile, Selection, Unreadable, read_file, search_folder
from clipworks.errors import UnreadableInput

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _no_waiting() -> Any:
    """A command that waits at a pipe ends the test, not the suite."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still waiting"))
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def draw(path: Path | bytes, colour: str = "red", format: str = "PNG") -> None:
    path = Path(os.fsdecode(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.new("RGB", (48, 32), colour).save(file, format)


def found(folder: Path, **options: Any) -> dict[str, str]:
    """path below the folder -> "taken", or why not."""
    shown: dict[str, str] = {}
    for each in search_folder(folder, Selection(**options)):
        assert each.below not in shown
        match each:
            case PictureFile():
                shown[each.below] = "taken"
            case LeftOut():
                shown[each.below] = each.reason
            case Unreadable():
                shown[each.below] = each.why
    return shown


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    folder = tmp_path / "odd"
    for name in ("a.JPG", "b.jfif", "c.jpe", "sub/d.webp", ".hidden/e.png", ".f.png", "thumbs/g.png"):
        draw(folder / name)
    for name in ("notes.md", "scan.tiff", "raw.NEF"):
        (folder / name).write_bytes(b"x")
    draw(tmp_path / "elsewhere" / "h.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "h.png")
    (folder / "broken.png").symlink_to(tmp_path / "nothing")
    (folder / "null.png").symlink_to("/dev/null")
    os.mkfifo(folder / "pipe.jpg")
    return folder


def test_every_file_has_an_outcome(odd: Path) -> None:
    assert found(odd) == {
        "a.JPG": "taken",
        "b.jfif": "taken",
        "c.jpe": "taken",
        "file.png": "taken",
        "sub/d.webp": "taken",
        "thumbs/g.png": "taken",
        ".hidden": "hidden",
        ".f.png": "hidden",
        "notes.md": "not a picture",
        "scan.tiff": "format that is not read",
        "raw.NEF": "format that is not read",
        "linked": "linked folder",
        "loop": "linked folder",
        "broken.png": "this link leads to nothing that can be reached",
        "null.png": "not a file",
        "pipe.jpg": "not a file",
    }


def test_links_are_followed_when_asked_and_end(odd: Path) -> None:
    (odd / "sub" / "up").symlink_to(odd.parent)
    shown = found(odd, follow_links=True, hidden=True)
    assert {name: shown[name] for name in ("linked/h.png", "loop", ".hidden/e.png", ".f.png", "sub/d.webp")} == {
        "linked/h.png": "taken",
        "loop": "read already",
        ".hidden/e.png": "taken",
        ".f.png": "taken",
        "sub/d.webp": "taken",
    }
    assert sum(name.endswith("a.JPG") for name in shown) == 1


def test_patterns_are_for_names_or_for_paths(odd: Path) -> None:
    shown = found(odd, exclude=["thumbs", "*.jfif", "sub/d*"])
    assert [shown[name] for name in ("thumbs", "b.jfif", "sub/d.webp", "a.JPG")] == [*["excluded"] * 3, "taken"]
    shown = found(odd, include=["*.jfif", "sub/*"])
    assert sorted(name for name, outcome in shown.items() if outcome == "taken") == ["b.jfif", "sub/d.webp"]


def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UnreadableInput, match="not a file"):
            read_file(path)


def test_index_counts_everything(cli: Cli, server_url: str, odd: Path) -> None:
    command = ("index", odd, "-c", "counted", "--url", server_url)
    code, out, _ = cli(*command, "--json")
    told = json.loads(out)
    assert code == 1  # the link to nothing
    assert told["stored"] == 6
    assert [each["id"] for each in told["failures"]] == [str(odd / "broken.png")]
    assert told["skipped_by_reason"] == {
        "hidden": 2,
        "linked folder": 2,
        "not a file": 2,
        "format that is not read": 2,
        "not a picture": 1,
    }
    assert {"name": str(odd / "pipe.jpg"), "reason": "not a file"} in told["skipped"]
    code, _, err = cli(*command, "--exclude", "broken.png")
    assert code == 0
    said = " ".join(err.split())
    for words in ("6 unchanged", "10 skipped", "--hidden takes them", "--follow-links", "convert it to JPEG or PNG"):
        assert words in said


@pytest.mark.parametrize("verb", [("embed", "--json"), ("classify", "--labels", "a,b", "--json")], ids=lambda v: v[0])
def test_all_verbs_take_the_same_files(cli: Cli, server_url: str, odd: Path, verb: tuple[str, ...]) -> None:
    def inputs(*options: str) -> list[str]:
        code, out, err = cli(verb[0], odd, *verb[1:], *options, "--url", server_url)
        assert code == 1, err  # the link to nothing
        assert "broken.png: this link leads to nothing" in " ".join(err.split())
        records = [json.loads(line) for line in out.splitlines()]
        records = records if verb[0] == "embed" else records[0]["data"]
        return [os.path.relpath(each.get("input") or each["image"], odd) for each in records]

    assert inputs() == ["a.JPG", "b.jfif", "c.jpe", "file.png", "sub/d.webp", "thumbs/g.png"]
    assert inputs("--hidden", "--include", "*.png") == [".f.png", ".hidden/e.png", "file.png", "thumbs/g.png"]


def test_names_that_are_no_utf_8_become_ids_that_lead_back(cli: Cli, server_url: str, tmp_path: Path) -> None:
    photos = os.fsencode(tmp_path) + b"/photos"
    os.mkdir(photos)
    draw(photos + b"/caf\xe9.png", "red")
    draw(photos + b"/two\nlines.png", "blue")
    code, out, _ = cli("index", os.fsdecode(photos), "-c", "names", "--url", server_url, "--json")
    assert (code, json.loads(out)["stored"]) == (0, 2)
    listed = cli("collections", "items", "names", "--ids", "--url", server_url)[1].splitlines()
    assert listed == [r"caf\xe9.png", r"two\x0alines.png"]
    assert [os.fsencode(name_of(id)) for id in listed] == [b"caf\xe9.png", b"two\nlines.png"]
    found = [line.split("\t")[2] for line in cli("search", "x", "-c", "names", "--url", server_url)[1].splitlines()[1:]]
    assert sorted(found) == listed
    for id in found:  # what one command prints, the next one takes
        assert cli("search", "--like", id, "-c", "names", "--url", server_url)[0] == 0
        assert cli("collections", "items", "names", "--id", id, "--url", server_url)[0] == 0
    sheet = tmp_path / "sheet.html"
    assert cli("search", "x", "-c", "names", "--out", sheet, "--url", server_url)[0] == 0
    assert sheet.read_text().count("data:image/jpeg") == 2
    code, out, _ = cli("embed", os.fsdecode(photos), "--json", "--url", server_url)
    assert (code, r"caf\xe9.png" in json.loads(out.splitlines()[0])["input"]) == (0, True)
    piped = b"\0".join([photos + b"/caf\xe9.png", photos + b"/two\nlines.png", b""])
    code, out, _ = cli("embed", "-", "--stdin", "paths", "--null", "--url", server_url, stdin=piped)
    assert (code, len(out.splitlines())) == (0, 2)


def test_a_pipe_that_is_named_fails_alone(cli: Cli, server_url: str, tmp_path: Path) -> None:
    """As when a shell puts it in for *.jpg."""
    os.mkfifo(tmp_path / "pipe.jpg")
    draw(tmp_path / "a.png")
    for words in (("classify", "--labels", "a,b"), ("embed", "-", "--stdin", "paths")):
        named = [] if words[0] == "embed" else [tmp_path / "pipe.jpg", tmp_path / "a.png"]
        lines = f"{tmp_path / 'pipe.jpg'}\n{tmp_path / 'a.png'}\n".encode()
        code, out, err = cli(*words, *named, "--url", server_url, "--json", stdin=lines)
        assert (code, "pipe.jpg: this is a device, pipe or socket" in " ".join(err.split())) == (1, True), err
        assert "a.png" in out
    code, out, err = cli("classify", tmp_path / "pipe.jpg", "--labels", "a,b", "--url", server_url)
    assert (code, out, "none of these can be read as a picture" in err) == (2, "", True)


def test_variables_that_mean_nothing_are_named(cli: Cli, server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPWORKS_STOR", "/x")
    code, _, err = cli("embed", "--text", "a", "--json", "--url", server_url)
    assert code == 0
    assert err.strip() == "CLIPWORKS_STOR is no setting and is ignored; is CLIPWORKS_STORE meant?"


names = st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name and b"/" not in name)


@given(names | names.map(lambda name: b"\\x41\\x" + name))
def test_a_name_comes_back_from_its_text(name: bytes) -> None:
    text = text_of(os.fsdecode(name))
    assert os.fsencode(name_of(text)) == name
    text.encode("utf-8")
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\\")))
def test_an_ordinary_name_is_its_own_text(name: str) -> None:
    assert text_of(name) == name
