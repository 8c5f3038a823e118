"""A query list out of texts: frequent words, bigrams that belong together, names of a list, nouns of WordNet."""

from __future__ import annotations

import gzip
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from clipworks.wordnet import WordNet
from training.building.queries import Query, words_of

_HELD = 1_000_000  # different words or pairs in memory; more are added up on the disk
Texts = Callable[[], Iterable[str]]


def text_lines(paths: Sequence[Path]) -> Iterator[str]:
    """Every line of text files in UTF-8; `.gz` is unpacked.

    Raises:
        ValueError: a file that is not there or no text.
    """
    for path in paths:
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text in UTF-8") from error
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def mined(texts: Texts, *, least: int, least_bits: float, held: int = _HELD) -> list[Query]:
    """Words that come at least `least` times, most frequent first; then bigrams that do, of such words, by their bits.

    A bigram's pointwise mutual information log2(n_ab * n / (n_a * n_b)) must be `least_bits` or more; n is the number
    of words (Radford et al., 2021, 2.2: words of 100 occurrences in Wikipedia, bigrams of high information). The texts
    are read twice; memory has `held` different words or pairs at most, beside the words that are kept.
    """
    total, counted = 0, _Counts(held)
    for text in texts():
        words = words_of(text)
        total += len(words)
        counted.add(words)
    frequent = dict(counted.least(least))
    pairs = _Counts(held)
    for text in texts():
        words = words_of(text)
        pairs.add(f"{a} {b}" for a, b in zip(words, words[1:], strict=False) if a in frequent and b in frequent)
    found = [Query(text=text, source="word", count=count) for text, count in _sorted(frequent.items())]
    bigrams: list[tuple[float, Query]] = []
    for text, count in pairs.least(least):
        a, b = text.split(" ")
        bits = math.log2(count * total / (frequent[a] * frequent[b]))
        if bits >= least_bits:
            bigrams.append((-bits, Query(text=text, source="bigram", count=count)))
    return found + [query for _, query in sorted(bigrams, key=lambda each: (each[0], each[1].text))]


def listed(path: Path) -> list[Query]:
    """A name a line, such as titles of articles. Raises ValueError: see `text_lines`."""
    names = (" ".join(words_of(line)) for line in text_lines([path]))
    return [Query(text=name, source=path.stem) for name in names if name]


def nouns(folder: Path) -> list[Query]:
    """Every noun of a WordNet database. Raises ValueError: the folder has none."""
    names = (" ".join(words_of(lemma)) for lemma in WordNet(folder).lemmas())
    return [Query(text=name, source="wordnet") for name in names if name]


def joined(parts: Iterable[Sequence[Query]]) -> list[Query]:
    """Each query once, where it comes first."""
    found: dict[str, Query] = {}
    for part in parts:
        for query in part:
            found.setdefault(query.text, query)
    return list(found.values())


def _sorted(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(counts, key=lambda each: (-each[1], each[0]))


class _Counts:
    """Exact counts of more different strings than fit into memory: what is too much is added up in a file."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[str] = Counter()
        self._file: sqlite3.Connection | None = None

    def add(self, strings: Iterable[str]) -> None:
        self._held.update(strings)
        if len(self._held) > self._most:
            self._spill()

    def least(self, least: int) -> list[tuple[str, int]]:
        """Those that came at least so often; ends the counting."""
        if self._file is None:
            return [(text, count) for text, count in self._held.items() if count >= least]
        self._spill()
        with closing(self._file):
            return self._file.execute("SELECT text, n FROM counts WHERE n >= ?", (least,)).fetchall()

    def _spill(self) -> None:
        if self._file is None:
            self._file = sqlite3.connect("")  # a file without a name, which goes when it is closed
            self._file.execute("CREATE TABLE counts(text TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID")
        rows = sorted(self._held.items())
        self._file.executemany("INSERT INTO counts VALUES(?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", rows)
        self._file.commit()
        self._held.clear()
