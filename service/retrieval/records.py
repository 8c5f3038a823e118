"""Plain frozen data that goes into the store and comes out of it. No HTTP, no model, no FAISS."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model_store.errors import SpaceMismatch
from service.retrieval.paths import parse_path

FieldType = Literal["string", "number", "boolean", "date", "string[]", "number[]"]
IndexKind = Literal["auto", "flat", "sq8", "ivf_sq8"]
BuiltKind = Literal["flat", "sq8", "ivf_sq8"]
LossKind = Literal["changes", "collection", "deletion", "uncertain"]
Vector = NDArray[np.float32]
Positions = NDArray[np.float32]  # [rows, columns, width]
Metadata = dict[str, Any]
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?")
MAX_DIM = 8192


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IndexSpec(_Closed):
    """How a collection is searched; `auto` goes flat -> sq8 -> ivf_sq8 as it grows.

    nprobe: lists an ivf_sq8 search looks into; None takes the setting's share of all lists.
    oversample: candidates rescored in float32 per wanted hit, of sq8 and ivf_sq8.
    """

    kind: IndexKind = "auto"
    nprobe: int | None = Field(None, ge=1, le=65536)
    oversample: int = Field(4, ge=1, le=64)


class RerankSpec(_Closed):
    """Whose position vectors a collection keeps of its pictures.

    model: `name@version` of a model with a reranker. source: what makes its position vectors, as a digest of the graphs
    and of how pictures are prepared for them; rerankers that agree in it read the same ones. width: numbers of one.
    """

    model: str = Field(min_length=1, max_length=256)
    source: str = Field(min_length=1, max_length=128)
    width: int = Field(ge=1, le=MAX_DIM)


ViewName = Literal["cross", "intra"]
VIEW_NAMES: tuple[ViewName, ...] = ("cross", "intra")


class _Vectors(_Closed):
    """Where vectors come from.

    model: `name@version` of the model that makes them, so that it can be loaded on demand.
    space: what they may be compared with.
    fingerprints: encoder by modality (`image`, `text`) that they may come from.
    """

    model: str = Field(min_length=1, max_length=256)
    space: str = Field(min_length=1, max_length=128)
    fingerprints: dict[str, str]
    dim: int = Field(ge=1, le=MAX_DIM)

    def require_fingerprint(self, modality: str, fingerprint: str, *, of: str) -> None:
        """Refuse to add a row that another encoder made.

        Raises:
            SpaceMismatch
        """
        pinned = self.fingerprints.get(modality)
        if fingerprint != pinned:
            raise SpaceMismatch(
                f"{of} was made by the {modality} encoder {fingerprint}, the collection takes rows of {pinned}"
            )


class ViewSpec(_Vectors):
    """One of the two vectors of each row."""


class ViewsSpec(_Closed):
    """The vectors of a collection that keeps two of each item, one behind the other in its row: those of a model, in
    which texts find pictures, and those of a model with adapters behind it, for searches inside one modality."""

    cross: ViewSpec
    intra: ViewSpec

    @property
    def dim(self) -> int:
        return self.cross.dim + self.intra.dim

    def of(self, name: ViewName) -> ViewSpec:
        return self.cross if name == "cross" else self.intra

    def place(self, name: ViewName) -> slice:
        """Where in a row its numbers are."""
        return slice(0, self.cross.dim) if name == "cross" else slice(self.cross.dim, self.dim)


class CollectionSpec(_Vectors):
    """What a collection is bound to for life; an equal specification creates the same collection again.

    metadata_schema: dotted field -> type. A declared field has that type or is missing in every item, and one that is
        no list is indexed, so that a filter on it costs no scan. A `date` is text such as 2024-05-31 or
        2024-05-31T17:08:00, whose order is that of time.
    thumbnails: whether a small picture is kept with each item that has one.
    rerank: whose position vectors are kept with each item that is given as an image.
    views: of which two vectors its rows are made. `model` and `fingerprints` are those of the intra view then, and the
        space is one of its own, so that nobody takes a row for a vector of either.
    None of these is written where it is off, so that versions of before it still read every other collection.
    """

    index: IndexSpec = Field(default_factory=lambda: IndexSpec(nprobe=None, oversample=4))
    metadata_schema: dict[str, FieldType] = Field(default_factory=dict, max_length=64)
    thumbnails: bool = Field(default=False, exclude_if=lambda kept: not kept)
    rerank: RerankSpec | None = Field(default=None, exclude_if=lambda kept: kept is None)
    views: ViewsSpec | None = Field(default=None, exclude_if=lambda kept: kept is None)

    @field_validator("metadata_schema")
    @classmethod
    def _paths(cls, value: dict[str, FieldType]) -> dict[str, FieldType]:
        for field in value:
            parse_path(field)
        return value

    @model_validator(mode="after")
    def _views(self) -> Self:
        if self.views is not None and self.views.dim != self.dim:
            raise ValueError(f"views: their vectors have {self.views.dim} numbers together, dim says {self.dim}")
        return self

    def require_space(self, space: str, *, of: str) -> None:
        """Refuse to compare vectors of two spaces. `of` says whose vector it is, for the message.

        Raises:
            SpaceMismatch
        """
        if space != self.space:
            raise SpaceMismatch(
                f"{of} is of space {space}, the vectors of this collection are of {self.model} and of space "
                f"{self.space}; to change the model encode it again: clipworks collections upgrade"
            )


@dataclass(frozen=True, slots=True)
class StoreItem:
    """One row to store.

    id: 1-512 bytes of UTF-8 without control characters.
    vector: float32 [D], finite, of unit length (within 1e-3); the caller normalises.
    metadata: a JSON object; integers within 64 bits, no NaN or Infinity.
    thumbnail: an encoded WebP; only in a collection that keeps them.
    positions: position vectors of its picture, as `pack_positions` packs them; only in a collection that keeps them.
    """

    id: str
    vector: Vector
    metadata: Metadata
    thumbnail: bytes | None = None
    positions: bytes | None = None


@dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of one item of an upsert.

    error: None says that it is durable and visible. created: False says that it replaced a row.
    """

    index: int
    id: str
    created: bool = False
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One stored row; `vector` (float32 [D]), `thumbnail` (WebP) and `positions` (packed) only where asked for, and the
    latter two where there is one. `sequence` grows with every change."""

    id: str
    metadata: dict[str, Any]
    sequence: int
    vector: Vector | None = None
    thumbnail: bytes | None = None
    positions: bytes | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in the order of their ids; `cursor` None after the last page."""

    records: list[Record]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class StoredHit:
    """`score`: inner product of the query and the stored vector, summed in float64, rounded to float32. `rerank_score`,
    `presence`: whoever reranks hits, or says how likely they are right, puts it here."""

    id: str
    score: float
    metadata: dict[str, Any]
    vector: Vector | None = None
    rerank_score: float | None = None
    presence: float | None = None


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """Best first, equal scores by id. `exact`: no better row exists; False where the index is approximate."""

    exact: bool
    hits: list[StoredHit]


