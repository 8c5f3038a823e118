"""Queries: words and phrases that captions are searched for, as whole words."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import regex

from model_store.files import whole_file

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:'[\p{L}\p{M}\p{N}]+)*")
_SHOWN = 60


def words_of(text: str) -> list[str]:
    """Runs of letters, marks and digits, with apostrophes inside, case-folded; what stands between them is dropped."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold())


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Words with one space between. source: where it comes from. count: how often it was found there; 0: not known."""

    text: str
    source: str = ""
    count: int = 0


class QueryIndex:
    """Finds the queries that a text contains: their words in a row, at word boundaries, whatever the case.

    As MetaCLIP's substring matching (Xu et al., 2024), which puts spaces around the words of a query; here punctuation
    between words does not keep them apart. Memory is that of the queries, time that of the text.

    Raises:
        ValueError: a query without a word, or one twice.
    """

    def __init__(self, queries: Iterable[str]) -> None:
        self.texts: tuple[str, ...] = tuple(" ".join(words_of(each)) for each in queries)
        self._numbers = {text: number for number, text in enumerate(self.texts)}
        if "" in self._numbers:
            raise ValueError(f"query {self._numbers[''] + 1} has no word")
        if len(self._numbers) < len(self.texts):
            raise ValueError("a query is there twice")
        self._longest: dict[str, int] = {}
        for text in self.texts:
            first, *rest = text.split(" ")
            self._longest[first] = max(self._longest.get(first, 0), 1 + len(rest))

    def __len__(self) -> int:
        return len(self.texts)

    def found_in(self, text: str) -> list[int]:
        """The numbers of the queries in `text`, each once, rising."""
        words, found = words_of(text), set[int]()
        for start, first in enumerate(words):
            for end in range(start + 1, min(start + self._longest.get(first, 0), len(words)) + 1):
                number = self._numbers.get(" ".join(words[start:end]))
                if number is not None:
                    found.add(number)
        return sorted(found)

    def digest(self) -> str:
        """sha256 over the queries in their order."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def read_queries(path: Path) -> list[Query]:
    """A query a line, with its source and its count behind tabs if they are known; lines with # are remarks.

    Queries that are equal as words are one: the first.

    Raises:
        ValueError: no such file, not UTF-8, no query, or a line without a word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8") from error
    found: dict[str, Query] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        text, source, count = (*line.split("\t"), "", "")[:3]
        words = " ".join(words_of(text))
        if not words:
            raise ValueError(f"{path} line {number}: no word in {line[:_SHOWN]!r}")
        if count and not count.isdecimal():
            raise ValueError(f"{path} line {number}: the count {count[:_SHOWN]!r} is no number")
        found.setdefault(words, Query(text=words, source=source, count=int(count or 0)))
    if not found:
        raise ValueError(f"{path} has no query; write one a line, or make it with clipworks data queries")
    return list(found.values())


def write_queries(path: Path, queries: Sequence[Query], *, remark: str) -> None:
    """What `read_queries` reads. Raises OSError."""
    with whole_file(path) as stream:
        for line in _lines(queries, remark):
            stream.write(line.encode())


def _lines(queries: Sequence[Query], remark: str) -> Iterator[str]:
    yield f"# {remark}\n"
    for each in queries:
        yield f"{each.text}\t{each.source}\t{each.count or ''}\n"
