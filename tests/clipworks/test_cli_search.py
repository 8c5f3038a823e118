"""search with pictures by name, what to keep away from, and weights; items listed and deleted."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipworks import Client
from clipworks.cli.failures import UsageError
from clipworks.cli.search_query import combined, parts_of

Cli = Callable[..., tuple[int, str, str]]
COLOURS = ("red", "blue", "green", "white")


@pytest.fixture
def photos(server_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A collection with four colours, and the folder that they are in."""
    name = request.node.name.replace("_", "-")[:40].lower()
    for colour in COLOURS:
        Image.new("RGB", (48, 32), colour).save(tmp_path / f"{colour}.png")
    with Client(server_url) as client:
        target = client.create_collection(name, metadata_schema={"year": "number"})
        target.upsert(
            [
                {"id": f"a  b/{colour}", "image": tmp_path / f"{colour}.png", "metadata": {"year": 2000 + place}}
                for place, colour in enumerate(COLOURS)
            ]
        )
        yield name, tmp_path
        client.delete_collection(name)


def hits(cli: Cli, server_url: str, *words: str | Path) -> list[tuple[str, float]]:
    code, out, err = cli("search", *words, "--url", server_url, "--json")
    assert code == 0, err
    return [(hit["id"], hit["score"]) for hit in json.loads(out)["hits"]]


def test_the_name_of_a_picture_means_the_picture(cli: Cli, server_url: str, photos: tuple[str, Path]) -> None:
    name, folder = photos
    code, out, err = cli("search", folder / "blue.png", "-c", name, "-k", "1", "--url", server_url)
    assert (code, out.splitlines()[1].split("\t")[1:3]) == (0, ["1.0000", "a  b/blue"])
    assert "looking for pictures like it" in " ".join(err.split())
    code, _, err = cli("search", "none.png", "-c", name, "--url", server_url)
    assert (code, "no such file" in err) == (2, True)


def test_parts_are_added_and_taken_away_by_their_weights(cli: Cli, server_url: str, photos: tuple[str, Path]) -> None:
    name, folder = photos
    words = (
        "dog",
        "--image",
        folder / "red.png",
        "--not",
        "snow",
        "--weight",
        "2",
        "--weight",
        "0.5",
        "--weight",
        "1.5",
    )
    with Client(server_url) as client:
        parts: list[dict[str, Any]] = [
            {"text": "dog", "weight": 2},
            {"image": folder / "red.png", "weight": 0.5},
            {"text": "snow", "weight": -1.5},
        ]
        [wanted] = client.collection(name).search([{"combine": parts}])
        assert hits(cli, server_url, *words, "-c", name) == [(hit.id, hit.score) for hit in wanted.hits]
        [wanted] = client.collection(name).search([{"combine": ["dog", {"text": "snow", "weight": -0.3}]}])
        assert hits(cli, server_url, "dog", "--not", "snow", "-c", name) == [(h.id, h.score) for h in wanted.hits]
        red = folder / "red.png"
        for words, parts in (
            (("dog", "--not", red), ["dog", {"image": red, "weight": -0.1}]),
            (("--image", red, "--not", "snow"), [{"image": red}, {"text": "snow", "weight": -1}]),
        ):
            [wanted] = client.collection(name).search([{"combine": parts}])
            assert hits(cli, server_url, *words, "-c", name) == [(h.id, h.score) for h in wanted.hits]


