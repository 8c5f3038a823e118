"""`clipworks eval` as it is used: in its own process, with servers in every dialect, stopped, resumed and compared."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clipworks.cli import app
from evaluation.probe_results import ProbeResult
from evaluation.results_file import EvaluationRun, read_run, write_run
from evaluation.suites import probe_names
from model_store.store import Store
from tests.stores import SHOP_STORE, TINY_STORE

GOLDENS = TINY_STORE / "tiny" / "1" / "goldens"
PROGRAM = Path(sys.executable).with_name("clipworks")
ENDINGS = {"clipworks": "", "jina": "/v1", "infinity": "/v1"}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tiny model, and a place of this test for results that wait."""
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clipworks" / "eval"


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick run of a model that was trained on products, in a process of its own."""
    folder = tmp_path_factory.mktemp("shop")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPWORKS_")}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "CLIPWORKS_STORE": str(SHOP_STORE)}
    with (folder / "table.tsv").open("wb") as table, (folder / "remarks.txt").open("wb") as remarks:
        command = [PROGRAM, "eval", "--model", "fashion-small", "--out", folder / "run.json"]
        command += ["--html", folder / "run.html"]
        subprocess.run(command, check=True, env=environment, stdout=table, stderr=remarks, timeout=300)
    return folder


def test_a_quick_run_of_a_model_of_the_store(shop: Path) -> None:
    found = read_run(shop / "run.json")
    assert found.encoder == "fashion-small@1 (fp32)"
    assert (found.suite, found.seed, found.size_px) == ("quick", 0, 64)
    assert [result.key.probe for result in found.results] == list(probe_names())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found.date)
    lines = [line.split("\t") for line in (shop / "table.tsv").read_text().splitlines()]
    columns = "probe row n unit score low high chance blind bag truth mark prior"
    assert lines[0] == columns.split()
    printed = {(line[0], line[1]): line for line in lines[1:]}
    for result in found.results:
        for row in result.rows:
            line = printed[result.key.probe, row.name]
            assert line[2] == str(row.n)
            for text, number in zip(line[4:7], (row.score, row.low, row.high), strict=True):
                assert text == ("" if number is None else f"{number:.6g}")
    assert [line for line in lines if line[0] == "localisation"]  # it has a vector for each position
    assert printed["binding", "colours swapped"][-2] == "worse"  # it scores all captions of the same words alike
    assert printed["binding", "colours swapped"][-1] == "0.5"
    assert float(printed["negation", "four options, hybrid"][-1]) > 0.6  # longest of those that deny something
    remarks = (shop / "remarks.txt").read_text()
    assert "spurious: colours of the training pictures: n/a" in remarks
    assert "run.json" in remarks
    assert not list((shop / "cache" / "clipworks" / "eval").iterdir())


def test_the_report_is_a_page_of_this_run(shop: Path) -> None:
    page = (shop / "run.html").read_text(encoding="utf-8")
    assert "fashion-small@1 (fp32), quick" in page
    assert "<script" not in page


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EvaluationRun:
    """The tiny model's quick run in this process: what the others must agree with."""
    path = tmp_path_factory.mktemp("tiny") / "run.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
        patch.setenv("XDG_CACHE_HOME", str(path.parent))
        assert run("--model", "tiny", "--out", path).exit_code == 0
    return read_run(path)


@pytest.mark.parametrize(
    "dialect",
    ["clipworks", pytest.param("jina", marks=pytest.mark.long), pytest.param("infinity", marks=pytest.mark.long)],
)
def test_every_way_to_a_model_gives_the_same_scores(
    server_url: str, tiny: EvaluationRun, dialect: str, tmp_path: Path
) -> None:
    url = f"{server_url}{ENDINGS[dialect]}"
    size = str(tiny.size_px)  # /v1 does not tell it
    arguments = ["--url", url, "--dialect", dialect, "--model", "tiny", "--image-px", size, "--suite", "quick"]
    result = run(*arguments, "--out", tmp_path / "there.json")
    assert result.exit_code == 0, result.stderr
    there = read_run(tmp_path / "there.json")
    assert url.removesuffix("/v1") in there.encoder
    for ours, theirs in zip(tiny.results, there.results, strict=True):
        if theirs.not_applicable:  # only our own API says where
            assert (ours.key.probe, dialect == "clipworks") == ("localisation", False)
            continue
        assert theirs.questions == ours.questions
        for a, b in zip(ours.rows, theirs.rows, strict=True):
            # A vector's last bits depend on the batch it was in; one answer of a row may tip over.
            assert b.score == pytest.approx(a.score, abs=max(1.01 / max(a.n, 1), 1e-3)), (ours.key.probe, a.name)
    compared = json.loads(_compared(tiny, tmp_path / "there.json", tmp_path, "--json").stdout)
    assert {row["verdict"] for row in compared["rows"]} == {"no difference seen"}


