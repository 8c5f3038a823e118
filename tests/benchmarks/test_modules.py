"""Every script here finds what it imports: most of them no other test starts."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import benchmarks

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", [found.name for found in pkgutil.iter_modules(benchmarks.__path__)])
def test_a_module_is_imported(name: str) -> None:
    importlib.import_module(f"{benchmarks.__name__}.{name}")
