"""The refusal that all containers share: a file of more parts than any encoder writes."""

from __future__ import annotations

from model_store.errors import ImageTooLarge


def too_many(format_name: str, part: str, limit: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"this {format_name} has more than {limit} {part}, which no ordinary encoder writes; save it anew"
    )
