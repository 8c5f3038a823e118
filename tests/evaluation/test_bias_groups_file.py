"""The file of groups: what is said of every kind of mistake, and a property of any bytes at all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.bias.groups_file import GroupedPictures, read_groups

ROWS = [("a.png", "woman", "doctor"), ("b.png", "man", "doctor"), ("in/c.png", "man", "nurse")]
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=8).filter(str.strip)
TEXTS = st.text(max_size=60).map(str.encode)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "group", "label"]), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, as far as their names go: nothing is decoded here."""
    found = tmp_path_factory.mktemp("groups")
    (found / "in").mkdir()
    for name, _, _ in ROWS:
        (found / name).write_bytes(b"a picture")
    return found


def written(folder: Path, text: str | bytes, suffix: str = ".csv") -> Path:
    path = folder / f"groups{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_both_forms_say_the_same(folder: Path) -> None:
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("path", "group", "label", "note"), *((*row, "x") for row in ROWS)])
    named = [dict(zip(("path", "group", "label"), row, strict=True)) for row in ROWS]
    by_table = read_groups(written(folder, "\ufeff" + table.getvalue()))
    assert by_table == read_groups(written(folder, json.dumps(named), ".json"))
    assert (by_table.groups, by_table.labels) == (("woman", "man", "man"), ("doctor", "doctor", "nurse"))
    assert [one.path for one in by_table.photographs] == [folder / name for name, _, _ in ROWS]
    bare = read_groups(written(folder, '[{"path": "a.png", "group": 1}, {"path": "b.png", "group": 2}]', ".json"))
    assert (bare.groups, bare.labels) == (("1", "2"), None)


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ("path,group\na.png,x\nb.png,x\n", ".csv", "one group, 'x'"),
        ("image,group\na.png,x\n", ".csv", "row 1: no path; it has 'image', 'group'"),
        ("path,group\na.png,x\nb.png,\n", ".csv", "row 2: no group"),
        ("path,group\na.png,x\na.png,y\n", ".csv", "row 2: 'a.png' stands in row 1 already"),
        ("path,group\na.png,x\nz.png,y\n", ".csv", "1 of 2 pictures are not in .*'z.png'"),
        ("path,group\na.png,x\n../b.png,y\n", ".csv", "row 2: image path '../b.png' leaves the folder"),
        ("path,group,label\na.png,x,p\nb.png,y,\n", ".csv", "row 2: no label, and 1 other rows have one"),
        ("path,group\na.png,x,y\n", ".csv", "row 1: more cells than columns"),
        ("path,group\n", ".csv", "no rows"),
        (b"path,group\n\xff,x\n", ".csv", "not a csv table in UTF-8"),
        ('{"path": "a.png"}', ".json", "expected a list of objects"),
        ("[1]", ".json", "expected a list of objects"),
        ("[" * 100_000, ".json", "not JSON"),
        ('[{"path": "a.png", "group": true}]', ".json", "row 1: group is bool, expected a text"),
        ("path\tgroup", ".tsv", "another form; expected a .csv table"),
    ],
)
def test_a_mistake_is_named(folder: Path, text: str | bytes, suffix: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_groups(written(folder, text, suffix))


def test_no_file(folder: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_groups(folder / "none.csv")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | TEXTS | NESTED.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(folder: Path, content: bytes) -> None:
    for suffix in (".csv", ".json"):
        try:
            found = read_groups(written(folder, content, suffix))
        except ValueError:
            continue
        assert isinstance(found, GroupedPictures)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(CELLS, min_size=3, max_size=3), labels=st.none() | st.lists(CELLS, min_size=3, max_size=3))
def test_what_is_written_is_read(folder: Path, groups: list[str], labels: list[str] | None) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["path", "group", *(["label"] if labels else [])])
    for at, (name, _, _) in enumerate(ROWS):
        writer.writerow([name, groups[at], *([labels[at]] if labels else [])])
    stripped = tuple(group.strip() for group in groups)
    if len(set(stripped)) < 2:
        with pytest.raises(ValueError, match="one group"):
            read_groups(written(folder, table.getvalue()))
        return
    found = read_groups(written(folder, table.getvalue()))
    assert found.groups == stripped
    assert found.labels == (tuple(label.strip() for label in labels) if labels else None)
