"""Prompts of labels from a WordNet database: which sense of a word is meant, its other names, its kind and description.

The database (https://wordnet.princeton.edu) is not part of clipworks: name the folder that has its index.noun and
data.noun, in the format of wndb(5WN) that WordNet 1.6 to 3.1 and Open English WordNet have. Only nouns are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipworks.schemas import LabelPrompts

DEFAULT_TEMPLATES = ("{}", "a photo of a {}")
_HINTED = re.compile(r"^(?P<word>[^()]*[^()\s])\s*\((?P<hint>[^()]+)\)$")  # crane (bird)
_PLURALS = {"ses": "s", "xes": "x", "zes": "z", "ches": "ch", "shes": "sh", "men": "man", "ies": "y", "s": ""}
_PARENTS, _CHILDREN = ("@", "@i"), ("~", "~i")


@dataclass(frozen=True)
class WordSense:
    """One meaning: its names, what it is (parents, children: places of others in data.noun), and its description."""

    place: int
    words: tuple[str, ...]
    parents: tuple[int, ...]
    children: tuple[int, ...]
    definition: str


class WordNet:
    """The nouns of a database folder. index.noun is held in memory, senses are read when they are asked for.

    Raises:
        ValueError: the folder has no such files; said of a line that is none when it is read.
    """

    def __init__(self, folder: Path | str) -> None:
        index, self._data = Path(folder) / "index.noun", Path(folder) / "data.noun"
        for path in (index, self._data):
            if not path.is_file():
                raise ValueError(f"{path}: no such file; a WordNet database has index.noun and data.noun")
        self._index = b"\n" + index.read_bytes()
        self._known: dict[int, WordSense] = {}

    def lemmas(self) -> Iterator[str]:
        """Every noun of the database, in its order."""
        for line in self._index.decode("utf-8", "replace").splitlines():
            if line and not line.startswith(" "):  # lines of the licence begin with two
                yield line.partition(" ")[0].replace("_", " ")

    def senses(self, word: str) -> list[WordSense]:
        """The senses of a noun, the most usual first; of its singular where the word itself is none."""
        lemma = "_".join(word.casefold().split())
        for each in _forms(lemma):
            if places := self._places(each):
                return [self.sense(place) for place in places]
        return []

    def _places(self, lemma: str) -> list[int]:
        start = self._index.find(f"\n{lemma} ".encode()) + 1
        if not start or not lemma:
            return []
        end = self._index.find(b"\n", start)
        return index_places(self._index[start : end if end > 0 else None].decode())

    def sense(self, place: int) -> WordSense:
        """The sense whose line begins at this byte of data.noun. Raises ValueError: none does."""
        if (known := self._known.get(place)) is not None:
            return known
        with self._data.open("rb") as stream:
            stream.seek(place)
            line = stream.readline().decode("utf-8", "replace").rstrip("\r\n")
        return self._known.setdefault(place, parse_sense(line, place))

    def kinds(self, sense: WordSense) -> list[int]:
        """Places of the sense and of all that it is a kind of, nearest first."""
        found = dict.fromkeys([sense.place])
        waiting = [sense]
        for each in waiting:
            new = [place for place in each.parents if place not in found]
            found |= dict.fromkeys(new)
            waiting += [self.sense(place) for place in new]
        return list(found)

    def choose(self, labels: Sequence[str]) -> list[WordSense | None]:
        """The sense in which each label is meant; None: no noun of the database.

        "crane (bird)" is the first sense of crane that is a kind of bird, or has bird in its description. Of another
        label it is the one that has most kinds in common with the senses of the other labels: between heron and stork
        a crane is a bird, between truck and digger a machine. Of equals, and of one label alone, it is the most usual.

        Raises:
            ValueError: no sense of a word is what stands in brackets behind it.
        """
        meant = [self._meant(label) for label in labels]
        kinds = [{place for sense in senses for place in self.kinds(sense)} for senses in meant]
        labels_of = Counter(place for each in kinds for place in each)

        def kinship(sense: WordSense, own: set[int]) -> int:
            return sum(labels_of[place] - (place in own) for place in self.kinds(sense))

        return [
            max(senses, key=lambda sense, own=own: kinship(sense, own), default=None)
            for senses, own in zip(meant, kinds, strict=True)
        ]

    def _meant(self, label: str) -> list[WordSense]:
        """Senses that a label can have. Raises ValueError: none of its word's senses is what stands in brackets."""
        hinted = _HINTED.match(label.strip())
        if hinted is None:
            return self.senses(label)
        every, hint = self.senses(hinted["word"]), hinted["hint"].strip().casefold()
        kinds = [s for s in every if any(hint in self._names(place) for place in self.kinds(s))]
        described = [s for s in every if re.search(rf"\b{re.escape(hint)}\b", s.definition.casefold())]
        if every and not (kinds or described):
            known = "; ".join(f"{self.kind(sense)}: {sense.definition}" for sense in every)
            raise ValueError(f"{label}: no sense of {hinted['word']!r} is {hint!r}; there are: {known}")
        return (kinds or described)[:1]

    def _names(self, place: int) -> set[str]:
        return {word.casefold() for word in self.sense(place).words}

    def kind(self, sense: WordSense) -> str:
        """What it is a kind of, in a word; "" for the most general one."""
        return self.sense(sense.parents[0]).words[0] if sense.parents else ""

    def phrases(self, label: str, sense: WordSense, *, names: int = 3) -> list[str]:
        """The label, its other names, its kind and its description: "crane, a kind of wading bird"."""
        word = hinted["word"] if (hinted := _HINTED.match(label.strip())) else label.strip()
        others = [each for each in sense.words if each.casefold() != word.casefold()]
        found = [word, *others[: names - 1]]
        if kind := self.kind(sense):
            found.append(f"{word}, a kind of {kind}")
        if sense.definition:
            found.append(f"{word}, {sense.definition}")
        return list(dict.fromkeys(found))

    def label_prompts(
        self, labels: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES
    ) -> list[str | LabelPrompts]:
        """Labels for `put_label_set` and `classify`: each with its phrases in `templates`, or as it is where the
        database does not have it. Raises ValueError: see `choose`."""
        return [
            label if sense is None else prompts_of(label, self.phrases(label, sense), templates)
            for label, sense in zip(labels, self.choose(labels), strict=True)
        ]


