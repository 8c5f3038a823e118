"""The command line as it is used: output, files, exit codes; with a server, and in its own process."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

from clipworks.cli import app
from service.settings import Settings

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
GOLDENS = TINY_STORE / "tiny" / "1" / "goldens"


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture(autouse=True)
def _tiny_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures in it, one below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    shutil.copy(GOLDENS / "rgb_jpeg_331x227.bin", folder / "a.jpg")
    shutil.copy(GOLDENS / "rgb_png_331x227.bin", folder / "more" / "b.png")
    (folder / "notes.md").write_text("not a picture")
    return folder


def run(*arguments: str | Path, stdin: bytes | None = None, json_asked: pytest.MonkeyPatch | None = None) -> Outcome:
    words = [str(argument) for argument in arguments]
    if json_asked:  # errors look at the real command line
        json_asked.setattr(sys, "argv", ["clipworks", *words])
    result = CliRunner().invoke(app, words, input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_embed_gives_the_same_file_with_and_without_a_server(server_url: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\n\n  a dog\n", encoding="utf-8")
    inputs = [photos, tmp_path / "texts.txt", "--text", "first"]
    here, there = tmp_path / "here.npy", tmp_path / "there.npy"
    assert run("embed", *inputs, "--out", here).code == 0
    done = run("embed", *inputs, "--out", there, "--url", server_url)
    assert done.code == 0
    assert "5 of 5 embedded by tiny@1" in done.err
    assert np.load(here).shape == (5, 32)
    assert_array_equal(np.load(here), np.load(there))
    facts = json.loads(there.with_suffix(".json").read_text())
    names = [str(photos / "a.jpg"), str(photos / "more" / "b.png")]
    assert facts["inputs"] == ["first", "a cat", "a dog", *names]
    assert (facts["model"], facts["dim"], facts["errors"]) == ("tiny@1", 32, [])


def test_embed_reads_stdin(server_url: str, photos: Path) -> None:
    lines = run("embed", "-", "--url", server_url, stdin=b"ein Hund\neine Katze\n")
    records = [json.loads(line) for line in lines.out.splitlines()]
    assert [record["input"] for record in records] == ["ein Hund", "eine Katze"]
    photo = photos / "a.jpg"
    piped = run("embed", "-", "--stdin", "image", "--url", server_url, stdin=photo.read_bytes())
    named = run("embed", "-", "--stdin", "paths", "--url", server_url, stdin=str(photo).encode())
    assert json.loads(piped.out)["embedding"] == json.loads(named.out)["embedding"]
    binary = run("embed", "-", "--url", server_url, stdin=photo.read_bytes())
    assert binary.code == 2
    assert "--stdin image" in binary.err


def test_a_bad_file_does_not_stop_the_others(server_url: str, photos: Path, tmp_path: Path) -> None:
    shutil.copy(GOLDENS / "truncated_jpeg.bin", photos / "broken.jpg")
    done = run("embed", photos, "--out", tmp_path / "v.jsonl", "--url", server_url)
    assert done.code == 1
    assert "broken.jpg" in done.err
    records = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert [sorted(record) for record in records] == [
        ["embedding", "index", "input"],
        ["error", "index", "input"],
        ["embedding", "index", "input"],
    ]
    npy = run("embed", photos, "--out", tmp_path / "v.npy", "--url", server_url, "--json")
    assert npy.code == 1
    assert json.loads(npy.out)["errors"][0]["code"] == "invalid_image"
    assert np.isnan(np.load(tmp_path / "v.npy")).all(axis=1).tolist() == [False, True, False]
    scores = run("classify", photos, "--labels", "cat,dog", "--url", server_url)
    assert scores.code == 1
    assert len(scores.out.splitlines()) == 1 + 2 * 2


def test_classify(server_url: str, photos: Path, tmp_path: Path) -> None:
    done = run("classify", photos / "a.jpg", "--labels", "cat, dog,car", "--top-k", "2", "--url", server_url)
    header, *rows = (line.split("\t") for line in done.out.splitlines())
    assert done.code == 0
    assert header == ["image", "label", "score", "similarity"]
    assert [len(rows), rows[0][0]] == [2, str(photos / "a.jpg")]
    (tmp_path / "labels").write_text("cat\ndog\ncar\n")
    asked = run("classify", photos / "a.jpg", "--labels", f"@{tmp_path / 'labels'}", "--url", server_url, "--json")
    (image,) = json.loads(asked.out)["data"]
    assert [each["label"] for each in image["predictions"]][:2] == [row[1] for row in rows]
    assert sum(each["score"] for each in image["predictions"]) == pytest.approx(1, abs=1e-5)


def test_models(server_url: str) -> None:
    assert "tiny@1\t32" in run("models", "list").out
    assert "tiny" in [each["name"] for each in json.loads(run("models", "list", "--json").out)]
    assert "tiny@1\t32\tfp32\tloaded" in run("models", "list", "--url", server_url).out
    assert "Random weights" in run("models", "show", "tiny").out
    assert json.loads(run("models", "show", "tiny", "--json", "--url", server_url).out)["dim"] == 32


def test_models_verify_finds_a_changed_file(tmp_path: Path) -> None:
    good = run("models", "verify", "tiny@1", "--json")
    assert good.code == 0
    assert [each["check"] for each in json.loads(good.out)["checks"]] == [
        "seal",
        "files",
        "goldens fp32",
        "goldens int8",
    ]
    store = tmp_path / "store"
    shutil.copytree(TINY_STORE, store)
    graph = store / "tiny" / "1" / "text_encoder.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[-100] ^= 1
    graph.write_bytes(data)
    bad = run("models", "verify", "tiny", "--store", store)
    assert bad.code == 1
    assert "text_encoder.fp32.onnx does not match its sha256" in bad.out


def test_models_remove(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(TINY_STORE, store)
    assert run("models", "remove", "tiny", "--store", store).code == 2
    assert run("models", "remove", "tiny@1", "--store", store, stdin=b"y\n").code == 2  # a pipe is nobody
    assert (store / "tiny" / "1").exists()
    assert run("models", "remove", "tiny@1", "--yes", "--store", store).code == 0
    assert not (store / "tiny").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["embed"], 2, "nothing to embed"),
        (["embed", "no-such-file.jpg"], 2, "no such file"),
        (["embed", "/dev/null"], 2, "/dev/null: not a file"),
        (["label-sets", "delete", "pets"], 2, "write --yes"),
        (["embed", "--text", "a", "--out", "vectors.csv"], 2, ".npy or .jsonl"),
        (["embed", "--text", "a", "--url", "ftp://x"], 2, "http"),
        (["embed", "--text", "a", "--url", "127.0.0.1:9"], 3, "clipworks serve"),
        (["embed", "--text", "a", "--model", "no-such-model"], 3, "tiny@1"),
        (["classify", "a.jpg"], 2, "--labels cat,dog"),
        (["classify", "a.jpg", "--labels", ","], 2, "cat,dog"),
        (["models", "show", "no-such-model"], 3, "tiny@1"),
        (["serve", "--port", "high"], 2, "CLIPWORKS_PORT (--port)"),
        (["serve", "--device", "tpu"], 2, "'cpu'"),
        (["bench", "--url", "127.0.0.1:9"], 3, "clipworks serve"),
        (["bench", "--rate", "-1"], 2, "positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said_in_one_line(arguments: Sequence[str], code: int, says: str) -> None:
    done = run(*arguments)
    assert done.code == code, done.err
    assert says in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_errors_are_json_when_json_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("models", "show", "no-such-model", "--json", json_asked=monkeypatch)
    assert done.code == 3
    assert json.loads(done.err)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("missing", "arguments", "remedy"),
    [
        ("torch", ["train", __file__], "pip install 'clipworks[train,serve]'"),
        (
            "torch",
            ["models", "import", "ViT-B-32", "--name", "x", "--store", "s"],
            "pip install 'clipworks[train,serve]'",
        ),
        ("fastapi", ["embed", "--text", "a"], "pip install 'clipworks[serve]'"),
        ("pydantic_settings", ["serve"], "pip install 'clipworks[serve]'"),
    ],
)
def test_a_missing_part_is_named_with_its_remedy(missing: str, arguments: list[str], remedy: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from clipworks.cli import app; app({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert remedy in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_has_a_flag_for_every_setting() -> None:
    done = run("serve", "--help")
    assert done.code == 0
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in done.out, name


def test_flags_reach_the_server_and_win_over_the_environment(server_url: str) -> None:
    """A port that is taken ends a server at once, and says that the flag arrived."""
    port = server_url.rpartition(":")[2]
    command = [Path(sys.executable).with_name("clipworks"), "serve", "--port", port, "--no-builtin", "--data", "memory"]
    environment = {"PATH": "/usr/bin:/bin", "CLIPWORKS_PORT": "1", "CLIPWORKS_STORE": str(TINY_STORE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use by another program" in done.stderr + done.stdout


def test_bench(server_url: str, photos: Path) -> None:
    options = ["--url", server_url, "--duration-s", "0.6", "--warmup-s", "0.1", "--clients", "2", "--json"]
    for inputs in ([], [photos], ["--of", "texts", "--items", "4"], ["--rate", "20"]):
        done = run("bench", *inputs, *options)
        assert done.code == 0, done.err
        result = json.loads(done.out)
        assert result["items"] > 0
        assert result["errors"] == {}
        assert 0 < result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"]


def embedded(server_url: str) -> float:
    """How many requests to /embed the server has answered."""
    lines = httpx2.get(f"{server_url}/metrics").text.splitlines()
    counts = [line.split()[-1] for line in lines if line.startswith("clipworks_requests_total{") and '"/embed"' in line]
    return sum(map(float, counts))


def test_ctrl_c_ends_a_running_command(server_url: str) -> None:
    """In the middle of its work, with one line and no traceback."""
    command = [Path(sys.executable).with_name("clipworks"), "bench", "--of", "texts", "--duration-s", "60"]
    # A job that a shell put in the background ignores SIGINT, and its children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*command, "--url", server_url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        already, give_up = embedded(server_url), time.monotonic() + 120
        while embedded(server_url) < already + 3 and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in err
