"""`clipworks eval` about places: labelled pictures through the command line, in this process and over HTTP."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from clipworks.cli import app, eval_runs
from evaluation.dense.scene_set import chosen_pairs, draw_scenes
from evaluation.dense.task import Localisation
from evaluation.encoder import open_artifact
from evaluation.locating import Looking
from evaluation.results_file import read_run
from evaluation.scenes.captions import Caption
from evaluation.scenes.export_coco import write_coco
from evaluation.scenes.meaning import Ground
from evaluation.scenes.records import SceneRecord
from model_store.store import Store

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
ROWS = ["pointing game", "mIoU", "mIoU, labels given", "mIoU, labels given, whole cells", "box AP at .5"]
ROWS += ["mAP, presence", "mAP, peak of the map", "mAP, whole picture"]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPWORKS_STORE", str(TINY_STORE))
    monkeypatch.setenv("CLIPWORKS_MODEL", "tiny")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five drawn scenes as COCO has them."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes = draw_scenes(seed=0, pairs=chosen_pairs("held-out"), pictures=5).scenes
    captions = (Caption("x", Ground("light"), "x"),)
    records = [SceneRecord(key=f"s{at}", scene=scene, captions=captions) for at, scene in enumerate(scenes)]
    write_coco(records, folder, size_px=96)
    return f"coco-instances:{folder / 'instances.json'}"


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_same_scores_here_and_over_http(data: str, server_url: str, tmp_path: Path) -> None:
    here, there, page = tmp_path / "here.json", tmp_path / "there.json", tmp_path / "page.html"
    found = run("--data", data, "--out", here, "--html", page)
    assert found.exit_code == 0, found.stderr
    assert [line.split("\t")[1] for line in found.stdout.splitlines()[1:]] == ROWS
    served = run("--data", data, "--url", server_url, "--out", there)
    assert served.exit_code == 0, served.stderr
    (ours,), (theirs,) = read_run(here).results, read_run(there).results
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert (a.name, a.n) == (b.name, b.n)
        assert b.score == pytest.approx(a.score, abs=1e-4), a.name
        assert b.truth == pytest.approx(a.truth, abs=1e-9), a.name
    assert [each.name for each in theirs.overlays] == [each.name for each in ours.overlays]
    assert page.read_text(encoding="utf-8").count("data:image/webp") == len(ours.overlays) == 5
    compared = json.loads(run("compare", here, there, "--json").stdout)
    assert {row["row"] for row in compared["rows"]} == set(ROWS)
    assert {row["verdict"] for row in compared["rows"]} == {"no difference seen"}


def test_another_size_and_other_words_are_another_question(data: str, tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.json", tmp_path / "other.json"
    folder = tmp_path / "kept"
    for path, options in ((plain, []), (other, ["--short-px", "64", "--template", "a {}"])):
        result = run("--data", data, "--folder", folder, "--out", path, *options)
        assert result.exit_code == 0, result.stderr
        assert "lie in" not in result.stderr  # nothing of the first is used for the second
    assert "asked with short side 64 px, templates ['a {}']" in read_run(other).results[0].notes
    assert (
        "1 of 1 results lie in"
        in run("--data", data, "--folder", folder, "--short-px", "64", "--template", "a {}").stderr
    )
    assert read_run(plain).results[0].rows != read_run(other).results[0].rows
    assert run("compare", plain, other).exit_code == 0


def test_the_suite_of_places_is_one_task_over_scenes() -> None:
    encoder = open_artifact(Store(TINY_STORE, builtin=False).open("tiny"))
    looking = Looking(short_px=64)
    plan = eval_runs.plan(encoder, suite_name="localize", data=(), seed=3, pairs="trained", looking=looking)
    assert plan.suite is None
    (task,) = plan.tasks
    assert isinstance(task, Localisation)
    assert (task.name, len(task.pictures), len(task.pictures.labels)) == ("localize, trained pairs", 500, 48)
    assert (task.seed, task.looking) == (3, looking)
    quick = eval_runs.plan(encoder, suite_name="quick", data=(), seed=3, pairs="held-out", looking=Looking())
    assert quick.suite is not None
    assert quick.suite.pairs == chosen_pairs("held-out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--short-px", "64"], "short side 64 px: for --suite localize and data that says where"),
        (["--suite", "localize", "--template", "a cat"], "--template: templates ['a cat']: expected exactly one {}"),
        (["--data", "voc-seg:nowhere"], "nowhere: no folder JPEGImages"),
        (["--suite", "localise"], "no suite 'localise': expected one of quick, full"),
    ],
)
def test_what_cannot_be_asked(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_pairs_are_for_drawn_scenes(data: str) -> None:
    result = run("--data", data, "--pairs", "trained")
    assert result.exit_code == 2
    assert "--pairs is for drawn scenes" in result.stderr


def test_a_picture_of_another_size_than_its_labels_is_named(data: str) -> None:
    folder = Path(data.partition(":")[2]).parent
    picture = next((folder / "images").iterdir())
    kept = picture.read_bytes()
    try:
        Image.new("RGB", (90, 96)).save(picture)
        result = run("--data", data)
    finally:
        picture.write_bytes(kept)
    assert result.exit_code == 2
    assert f"images/{picture.name}: the picture has 90 x 96 pixels, its labels are for 96 x 96" in result.stderr
