"""`[data]` of shards that are streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from training.config_table import ConfigTable

Shards = str | tuple[str, ...]


class ValidationTable(ConfigTable):
    """A table of captioned files; all of its rows validate."""

    kind: Literal["table"]
    folder: Path
    table: str = "captions.csv"
    image_column: str = "image"
    caption_column: str = "caption"


class WebdatasetData(ConfigTable):
    """Shards of captioned pictures, read sample by sample while training goes on.

    shards, validation, test: paths or URLs with `{0000..0999}`, `{a,b}` and globs; relative ones are below `folder`,
    which may be a URL too.
    """

    kind: Literal["webdataset"]
    folder: str = ""
    shards: Shards
    samples: int = Field(ge=1, description="how many samples all shards hold together, about: an epoch")
    validation: Shards | ValidationTable
    test: Shards | ValidationTable | None = None
    validation_samples: int = Field(default=2000, ge=1, description="at most so many of them are decoded and kept")
    cache_px: int = Field(ge=8, description="side of the decoded pictures that crops are taken from")
    resampled: bool = Field(default=False, description="draw shards with replacement; there are no epochs then")
    buffer: int = Field(default=2000, ge=1, description="samples, not decoded, that each reader shuffles among")
    workers: int = Field(default=2, ge=0, description="loader processes of each training process; 0: none")
    prefetch: int = Field(default=2, ge=1, description="batches that each worker makes ahead")
    bad_share: float = Field(
        default=0.1, ge=0, le=1, description="the run stops when more of a reader's samples than this are bad"
    )