@dataclass(frozen=True, slots=True)
class Loss:
    """Acknowledged changes of a collection that were not there at a start.

    kind: `changes` (the latest ones), `collection` (all of it), `deletion` (a deleted one came back) or `uncertain`
        (the log was damaged while it was being moved, or the witness was missing or damaged; what that took is not
        known).
    reached, found: the sequence that was acknowledged, and the one that was found; their difference is what is lost.
    items_before, items_after: items at these sequences; None: not known. noticed_at: seconds since 1970.
    """

    collection: str
    kind: LossKind
    reached: int
    found: int
    items_before: int | None
    items_after: int
    noticed_at: int


@dataclass(frozen=True, slots=True)
class KeptTotals:
    """How many thumbnails, or sets of position vectors, a collection keeps, and their encoded bytes."""

    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CollectionDescription:
    """What `describe` tells. Bytes: memory of the index, and of the whole store's files on disk; None: not known.

    exact: whether searches without a filter are exact. kind: what is built now; the wanted kind is in `spec.index`.
    durability: `full` (an answer means synced to disk), `process` (handed to the operating system: survives a crash of
        the process, not a power cut), `remote` (the answer of another server) or `none` (a temporary folder).
    warnings: what was found wrong at open, in words; empty when all was well.
    aliases: its other names.
    losses: until they are acknowledged.
    thumbnails, positions: None where the collection keeps none.
    """

    name: str
    spec: CollectionSpec
    count: int
    dead: int
    sequence: int
    kind: BuiltKind
    exact: bool
    index_bytes: int | None
    disk_bytes: int | None
    durability: Literal["full", "process", "remote", "none"]
    rebuilding: bool
    warnings: tuple[str, ...]
    backend: Literal["embedded", "milvus"] = "embedded"
    aliases: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()
    thumbnails: KeptTotals | None = None
    positions: KeptTotals | None = None


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Dead slots that left the index, and bytes that left the database file."""

    slots_removed: int
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A portable copy of one collection at one sequence; `sha256` covers every byte before it in the file."""

    path: str
    sha256: str
    bytes: int
    count: int
    sequence: int


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What `doctor` found.

    rows, indexed: rows of the truth, live slots of the index; they must be equal.
    bad_rows: ids (or row numbers, where the id itself is damaged) whose checksum is wrong.
    differing_slots: live slots whose vector is not the row's.
    recall: mean share of the true top `recall_at` that the index finds, over `sampled` stored vectors as queries;
        1.0 is required of an exact index.
    problems: each in one sentence; empty means healthy.
    """

    rows: int
    indexed: int
    bad_rows: tuple[str, ...]
    differing_slots: int
    recall: float | None
    recall_at: int
    sampled: int
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """Knobs of the whole store; the defaults are meant to be right.

    train_min_rows: below it every collection is flat: there is too little to train another kind on.
    flat_max_rows, sq8_max_rows: where `auto` leaves flat for sq8, and sq8 for ivf_sq8.
    threads: OpenMP threads of one index search; 0 takes one for each core.
    readers: reads at one time.
    scanners: filters at one time that look at many rows; on connections of their own, so no read waits for them.
    checkpoint_s: seconds between truncations of the write-ahead log and notes of the reached sequence.
    rebuild_dead_share: an index with a larger share of dead slots is rebuilt in the background.
    max_results: largest offset + top_k.  max_metadata_bytes: of one item, as JSON.
    max_collections: of one store; those that are there already are opened all the same.
    group_items: items at most that share one commit.  bitmap_cache_bytes: for bitmaps of filters, per collection.
    """

    train_min_rows: int = 256
    flat_max_rows: int = 50_000
    sq8_max_rows: int = 1_000_000
    threads: int = 0
    readers: int = 4
    scanners: int = 2
    checkpoint_s: float = 30.0
    rebuild_dead_share: float = 0.2
    max_results: int = 10_000
    max_metadata_bytes: int = 65_536
    max_collections: int = 1_000
    group_items: int = 5_000
    bitmap_cache_bytes: int = 64 * 2**20