def _compared(a: EvaluationRun, b: Path, folder: Path, *options: str) -> Result:
    write_run(a, folder / "a.json")
    return run("compare", folder / "a.json", b, *options)


@pytest.mark.long
def test_compare_puts_two_models_side_by_side(shop: Path, tmp_path: Path) -> None:
    assert run("--image-px", "64", "--out", tmp_path / "tiny.json").exit_code == 0
    result = run("compare", shop / "run.json", tmp_path / "tiny.json")
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == [
        "probe",
        "row",
        "n",
        "unit",
        "A",
        "B",
        "difference",
        "low",
        "high",
        "p",
        "p Holm",
        "test",
        "B is",
    ]
    binding = lines[1]
    assert binding[:2] == ["binding", "colours swapped"]
    assert float(binding[6]) == pytest.approx(float(binding[5]) - float(binding[4]))
    assert "paired, 16 groups" in binding
    assert len(lines) > 60
    assert "not compared: size-bias, larger wins, area x2: no score in A" in result.stderr
    found = json.loads(run("compare", shop / "run.json", tmp_path / "tiny.json", "--json").stdout)
    assert found["a"]["encoder"] == "fashion-small@1 (fp32)"
    assert found["b"]["encoder"] == "tiny@1 (fp32)"
    assert len(found["rows"]) == len(lines) - 1
    assert found["same_model"] is False
    assert "one and the same model" in run("compare", tmp_path / "tiny.json", tmp_path / "tiny.json").stderr


def test_compare_refuses_other_questions(shop: Path, tiny: EvaluationRun, tmp_path: Path) -> None:
    result = _compared(tiny, shop / "run.json", tmp_path)
    assert result.exit_code == 2
    assert f"other picture sizes: A {tiny.size_px} px, B 64 px; give both runs the same --image-px" in result.stderr
    (tmp_path / "text.json").write_text("hello")
    for name, reason in (("text.json", "text.json"), ("none.json", "No such file")):
        wrong = run("compare", shop / "run.json", tmp_path / name)
        assert (wrong.exit_code, reason in wrong.stderr) == (2, True)
    early = run("--json", "compare", shop / "run.json", shop / "run.json")
    assert (early.exit_code, "after it" in early.stderr) == (2, True)