def prompts_of(label: str, phrases: Sequence[str], templates: Sequence[str] = DEFAULT_TEMPLATES) -> LabelPrompts:
    """A label whose prompts are phrases in templates, each with one {}; equal ones once."""
    prompts = dict.fromkeys(template.replace("{}", phrase) for phrase in phrases for template in templates)
    return LabelPrompts(name=label, prompts=list(prompts))


def index_places(line: str) -> list[int]:
    """Places in data.noun, the most usual sense first, of a line of index.noun:

    lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset [synset_offset...]

    Raises:
        ValueError: it is none.
    """
    fields = line.split()
    try:
        senses, pointers = int(fields[2]), int(fields[3])
        places = [int(each) for each in fields[6 + pointers :]]
    except (IndexError, ValueError):
        raise ValueError(f"index.noun: not a line of a WordNet index: {line[:80]!r}") from None
    if len(places) != senses or senses < 1:
        raise ValueError(f"index.noun: {senses} senses are announced and {len(places)} are there: {line[:80]!r}")
    return places


def parse_sense(line: str, place: int) -> WordSense:
    """A line of data.noun:

    offset lex_filenum ss_type w_cnt word lex_id [word lex_id...] p_cnt [symbol offset pos source/target...] | gloss

    Raises:
        ValueError: it is none, or stands elsewhere than it says.
    """
    head, _, gloss = line.partition("|")
    fields = iter(head.split(" "))
    try:
        if int(next(fields)) != place:
            raise ValueError
        _, _ = next(fields), next(fields)
        words = [(next(fields), next(fields))[0] for _ in range(int(next(fields), 16))]
        pointers = [(next(fields), int(next(fields)), next(fields), next(fields)) for _ in range(int(next(fields)))]
    except (StopIteration, RuntimeError, ValueError):
        raise ValueError(f"data.noun at byte {place}: not a line of a WordNet database: {line[:80]!r}") from None
    return WordSense(
        place=place,
        words=tuple(word.replace("_", " ") for word in words),
        parents=tuple(to for symbol, to, pos, _ in pointers if symbol in _PARENTS and pos == "n"),
        children=tuple(to for symbol, to, pos, _ in pointers if symbol in _CHILDREN and pos == "n"),
        definition=gloss.partition('; "')[0].strip(),
    )


def _forms(lemma: str) -> Iterator[str]:
    """A word, then what it may be the plural of, by the rules of morphy(7WN)."""
    yield lemma
    for ending, singular in _PLURALS.items():
        if lemma.endswith(ending) and len(lemma) > len(ending):
            yield lemma.removesuffix(ending) + singular
