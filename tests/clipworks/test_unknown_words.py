"""The client and the command line pass on what the server says of words that its model does not know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipworks import Client
from clipworks.errors import InvalidInput
from tests.stores import SHOP_STORE

Cli = Callable[..., tuple[int, str, str]]
Serving = Callable[..., AbstractContextManager[str]]
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def shop(serving: Serving) -> Iterator[str]:
    """Address of a server with a model that knows some thousands of tokens and no others."""
    with serving("--store", SHOP_STORE, "--data", "memory") as url:
        yield url


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (64, 80), "red").save(path)
    return path


def test_a_warning_names_the_callers_inputs(call: Call, shop: str) -> None:
    """Requests of two texts each: the server's indices are not the caller's."""
    texts = ["dress", "shoes", "bag", "grass", "red dress", "hello"]
    with pytest.warns(UserWarning, match=r"^inputs\[") as said:
        found = call(shop, "embed", texts=texts, on_error="item", client={"batch_size": 2})
    assert sorted(text[:9] for text in found.warnings) == ["inputs[3]", "inputs[5]"]
    assert [str(each.message) for each in said] == found.warnings
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), [1, 1, 1, 0, 1, 0], atol=1e-6)
    with pytest.raises(InvalidInput) as refused:
        call(shop, "embed", texts=texts, on_unknown="error")
    assert (refused.value.code, refused.value.index) == ("no_direction", 3)


def test_labels_and_queries_are_warned_of(call: Call, shop: str, picture: Path) -> None:
    with pytest.warns(UserWarning, match="nothing of 'grass'"):
        [predictions] = call(shop, "classify", [picture], ["dress", "grass", "shoes"])
    assert [(each.label, each.weak) for each in predictions][2] == ("grass", True)
    with pytest.warns(UserWarning, match="nothing of 'grass'"):
        [located] = call(shop, "localize", [picture], ["dress", "grass"])
    assert {each.label: each.weak for each in located.labels} == {"dress": False, "grass": True}
    with pytest.warns(UserWarning, match="^label set kinds: labels: .*'grass'"):
        call(shop, "put_label_set", "kinds", ["dress", "grass"])
    with Client(shop) as client:
        things = client.create_collection("things")
        things.upsert([{"id": "a", "text": "dress"}])
        with pytest.warns(UserWarning, match=r"^collection things: queries\[1\].text: "):
            known, unknown = things.search(["dress", "grass"])
        assert ([hit.id for hit in known.hits], unknown.hits, unknown.weak) == (["a"], [], True)
        with pytest.raises(InvalidInput):
            things.search(["grass"], on_unknown="error")
        client.delete_collection("things")


def test_the_command_line_warns_on_stderr(cli: Cli, shop: str, picture: Path) -> None:
    code, out, err = cli("classify", picture, "--labels", "dress,grass,shoes", "--url", shop, "--json")
    assert (code, json.loads(out)["data"][0]["predictions"][2]["label"]) == (0, "grass")
    assert err.startswith("warning: labels: this model knows nothing of 'grass'")
    code, out, err = cli("embed", "--text", "grass", "--text", "dress", "--url", shop)
    assert (code, len(out.splitlines()), err.startswith("warning: inputs[0]: ")) == (0, 2, True)
    code, _, err = cli("localize", picture, "--labels", "dress,grass", "--url", shop)
    assert (code, "warning: labels: this model knows nothing of 'grass'" in err) == (0, True)
    with Client(shop) as client:
        client.create_collection("words").upsert([{"id": "a", "text": "dress"}])
    code, out, err = cli("search", "grass", "-c", "words", "--url", shop)
    assert (code, len(out.splitlines()), err.splitlines()[0].startswith("warning: collection words: queries[0]")) == (
        0,
        1,
        True,
    )
    assert "no other items" not in err
