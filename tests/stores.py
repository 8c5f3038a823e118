"""Stores of models that lie among the fixtures (tests/fixtures/README.md); tests that write to one copy it first."""

from pathlib import Path

_FIXTURES = Path(__file__).parent / "fixtures"

TINY_STORE = _FIXTURES / "tiny_store"  # tiny@1: random weights, knows nothing
SHOP_STORE = _FIXTURES / "shop_store"  # fashion-small@1: trained, knows products of a shop and a few thousand tokens
