"""Warnings of answers whose body has no place for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HEADER = "X-Warnings"


def warning_header(warnings: Sequence[str]) -> Mapping[str, str]:
    """The sentences are ASCII and hold no word of the request."""
    return {HEADER: "; ".join(warnings)} if warnings else {}
