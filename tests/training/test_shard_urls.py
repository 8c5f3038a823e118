"""Braces, globs, lists and URLs -> one name for each shard."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.shard_urls import expanded, shard_urls

pytestmark = pytest.mark.torch

PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=6)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="{},"), max_size=4)


@st.composite
def counted(draw: st.DrawFn) -> tuple[str, list[str]]:
    low, more, width = draw(st.integers(0, 40)), draw(st.integers(0, 5)), draw(st.integers(1, 6))
    numbers = range(low, low + more + 1)
    return f"{{{low:0{width}d}..{low + more}}}", [str(number).zfill(max(width, len(str(low)))) for number in numbers]


@st.composite
def listed(draw: st.DrawFn) -> tuple[str, list[str]]:
    words = draw(st.lists(WORDS, min_size=2, max_size=4))
    return "{" + ",".join(words) + "}", words


@given(parts=st.lists(st.tuples(PLAIN, st.one_of(counted(), listed())), max_size=3), tail=PLAIN)
def test_every_choice_of_every_brace_once_in_order(parts: list[tuple[str, tuple[str, list[str]]]], tail: str) -> None:
    pattern = "".join(plain + braces for plain, (braces, _) in parts) + tail
    pieces = [piece for plain, (_, choices) in parts for piece in ([plain], choices)]
    assert expanded(pattern) == ["".join(each) for each in product(*pieces, [tail])]


@given(text=st.text(st.sampled_from("{}.,09a"), max_size=12))
def test_what_is_no_pattern_is_refused_by_name(text: str) -> None:
    try:
        names = expanded(text)
    except ValueError as error:
        said = str(error)
    else:
        said = text
        assert names
        assert not any({"{", "}"} & {*name} for name in names)
    assert text in said


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x-{3..1}.tar", "runs backwards"),
        ("x-{a}.tar", "neither a range such as"),
        ("x-{0..9.tar", "do not match"),
        ("x-{0..{1..2}}.tar", "do not match|neither"),
        ("x-{0..99999999}.tar", "over 1,000,000 shards"),
        ("{0..999}{0..999}{0..9}", "over 1,000,000 shards"),
        ("", "without a name"),
        ([], "no shards are named"),
        ("s3://bucket/{0..3}-{a,a}.tar", "is named twice"),
    ],
)
def test_broken_patterns_are_named(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shard_urls(pattern)


def test_files_of_this_machine(tmp_path: Path) -> None:
    names = [f"{kind}-{number}.tar" for kind in ("a", "b") for number in (0, 1)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    every = tuple(str(tmp_path / name) for name in names)
    assert shard_urls("{a,b}-{0..1}.tar", folder=str(tmp_path)) == every
    assert shard_urls("*.tar", folder=f"{tmp_path}/") == every
    assert shard_urls(["b-?.tar", str(tmp_path / "a-0.tar")], folder=str(tmp_path)) == (*every[2:], every[0])
    assert shard_urls(f"file://{tmp_path}/a-*.tar") == tuple(f"file://{each}" for each in every[:2])
    with pytest.raises(ValueError, match=r"no shard .*a-2\.tar"):
        shard_urls("a-{0..2}.tar", folder=str(tmp_path))
    with pytest.raises(ValueError, match="no shard matches"):
        shard_urls("c-*.tar", folder=str(tmp_path))
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        assert shard_urls("a-{0..1}.tar") == ("a-0.tar", "a-1.tar")
    finally:
        os.chdir(before)


def test_urls(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/urls/{number}.tar", b"x")
    found = shard_urls("memory://urls/*.tar")
    assert len(found) == 3
    assert [fsspec.open(each).fs.cat(each) for each in found] == [b"x"] * 3
    assert shard_urls("{0..1}.tar", folder="memory://urls") == ("memory://urls/0.tar", "memory://urls/1.tar")
    # What is not on this machine is looked for when it is read; a question mark belongs to an address.
    assert shard_urls("{0..1}.tar", folder="s3://bucket/a/") == ("s3://bucket/a/0.tar", "s3://bucket/a/1.tar")
    assert shard_urls("https://host/0.tar?key=1", folder="gs://b") == ("https://host/0.tar?key=1",)
    assert shard_urls("simplecache::s3://b/{0..1}.tar") == ("simplecache::s3://b/0.tar", "simplecache::s3://b/1.tar")
