"""index: what is pruned, what a mistake leaves behind, duplicates, single files, another model's collection."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipworks import Client
from clipworks.cli.failures import UsageError
from clipworks.cli.index_entries import SourceListing
from clipworks.cli.index_prune import refuse_absent_drives
from clipworks.cli.index_run import Known

Cli = Callable[..., tuple[int, str, str]]


def draw(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), colour).save(path)
    return path


@pytest.fixture
def told(cli: Cli, server_url: str) -> Callable[..., tuple[int, dict[str, Any]]]:
    """told(*words): exit code and the JSON of `index`."""

    def run(*words: str | Path) -> tuple[int, dict[str, Any]]:
        code, out, err = cli("index", *words, "--url", server_url, "--json")
        return code, json.loads(out) if out else {"error": err}

    return run


def ids(server_url: str, name: str) -> list[str]:
    with Client(server_url) as client:
        return [item.id for item in client.collection(name).items()]


def test_prune_empties_an_emptied_folder_and_keeps_what_is_only_left_out(
    told: Any, server_url: str, tmp_path: Path
) -> None:
    photos = tmp_path / "p"
    for name in ("a.png", "old/b.png", "old/.c.png"):
        draw(photos / name)
    assert told(photos, "-c", "pruned", "--hidden")[1]["stored"] == 3
    code, found = told(photos, "-c", "pruned", "--prune", "--exclude", "old")
    assert (code, found["pruned"], ids(server_url, "pruned")) == (0, 0, ["a.png", "old/.c.png", "old/b.png"])
    shutil.rmtree(photos / "old")
    (photos / "a.png").unlink()
    assert told(photos, "-c", "pruned")[0] == 2  # nothing to index, and nobody asked to prune
    code, found = told(photos, "-c", "pruned", "--prune")
    assert (code, found["pruned"], ids(server_url, "pruned")) == (0, 3, [])


def test_prune_refuses_what_looks_like_a_missing_drive(told: Any, server_url: str, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    draw(drive / "a.png")
    assert told(drive, "-c", "drive")[0] == 0
    (drive / "a.png").unlink()
    os.utime(drive, (1, 1))  # as the folder was before the drive was mounted
    code, found = told(drive, "-c", "drive", "--prune")
    assert (code, "is a drive missing?" in found["error"]) == (2, True)
    drive.rmdir()
    code, found = told(drive, "-c", "drive", "--prune")
    assert (code, "no such file or folder" in found["error"]) == (2, True)
    assert ids(server_url, "drive") == ["a.png"]
    drive.mkdir()
    fstab = tmp_path / "fstab"
    known = {"a.png": Known(b"", None, str(drive), 0.0)}
    listing = SourceListing(sources={str(drive)})
    refuse_absent_drives(listing, known, mounts=fstab)
    fstab.write_text(f"# drives\n/dev/sdx1 {drive.parent} ext4 defaults 0 2\n")
    with pytest.raises(UsageError, match="not mounted"):
        refuse_absent_drives(listing, known, mounts=fstab)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("no-such-folder",), "no such file or folder"),
        (("empty",), "no pictures in it"),
        (("notes.md",), "expected a folder, a picture"),
        (("t.csv",), "none of the columns"),
        (("t.tar",), "not a whole, uncompressed tar"),
        (("p", "--field", "a=int"), "expected NAME=TYPE"),
        (("p", "--metadata", "exif"), "expected photo or gps"),
        (("p", "--metadata", "photo", "--field", "taken=number"), "--metadata writes a field of that name"),
        (("p/a.png", "--prune"), "name the folder"),
        (("p", "--root", "nowhere"), "no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_usage_error_leaves_nothing_behind(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    """In this process, as the collection would be made: no collection, and no server needed to find it out."""
    monkeypatch.chdir(tmp_path)
    draw(Path("p/a.png"))
    Path("empty").mkdir()
    Path("notes.md").write_text("x")
    Path("t.csv").write_text("a,b\n1,2\n")
    Path("t.tar").write_bytes(b"no tar")
    code, out, err = cli("index", *words, "-c", "never")
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert "never" not in cli("collections", "list", "--json")[1]


def test_a_misspelt_data_folder_is_not_made(cli: Cli, tmp_path: Path) -> None:
    typo = tmp_path / "typo"
    for words in (("search", "x", "-c", "c"), ("collections", "show", "c"), ("collections", "items", "c")):
        code, _, err = cli(*words, "--data", typo)
        assert (code, "no such folder" in " ".join(err.split())) == (2, True), err
    for words in (("collections", "list"), ("label-sets", "list")):
        code, _, err = cli(*words, "--data", typo)
        assert (code, "no such folder" in " ".join(err.split())) == (2, True), err
    assert not typo.exists()


def test_a_name_that_no_collection_can_have(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("index", draw(tmp_path / "a.png"), "-c", "My Photos")
    assert (code, "a-z, 0-9" in " ".join(err.split())) == (2, True)


def test_exact_duplicates_are_named_and_left_out_when_asked(told: Any, server_url: str, tmp_path: Path) -> None:
    photos = tmp_path / "p"
    draw(photos / "a.png", "red")
    draw(photos / "b.png", "blue")
    shutil.copy(photos / "a.png", photos / "copy.png")
    code, found = told(photos, "-c", "twice")
    assert (code, found["stored"]) == (0, 3)
    assert found["duplicates"] == [{"id": "copy.png", "of": "a.png", "stored": True}]
    code, found = told(photos, "-c", "once", "--skip-duplicates", "--batch-size", "1")
    assert (code, found["stored"], found["duplicates"]) == (
        0,
        2,
        [{"id": "copy.png", "of": "a.png", "stored": False}],
    )
    assert told(photos, "-c", "once", "--skip-duplicates")[1]["unchanged"] == 2
    # What held the content changes, so the copy is one no longer; and an original that went makes room for its copy.
    draw(photos / "a.png", "green")
    assert told(photos, "-c", "once", "--skip-duplicates")[1]["stored"] == 2
    assert ids(server_url, "once") == ["a.png", "b.png", "copy.png"]
    shutil.copy(photos / "b.png", photos / "c.png")
    (photos / "b.png").unlink()
    assert told(photos, "-c", "once", "--skip-duplicates", "--prune")[1]["pruned"] == 1
    assert ids(server_url, "once") == ["a.png", "c.png", "copy.png"]


def test_the_first_of_equal_pictures_is_stored_whichever_is_read_first(
    told: Any, server_url: str, tmp_path: Path
) -> None:
    pairs = [(f"{number:02}-a.png", f"{number:02}-b.png") for number in range(48)]
    for number, (first, copy) in enumerate(pairs):
        draw(tmp_path / "p" / first, f"rgb({number * 5},0,0)")
        with (tmp_path / "p" / first).open("ab") as file:
            file.write(bytes(2**20))  # read for long enough that others are read at the same time
        shutil.copy(tmp_path / "p" / first, tmp_path / "p" / copy)
    code, found = told(tmp_path / "p", "-c", "pairs", "--skip-duplicates", "--batch-size", "1", "--concurrency", "4")
    assert (code, found["stored"]) == (0, 48)
    assert found["duplicates"] == [{"id": copy, "of": first, "stored": False} for first, copy in pairs]
    assert ids(server_url, "pairs") == [first for first, _ in pairs]


def test_a_single_file_is_the_item_that_its_folder_gives(told: Any, server_url: str, tmp_path: Path) -> None:
    draw(tmp_path / "p" / "a.png", "red")
    draw(tmp_path / "p" / "b.png", "blue")
    assert told(tmp_path / "p" / "a.png", "-c", "single")[1]["stored"] == 1
    code, found = told(tmp_path / "p", "-c", "single")
    assert (code, found["stored"], found["unchanged"]) == (0, 1, 1)


def test_members_of_a_tar_file_are_counted_too(told: Any, tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png").read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("x/1.png", "x/1.txt", "x/1.cls", "x/2.txt", "x/.hidden.png", "x/3.tif"):
            info = tarfile.TarInfo(name)
            info.size = len(picture)
            tar.addfile(info, io.BytesIO(picture if name.endswith("png") else b"a" * len(picture)))
        link = tarfile.TarInfo("x/4.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    code, found = told(tmp_path / "s.tar", "-c", "tar")
    assert (code, found["stored"]) == (0, 1)
    assert found["skipped_by_reason"] == {
        "not a picture": 2,
        "hidden": 1,
        "format that is not read": 1,
        "not a file": 1,
    }


def test_another_model_is_a_conflict_and_not_unchanged(cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    store = tmp_path / "store"
    shutil.copytree(Path(os.environ["CLIPWORKS_STORE"]), store)
    shutil.copytree(store / "tiny" / "1", store / "tiny" / "2")
    manifest = store / "tiny" / "2" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    monkeypatch.setenv("CLIPWORKS_STORE", str(store))
    photos = draw(tmp_path / "p" / "a.png").parent
    assert cli("index", photos, "-c", "mine", "--model", "tiny@1")[0] == 0
    code, _, err = cli("index", photos, "-c", "mine", "--model", "tiny@2")
    assert (code, "tiny@1" in err, "tiny@2" in err) == (3, True, True), err
    code, out, err = cli("index", photos, "-c", "mine", "--model", "tiny@1", "--json")
    assert not err, err
    assert (code, json.loads(out)["unchanged"]) == (0, 1)


def test_thumbnails_are_kept_by_a_collection_made_for_them(
    cli: Cli, told: Any, server_url: str, tmp_path: Path
) -> None:
    photos = tmp_path / "p"
    draw(photos / "a" / "b.png")
    assert told(photos, "-c", "small", "--thumbnails")[1]["stored"] == 1
    draw(photos / "c.png", "blue")
    code, found = told(photos, "-c", "small", "--model", "tiny")  # it stays as it was made
    assert (code, found["stored"], found["unchanged"]) == (0, 1, 1)
    with Client(server_url) as client:
        small = client.collection("small")
        kept = small.info().thumbnails
        assert kept
        assert kept.count == 2
        for id, colour in (("a/b.png", (255, 0, 0)), ("c.png", (0, 0, 255))):
            image = Image.open(io.BytesIO(small.thumbnail(id)))
            assert (image.format, image.size) == ("WEBP", (48, 32))
            pixel = image.getpixel((20, 20))
            assert isinstance(pixel, tuple)
            assert all(abs(have - want) < 10 for have, want in zip(pixel, colour, strict=True))
    assert told(photos, "-c", "large")[0] == 0
    code, found = told(photos, "-c", "large", "--thumbnails")
    assert code == 2
    assert "--thumbnails: collection large is there and keeps none" in " ".join(found["error"].split())
    pytest.importorskip("pyarrow")
    code, _, said = cli("collections", "export", "small", tmp_path / "small.parquet", "--url", server_url)
    assert (code, "thumbnails are not in the file" in " ".join(said.split())) == (0, True)
