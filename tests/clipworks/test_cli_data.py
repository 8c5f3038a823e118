"""`clipworks data`: a list and a data set by the command line, with a stored model as filter, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipworks.cli import app
from clipworks.local import LocalModel
from tests.building.raw import mosaic, samples_of, shard

FIXTURES = Path(__file__).parents[1] / "fixtures"
STORE = FIXTURES / "tiny_store"
CAPTIONS = ("a red mug", "a blue mug", "nothing here")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    shard(folder / "0.tar", [(f"{number:03d}", mosaic(number), CAPTIONS[number % 3]) for number in range(12)])
    return folder


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("list") / "queries.tsv"
    path.write_text("red mug\nblue\n", encoding="utf-8")
    return path


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["data", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_list_is_made_and_a_set_is_built_with_it(raw: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a red mug and a blue mug\n" * 5 + "a rare word\n", encoding="utf-8")
    listing = tmp_path / "queries.tsv"
    code, out, _ = run(
        *("queries", text, "--least", 5, "--bits", 1.5, "--wordnet", FIXTURES / "wordnet", "--out", listing, "--json")
    )
    assert code == 0
    assert json.loads(out)["sources"]["word"] == 5
    assert "red mug\tbigram\t5" in listing.read_text().splitlines()
    code, out, err = run("build", raw, "--queries", listing, "--out", tmp_path / "set", "--most", 2, "--workers", 1)
    assert code == 0, err
    assert "pairs\t12" in out.splitlines()
    assert "no query\t4" in out.splitlines()
    assert (tmp_path / "set" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "report.md" in err


def test_a_stored_model_leaves_out_what_fits_least(raw: Path, queries: Path, tmp_path: Path) -> None:
    options = ("--queries", queries, "--workers", 1, "--filter-model", "tiny", "--store", STORE, "--json")
    code, out, err = run("build", raw, "--out", tmp_path / "half", *options, "--keep", 0.5)
    assert code == 0, err
    model, wanted = LocalModel("tiny", STORE), [number for number in range(12) if number % 3 < 2]
    texts = model.embed(texts=[CAPTIONS[number % 3] for number in wanted])
    images = model.embed(images=[mosaic(number) for number in wanted])
    cosines = (texts * images).sum(axis=1)
    best = sorted(zip(cosines.tolist(), wanted, strict=True), reverse=True)[:4]
    found = samples_of(tmp_path / "half")
    assert {sample.meta["build"]["source"] for sample in found} == {f"0.tar/{number:03d}.jpg" for _, number in best}
    assert sorted(sample.meta["build"]["score"] for sample in found) == pytest.approx(
        sorted(score for score, _ in best), abs=2e-5
    )
    assert json.loads(out)["dropped"]["low score"] == 4
    assert json.loads(out)["least_score"] == pytest.approx(best[-1][0], abs=2e-5)


def test_copies_go_by_the_vectors_of_the_filter_or_of_a_model_named(raw: Path, queries: Path, tmp_path: Path) -> None:
    wanted = [number for number in range(12) if number % 3 < 2]
    vectors = LocalModel("tiny", STORE).embed(images=[mosaic(number) for number in wanted])
    cosine = float(np.sort((vectors @ vectors.T)[np.triu_indices(len(wanted), 1)])[-1]) - 1e-3  # of one pair of them
    options = ("--queries", queries, "--workers", 1, "--store", STORE, "--near-vectors", cosine, "--json")
    for name, words in (
        ("named", ("--vector-model", "tiny")),
        ("filter", ("--filter-model", "tiny", "--least-score", -1)),
    ):
        code, out, err = run("build", raw, "--out", tmp_path / name, *options, *words)
        assert code == 0, err
        said = json.loads(out)
        assert said["dropped"] == {"no query": 4, "near duplicate by vectors": 1}
        assert said["stages"]["no near copies by vectors"] == said["kept"] == 7
    for sample in samples_of(tmp_path / "filter"):  # by the vectors that are there already
        number = int(sample.meta["build"]["source"][-7:-4])
        (text,) = LocalModel("tiny", STORE).embed(texts=[CAPTIONS[number % 3]])
        assert sample.meta["build"]["score"] == pytest.approx(text @ vectors[wanted.index(number)], abs=2e-5)
    code, _, err = run("build", raw, "--out", tmp_path / "named", *options, "--vector-model", "tiny", "--near", 1)
    assert (code, "begun with other near_bits" in err.replace("\n", " ")) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("queries", "--out", "{tmp}/q"), "queries of what?"),
        (("queries", "{tmp}/none.txt", "--out", "{tmp}/q"), "none.txt: No such file"),
        (("queries", "{list}", "--out", "{tmp}/q", "--least", "9"), "no word comes 9 times"),
        (("queries", "--wordnet", "{tmp}", "--out", "{tmp}/q"), "index.noun: no such file"),
        (("build", "{raw}", "--queries", "{list}", "--out", "{tmp}/o", "--keep", ".5"), "need --filter-model"),
        (("build", "{raw}", "--queries", "{list}", "--out", "{tmp}/o", "--filter-model", "x"), "give --keep SHARE"),
        (
            ("build", "{raw}", "--queries", "{list}", "--out", "{tmp}/o", "--near-vectors", ".9"),
            "vectors of which model?",
        ),
        (("build", "{raw}", "--queries", "{list}", "--out", "{tmp}/o", "--vector-model", "x"), "needs --near-vectors"),
        (("build", "{raw}/none-*.tar", "--queries", "{list}", "--out", "{tmp}/o"), "no shard matches"),
        (("build", "{tmp}", "--queries", "{list}", "--out", "{tmp}/o"), "no shard matches"),
        (("build", "{raw}", "{raw}/0.tar", "--queries", "{list}", "--out", "{tmp}/o"), "named twice"),
        (("build", "{list}", "--queries", "{list}", "--out", "{tmp}/o", "--workers", "1"), None),
    ],
)
def test_refusals(raw: Path, queries: Path, tmp_path: Path, words: tuple[str, ...], message: str | None) -> None:
    code, out, err = run(*(word.format(tmp=tmp_path, list=queries, raw=raw) for word in words))
    if message is None:  # no tar file at all is a broken shard, and is counted as one
        assert (code, "broken shard\t1" in out.splitlines()) == (1, True)
        return
    assert code == 2
    assert message in err.replace("\n", "")
    assert not (tmp_path / "o" / "plan.json").exists()


def test_another_model_than_the_store_has_is_refused(raw: Path, queries: Path, tmp_path: Path) -> None:
    code, _, err = run(
        *(
            "build",
            raw,
            "--queries",
            queries,
            "--out",
            tmp_path,
            "--filter-model",
            "none",
            "--keep",
            0.5,
            "--store",
            STORE,
        )
    )
    assert code == 3
    assert "none" in err
