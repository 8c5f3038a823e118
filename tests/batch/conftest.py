"""A job for each recipe, and one server that says what it must give."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.batch.recipes import TINY_STORE, Job, make_job


@pytest.fixture(scope="session")
def tiny_url(serving: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    with serving("--store", TINY_STORE, "--model", "tiny", "--data", "memory") as url:
        yield url


@pytest.fixture
def job(request: pytest.FixtureRequest, tmp_path: Path, tiny_url: str) -> Job:
    """Of 60 pictures; `@pytest.mark.parametrize("job", [count], indirect=True)` for another number."""
    return make_job(tmp_path, tiny_url, getattr(request, "param", 60))
