"""Whole builds of small raw shards: pairs kept and counted, and the same bytes however the work was done."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.building.raw import mosaic, plan, samples_of, shard, shards_of
from training.building.build import BuildPlan, build
from training.building.queries import QueryIndex
from training.building.sources import find_units, raw_pairs

CUT_AT = 3  # of the raw shards, the one that is cut
QUERIES = ("a", "red mug", "red", "blue mug", "zebra", "owl")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frequent and rare captions, copies, copies coded again, a cut picture and shard, no query, no caption."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    captions: list[str] = rng.choice(
        ["a red mug", "a blue mug!", "one owl", "nothing"], size=150, p=[0.7, 0.2, 0.05, 0.05]
    ).tolist()
    captions[64] = ""
    for number in range(5):
        pairs: list[tuple[str, bytes, str]] = []
        for row in range(30 * number, 30 * number + 30):
            data = mosaic(7, quality=90 - row % 4) if row % 10 == 0 else mosaic(1000 + row)
            pairs.append((f"{row:05d}", data[: len(data) // 2] if row == 33 else data, captions[row]))
        path = shard(folder / f"raw-{number}.tar", pairs)
        if number == CUT_AT:
            path.write_bytes(path.read_bytes()[:-9000])
    return folder


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "queries.tsv"
    path.write_text("\n".join(QUERIES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def work(raw: Path, queries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was found of each pair, for all builds here."""
    folder = tmp_path_factory.mktemp("work")
    build(plan(raw, queries, tmp_path_factory.mktemp("first"), work=folder))
    return folder


def facts_in(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in (work / "facts").glob("*.jsonl") for line in path.read_text().splitlines()]


def test_every_pair_is_kept_or_left_out_for_one_reason(raw: Path, queries: Path, work: Path, tmp_path: Path) -> None:
    report = build(plan(raw, queries, tmp_path, work=work, most=20, total=25))
    facts = facts_in(work)
    assert report.stages["pairs"] == len(facts) == len({fact["name"] for fact in facts})
    assert report.kept + sum(report.dropped.values()) == len(facts)
    kept = [sample.meta["build"]["source"] for sample in samples_of(tmp_path)]
    assert report.kept == len(kept) == len({*kept}) == 25
    assert {*kept} < {fact["name"] for fact in facts}
    faults = Counter(fact["fault"] for fact in facts if fact["fault"])
    assert faults == {"no query": report.dropped["no query"], "broken picture": 1, "broken shard": 1, "no caption": 1}
    assert {reason: report.dropped[reason] for reason in faults} == faults
    same = [fact for fact in facts if fact["fault"] is None and int(fact["name"][-9:-4]) % 10 == 0]
    assert report.dropped["duplicate"] + report.dropped["near duplicate"] == len(same) - 1
    assert report.dropped["near duplicate"] == 1  # two qualities
    assert list(report.stages.values()) == sorted(report.stages.values(), reverse=True)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["stages"] == report.stages
    assert written["examples"]["near duplicate"][0]["twin"].startswith("raw-")
    assert f"25 kept + {len(facts) - 25} left out = {len(facts)} pairs." in (tmp_path / "report.md").read_text()


def test_what_is_written_is_what_was_read(raw: Path, queries: Path, work: Path, tmp_path: Path) -> None:
    build(plan(raw, queries, tmp_path, work=work, most=10))
    before = {sample.name: sample for sample in samples_of_whole(raw)}
    index = QueryIndex(QUERIES)
    for sample in samples_of(tmp_path):
        record = sample.meta["build"]
        assert (sample.data, sample.caption) == (before[record["source"]].data, before[record["source"]].caption)
        assert record["queries"] == [QUERIES[number] for number in index.found_in(sample.caption)]
        assert record["chosen_for"]
        assert {*record["chosen_for"]} <= {*record["queries"]}


def samples_of_whole(raw: Path) -> list[Any]:
    from evaluation.standard.shards import BadSample, streamed_samples

    found: list[Any] = []
    for path in sorted(raw.glob("*.tar")):
        with path.open("rb") as file:
            found += [each for each in streamed_samples(file, path.name) if not isinstance(each, BadSample)]
    return found


def test_equal_bytes_from_another_order_and_number_of_processes(raw: Path, queries: Path, tmp_path: Path) -> None:
    build(plan(raw, queries, tmp_path / "one", most=10))
    two = plan(raw, queries, tmp_path / "two", workers=2, most=10)
    assert [unit.url for unit in two.units] == sorted(unit.url for unit in two.units)
    build(two)
    assert shards_of(tmp_path / "two") == shards_of(tmp_path / "one")
    assert len(shards_of(tmp_path / "one")) > 1


