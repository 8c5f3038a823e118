"""Values of numpy and pandas, dates and plain mappings, wherever the client takes numbers, metadata or labels."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

import clipworks
from clipworks import Client, errors
from clipworks._json import json_bytes
from clipworks.schemas import LabelPrompts

Call = Callable[..., Any]
PHOTO = Path(__file__).parents[1] / "fixtures" / "tiny_store" / "tiny" / "1" / "goldens" / "rgb_jpeg_331x227.bin"
SCALARS = st.sampled_from(["i1", "i8", "u2", "f2", "f4", "f8", "?"]).map(np.dtype).flatmap(hypothesis_numpy.from_dtype)
PLAIN = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.recursive(PLAIN | SCALARS, lambda each: st.lists(each) | st.dictionaries(st.text("ab", max_size=3), each)))
def test_scalars_of_numpy_are_written_as_pythons(value: Any) -> None:
    def plain(each: Any) -> Any:
        if isinstance(each, list):
            return [plain(part) for part in each]
        if isinstance(each, dict):
            return {key: plain(part) for key, part in each.items()}
        return each.item() if isinstance(each, np.generic) else each

    wanted = plain(value)
    try:
        expected = json.dumps(wanted, allow_nan=False)
    except ValueError:
        with pytest.raises(ValueError, match="JSON"):
            json_bytes(value)
        return
    assert json.loads(json_bytes(value)) == json.loads(expected)


def test_dates_are_iso_strings() -> None:
    moment = datetime.datetime(2024, 5, 17, 12, 30, tzinfo=datetime.UTC)
    value = {"day": moment.date(), "at": moment, "then": np.datetime64("2024-05-17T12:30"), "all": np.arange(3)}
    assert json.loads(json_bytes(value)) == {
        "day": "2024-05-17",
        "at": "2024-05-17T12:30:00+00:00",
        "then": "2024-05-17T12:30:00",
        "all": [0, 1, 2],
    }
    with pytest.raises(TypeError, match="Path"):
        json_bytes({"a": Path("x")})


def test_options_and_metadata(server_url: str, call: Call) -> None:
    assert len(call(server_url, "classify", [PHOTO], ["a", "b"], top_k=np.int64(1), threshold=np.float32(-1))[0]) == 1
    assert call(server_url, "embed", texts=["a"], dimensions=np.int64(32)).shape == (1, 32)
    with Client(server_url) as client:
        rows = client.create_collection("plain-values")
        vectors = np.random.default_rng(0).normal(size=(2, 32))
        metadata = {
            "year": np.int64(2024),
            "share": np.float32(0.5),
            "own": np.bool_(True),
            "day": datetime.date(2024, 5, 1),
        }
        items = [{"id": np.str_("a"), "vector": vectors[0], "metadata": metadata}]
        items.append({"id": "b", "vector": vectors[1], "metadata": {"bad": Path("x")}})
        result = rows.upsert(items)
        assert list(result.errors) == [1]
        assert isinstance(result.errors[1], errors.UnreadableInput)
        assert rows.get("a").metadata == {"year": 2024, "share": 0.5, "own": True, "day": "2024-05-01"}
        (found,) = rows.search(vectors[:1], top_k=np.int64(3), filter={"year": {"$gte": np.int32(2024)}})
        assert [hit.id for hit in found.hits] == ["a"]
        assert rows.delete(filter={"year": np.int64(2024)}) == 1
        client.delete_collection("plain-values")


def test_labels_in_every_form_give_the_same_answer(server_url: str, call: Call) -> None:
    prompts = {"cat": ["a cat", "my cat"], "dog": ["a dog"]}
    forms: list[Any] = [
        [LabelPrompts(name=name, prompts=texts) for name, texts in prompts.items()],
        [{"name": name, "prompts": texts} for name, texts in prompts.items()],
        [{"name": name, "prompts": np.array(texts)} for name, texts in prompts.items()],
        prompts,
        {"cat": ["a cat", "my cat"], "dog": "a dog"},
    ]
    answers = [call(server_url, "classify", [PHOTO], form) for form in forms]
    assert all(answer == answers[0] for answer in answers[1:])
    plain = call(server_url, "classify", [PHOTO], ["cat", "dog"])
    assert call(server_url, "classify", [PHOTO], np.array(["cat", "dog"])) == plain
    assert call(server_url, "classify", [PHOTO], (each for each in ("cat", "dog"))) == plain
    assert call(server_url, "put_label_set", "forms", prompts).texts == 3
    call(server_url, "delete_label_set", "forms")  # the server is one for all files: others list what is there


@pytest.mark.parametrize("label", [7, {"name": "cat"}, {"name": "cat", "prompts": ["a"], "more": 1}, b"cat", ["cat"]])
def test_what_is_no_label_is_told(server_url: str, call: Call, label: Any) -> None:
    with pytest.raises(TypeError, match=r"labels\[1\]: expected a string, LabelPrompts or"):
        call(server_url, "classify", [PHOTO], ["cat", label])


@pytest.mark.parametrize("name", ["photo.jpg", "a/b c.PNG", "x.heic"])
def test_a_picture_s_name_is_no_text_to_search_for(server_url: str, name: str) -> None:
    with Client(server_url) as client:
        photos = client.create_collection("picture-names")
        for query in (name, {"combine": [name]}):
            with pytest.raises(ValueError, match="looks like a picture's name"):
                photos.search([query])
        assert photos.search([{"text": name}, f"{name} on a wall"])[0].hits == []
        client.delete_collection("picture-names")


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert clipworks.__version__ == version("clipworks")
    assert "__version__" in dir(clipworks)