@pytest.mark.parametrize(
    ("text", "without", "weights", "says"),
    [
        (None, ["snow"], [], "nothing to look for"),
        ("dog", ["snow"], [1.0], "1 given, expected 2, one for each of: dog, snow"),
        ("dog", [], [-1.0], "above 0"),
        ("dog", [], [float("nan")], "above 0"),
        ("dog", [" "], [], "--not is empty"),
        ("dog", ["x"] * 64, [], "64"),
    ],
)
def test_what_does_not_fit(text: str | None, without: list[str], weights: list[float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parts_of(text, [], [], without, weights)


def test_a_single_part_is_sent_as_it_is() -> None:
    assert combined(parts_of("dog", [], [], [], [])) == {"text": "dog"}
    assert combined(parts_of("dog", [], ["a"], [], [])) == {"combine": [{"text": "dog"}, {"id": "a"}]}
    away = {"text": "snow", "weight": -0.3}
    assert combined(parts_of("dog", [], [], ["snow"], [])) == {"combine": [{"text": "dog"}, away]}


def test_nothing_found_is_said(cli: Cli, server_url: str, photos: tuple[str, Path]) -> None:
    name, _ = photos
    for options, why in (
        (("--filter", '{"year": 1900}'), "no item passes --filter"),
        (("--min-score", "1.5"), "none reaches --min-score 1.5"),
        (("--offset", "9"), "fewer than 9 hits"),
    ):
        code, out, err = cli("search", "x", "-c", name, *options, "--url", server_url)
        assert (code, out.splitlines()) == (0, ["#\tscore\tid\tmetadata"])
        assert why in " ".join(err.split())


def test_items_are_listed_and_their_ids_survive_a_pipe(cli: Cli, server_url: str, photos: tuple[str, Path]) -> None:
    name, _ = photos
    base = ("collections", "items", name, "--url", server_url)
    ids = [f"a  b/{colour}" for colour in sorted(COLOURS)]
    assert cli(*base, "--ids")[1].splitlines() == ids
    assert cli(*base, "--null")[1] == "".join(f"{id}\0" for id in ids)
    assert [line.split("\t")[0] for line in cli(*base)[1].splitlines()] == ["id", *ids]
    records = [json.loads(line) for line in cli(*base, "--json")[1].splitlines()]
    assert records[0] == {"id": "a  b/blue", "metadata": {"year": 2001}}
    filtered = cli(*base, "--ids", "--filter", '{"year": {"$gte": 2002}}')[1].splitlines()
    assert filtered == ["a  b/green", "a  b/white"]
    code, out, err = cli(*base, "--limit", "1", "--ids")
    assert (code, out.splitlines(), "--limit 0" in err) == (0, ids[:1], True)
    assert cli(*base, "--id", ids[0])[1].splitlines() == ["name\tvalue", f"id\t{ids[0]}", "year\t2001"]
    assert cli(*base, "--id", "none")[0] == 3
    code, out, err = cli(*base, "--filter", '{"year": 1}', "--ids")
    assert (code, out, "no item passes" in err) == (0, "", True)


def test_items_are_deleted_by_id_and_by_filter(cli: Cli, server_url: str, photos: tuple[str, Path]) -> None:
    name, _ = photos
    delete = ("collections", "delete-items", name, "--url", server_url)
    listed = ("collections", "items", name, "--url", server_url, "--ids")
    for words, says in (
        (("--id", "x"), "write --yes"),
        (("--yes",), "say which"),
        (("--id", "x", "--filter", '{"a": 1}', "--yes"), "say which"),
        (("--filter", "{}", "--yes"), "delete the collection"),
    ):
        code, _, err = cli(*delete, *words)
        assert (code, says in " ".join(err.split())) == (2, True), err
    picked = cli(*listed, "--null", "--filter", '{"year": 2000}')[1].encode()
    code, out, _ = cli(*delete, "--ids-from", "-", "--null", "--yes", "--json", stdin=picked + b"not-there\0")
    assert (code, json.loads(out)["deleted"]) == (0, 1)
    assert cli(*delete, "--filter", '{"year": {"$gte": 2002}}', "--yes")[0] == 0
    assert cli(*listed)[1].splitlines() == ["a  b/blue"]


def test_more_than_the_hits(cli: Cli, server_url: str, photos: tuple[str, Path]) -> None:
    """Counts, ranks, a histogram and folded pictures, as JSON and in words; what the client gives."""
    name, folder = photos
    Image.new("RGB", (48, 32), (254, 1, 1)).save(folder / "red again.png")
    more = (
        "--group-near",
        "0.999",
        "--facet",
        "year",
        "--facet",
        "none",
        "--histogram",
        "3",
        "--score-of",
        "a  b/blue",
    )
    with Client(server_url) as client:
        client.collection(name).upsert([{"id": "again", "image": folder / "red again.png", "metadata": {"year": 2000}}])
        with pytest.warns(UserWarning, match="no item of the collection has a field 'none'"):
            [found] = client.collection(name).search(
                [folder / "red.png"],
                group_near=0.999,
                facets=["year", "none"],
                histogram=3,
                score_of=["a  b/blue", "none"],
            )
        assert found.histogram is not None
        assert (sum(found.histogram.counts), found.pool) == (5, 5)
        ids = [hit.id for hit in found.hits]
        assert [[near.id for near in hit.near] for hit in found.hits] == [["again"], [], [], []]
        assert [(each.id, each.rank) for each in found.scores] == [
            ("a  b/blue", ids.index("a  b/blue") + 2),
            ("none", None),
        ]
        with pytest.raises(TypeError, match="facets: expected several"):
            client.collection(name).search(["x"], facets="year")
        with pytest.raises(TypeError, match="no option 'divers'"):
            client.collection(name).search(["x"], divers=0.5)  # pyright: ignore[reportCallIssue]
    words = ("search", folder / "red.png", "-c", name, "--url", server_url, *more)
    code, out, _ = cli(*words, "--score-of", "none", "--json")
    assert code == 0
    said = json.loads(out)
    assert [[near["id"] for near in hit["near"]] for hit in said["hits"]] == [["again"], [], [], []]
    assert said["facets"] == {field: counts.model_dump() for field, counts in found.facets.items()}
    assert said["facets"]["year"]["values"][0] == {"value": 2000, "count": 2}
    assert said["histogram"] == found.histogram.model_dump()
    assert [each["id"] for each in said["scores"]] == ["a  b/blue", "none"]
    code, out, _ = cli(*words, "--score-of", "none")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert ["#", "score", "id", "near", "metadata"] in lines
    assert ["no such item", "", "none"] in lines
    assert ["2000", "2"] in lines
    assert ["(without it)", "5"] in lines
    code, out, _ = cli("search", "dog", "-c", name, "--url", server_url, "--diversity", "0.9", "--json")
    assert (code, json.loads(out)["pool"]) == (0, 5)
