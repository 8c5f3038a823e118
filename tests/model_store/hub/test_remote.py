"""Repositories of a local hub: what is listed, fetched, refused and resumed, and which requests that takes."""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.model_store.hub import ask as in_child
from tests.model_store.hub.ask import ask, ask_each
from tests.model_store.hub.local_hub import LocalHub, came_bytes, git_oid, lay_cache, local_hub

NAME = "acme/clip"
GRAPH = "onnx/model.onnx"
SIZE = 3_000_000
CARD = "---\nlicense: other\nlicense_name: acme-research\nbase_model:\n- openai/clip\n---\n# A model\n"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    folder = tmp_path / "served" / NAME
    (folder / "onnx").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / GRAPH).write_bytes(np.random.default_rng(0).bytes(SIZE))
    for name in ("rest.onnx", "other.onnx"):
        (folder / name).write_bytes(b"not wanted" * 1000)
    with local_hub(tmp_path / "served") as hub:
        yield hub


@pytest.fixture
def environment(hub: LocalHub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def graph_requests(hub: LocalHub) -> list[tuple[str, str | None]]:
    return [(method, asked) for method, path, _, asked in hub.requests if path.endswith(GRAPH) and method == "GET"]


def test_what_is_listed_is_fetched_and_nothing_else(hub: LocalHub, environment: dict[str, str]) -> None:
    found = ask(environment, NAME, fetch=[GRAPH, "config.json"])
    original = hub.root / NAME / GRAPH
    assert found["revision"] == hub.commit(NAME)
    assert found["licence"] == "acme-research"
    assert found["base_models"] == ["openai/clip"]
    assert sorted(found["files"]) == ["README.md", "config.json", GRAPH, "other.onnx", "rest.onnx"]
    assert found["files"][GRAPH] == {
        "path": GRAPH,
        "size_bytes": SIZE,
        "sha256": digest(original),
        "git_id": None,
    }
    stated = found["files"]["config.json"]
    assert (stated["sha256"], stated["git_id"]) == (None, git_oid(b'{"model_type": "clip"}'))
    folder = Path(found["folder"])
    assert (folder / GRAPH).read_bytes() == original.read_bytes()
    assert (folder / "config.json").read_text() == '{"model_type": "clip"}'
    assert not (folder / "rest.onnx").exists()
    done = [each for each, _ in found["seen"]]
    assert done == sorted(done)
    assert {total for _, total in found["seen"]} == {SIZE}  # config.json came with the listing
    assert done[-1] == SIZE
    assert found["output"].count("\r") == 0, "the client drew its own bar"


def test_a_pinned_revision_that_is_cached_takes_no_request(hub: LocalHub, environment: dict[str, str]) -> None:
    commit = hub.commit(NAME)
    first = ask(environment, NAME, revision=commit, fetch=[GRAPH])
    hub.requests.clear()
    again = ask(environment, NAME, revision=commit, fetch=[GRAPH, "config.json"], range=[GRAPH, 10, 4])
    assert hub.requests == []
    assert {key: again[key] for key in ("revision", "licence", "files", "folder")} == {
        key: first[key] for key in ("revision", "licence", "files", "folder")
    }
    assert again["seen"] == []


def test_offline_takes_no_request_and_says_what_is_missing(hub: LocalHub, environment: dict[str, str]) -> None:
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    nothing = ask(offline, NAME, fetch=[GRAPH])
    assert nothing["error"] == "RepositoryError"
    assert "the listing of acme/clip is not in" in nothing["message"]
    assert nothing["message"].endswith("run `clipworks models pull acme/clip` once with a connection")
    assert hub.requests == []
    ask(environment, NAME, fetch=[GRAPH])
    hub.requests.clear()
    questions = [
        {"repo": NAME, "fetch": [GRAPH], "range": [GRAPH, 0, 8]},
        {"repo": NAME, "fetch": [GRAPH, "rest.onnx", "other.onnx"]},
        {"repo": NAME, "range": ["rest.onnx", 0, 8]},
        {"repo": NAME, "revision": "b" * 40},
    ]
    found, missing, part, pinned = ask_each(offline, questions)
    assert digest(Path(found["folder"]) / GRAPH) == digest(hub.root / NAME / GRAPH)
    assert "rest.onnx and other.onnx of acme/clip is not in" in missing["message"]
    assert GRAPH not in missing["message"]
    assert "rest.onnx of acme/clip is not in" in part["message"]
    assert f"clipworks models pull acme/clip@{'b' * 40}" in pinned["message"]
    assert hub.requests == []


def test_a_cache_laid_by_hand_is_read_offline(tmp_path: Path, hub: LocalHub, environment: dict[str, str]) -> None:
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    snapshot = lay_cache(tmp_path / "home", NAME, hub.root / NAME)
    found = ask(offline, NAME, fetch=[GRAPH, "README.md"])
    assert found["revision"] == "1" * 40
    assert found["licence"] == "acme-research"
    assert Path(found["folder"]) == snapshot
    assert found["files"][GRAPH] == {"path": GRAPH, "size_bytes": SIZE, "sha256": None, "git_id": None}
    blob = tmp_path / "home" / "hub" / "models--acme--clip" / "blobs" / digest(snapshot / GRAPH)
    blob.parent.mkdir()
    (snapshot / GRAPH).rename(blob)
    (snapshot / GRAPH).symlink_to(Path("../../..") / "blobs" / blob.name)
    assert ask(offline, NAME, fetch=[GRAPH])["files"][GRAPH]["sha256"] == blob.name
    blob.write_bytes(b"\0" * SIZE)
    assert ask(offline, NAME, fetch=[GRAPH])["error"] == "IntegrityError"
    assert hub.requests == []


def test_a_hub_that_is_away_does_not_matter_once_the_files_are_here(hub: LocalHub, environment: dict[str, str]) -> None:
    away = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    refused = ask(away, NAME)
    assert refused["error"] == "RepositoryError"
    assert "http://127.0.0.1:9 cannot be reached" in refused["message"]
    ask(environment, NAME, fetch=[GRAPH])
    assert ask(away, NAME, fetch=[GRAPH])["revision"] == hub.commit(NAME)


@pytest.mark.parametrize("listing_too", [False, True])
def test_a_gated_repository_is_explained(hub: LocalHub, environment: dict[str, str], listing_too: bool) -> None:
    hub.gated.add(NAME)
    if not listing_too:
        hub.open_files |= {"README.md", "config.json"}
    hub.members.add(TOKEN)
    page = f"{hub.address}/{NAME}"
    stranger = ask(environment, NAME, fetch=[GRAPH])
    assert (stranger["error"], stranger["code"]) == ("RepositoryGated", "repository_gated")
    assert f"accept its terms at {page}, then set HF_TOKEN" in stranger["message"]
    other = ask({**environment, "HF_TOKEN": "hf_somebodyelse"}, NAME, fetch=[GRAPH])
    assert other["error"] == "RepositoryGated"
    assert "the account of HF_TOKEN was not given access" in other["message"]
    assert page in other["message"]
    member = ask({**environment, "HF_TOKEN": TOKEN}, NAME, fetch=[GRAPH])
    assert digest(Path(member["folder"]) / GRAPH) == digest(hub.root / NAME / GRAPH)
    assert {token for *_, token, _ in hub.requests} == {None, "hf_somebodyelse", TOKEN}


def test_the_token_is_in_nothing_that_is_written(hub: LocalHub, environment: dict[str, str], tmp_path: Path) -> None:
    with_token = {**environment, "HF_TOKEN": TOKEN}
    hub.members.add(TOKEN)
    hub.private.add(NAME)
    answers = [ask(with_token, NAME, fetch=[GRAPH], range=["rest.onnx", 0, 4])]
    hub.faults.wrong_bytes.add("rest.onnx")
    answers.append(ask(with_token, NAME, fetch=["rest.onnx"]))
    hub.members.clear()
    answers.append(ask(with_token, NAME, revision="main", fetch=["rest.onnx"]))
    for status in (401, 403, 500):
        hub.faults.status = status
        answers.append(ask({**with_token, "HF_HOME": str(tmp_path / "empty")}, NAME))
    assert [each.get("error") for each in answers[1:]] == [
        *("IntegrityError", "RepositoryNotFound"),
        *("RepositoryGated", "RepositoryGated", "RepositoryError"),
    ]
    assert all(TOKEN not in each["output"] for each in answers)
    assert {each["cause"] for each in answers[2:]} == {None}, "an error of the client holds its request"
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
    assert TOKEN in {token for *_, token, _ in hub.requests}


def test_what_is_not_there_is_said(hub: LocalHub, environment: dict[str, str]) -> None:
    questions = [
        {"repo": "acme/nothing"},
        {"repo": NAME, "revision": "v9"},
        {"repo": NAME, "fetch": ["onnx/none.onnx"]},
        {"repo": NAME, "range": ["none.onnx", 0, 4]},
        {"repo": "a/b/c"},
        {"repo": "../../etc/passwd"},
    ]
    answers = ask_each(environment, questions)
    assert {(found["error"], found["code"]) for found in answers} == {("RepositoryNotFound", "repository_not_found")}
    assert "Traceback" not in answers[0]["output"]
    messages = [found["message"] for found in answers]
    assert messages[0].startswith(f"there is no repository acme/nothing at {hub.address}")
    assert messages[1:4] == [
        "acme/clip has no revision 'v9'",
        "acme/clip has no file onnx/none.onnx",
        "acme/clip has no file none.onnx",
    ]
    assert all("is not the name of a repository, which is ORGANISATION/NAME" in message for message in messages[4:])


def test_wrong_bytes_of_the_right_size_are_refused_and_not_kept(hub: LocalHub, environment: dict[str, str]) -> None:
    hub.faults.wrong_bytes.add(GRAPH)
    refused = ask(environment, NAME, fetch=[GRAPH])
    right = (hub.root / NAME / GRAPH).read_bytes()
    wrong = bytes(byte ^ 0xFF for byte in right)
    assert (refused["error"], refused["code"]) == ("IntegrityError", "artifact_corrupt")
    assert GRAPH in refused["message"]
    assert hashlib.sha256(right).hexdigest() in refused["message"]
    assert hashlib.sha256(wrong).hexdigest() in refused["message"]
    storage = Path(environment["HF_HOME"]) / "hub" / "models--acme--clip"
    assert not [file for file in storage.rglob("*") if file.is_file() and file.stat().st_size >= SIZE]
    hub.faults.wrong_bytes.clear()
    found = ask(environment, NAME, fetch=[GRAPH])
    assert (Path(found["folder"]) / GRAPH).read_bytes() == right


def test_wrong_bytes_of_a_small_file_are_refused_too(hub: LocalHub, environment: dict[str, str]) -> None:
    settings = "preprocessor_config.json"
    (hub.root / NAME / settings).write_text('{"size": 224}')
    hub.faults.wrong_bytes.add(settings)
    refused = ask(environment, NAME, fetch=[settings])
    assert refused["error"] == "IntegrityError"
    assert git_oid(b'{"size": 224}') in refused["message"]
    hub.faults.wrong_bytes.clear()
    found = ask(environment, NAME, fetch=[settings])
    assert (Path(found["folder"]) / settings).read_text() == '{"size": 224}'


def test_a_cached_file_that_was_changed_is_deleted_and_comes_again(hub: LocalHub, environment: dict[str, str]) -> None:
    found = ask(environment, NAME, fetch=[GRAPH])
    blob = (Path(found["folder"]) / GRAPH).resolve()
    data = bytearray(blob.read_bytes())
    data[SIZE // 2] ^= 1
    blob.write_bytes(data)
    assert ask(environment, NAME, fetch=[GRAPH])["error"] == "IntegrityError"
    assert not blob.exists()
    hub.requests.clear()
    again = ask(environment, NAME, fetch=[GRAPH])
    assert digest(Path(again["folder"]) / GRAPH) == digest(hub.root / NAME / GRAPH)
    assert graph_requests(hub) == [("GET", None)]


def test_a_cut_connection_goes_on_where_it_stopped(hub: LocalHub, environment: dict[str, str]) -> None:
    hub.faults.cut_at[GRAPH], hub.faults.cuts = 1_000_000, 1
    found = ask(environment, NAME, fetch=[GRAPH])
    assert digest(Path(found["folder"]) / GRAPH) == digest(hub.root / NAME / GRAPH)
    (_, first), (_, second) = graph_requests(hub)
    assert first is None
    assert re.fullmatch(r"bytes=[1-9]\d*-", second or "")
    assert found["seen"][-1] == [SIZE, SIZE]


def test_a_body_that_stays_short_is_refused_and_what_came_is_kept(hub: LocalHub, environment: dict[str, str]) -> None:
    hub.faults.short_body.add(GRAPH)
    hub.faults.no_ranges = True  # so that every answer is the same half
    refused = ask(environment, NAME, fetch=[GRAPH])
    assert refused["error"] == "RepositoryError"
    assert f"{SIZE // 2} of {SIZE} bytes are here" in refused["message"]
    hub.faults.short_body.clear()
    hub.faults.no_ranges = False
    hub.requests.clear()
    found = ask(environment, NAME, fetch=[GRAPH])
    assert graph_requests(hub) == [("GET", f"bytes={SIZE // 2}-")]
    assert digest(Path(found["folder"]) / GRAPH) == digest(hub.root / NAME / GRAPH)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_killed_download_goes_on(hub: LocalHub, environment: dict[str, str], ranges: bool) -> None:
    hub.faults.pause_s = 0.05
    wanted = json.dumps([{"repo": NAME, "fetch": [GRAPH]}])
    home, came = Path(environment["HF_HOME"]), 0
    with subprocess.Popen(
        [sys.executable, in_child.__file__, wanted],
        cwd=in_child.ROOT,
        env=in_child.environment_of_child(environment),
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            while came < 100_000:
                assert child.poll() is None
                came = came_bytes(home)
                time.sleep(0.01)
        finally:
            child.kill()
    hub.requests.clear()
    hub.faults.pause_s = 0.0
    hub.faults.no_ranges = not ranges
    found = ask(environment, NAME, fetch=[GRAPH])
    ((_, asked),) = graph_requests(hub)
    assert int((asked or "").removeprefix("bytes=").removesuffix("-")) >= came
    assert (Path(found["folder"]) / GRAPH).read_bytes() == (hub.root / NAME / GRAPH).read_bytes()
    assert found["seen"][0][0] >= came
    assert not list(home.rglob("*.incomplete"))


def test_a_listed_path_that_leaves_its_folder_is_refused(hub: LocalHub, environment: dict[str, str]) -> None:
    hub.faults.listed.append({"type": "file", "path": "onnx/../../evil.json", "size": 2, "oid": "0" * 40})
    refused = ask(environment, NAME, fetch=["config.json"])
    assert refused["error"] == "RepositoryError"
    assert "'onnx/../../evil.json', which does not stay in its folder" in refused["message"]


def test_a_listed_digest_is_no_path(hub: LocalHub, environment: dict[str, str]) -> None:
    lfs = {"oid": "../../../evil", "size": 2, "pointerSize": 2}
    hub.faults.listed.append({"type": "file", "path": "a.onnx", "size": 2, "oid": "0" * 40, "lfs": lfs})
    assert "a size or a digest that is none" in ask(environment, NAME, fetch=["a.onnx"])["message"]


def test_a_part_of_a_file_is_read_without_the_rest(hub: LocalHub, environment: dict[str, str]) -> None:
    data = (hub.root / NAME / GRAPH).read_bytes()
    assert bytes.fromhex(ask(environment, NAME, range=[GRAPH, 1_000_001, 12])["bytes"]) == data[1_000_001:1_000_013]
    assert graph_requests(hub) == [("GET", "bytes=1000001-1000012")]
    assert ask(environment, NAME, range=[GRAPH, SIZE - 4, 8])["message"] == (
        f"acme/clip/{GRAPH} has {SIZE} bytes, not {SIZE + 4}"
    )
    hub.faults.no_ranges = True
    assert "does not answer requests for a part of" in ask(environment, NAME, range=[GRAPH, 0, 8])["message"]
    ask(environment, NAME, fetch=[GRAPH])
    hub.requests.clear()
    assert bytes.fromhex(ask(environment, NAME, range=[GRAPH, 7, 3])["bytes"]) == data[7:10]
    assert graph_requests(hub) == []


def test_a_hub_that_fails_is_named(hub: LocalHub, environment: dict[str, str]) -> None:
    hub.faults.status = 500
    assert ask(environment, NAME)["message"] == f"acme/clip: {hub.address} answered with status 500"


def test_large_files_are_redirected_to_a_server_that_never_sees_the_token(
    hub: LocalHub, environment: dict[str, str]
) -> None:
    with local_hub(hub.root) as cdn:
        hub.faults.cdn = cdn.address
        cdn.faults.cut_at[GRAPH], cdn.faults.cuts = 1_000_000, 1
        with_token = {**environment, "HF_TOKEN": TOKEN}
        found = ask(with_token, NAME, range=[GRAPH, 5, 3], fetch=[GRAPH, "rest.onnx"])
        assert digest(Path(found["folder"]) / GRAPH) == digest(hub.root / NAME / GRAPH)
        assert bytes.fromhex(found["bytes"]) == (hub.root / NAME / GRAPH).read_bytes()[5:8]
        assert {token for *_, token, _ in hub.requests} == {TOKEN}
        assert {token for *_, token, _ in cdn.requests} == {None}
        first, second, third = graph_requests(cdn)
        assert (first, second) == (("GET", "bytes=5-7"), ("GET", None))
        assert (third[1] or "").startswith("bytes=")


def test_two_processes_download_a_file_once(hub: LocalHub, environment: dict[str, str]) -> None:
    hub.faults.pause_s = 0.02
    with ThreadPoolExecutor() as both:
        first, second = both.map(lambda _: ask(environment, NAME, fetch=[GRAPH]), range(2))
    for found in (first, second):
        assert digest(Path(found["folder"]) / GRAPH) == digest(hub.root / NAME / GRAPH)
        assert found["seen"][-1] == [SIZE, SIZE]
    assert len(graph_requests(hub)) == 1
