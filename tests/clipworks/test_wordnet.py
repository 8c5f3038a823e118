"""Prompts from a WordNet database: its format, which sense is meant, and a label set made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipworks.wordnet import WordNet, index_places, parse_sense, prompts_of

WORDNET = Path(__file__).parents[1] / "fixtures" / "wordnet"
LICENCE = "  1 This is not WordNet: a few senses written by hand in its format for the tests of clipworks.  \n"


class Entry(NamedTuple):
    """parent: index of another entry."""

    words: Sequence[str]
    parent: int | None
    gloss: str


def write_database(folder: Path, entries: Sequence[Entry]) -> list[int]:
    """index.noun and data.noun as wndb(5WN) says; places of the entries. The order of entries is that of senses."""

    def line(at: int, places: Sequence[int]) -> str:
        words = " ".join(f"{word.replace(' ', '_')} 0" for word in entries[at].words)
        children = [places[child] for child, each in enumerate(entries) if each.parent == at]
        parent = entries[at].parent
        pointers = [*([f"@ {places[parent]:08d} n 0000"] if parent is not None else [])]
        pointers += [f"~ {child:08d} n 0000" for child in children]
        head = f"{places[at]:08d} 05 n {len(entries[at].words):02x} {words} {len(pointers):03d}"
        return " ".join([head, *pointers, "|", entries[at].gloss]) + "  \n"

    places = [0] * len(entries)
    start = len(LICENCE.encode())
    for at in range(len(entries)):  # the length of a line does not depend on the places in it
        places[at] = start
        start += len(line(at, places).encode())
    (folder / "data.noun").write_text(LICENCE + "".join(line(at, places) for at in range(len(entries))), "utf-8")
    lemmas: dict[str, list[int]] = {}
    for at, entry in enumerate(entries):
        for word in entry.words:
            lemmas.setdefault(word.casefold().replace(" ", "_"), []).append(places[at])
    rows = [
        f"{lemma} n {len(found)} 2 @ ~ {len(found)} 0 {' '.join(f'{each:08d}' for each in found)}  \n"
        for lemma, found in sorted(lemmas.items())
    ]
    (folder / "index.noun").write_text(LICENCE + "".join(rows), "utf-8")
    return places


CRANES = [
    Entry(["entity"], None, "that which exists"),
    Entry(["bird"], 0, "warm-blooded egg-laying vertebrates with feathers"),
    Entry(["wading bird", "wader"], 1, "any of many long-legged birds that wade in water"),
    Entry(["device"], 0, "an instrumentality invented for a particular purpose"),
    Entry(["lifting device"], 3, "a device for lifting heavy loads"),
    Entry(["crane"], 4, 'lifts and moves heavy objects; "the crane swung the beam"'),
    Entry(["crane"], 2, "large long-necked wading bird of marshes and plains"),
    Entry(["heron"], 2, "grey or white wading bird with long neck and long legs"),
    Entry(["truck", "motortruck"], 3, "an automotive vehicle for hauling"),
    Entry(["glass", "drinking glass"], 3, "a container for holding liquids while drinking"),
]

words = st.text("abzé1", min_size=1, max_size=4) | st.just("two words") | st.just("ß")
glosses = st.text('ab é,;."()', max_size=12).filter(lambda text: '; "' not in text).map(str.strip)


@settings(max_examples=20)
@given(data=st.data())
def test_what_is_written_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    count = data.draw(st.integers(1, 6))
    entries = [
        Entry(
            data.draw(st.lists(words, min_size=1, max_size=3, unique_by=str.casefold)),
            data.draw(st.integers(0, at - 1)) if at and data.draw(st.booleans()) else None,
            data.draw(glosses),
        )
        for at in range(count)
    ]
    folder = tmp_path_factory.getbasetemp()
    places = write_database(folder, entries)
    wordnet = WordNet(folder)
    for at, entry in enumerate(entries):
        found = wordnet.sense(places[at])
        assert found.words == tuple(entry.words)
        assert found.definition == entry.gloss
        assert found.parents == (() if entry.parent is None else (places[entry.parent],))
        assert set(found.children) == {places[child] for child, each in enumerate(entries) if each.parent == at}
        steps, above = [places[at]], entry.parent
        while above is not None:
            steps.append(places[above])
            above = entries[above].parent
        assert wordnet.kinds(found) == steps
        for word in entry.words:
            its = [place for place, each in zip(places, entries, strict=True) if word in each.words]
            assert set(its) <= {sense.place for sense in wordnet.senses(word)}


@settings(max_examples=50)
@given(st.text("ab n01|@~ ", max_size=40), st.integers(0, 99))
def test_other_lines_are_refused(line: str, place: int) -> None:
    for read in (index_places, lambda text: parse_sense(text, place)):
        try:
            read(line)
        except ValueError:
            continue
        assert len(line.split()) >= 4


def test_the_number_of_words_is_hexadecimal() -> None:
    names = " ".join(f"w{number} 0" for number in range(18))
    assert len(parse_sense(f"00000000 05 n 12 {names} 000 | many names", 0).words) == 18


def test_the_fixture_is_what_the_writer_writes(tmp_path: Path) -> None:
    write_database(tmp_path, CRANES)
    for name in ("index.noun", "data.noun"):
        assert (tmp_path / name).read_bytes() == (WORDNET / name).read_bytes()


@pytest.mark.parametrize(
    ("labels", "kinds"),
    [
        (["crane"], ["lifting device"]),
        (["crane", "heron"], ["wading bird", "wading bird"]),
        (["cranes", "truck"], ["lifting device", "device"]),
        (["crane (bird)", "truck"], ["wading bird", "device"]),
        (["Crane (marshes)", "crane"], ["wading bird", "wading bird"]),
        (["gizmo", "drinking glass", "glasses"], [None, "device", "device"]),
    ],
)
def test_the_sense_that_is_meant(labels: list[str], kinds: list[str | None]) -> None:
    wordnet = WordNet(WORDNET)
    assert [sense and wordnet.kind(sense) for sense in wordnet.choose(labels)] == kinds


def test_a_sense_that_is_not_there_is_said() -> None:
    with pytest.raises(ValueError, match=r"no sense of 'crane' is 'fish'; there are: lifting device: lifts and moves"):
        WordNet(WORDNET).choose(["crane (fish)"])
    with pytest.raises(ValueError, match="index.noun: no such file"):
        WordNet(WORDNET / "none")


def test_phrases_and_prompts() -> None:
    crane, gizmo, truck = WordNet(WORDNET).label_prompts(["crane (bird)", "gizmo", "truck"], ("{}", "a photo of {}"))
    assert gizmo == "gizmo"
    assert crane == prompts_of(
        "crane (bird)",
        ["crane", "crane, a kind of wading bird", "crane, large long-necked wading bird of marshes and plains"],
        ("{}", "a photo of {}"),
    )
    assert not isinstance(truck, str)
    assert truck.prompts[:4] == ["truck", "a photo of truck", "motortruck", "a photo of motortruck"]


def test_a_label_set_of_them(cli: Callable[..., tuple[int, str, str]], server_url: str, tmp_path: Path) -> None:
    place = ["--url", server_url]
    put = ["label-sets", "put", "kin", "--labels", "crane,heron,gizmo", "--wordnet", WORDNET, *place]
    code, _, err = cli(*put)
    assert code == 0, err
    assert "gizmo: not in this WordNet" in err
    assert "crane: wading bird, large long-necked" in err
    shown = json.loads(cli("label-sets", "show", "kin", "--json", *place)[1])
    assert (shown["label_names"], shown["texts"], shown["ready"]) == (["crane", "heron", "gizmo"], 6 + 6 + 2, True)
    (tmp_path / "own.json").write_text(json.dumps({"crane": "a bird that dances", "gizmo": ["a small thing"]}))
    assert cli(*put, "--phrases", tmp_path / "own.json", "--template", "{}")[0] == 0
    shown = json.loads(cli("label-sets", "show", "kin", "--json", *place)[1])
    assert shown["texts"] == 2 + 3 + 2
    (tmp_path / "own.json").write_text(json.dumps({"stork": "a bird"}))
    code, _, err = cli(*put, "--phrases", tmp_path / "own.json")
    assert (code, "'stork' is none of the labels" in err) == (2, True)
    code, _, err = cli(*put[:-3], tmp_path, *place)
    assert (code, "index.noun: no such file" in err) == (2, True)
    assert cli("label-sets", "delete", "kin", "--yes", *place)[0] == 0