def test_the_same_pairs_stay_when_they_lie_in_other_shards(
    raw: Path, queries: Path, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    samples = samples_of_whole(raw)
    order = np.random.default_rng(1).permutation(len(samples))
    for number, part in enumerate(np.array_split(order, 3)):
        pairs = [(f"x{place}", samples[place].data, samples[place].caption) for place in part]
        shard(tmp_path / "raw" / f"other-{number}.tar", pairs)
    for kind in ("wit", "metaclip"):
        build(plan(raw, queries, tmp_path / f"{kind} 0", work=work, balance=kind, most=9))
        build(plan(tmp_path / "raw", queries, tmp_path / f"{kind} 1", balance=kind, most=9, work=tmp_path / "work"))
        held = [{(s.data, s.caption) for s in samples_of(tmp_path / f"{kind} {n}")} for n in (0, 1)]
        assert held[0] == held[1]


@pytest.mark.parametrize("cut", [2, 8, 16])
def test_a_build_that_was_cut_goes_on_to_the_same_bytes(
    raw: Path, queries: Path, work: Path, tmp_path: Path, cut: int
) -> None:
    """cut: after so many steps of the work: in the first pass, while deciding, while writing."""
    whole, cutting = (
        plan(raw, queries, tmp_path / "whole", work=work, most=10),
        plan(raw, queries, tmp_path / "cut", most=10),
    )
    build(whole)
    with pytest.raises(KeyboardInterrupt):
        build(cutting, progress=stopping(cut))
    (tmp_path / "cut" / ".00001.tar.writing").write_bytes(b"of a killed process")
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.tar")}
    facts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "work" / "facts").glob("*.jsonl")}
    assert done or facts
    build(cutting)
    assert shards_of(tmp_path / "cut") == shards_of(tmp_path / "whole")
    for name, time in done.items():
        assert (tmp_path / "cut" / name).stat().st_mtime_ns == time
    for name, time in facts.items():
        assert (tmp_path / "cut" / "work" / "facts" / name).stat().st_mtime_ns == time


def stopping(after: int) -> Any:
    left = [after]

    @contextmanager
    def progress(label: str, total: int) -> Generator[Callable[[int], None]]:
        def advance(count: int) -> None:
            left[0] -= count
            if left[0] == 0:
                raise KeyboardInterrupt

        yield advance

    return progress


def test_a_source_that_changed_is_looked_at_again(raw: Path, queries: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "raw")
    work = tmp_path / "work"
    build(plan(tmp_path / "raw", queries, tmp_path / "one", work=work))
    facts = {path.name for path in (work / "facts").iterdir()}
    shard(tmp_path / "raw" / "raw-0.tar", [("x", mosaic(1), "a red mug")])
    report = build(plan(tmp_path / "raw", queries, tmp_path / "two", work=work))
    assert len({path.name for path in (work / "facts").iterdir()} - facts) == 1
    assert report.stages["pairs"] == len(facts_in(work)) - 30


def test_another_list_in_the_same_file_is_another_list(raw: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.tsv"
    for words in ("owl", "blue\nmug"):
        own.write_text(words, encoding="utf-8")
        build(plan(raw, own, tmp_path / words, work=tmp_path / "work"))
        found = {query for sample in samples_of(tmp_path / words) for query in sample.meta["build"]["queries"]}
        assert found == {*words.split()}


def test_rows_of_a_table_are_counted_like_samples(queries: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "one.jpg").write_bytes(mosaic(1))
    (folder / "two.jpg").write_bytes(mosaic(2))
    rows = ["caption,image,year", '"a red mug,\nbroken",one.jpg,1999', "a red mug,two.jpg,2000", "red,none.jpg,2"]
    rows += [",one.jpg,3", "red,../raw/one.jpg,4", "", "red,,5"]
    (folder / "captions.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    report = build(plan(folder, queries, tmp_path / "out"))
    assert report.stages["pairs"] == 6
    assert report.dropped == {"no picture": 3, "no caption": 1}
    assert [(s.caption, s.meta["year"], s.data) for s in samples_of(tmp_path / "out")] == [
        ("a red mug,\nbroken", "1999", mosaic(1)),
        ("a red mug", "2000", mosaic(2)),
    ]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_table_is_read_in_units_of_rows(tmp_path: Path, rows: int) -> None:
    captions = ["one", 'two\n"lines"', "été", "four", "five"]
    (tmp_path / "captions.csv").write_text(
        "caption,image\n" + "".join('"{}",none.jpg\n\n'.format(text.replace('"', '""')) for text in captions),
        encoding="utf-8-sig",
    )
    units = find_units([str(tmp_path)], rows=rows)
    assert [unit.rows for unit in units] == [len(captions[at : at + rows]) for at in range(0, len(captions), rows)]
    assert [(pair.index, pair.caption) for unit in units for pair in raw_pairs(unit)] == [
        (number % rows, text) for number, text in enumerate(captions)
    ]


def test_a_built_set_can_be_built_from_again(raw: Path, queries: Path, work: Path, tmp_path: Path) -> None:
    build(plan(raw, queries, tmp_path / "one", work=work, most=10))
    build(plan(tmp_path / "one", queries, tmp_path / "two", most=5))
    for sample in samples_of(tmp_path / "two"):
        assert sample.meta["build"]["before"]["source"].startswith("raw-")


def test_a_folder_is_not_built_over(raw: Path, queries: Path, work: Path, tmp_path: Path) -> None:
    build(plan(raw, queries, tmp_path / "one", work=work, most=10))
    for other in ({"most": 11}, {"most": 10, "seed": 1}, {"most": 10, "balance": "metaclip"}):
        with pytest.raises(ValueError, match=f"was begun with other .*{[*other][-1]}"):
            build(plan(raw, queries, tmp_path / "one", work=work, **other))
    (tmp_path / "strange").mkdir()
    shutil.copy(raw / "raw-0.tar", tmp_path / "strange")
    with pytest.raises(ValueError, match="holds shards that are not of a build"):
        build(plan(raw, queries, tmp_path / "strange", work=work))


def test_a_plan_without_a_model_has_no_scores(raw: Path, queries: Path, work: Path, tmp_path: Path) -> None:
    wrong: BuildPlan = plan(raw, queries, tmp_path, work=work, share=0.5)
    with pytest.raises(ValueError, match="no model says one"):
        build(wrong)