@pytest.mark.long
def test_ctrl_c_leaves_results_that_the_next_call_uses(tiny: EvaluationRun, cache: Path) -> None:
    """They wait in a cache until the run is whole, apart from other questions, and are not asked again."""
    arguments = ["--image-px", "160"]  # large pictures, so that there is time to interrupt
    process = subprocess.Popen(
        [PROGRAM, "eval", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    give_up = time.monotonic() + 120
    while not list(cache.rglob("*.json")) and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    said = re.search(r"(\d+) of 17 results are kept in (\S+); the same command goes on from there", err)
    assert said, err
    kept, folder = int(said[1]), Path(said[2])
    assert folder.parent == cache
    assert 1 <= kept == len(list(folder.glob("*.json"))) < 17
    assert "Traceback" not in err

    other = run("--json")
    assert "results lie in" not in other.stderr
    assert json.loads(other.stdout)["results"] == json.loads(json.dumps(_plain(tiny.results)))
    assert list(cache.iterdir()) == [folder]

    first = folder / "multi-label.json"
    marked = json.loads(first.read_text()) | {"notes": ["from the first call"]}
    first.write_text(json.dumps(marked))
    again = run(*arguments)
    assert again.exit_code == 0
    assert f"{kept} of 17 results lie in {folder} already and are used" in again.stderr
    assert "multi-label: from the first call" in again.stderr
    assert len(again.stdout.splitlines()) > 60
    assert list(cache.iterdir()) == []


def _plain(results: tuple[ProbeResult, ...]) -> list[object]:
    from evaluation.probe_results import to_json

    return [to_json(result) for result in results]


@pytest.fixture
def two_photographs(tmp_path: Path) -> str:
    """A specification of two classes with a picture each."""
    for name, golden in (("cats", "rgb_jpeg_331x227"), ("dogs", "rgb_png_331x227")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(GOLDENS / f"{golden}.bin", tmp_path / "photos" / name / f"a.{golden.split('_')[1]}")
    return f"folder:{tmp_path / 'photos'},templates=1"


def test_the_shipped_model_is_asked_where_none_is_named(
    two_photographs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLIPWORKS_MODEL")
    result = run("--data", two_photographs, "--out", tmp_path / "run.json", "--folder", tmp_path / "kept")
    assert result.exit_code == 0, result.stderr
    assert read_run(tmp_path / "run.json").encoder == f"{Store(None).default_name()}@1 (fp32)"


def test_real_data_alone_asks_no_probe(two_photographs: str, tmp_path: Path) -> None:
    spec = two_photographs
    result = run("--data", spec, "--out", tmp_path / "run.json", "--folder", tmp_path / "kept")
    assert result.exit_code == 0, result.stderr
    found = read_run(tmp_path / "run.json")
    assert found.suite is None
    (only,) = found.results
    assert only.key.suite.startswith(spec)
    assert only.rows[0].n == 2
    assert spec in result.stdout
    again = run("--data", spec, "--folder", tmp_path / "kept")
    assert "1 of 1 results lie in" in again.stderr
    assert again.stdout == result.stdout
    both = run("--data", spec, "--suite", "place", "--yes", "--json")
    assert [each["key"]["probe"] for each in json.loads(both.stdout)["results"]] == ["place", only.key.probe]
    assert re.match(r"place: 1,024 pictures and \d+ texts to encode, about \d+ s\n", both.stderr)
    wrong = run("--data", f"folder:{tmp_path / 'nowhere'}")
    assert (wrong.exit_code, "no such folder" in wrong.stderr) == (2, True)


def test_what_cannot_be_asked_is_told_in_a_sentence(server_url: str, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    cases: list[tuple[list[str | Path], int, str]] = [
        (["--suite", "nonsense"], 2, "no suite 'nonsense': expected one of quick, full, binding"),
        (["--model", "none"], 3, "no model 'none'"),
        (["--model", "tiny", "--precision", "int8", "--store", tmp_path], 3, "no model 'tiny'"),
        (["--dialect", "jina"], 2, "give its --url too"),
        (["--url", server_url, "--dialect", "jina"], 2, "--model NAME"),
        (["--url", server_url, "--precision", "fp32"], 2, "a server has chosen its own"),
        (["--url", server_url, "--model", "none"], 3, "none"),
        (["--url", "nonsense", "--dialect", "jina", "--model", "m"], 2, "expected http:// or https://"),
        (["--url", closed, "--dialect", "jina", "--model", "m"], 3, f"{closed}/embeddings: "),
        (["--url", server_url, "--dialect", "jina", "--model", "tiny"], 3, "/embeddings: status 404"),
        (["--url", f"{server_url}/v1", "--dialect", "jina", "--model", "none"], 3, "status 404"),
        (["--out", tmp_path / "no" / "run.json"], 2, "there is no folder"),
        (["--html", tmp_path], 2, "this is a folder"),
        (["--image-px", "1000"], 2, "448"),
        (["nonsense"], 2, "nonsense"),
    ]
    for arguments, code, reason in cases:
        result = run(*arguments)
        told = " ".join(result.stderr.split())
        assert (result.exit_code, reason in told) == (code, True), (arguments, told)


@pytest.mark.long
def test_the_table_is_readable_at_100_columns(shop: Path, tiny: EvaluationRun) -> None:
    """On a terminal: every row on one line or two, nothing cut off."""
    table = _on_a_terminal(["eval"])
    assert max(len(line) for line in table.splitlines()) <= 100
    assert "…" not in table
    words = " ".join(table.split())
    for result in tiny.results:
        assert result.key.probe in words
        for row in result.rows:
            shown = (
                "-" if row.score is None else f"{100 * row.score:.1f}" if row.unit == "share" else f"{row.score:.2f}"
            )
            # A long name goes on in the next line, behind the numbers.
            assert re.search(rf"{re.escape(row.name[:18])}.*? {row.n} +{re.escape(shown)} ", words), row.name
    compared = _on_a_terminal(["eval", "compare", str(shop / "run.json"), str(shop / "run.json")])
    assert max(len(line) for line in compared.splitlines()) <= 100
    assert "B is better in 0 and worse in 0" in " ".join(compared.split())


def _on_a_terminal(arguments: list[str]) -> str:
    """What the program prints to a terminal of 100 columns; stderr goes elsewhere."""
    outer, inner = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen([PROGRAM, *arguments], stdout=inner, stderr=subprocess.DEVNULL, env=environment)
    os.close(inner)
    parts: list[bytes] = []
    try:
        while part := os.read(outer, 65536):
            parts.append(part)
    except OSError:
        pass  # the program closed its end
    finally:
        os.close(outer)
    assert process.wait(timeout=60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode()).replace("\r", "")
