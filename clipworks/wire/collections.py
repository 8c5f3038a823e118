"""Bodies of /collections and /aliases. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from clipworks.wire.common import (
    MAX_WHOLE,
    ByContent,
    EncoderFingerprint,
    EncodingFormat,
    ImageInput,
    ImageUrlInput,
    ItemError,
    ModelName,
    OnError,
    TextInput,
    Warnings,
    Weak,
    Wire,
)

COLLECTION_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?$"
MAX_ID_BYTES = 512
MAX_SCHEMA_FIELDS = 64
VECTOR_FORMAT = "base64-float32"  # JSON schema `format` of vectors as text; tests generate real ones for it

CollectionName = Annotated[str, StringConstraints(pattern=COLLECTION_PATTERN)]
FieldType = Literal["string", "number", "boolean", "date", "string[]", "number[]"]
IndexKind = Literal["auto", "flat", "sq8", "ivf_sq8"]
BuiltKind = Literal["flat", "sq8", "ivf_sq8"]
BackendName = Literal["embedded", "milvus"]
Durability = Literal["full", "process", "remote", "none"]
LossKind = Literal["changes", "collection", "deletion", "uncertain"]
Include = Literal["metadata", "vector"]
ViewName = Literal["cross", "intra"]
VIEWS: tuple[ViewName, ...] = ("cross", "intra")
# A length or a character that an id may not have is an item's own error, so it is no part of this shape.
ItemId = Annotated[
    str,
    Field(
        description="1-512 bytes of UTF-8 without control characters; slashes allowed",
        json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]+$"},
    ),
]
VectorText = Annotated[str, Field(json_schema_extra={"format": VECTOR_FORMAT})]
VectorField = Annotated[
    Annotated[list[float], Field(min_length=1, fail_fast=True)] | VectorText,
    Field(description="floats, or base64 of little-endian float32; any length but zero, it is normalised on arrival"),
]
# The shape of the language is in docs/http.md; the server checks it, with the place of what is wrong.
Filter = Annotated[dict[str, Any], Field(examples=[{"year": {"$gte": 2020}, "tags": "beach"}])]
Metadata = Annotated[dict[str, Any], Field(examples=[{"year": 2024, "tags": ["beach", "dog"]}])]


# ---------------------------------------------------------------- collections


class CollectionIndex(Wire):
    """How a collection is searched; `auto` goes flat -> sq8 -> ivf_sq8 as it grows."""

    kind: IndexKind = "auto"
    nprobe: int | None = Field(default=None, ge=1, le=65536, description="lists that a search of ivf_sq8 looks into")
    oversample: int = Field(default=4, ge=1, le=64, description="candidates rescored per wanted hit: sq8, ivf_sq8")


def _few_fields(value: Any) -> Any:
    """Counted before each is looked at: every wrong one is an error of its own."""
    if isinstance(value, dict) and len(cast(dict[Any, Any], value)) > MAX_SCHEMA_FIELDS:
        raise ValueError(f"at most {MAX_SCHEMA_FIELDS} fields")
    return cast(Any, value)


def _both_views(names: list[ViewName]) -> list[ViewName]:
    if len(set(names)) != len(names):
        raise ValueError('a collection keeps both views, ["cross", "intra"], or none')
    return sorted(names)


class CollectionRequest(Wire):
    model: ModelName | None = Field(default=None, description="its version is pinned; without it the default model")
    index: CollectionIndex = CollectionIndex()
    metadata_schema: Annotated[dict[str, FieldType], BeforeValidator(_few_fields)] = Field(
        default_factory=dict[str, FieldType],
        max_length=MAX_SCHEMA_FIELDS,
        description="dotted field -> type: checked in every item, and indexed for filters",
        examples=[{"year": "number", "camera.maker": "string", "tags": "string[]"}],
    )
    thumbnails: bool = Field(
        default=False, description="keep a small picture (WebP, at most 256 px) of each item that is given as an image"
    )
    rerank: ModelName | None = Field(
        default=None,
        description="a model with a reranker, whose version is pinned: keep the position vectors of each item that is "
        "given as an image, so that a search can be reranked",
    )
    views: Annotated[list[ViewName], Field(min_length=2, max_length=2), AfterValidator(_both_views)] | None = Field(
        default=None,
        description='["cross", "intra"]: keep two vectors of each item, of the base of `model` and of `model` itself, '
        "which is a model with adapters behind another one's encoders",
        examples=[["cross", "intra"]],
    )


class CollectionView(Wire):
    """One of the two vectors of each item."""

    model: str = Field(description="name@version whose vectors these are")
    space: str
    dim: int


class CollectionViews(Wire):
    """The two vectors that a collection keeps of each item; `dim` of the collection counts both."""

    cross: CollectionView = Field(description="texts find pictures in it")
    intra: CollectionView = Field(description="for searches inside one modality")


class ThumbnailTotals(Wire):
    """Small pictures that a collection keeps."""

    count: int
    bytes: int = Field(description="of the encoded pictures")


class KeptPositions(Wire):
    """Position vectors that a collection keeps for a reranker."""

    model: str = Field(description="name@version of the model that makes them")
    count: int = Field(description="pictures that have them")
    bytes: int


class CollectionLoss(Wire):
    """Acknowledged changes that were not there when the server started; shown until an admin acknowledges the loss."""

    collection: str
    kind: LossKind = Field(
        description="changes: the latest; collection: all of it; deletion: a deleted one came back; uncertain: the "
        "log was damaged while it was being moved, or the witness was missing or damaged; what that took is not known"
    )
    reached: int = Field(description="sequence that was acknowledged")
    found: int = Field(description="sequence that was found; `reached` - `found` changes are lost")
    items_before: int | None = Field(description="null where it is not known")
    items_after: int
    noticed_at: int = Field(description="seconds since 1970")


class CollectionInfo(Wire):
    name: str
    backend: BackendName = Field(default="embedded", description="what keeps it")
    model: str = Field(description="name@version whose vectors these are")
    space: str
    fingerprint: EncoderFingerprint = Field(description="encoders that rows may come from")
    dim: int
    metadata_schema: dict[str, FieldType]
    index: CollectionIndex = Field(description="as asked for")
    kind: BuiltKind = Field(description="of the index that is built now")
    exact: bool = Field(description="whether searches without a filter are exact")
    count: int
    dead: int = Field(description="slots of the index whose rows were deleted or replaced; a rebuild frees them")
    sequence: int = Field(description="grows with every change")
    index_bytes: int | None = Field(description="memory of the index; null where the backend does not say")
    disk_bytes: int | None = Field(description="files of the whole store; null where the backend does not say")
    durability: Durability = Field(
        description="an answer means: full: synced to disk; process: handed to the operating system, a power cut may "
        "lose it; remote: what the Milvus behind this server promises; none: memory only"
    )
    rebuilding: bool
    warnings: list[str] = Field(description="what was found wrong at start; empty when all was well")
    thumbnails: ThumbnailTotals | None = Field(
        default=None, description="kept with its items; null where the collection was made without"
    )
    rerank: KeptPositions | None = Field(
        default=None, description="what searches can be reranked with; null where the collection was made without"
    )
    views: CollectionViews | None = Field(
        default=None, description="the two vectors of each item; null where it keeps one"
    )
    aliases: list[str] = Field(default_factory=list[str], description="its other names")
    losses: list[CollectionLoss] = Field(
        default_factory=list[CollectionLoss], description="what a damaged store lost of it, until acknowledged"
    )


class CollectionList(Wire):
    data: list[CollectionInfo]
    media_root: bool = Field(
        default=False, description="whether items without a stored thumbnail may have one made of a file of the server"
    )
    losses: list[CollectionLoss] = Field(
        default_factory=list[CollectionLoss], description="of all collections, also of those that are gone"
    )


# ---------------------------------------------------------------- aliases


class AliasRequest(Wire):
    collection: CollectionName = Field(description="that the alias names from now on")
    keep_as: CollectionName | None = Field(
        default=None,
        description="new name of the collection that has the alias' name as its own; changes at the same moment",
    )
    if_sequence: int | None = Field(
        default=None,
        ge=0,
        le=MAX_WHOLE,
        description="refuse (409) if the collection that the name means now is at another change than this one",
    )


class AliasInfo(Wire):
    name: str
    collection: str


class AliasList(Wire):
    data: list[AliasInfo]


# ---------------------------------------------------------------- upkeep (admin)


class DoctorRequest(Wire):
    queries: int = Field(default=100, ge=1, le=10_000, description="stored vectors to search for")
    recall_at: int = Field(default=10, ge=1, le=100, description="neighbours of each")


class DoctorResponse(Wire):
    healthy: bool
    rows: int
    indexed: int = Field(description="rows that searches see; equal to `rows` in a healthy collection")
    bad_count: int = Field(description="rows whose checksum is wrong")
    bad_rows: list[str] = Field(description="their ids, up to 1,000 of them")
    differing_slots: int = Field(description="vectors of the index that are not those stored")
    recall: float | None = Field(description="share of the true neighbours found; null when there was nothing to ask")
    recall_at: int
    sampled: int
    problems: list[str] = Field(description="each in one sentence; empty when healthy")


class AcknowledgeLossResponse(Wire):
    acknowledged: int = Field(description="losses that are no longer shown")


class CompactResponse(Wire):
    slots_removed: int
    bytes_freed: int


class SnapshotResponse(Wire):
    snapshot: str = Field(description="its name on the server")
    sha256: str = Field(description="of all but the last 32 bytes of the file, which are this digest")
    bytes: int
    count: int
    sequence: int


class SnapshotEntry(Wire):
    snapshot: str
    bytes: int


class SnapshotList(Wire):
    data: list[SnapshotEntry]


class RestoreRequest(Wire):
    snapshot: str = Field(min_length=1, max_length=128, description="of GET /snapshots")


# ---------------------------------------------------------------- items


class _AnyItem(Wire):
    id: ItemId
    metadata: Metadata = Field(default_factory=dict[str, Any])


class CollectionTextItem(_AnyItem, TextInput):
    pass


class CollectionImageItem(_AnyItem, ImageInput):
    pass


class CollectionImageUrlItem(_AnyItem, ImageUrlInput):
    pass


class CollectionVectorItem(_AnyItem):
    vector: VectorField


CollectionItem = Annotated[
    CollectionTextItem | CollectionImageItem | CollectionImageUrlItem | CollectionVectorItem,
    ByContent(
        {
            "text": CollectionTextItem,
            "image": CollectionImageItem,
            "image_url": CollectionImageUrlItem,
            "vector": CollectionVectorItem,
        }
    ),
]


class UpsertRequest(Wire):
    """Add or replace rows by id; of equal ids the last one stays.

    In multipart/form-data an item without text, image, image_url and vector takes the next file.
    """

    items: list[CollectionItem] = Field(min_length=1, fail_fast=True)
    model: ModelName | None = Field(default=None, description="encodes the items; without it the collection's own")
    space: str | None = Field(default=None, description="of the vectors given; refused (409) if it is another one")
    on_error: OnError = "fail"


class UpsertedItem(Wire):
    index: int
    id: str
    weak: Weak = False


class UpsertResponse(Wire):
    """Answered when the rows are durable and searches see them."""

    upserted: int
    data: list[UpsertedItem | ItemError]
    warnings: Warnings = []


class StoredItem(Wire):
    id: str
    sequence: int
    metadata: dict[str, Any] | None = Field(default=None, description="unless left out by `include`")
    vector: list[float] | str | None = Field(default=None, description="if asked for by `include`")


class ItemPage(Wire):
    """Items in the order of their ids."""

    data: list[StoredItem]
    cursor: str | None = Field(description="for the next page; null after the last")


class ItemQuery(Wire):
    """Query of `GET .../items/{id}`."""

    include: list[Include] = Field(default=["metadata"], max_length=2, fail_fast=True)
    encoding_format: EncodingFormat = "float"


class PageQuery(ItemQuery):
    """Query of `GET .../items`."""

    cursor: str | None = Field(default=None, min_length=1, max_length=2048, description="of the page before")
    limit: int = Field(default=100, ge=1, le=MAX_WHOLE)


class DeleteItemsRequest(Wire):
    ids: list[ItemId] | None = Field(default=None, min_length=1, fail_fast=True)
    filter: Filter | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _ids_or_filter(self) -> DeleteItemsRequest:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter")
        return self


class DeleteItemsResponse(Wire):
    deleted: int
