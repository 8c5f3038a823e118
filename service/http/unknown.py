"""Sentences of an answer about what the model knows nothing of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SHOWN_PLACES = 20
HEADER = "X-Warnings"


def unknown_inputs(places: Sequence[str]) -> list[str]:
    """One sentence that names places of a request, such as inputs[3].text; none for no places."""
    if not places:
        return []
    shown = ", ".join(places[:_SHOWN_PLACES])
    more = f" and {len(places) - _SHOWN_PLACES} more" if len(places) > _SHOWN_PLACES else ""
    return [f"{shown}{more}: this model knows nothing of what is there, so the vector says nothing"]


def warning_header(warnings: Sequence[str]) -> Mapping[str, str]:
    """For answers whose body has no place for sentences; they are ASCII and hold no word of the request."""
    return {HEADER: "; ".join(warnings)} if warnings else {}
