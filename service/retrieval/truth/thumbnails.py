"""Small pictures that a collection may keep beside its rows."""

from __future__ import annotations

from service.retrieval.truth.beside import BesideKind

MAX_THUMBNAIL_BYTES = 2**20
THUMBNAILS = BesideKind(
    tables="thumbnails",
    totals="thumbnail_totals",
    column="picture",
    counted="pictures",
    one="thumbnail",
    many="thumbnails",
)
