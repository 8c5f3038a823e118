"""index, search and collections as they are used: folders, tables, tar files, a server that dies, files in and out."""

import base64
import csv
import io
import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from clipworks import Client
from clipworks.cli import app
from clipworks.cli.contact_sheet import contact_sheet
from clipworks.cli.failures import UsageError
from clipworks.cli.index import fields_of
from clipworks.cli.index_tables import read_csv, typed_cells
from clipworks.cli.search_query import check_id, parse_filter
from clipworks.results import Hit, Hits

CLIPWORKS = Path(sys.executable).with_name("clipworks")
TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
START_S = 120


@pytest.fixture(autouse=True)
def _tiny_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")
    monkeypatch.setenv("CLIPWORKS_DATA", str(tmp_path / "data"))


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command line, in this process."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def real(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    words = [CLIPWORKS, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)


def draw(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 32), colour).save(path)
    return path


def report(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(*arguments, "--json")
    return code, json.loads(out)


def counts(found: dict[str, Any]) -> tuple[int, int, int, int]:
    return found["stored"], found["unchanged"], found["pruned"], len(found["failures"])


# ---------------------------------------------------------------- index


def test_only_what_changed_is_stored_again(server_url: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name, colour in (("a.png", "red"), ("sub/b.jpg", "blue"), ("sub/c.png", "green"), (".hidden/d.png", "red")):
        draw(photos / name, colour)
    (photos / "bad.jpg").write_bytes(b"no picture")
    command = ("index", photos, "-c", "changes", "--url", server_url)
    code, first = report(*command)
    assert (code, counts(first)) == (1, (3, 0, 0, 1))
    assert first["failures"][0]["id"] == "bad.jpg"
    with Client(server_url) as client:
        target = client.collection("changes")
        target.upsert([{"id": "mine", "text": "stored by hand"}])
        stored = {item.id: item for item in target.items()}
        assert sorted(stored) == ["a.png", "mine", "sub/b.jpg", "sub/c.png"]
        facts = stored["sub/b.jpg"].metadata
        assert (facts["path"], facts["size"]) == (str(photos / "sub/b.jpg"), (photos / "sub/b.jpg").stat().st_size)
        os.utime(photos / "a.png", (1, 1))
        draw(photos / "sub/b.jpg", "yellow")
        (photos / "sub/c.png").unlink()
        (photos / "bad.jpg").unlink()
        code, second = report(*command)
        assert (code, counts(second)) == (0, (1, 1, 0, 0))
        assert target.get("sub/b.jpg").metadata["sha256"] != facts["sha256"]
        code, third = report(*command, "--prune")
        assert (code, counts(third)) == (0, (0, 2, 1, 0))
        assert [item.id for item in target.items()] == ["a.png", "mine", "sub/b.jpg"]


def test_two_folders_do_not_overwrite_each_other(server_url: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    draw(one / "a.png", "red")
    draw(other / "a.png", "blue")
    assert run("index", one, "-c", "two", "--url", server_url)[0] == 0
    code, found = report("index", other, "-c", "two", "--url", server_url)
    assert (code, counts(found)) == (1, (0, 0, 0, 1))
    assert str(one) in found["failures"][0]["message"]
    assert counts(report("index", other, "-c", "two", "--url", server_url, "--prefix", "other/")[1]) == (1, 0, 0, 0)
    moved = tmp_path / "moved"
    shutil.move(one, moved)
    assert counts(report("index", moved, "-c", "two", "--url", server_url)[1]) == (1, 0, 0, 0)


def test_tables_and_tar_files_bring_metadata_and_pictures(server_url: str, tmp_path: Path) -> None:
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0)}
    for colour in colours:
        draw(tmp_path / "files" / f"{colour}.png", colour)
    table = tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "year", "code", "note"])
        writer.writerow(["files/red.png", "2020", "007", 'a "b", c'])
        writer.writerow(["files/blue.png", "twenty", "1", ""])
        writer.writerow(["files/none.png", "2021", "1", ""])
        writer.writerow(["files/red.png", "2022", "1", ""])
    code, found = report("index", table, "-c", "kinds", "--field", "year=number", "--url", server_url)
    assert (code, counts(found)) == (1, (1, 0, 0, 3))
    reasons = " | ".join(each["message"] for each in found["failures"])
    for wanted in ("year: expected a number, got 'twenty'", "No such file", "given to an earlier picture"):
        assert wanted in reasons
    blue = (tmp_path / "files" / "blue.png").read_bytes()
    rows = pa.table({"image": [{"bytes": blue, "path": "x"}], "year": [1999], "tags": [["a", "b"]]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert run("index", tmp_path / "rows.parquet", "-c", "kinds", "--url", server_url)[0] == 0
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, data in (
            ("s/1.png", (tmp_path / "files" / "green.png").read_bytes()),
            ("s/1.txt", b"a green square\n"),
            ("s/1.json", b'{"width": 48}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert run("index", tmp_path / "shard.tar", "-c", "kinds", "--url", server_url)[0] == 0
    with Client(server_url) as client:
        target = client.collection("kinds")
        stored = {item.id: item.metadata for item in target.items()}
    assert sorted(stored) == ["files/red.png", "rows.parquet#0", "shard.tar/s/1.png"]
    red = stored["files/red.png"]
    assert (red["year"], red["code"], red["note"]) == (2020, "007", 'a "b", c')
    assert (stored["rows.parquet#0"]["tags"], stored["rows.parquet#0"]["year"]) == (["a", "b"], 1999)
    member = stored["shard.tar/s/1.png"]
    assert (member["caption"], member["json"]) == ("a green square", {"width": 48})
    hits = [Hit(id=id, score=0.5, metadata=metadata) for id, metadata in stored.items()]
    page = contact_sheet(Hits(exact=True, hits=hits), title="t", collection="c")
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in re.findall('base64,([^"]+)', page)]
    assert len(shown) == 3
    for picture, colour in zip(shown, ("red", "blue", "green"), strict=True):
        assert np.abs(picture.reshape(-1, 3).mean(axis=0) - colours[colour]).max() < 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "none of the columns image"),
        ("image,size\nx.png,XL\n", "rename the column 'size'"),
        ("image,image\nx,y\n", "two columns are called 'image'"),
        ("", "no pictures|must name every column"),
    ],
)
def test_tables_that_cannot_be_read(server_url: str, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    code, _, err = run("index", tmp_path / "t.csv", "-c", "never", "--url", server_url)
    assert code == 2
    assert re.search(message, " ".join(err.split()))


# ---------------------------------------------------------------- search


def test_search_finds_by_text_picture_and_item(server_url: str, tmp_path: Path) -> None:
    for colour in ("red", "blue", "green", "white"):
        draw(tmp_path / "p" / f"{colour}.png", colour)
    run("index", tmp_path / "p", "-c", "found", "--url", server_url)
    base = ("search", "-c", "found", "--url", server_url)
    code, by_picture = report(*base, "--image", tmp_path / "p" / "blue.png", "-k", "2")
    assert (code, by_picture["exact"], len(by_picture["hits"])) == (0, True, 2)
    assert (by_picture["hits"][0]["id"], round(by_picture["hits"][0]["score"], 3)) == ("blue.png", 1.0)
    ids = [hit["id"] for hit in report(*base, "--like", "red.png")[1]["hits"]]
    assert sorted(ids) == ["blue.png", "green.png", "white.png"]
    with Client(server_url) as client:
        [wanted] = client.collection("found").search([{"combine": ["a car", {"id": "red.png"}]}])
    both = report(*base, "a car", "--like", "red.png")[1]["hits"]
    assert [(hit["id"], hit["score"]) for hit in both] == [(hit.id, hit.score) for hit in wanted.hits]
    lines = run(*base, "a car", "--filter", '{"size": {"$lt": 0}}')[1].splitlines()
    assert lines == ["#\tscore\tid\tmetadata"]
    for words, message in (
        ((), "nothing to look for"),
        (("--image", tmp_path / "none.png"), "no such file"),
        (("x", "--filter", "{'a': 1}"), "double quotes"),
        (("x", "--like", "\n"), "control characters"),
    ):
        code, _, err = run(*base, *words)
        assert (code, message in " ".join(err.split())) == (2, True), err
    code, _, err = run("search", "x", "-c", "none", "--url", server_url)
    assert (code, "clipworks collections list" in err) == (3, True)


def test_a_sheet_shows_no_markup_and_no_other_picture(tmp_path: Path) -> None:
    path = draw(tmp_path / "a.png", "red")
    evil = "<img src=x onerror=alert(1)>\"'&\ud800"
    hits = [
        Hit(id=evil, score=0.5, metadata={"path": str(path), "sha256": "of another", evil: evil, "licence": evil}),
        Hit(id="gone", score=0.4, metadata={"path": str(tmp_path / "gone.png"), "sha256": "x"}),
        Hit(id="none", score=0.3, metadata={}),
    ]
    page = contact_sheet(Hits(exact=False, hits=hits), title=evil, collection=evil)
    page.encode("utf-8")
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;?") >= 5
    for reason in ("the file changed since it was indexed", "No such file", "its metadata has no path"):
        assert reason in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "<script" not in page


# ---------------------------------------------------------------- folders, servers, files


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Any]:
    """start() runs a server on this test's data folder and gives its process; whatever still runs is ended."""
    running: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [CLIPWORKS, "serve", "--port", "0", "--log-level", "warning", "--no-builtin", "--drain-grace-s", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(server)
        alarm = threading.Timer(START_S, server.kill)
        alarm.start()
        assert server.stdout
        assert any("ready" in line for line in server.stdout), "the server did not start"
        alarm.cancel()
        return server

    yield start
    for server in running:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()


def address_of(folder: Path) -> str:
    """What the server left in the data folder's lock file."""
    return json.loads((folder / "data" / "LOCK").read_bytes())["address"]


@pytest.mark.long
def test_a_killed_server_loses_nothing_and_the_same_command_goes_on(own_server: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 48, 48, 3), dtype=np.uint8)
    (tmp_path / "many").mkdir()
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "many" / f"{index}.png")
    server = own_server()
    assert server.poll() is None
    index = [CLIPWORKS, "index", tmp_path / "many", "-c", "many", "--batch-size", "2", "--concurrency", "1"]
    indexer = subprocess.Popen(index, stderr=subprocess.PIPE, text=True)
    with Client(address_of(tmp_path)) as client:
        while indexer.poll() is None and sum(info.count for info in client.collections()) < 10:
            time.sleep(0.02)
    server.send_signal(signal.SIGKILL)
    _, said = indexer.communicate(timeout=120)
    assert indexer.returncode == 3, said
    assert "asking it" in said
    acknowledged = int(re.findall(r"(\d+) stored", said)[-1])
    assert 10 <= acknowledged < 120
    # The folder is free now: the rest goes in without a server.
    done = real("index", tmp_path / "many", "-c", "many", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["unchanged"] >= acknowledged
    assert found["stored"] + found["unchanged"] == 120
    checked = real("collections", "doctor", "many", "--json")
    assert (checked.returncode, json.loads(checked.stdout)["many"]["rows"]) == (0, 120)


def test_the_life_of_a_folder(own_server: Any, tmp_path: Path) -> None:
    code, _, err = run("collections", "doctor")
    assert (code, "no collections in this folder" in " ".join(err.split())) == (2, True)
    for colour in ("red", "blue", "green"):
        draw(tmp_path / "p" / f"{colour}.png", colour)
    assert run("index", tmp_path / "p", "-c", "colours", "--field", "size=number")[0] == 0
    file = tmp_path / "out" / "colours.parquet"
    file.parent.mkdir()
    assert run("collections", "export", "colours", file)[0] == 0
    assert run("collections", "export", "colours", file)[0] == 2
    assert run("collections", "import", file, "--name", "copy")[0] == 0
    assert run("collections", "snapshot", "colours", tmp_path / "c.snap")[0] == 0
    assert run("collections", "restore", tmp_path / "c.snap", "--name", "restored")[0] == 0
    assert run("collections", "compact", "copy")[0] == 0
    code, listed = report("collections", "list")
    assert [(each["name"], each["count"]) for each in listed] == [("colours", 3), ("copy", 3), ("restored", 3)]
    rows = pq.read_table(file).to_pylist()
    server = own_server()
    with Client(address_of(tmp_path)) as client:
        for name in ("copy", "restored"):
            items = list(client.collection(name).items(include=["metadata", "vector"]))
            for row, item in zip(rows, items, strict=True):
                assert (row["id"], json.loads(row["metadata"])) == (item.id, item.metadata)
                np.testing.assert_array_max_ulp(np.float32(row["vector"]), np.float32(item.vector), maxulp=1)
    # The server does it; without an admin key it says why it does not.
    code, _, err = run("collections", "doctor")
    assert (code, "CLIPWORKS_ADMIN_KEYS" in " ".join(err.split())) == (3, True)
    server.terminate()
    server.wait(timeout=60)
    assert run("collections", "delete", "copy")[0] == 2
    assert run("collections", "delete", "copy", "--yes")[0] == 0
    assert run("collections", "show", "copy")[0] == 3


def test_a_file_of_another_space_is_refused(server_url: str, tmp_path: Path) -> None:
    draw(tmp_path / "p" / "red.png", "red")
    assert run("index", tmp_path / "p", "-c", "spaces", "--url", server_url)[0] == 0
    file, manifest = tmp_path / "s.parquet", tmp_path / "s.manifest.json"
    assert run("collections", "export", "spaces", file, "--url", server_url)[0] == 0
    good = json.loads(manifest.read_text())
    for change, code, message in (
        ({"space": "0" * 64}, 3, "0" * 64),
        ({"fingerprint": good["fingerprint"] | {"image": "f" * 64}}, 3, "f" * 64),
        ({"sha256": "0" * 64}, 2, "its sha256 differs"),
        ({"format_version": 2}, 2, "format_version"),
    ):
        manifest.write_text(json.dumps(good | change))
        for name in ("spaces", "new"):
            got, _, err = run("collections", "import", file, "--name", name, "--url", server_url)
            assert (got, message in "".join(err.split("\n"))) == (code, True), err
    manifest.unlink()
    assert run("collections", "import", file, "--url", server_url)[0] == 2
    with Client(server_url) as client:
        assert "new" not in [info.name for info in client.collections()]


def test_collections_in_memory_need_a_server() -> None:
    code, _, err = run("collections", "list", "--data", "memory")
    assert (code, "in memory" in err) == (2, True)


# ---------------------------------------------------------------- what people type

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_a_filter_is_read_as_json(wanted: dict[str, Any]) -> None:
    assert parse_filter(json.dumps(wanted)) == wanted


@given(st.text() | st.text('{}[]":,0N'))
def test_any_other_filter_is_a_usage_error(text: str) -> None:
    try:
        found = parse_filter(text)
    except UsageError:
        return
    assert found == json.loads(text)
    assert isinstance(found, dict)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, "[]", "3", ""])
