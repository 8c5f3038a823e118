"""Matches against a search in the text, mined lists against counting in memory."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.building.mining import joined, listed, mined, nouns, text_lines
from training.building.queries import Query, QueryIndex, read_queries, words_of, write_queries

WORDNET = Path(__file__).parents[1] / "fixtures" / "wordnet"
WORD = st.sampled_from(["a", "red", "Reds", "mug", "o'clock", "Straße", "ÉTÉ", "7"])
PHRASE = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


@settings(max_examples=60)
@given(
    queries=st.lists(PHRASE, max_size=8, unique_by=lambda text: tuple(words_of(text))),
    parts=st.lists(st.tuples(WORD, st.sampled_from([" ", ", ", "-", "... ", "\n", "’ "])), max_size=12),
)
def test_a_query_is_found_where_its_words_stand_in_a_row(queries: list[str], parts: list[tuple[str, str]]) -> None:
    text = "".join(word + gap for word, gap in parts)
    line = " " + " ".join(words_of(text)) + " "
    expected = [number for number, query in enumerate(queries) if f" {' '.join(words_of(query))} " in line]
    assert QueryIndex(queries).found_in(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Red-Mug, 2nd!", ["a", "red", "mug", "2nd"]),
        ("l’été d'hier", ["l'été", "d'hier"]),
        ("STRASSE straße ﬁg", ["strasse", "strasse", "fig"]),
        ("हिन्दी", ["हिन्दी"]),
        ("IMG_0012.jpg", ["img", "0012", "jpg"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_a_list_comes_back_as_it_was_written(tmp_path: Path) -> None:
    queries = [Query(text="red mug", source="bigram", count=7), Query(text="été", source="titles")]
    write_queries(tmp_path / "q.tsv", queries, remark="a list")
    assert read_queries(tmp_path / "q.tsv") == queries
    (tmp_path / "own.txt").write_text("Red-Mug\n\n# a remark\nred mug\nblue\n", encoding="utf-8-sig")
    assert [query.text for query in read_queries(tmp_path / "own.txt")] == ["red mug", "blue"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"red\n...\n", "line 2: no word in '...'"),
        (b"red\tword\tmany\n", "line 1: the count 'many' is no number"),
        (b"# nothing\n", "has no query"),
        (b"\xff\n", "not a text in UTF-8"),
        (None, "No such file"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "q").write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("...", r"\.\.\.")):
        read_queries(tmp_path / "q")


@settings(max_examples=50)
@given(lines=st.lists(st.lists(WORD, max_size=6).map(" ".join), max_size=20), least=st.integers(1, 4))
def test_mined_words_and_bigrams_are_those_of_counting(lines: list[str], least: int) -> None:
    words = [words_of(line) for line in lines]
    counts = Counter(word for line in words for word in line)
    pairs = Counter(pair for line in words for pair in zip(line, line[1:], strict=False))
    total = sum(counts.values())
    bits = {p: math.log2(n * total / (counts[p[0]] * counts[p[1]])) for p, n in pairs.items()}
    expected = {word: n for word, n in counts.items() if n >= least}
    expected |= {" ".join(pair): n for pair, n in pairs.items() if n >= least and bits[pair] >= 1}
    found = mined(lambda: lines, least=least, least_bits=1, held=3)  # what is more is counted on the disk
    assert {query.text: query.count for query in found} == expected
    assert [query.source for query in found] == sorted((query.source for query in found), reverse=True)


def test_titles_and_nouns_come_behind_and_once(tmp_path: Path) -> None:
    (tmp_path / "titles.txt").write_text("Crane (bird)\ncrane\n", encoding="utf-8")
    found = joined([[Query(text="crane", source="word", count=5)], listed(tmp_path / "titles.txt"), nouns(WORDNET)])
    assert [query.source for query in found if query.text in ("crane", "crane bird")] == ["word", "titles"]
    assert Query(text="bird", source="wordnet") in found
    with pytest.raises(ValueError, match="No such file"):
        list(text_lines([tmp_path / "none.txt"]))
