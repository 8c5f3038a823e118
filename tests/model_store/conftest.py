"""A store that a test may damage: a copy of the generated tiny artifact."""

import shutil
from pathlib import Path

import pytest

from model_store.store import Artifact, Store

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    shutil.copytree(TINY_STORE, tmp_path / "store")
    return Store(tmp_path / "store", builtin=False)


@pytest.fixture
def tiny(store: Store) -> Artifact:
    return store.open("tiny")
