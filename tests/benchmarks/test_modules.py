"""Every module of benchmarks finds what it imports, and says what it is: most of them no other test starts."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", [found.name for found in pkgutil.iter_modules(benchmarks.__path__)])
def test_a_module_is_found_with_all_that_it_imports(name: str) -> None:
    assert importlib.import_module(f"{benchmarks.__name__}.{name}").__doc__
