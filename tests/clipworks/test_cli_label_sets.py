"""Label sets from the command line, and models that collections or label sets are bound to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipworks import Client
from clipworks.cli import app
from model_store.store import Store
from tests.stores import TINY_STORE

PICTURE = TINY_STORE / "tiny" / "1" / "goldens" / "rgb_jpeg_331x227.bin"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")
    monkeypatch.setenv("CLIPWORKS_DATA", str(tmp_path / "data"))


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("where", ["server", "data folder"])
def test_put_list_show_use_and_delete(where: str, server_url: str, tmp_path: Path) -> None:
    place = ["--url", server_url] if where == "server" else []
    (tmp_path / "labels.txt").write_text("red shirt\r\nblue shoes\r\n", encoding="utf-8-sig")
    code, _, err = run("label-sets", "put", "clothes", "--labels", f"@{tmp_path / 'labels.txt'}", *place)
    assert (code, "2 labels" in err, "ready" in err) == (0, True, True), err
    listed = json.loads(run("label-sets", "list", "--json", *place)[1])
    assert [(each["name"], each["model"], each["ready"]) for each in listed] == [("clothes", "tiny@1", True)]
    assert run("label-sets", "list", *place)[1].splitlines()[1].split("\t")[:2] == ["clothes", "2"]
    assert "red shirt, blue shoes" in run("label-sets", "show", "clothes", *place)[1]
    by_set = run("classify", PICTURE, "--label-set", "clothes", "--json", *place)
    assert by_set[0] == 0, by_set[2]
    inline = run("classify", PICTURE, "--labels", "red shirt,blue shoes", "--json", *place)
    assert json.loads(by_set[1])["data"] == json.loads(inline[1])["data"]
    assert run("label-sets", "delete", "clothes", "--yes", *place)[0] == 0
    assert run("label-sets", "show", "clothes", *place)[0] != 0
    assert run("label-sets", "put", "clothes", "--labels", ",", *place)[0] == 2


def test_a_model_that_is_needed_is_not_removed(
    tmp_path: Path, serving: Callable[..., AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copytree(TINY_STORE, tmp_path / "store")
    monkeypatch.setenv("CLIPWORKS_STORE", str(store))
    remove = ["models", "remove", "tiny@1", "--yes", "--store", store]
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(PICTURE, photos / "a.jpg")
    assert run("index", photos, "--collection", "photos")[0] == 0
    assert run("label-sets", "put", "clothes", "--labels", "a,b")[0] == 0
    code, _, err = run(*remove)
    assert (code, "collection photos, label set clothes" in err, "--force" in err) == (3, True, True), err
    with serving("--store", store, "--model", "tiny", "--data", tmp_path / "data", start_s=60) as url:
        assert "collection photos, label set clothes" in run(*remove)[2]
        with Client(url) as client:
            client.delete_collection("photos")
            assert "in use by label set clothes" in run(*remove)[2]
    assert (store / "tiny" / "1").is_dir()
    assert "label set clothes" in run(*remove)[2]
    assert run(*remove, "--force")[0] == 0
    assert not (store / "tiny").exists()
    assert run("models", "remove", "tiny@" + "9" * 5000, "--yes", "--store", store)[0] == 3


def test_verify_and_list_say_whether_a_manifest_is_sealed() -> None:
    code, out, _ = run("models", "verify", "tiny", "--no-goldens", "--json", "--store", TINY_STORE)
    checks = {each["check"]: each["result"] for each in json.loads(out)["checks"]}
    assert (code, checks["seal"].startswith("none"), json.loads(out)["ok"]) == (0, True, True)
    sealed = {each["name"]: each["sealed"] for each in json.loads(run("models", "list", "--json")[1])}
    assert sealed == {artifact.manifest.name: True for artifact in Store(None).list()} | {"tiny": False}


def test_templates_weighed_by_a_collection(server_url: str, tmp_path: Path) -> None:
    place = ["--url", server_url]
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        levels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(levels).save(photos / f"{number}.png")
    assert run("index", photos, "--collection", "weighing", *place)[0] == 0
    templates = ["--template", "a {}", "--template", "the {} here"]
    put = ["label-sets", "put", "pets", "--labels", "cat,dog", *templates, *place]
    code, _, err = run(*put, "--weigh-by", "weighing", "--weigh-limit", "10")
    assert code == 0, err
    shown = json.loads(run("label-sets", "show", "pets", "--json", *place)[1])["weighed"]
    assert (shown["collection"], shown["pictures"], shown["how"]) == ("weighing", 10, "softmax")
    assert sum(shown["weights"]) == pytest.approx(1)
    lines = run("label-sets", "show", "pets", *place)[1].splitlines()
    rows = [line.split("\t") for line in lines if line[:2] in ("0.", "1.")]
    assert [row[0] for row in rows] == [f"{weight:.4f}" for weight in sorted(shown["weights"], reverse=True)]
    assert {row[1] for row in rows} == {"a {}", "the {} here"}
    code, _, err = run(*put, "--weigh-reference", "weighing")
    assert (code, "--weigh-by too" in err) == (2, True)
    code, _, err = run(*put, "--weigh-by", "none")
    assert (code, "none" in err) == (3, True), err
    with Client(server_url) as client:
        client.delete_label_set("pets")
        client.delete_collection("weighing")
