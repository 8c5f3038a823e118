"""Names of repositories and of the artifacts that they become."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import RepositoryError
from model_store.hub.references import Reference, model_name
from model_store.manifest import NAME_PATTERN


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("immich-app/ViT-B-32__openai", "immich-app/ViT-B-32__openai", None),
        ("hub:Xenova/clip-vit-base-patch32@main", "Xenova/clip-vit-base-patch32", "main"),
        ("a/b@" + "0" * 40, "a/b", "0" * 40),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1"),
    ],
)
def test_references(text: str, repository: str, revision: str | None) -> None:
    found = Reference.parse(text)
    assert (found.repository, found.revision) == (repository, revision)
    assert found.is_commit == (revision == "0" * 40)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "a", "a/b/c", "../b", "a/..", "a/b@", "a/b@-x", "/b", "a/ b", "https://x/a/b", "a/b@x@y"]
)
def test_what_is_no_repository(text: str) -> None:
    with pytest.raises(RepositoryError, match="is no repository"):
        Reference.parse(text)


@given(st.text(max_size=200))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        found = Reference.parse(text)
    except RepositoryError:
        return
    assert ".." not in found.repository.split("/")
    assert re.fullmatch(NAME_PATTERN, found.model_name)


@given(st.text(max_size=200))
def test_every_name_becomes_a_model_s_name(name: str) -> None:
    assert re.fullmatch(NAME_PATTERN, model_name(name))


def test_names_keep_what_they_can() -> None:
    assert model_name("immich-app/ViT-B-32__laion2b-s34b-b79k") == "vit-b-32__laion2b-s34b-b79k"
    assert model_name("org/Ünï cödé") == "n-c-d"
