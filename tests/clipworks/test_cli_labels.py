"""--labels: what people write there, and what it means."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipworks.cli.failures import UsageError
from clipworks.cli.label_options import labels_of

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def test_what_is_written_is_what_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written("labels.txt", b"\xef\xbb\xbf# clothes\r\nshirt\r\n\r\n  salt, pepper \r\n#1 fan\r\nshirt\r\n")
    prompts = written("prompts.json", '{"shirt": ["a photo of a shirt", "a tee"], "cat": "a cat"}')
    mixed = written("mixed.json", '["dog", {"name": "shirt", "prompts": ["a shirt"]}]')
    shirt = {"name": "shirt", "prompts": ["a photo of a shirt", "a tee"]}
    for given_labels, wanted in (
        (["cat, dog,,car"], ["cat", "dog", "car"]),
        (["cat", "dog,cat"], ["cat", "dog"]),
        ([f"@{lines}"], ["shirt", "salt, pepper", "#1 fan"]),
        ([lines], ["shirt", "salt, pepper", "#1 fan"]),
        (['"salt, pepper", dog', "a"], ["salt, pepper", "dog", "a"]),
        ([f"@{prompts}", "dog"], [shirt, {"name": "cat", "prompts": ["a cat"]}, "dog"]),
        ([mixed], ["dog", {"name": "shirt", "prompts": ["a shirt"]}]),
        (['{"cat": ["a cat"]}'], [{"name": "cat", "prompts": ["a cat"]}]),
    ):
        assert labels_of(given_labels, None) == wanted
    said = " ".join(capsys.readouterr().err.split())
    assert "labels.txt: read as a file, 4 labels" in said
    assert "more than once count once: shirt" in said
    assert "more than once count once: cat" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([","], "such as cat,dog"),
        (["no-such.txt"], "no such file"),
        (["@no-such"], "No such file"),
        (["@binary"], "not UTF-8 text"),
        (["[1]"], r"\[0\]: expected a label"),
        (['{"a": []}'], r"\[0\]: expected a label"),
        (['{"a": "b", "a": "c"}'], "there twice"),
        (['{"a": "b"}', "a"], "with different prompts"),
        (["[" * 100_000], "not JSON"),
        (['"cat, dog'], "salt, pepper"),
        (["@empty.txt"], "expected labels"),
    ],
)
def test_what_cannot_be_meant_is_said(words: list[str], says: str) -> None:
    written("binary", b"\xff\xfe\x00")
    written("empty.txt", "\n# nothing\n")
    with pytest.raises(UsageError, match=says):
        labels_of(words, None)


@given(st.text(max_size=40) | st.text('[]{}",:ab', max_size=20))
def test_anything_is_labels_or_a_usage_error(text: str) -> None:
    try:
        found = labels_of([text], None)
    except UsageError:
        return
    assert found
    assert all(isinstance(each, str) or each.keys() == {"name", "prompts"} for each in found)


def test_a_thousand_labels_need_no_server(cli: Cli) -> None:
    Image.new("RGB", (64, 48)).save("a.jpg")
    names = [f"class {number}" for number in range(1000)]
    written("labels.txt", "\r\n".join(names))
    templates = [word for text in ("a {}", "the {}", "one {}") for word in ("--template", text)]
    code, out, err = cli("classify", "a.jpg", "--labels", "@labels.txt", *templates, "--top-k", "1000", "--json")
    assert code == 0, err
    (image,) = json.loads(out)["data"]
    assert sorted(each["label"] for each in image["predictions"]) == sorted(names)


def test_one_label_alone_is_refused_where_it_says_nothing(cli: Cli, server_url: str) -> None:
    Image.new("RGB", (64, 48)).save("a.jpg")
    base = ("classify", "a.jpg", "--url", server_url)
    code, _, err = cli(*base, "--labels", "cat,cat")
    assert (code, "activation" in err) == (3, True)
    assert cli(*base, "--labels", "cat", "--activation", "none")[0] == 0
    assert cli(*base, "--labels", "cat,dog", "--top-k", "1")[0] == 0


def test_localize_takes_them_too(cli: Cli, server_url: str) -> None:
    Image.new("RGB", (64, 48)).save("a.jpg")
    written("prompts.json", '{"car": ["a car"], "tree": ["a tree", "trees"]}')
    code, out, err = cli(
        "localize", "a.jpg", "--labels", "@prompts.json", "--labels", "dog", "--url", server_url, "--json"
    )
    assert code == 0, err
    assert {each["label"] for each in json.loads(out)["labels"]} == {"car", "tree", "dog"}