def test_filters_that_would_mean_something_else(text: str) -> None:
    with pytest.raises(UsageError):
        parse_filter(text)


@given(st.text(max_size=600))
def test_ids_are_checked_as_the_server_does(id: str) -> None:
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        size = 0
    fine = 1 <= size <= 512 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in id)
    if fine:
        assert check_id(id) == id
    else:
        with pytest.raises(UsageError):
            check_id(id)


cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=8)


@given(
    names=st.lists(st.text(string.ascii_letters, min_size=1, max_size=5), min_size=2, max_size=4, unique=True),
    data=st.data(),
)
def test_csv_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: Any
) -> None:
    rows = data.draw(st.lists(st.lists(cells, min_size=len(names), max_size=len(names)), max_size=4))
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    assert [list(row.cells.values()) for row in read_csv(path)] == rows


@given(st.binary(max_size=200))
def test_any_other_csv_is_rows_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_bytes(content)
    try:
        for row in read_csv(path):
            assert row.problem or all(isinstance(cell, str) for cell in row.cells.values())
    except UsageError:
        pass


@given(st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False))
def test_declared_numbers_are_numbers(number: float) -> None:
    assert typed_cells({"n": f" {number!r}", "t": "007"}, {"n": "number"}) == {"n": number, "t": "007"}


@pytest.mark.parametrize(("kind", "text"), [("number", "1_0"), ("number", "nan"), ("boolean", "1"), ("string[]", "a")])
def test_cells_that_have_no_such_value(kind: str, text: str) -> None:
    with pytest.raises(ValueError, match="n: expected"):
        typed_cells({"n": text}, {"n": kind})


def test_fields_are_checked() -> None:
    assert fields_of(["a.b=number", "c=d=string[]"]) == {"a.b": "number", "c=d": "string[]"}
    for wrong in (["a"], ["=number"], ["a=int"], ["a=number", "a=string"]):
        with pytest.raises(UsageError):
            fields_of(wrong)
