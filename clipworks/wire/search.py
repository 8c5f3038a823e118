"""Bodies of /collections/{name}/search. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from clipworks.wire.collections import Filter, Include, ItemId, VectorField, ViewName
from clipworks.wire.common import (
    INPUT_FIELDS,
    MAX_WHOLE,
    ByContent,
    EncodingFormat,
    ImageInput,
    ImageUrlInput,
    ItemError,
    ModelName,
    OnError,
    OnUnknownField,
    TextInput,
    Warnings,
    Weak,
    Wire,
)

MAX_POOL = 2_000
MAX_RERANKED = 1_000
FacetField = Annotated[str, Field(min_length=1, max_length=256, examples=["camera.maker"])]


class IdQuery(Wire):
    """A stored item's vector; the item itself is no hit."""

    id: ItemId


class VectorQuery(Wire):
    vector: VectorField


class _Weighted(Wire):
    weight: float = Field(default=1.0, description="negative pushes away")


class WeightedText(_Weighted, TextInput):
    pass


class WeightedImage(_Weighted, ImageInput):
    pass


class WeightedImageUrl(_Weighted, ImageUrlInput):
    pass


class WeightedId(_Weighted, IdQuery):
    pass


class WeightedVector(_Weighted, VectorQuery):
    pass


Part = Annotated[
    WeightedText | WeightedImage | WeightedImageUrl | WeightedId | WeightedVector,
    ByContent(
        {
            "text": WeightedText,
            "image": WeightedImage,
            "image_url": WeightedImageUrl,
            "id": WeightedId,
            "vector": WeightedVector,
        }
    ),
]


class CombineQuery(Wire):
    """The normalised sum of its normalised parts; stored items among them are no hits."""

    combine: list[Part] = Field(min_length=1, max_length=64, fail_fast=True)


Query = Annotated[
    str | TextInput | ImageInput | ImageUrlInput | IdQuery | VectorQuery | CombineQuery,
    ByContent({**INPUT_FIELDS, "id": IdQuery, "vector": VectorQuery, "combine": CombineQuery}, string=True),
]


class SearchReranking(Wire):
    """The best items once more, by a model that reads all of a picture and all of a text; docs/rerank.md."""

    model: ModelName | None = Field(
        default=None, description="one that reads what the collection keeps; without it the collection's own `rerank`"
    )
    top: int = Field(default=100, ge=1, le=MAX_RERANKED, description="best items that it orders anew")


class SearchPresence(Wire):
    """How likely hits show what a text says, and whether anything does; docs/composed.md says how far to trust it."""

    threshold: float | None = Field(
        default=None, ge=0, le=1, description="below it nothing is a good match; without it the model's own"
    )


class SearchRequest(Wire):
    queries: list[Query] = Field(min_length=1, fail_fast=True)
    model: ModelName | None = Field(
        default=None, description="encodes the queries; of the collection's space. Without it the collection's own"
    )
    space: str | None = Field(default=None, description="of the vectors given; refused (409) if it is another one")
    top_k: int = Field(default=10, ge=1, le=MAX_WHOLE)
    offset: int = Field(default=0, ge=0, le=MAX_WHOLE, description="hits to skip, for the next page")
    min_score: float | None = Field(default=None, description="hits below this cosine are left out")
    filter: Filter | None = None
    include: list[Include] = Field(default=["metadata"], max_length=2, fail_fast=True)
    encoding_format: EncodingFormat = Field(default="float", description="of the vectors in the answer")
    rerank: SearchReranking | None = Field(
        default=None, description="order the best items anew by their match with a text; what is behind them stays"
    )
    presence: SearchPresence | None = Field(
        default=None,
        description="calibrated probabilities of queries that are one text, if the model was calibrated for searches",
    )
    views: ViewName | None = Field(
        default=None,
        description="of a collection with two views: the one that all queries read; without it texts read `cross` and "
        "pictures and stored items `intra`",
    )
    diversity: float = Field(
        default=0.0, ge=0, le=1, description="0: best first; more: hits unlike each other (maximal marginal relevance)"
    )
    group_near: float | None = Field(
        default=None, gt=0, le=1, description="a hit whose cosine to a better one is at least this is folded into it"
    )
    pool: int | None = Field(
        default=None,
        ge=1,
        le=MAX_POOL,
        description="best items that `diversity` and `group_near` look at; without it 100, or more where it takes more",
    )
    facets: list[FacetField] = Field(
        default=[], max_length=8, fail_fast=True, description="metadata fields: count the values that items have"
    )
    facet_values: int = Field(default=20, ge=1, le=1000, description="values shown of each facet")
    histogram: int | None = Field(
        default=None, ge=1, le=200, description="bins of a histogram of the scores of all items that pass the filter"
    )
    score_of: list[ItemId] = Field(
        default=[], max_length=100, fail_fast=True, description="items whose score and rank to tell, hits or not"
    )
    on_error: OnError = "fail"
    on_unknown: OnUnknownField = "warn"


class NearHit(Wire):
    id: str
    score: float = Field(description="cosine of query and item")
    similarity: float = Field(description="cosine of the item and the hit that it is folded into")


class SearchHit(Wire):
    id: str
    score: float = Field(description="cosine of query and item")
    rerank_score: float | None = Field(
        default=None,
        description="with `rerank`: sigmoid of the match logit, 0 to 1; null for a hit behind `top`, and for one that "
        "has no position vectors: it keeps its place",
    )
    presence: float | None = Field(
        default=None,
        description="with `presence`: calibrated probability that this picture shows what the text says; null where "
        "the query is not one text of which the model knows something, and of an item that was deleted while the "
        "search went on",
    )
    metadata: dict[str, Any] | None = Field(default=None, description="unless left out by `include`")
    vector: list[float] | str | None = Field(default=None, description="if asked for by `include`")
    near: list[NearHit] | None = Field(
        default=None, description="with `group_near`: items folded into this hit, of those that were looked at"
    )


class FacetCount(Wire):
    value: str | int | float | bool | None
    count: int = Field(description="items that have it; one whose field is a list counts for each of its values")


class FacetCounts(Wire):
    """Of the items that pass the filter, reach `min_score` and are not named by the query."""

    values: list[FacetCount] = Field(description="most frequent first, equal counts by value")
    others: int = Field(description="further values, which are not shown")
    missing: int = Field(description="items without the field")


class ScoreHistogram(Wire):
    """Of the scores of all items that pass the filter and are not named by the query; empty where there are none."""

    edges: list[float] = Field(description="one more than counts")
    counts: list[int]
    mean: float
    deviation: float = Field(description="standard deviation")


class ItemStanding(Wire):
    id: str
    score: float | None = Field(description="cosine of query and item; null: the collection has no such item")
    rank: int | None = Field(description="1: the best hit; null: no hit of this search, by its filter or its query")


class SearchMatch(Wire):
    """Of the items that pass the filter, whatever the page."""

    probability: float = Field(description="calibrated, that any of them shows what the text says")
    threshold: float
    good: bool = Field(description="false: no good match, the probability is below the threshold")


class QueryResult(Wire):
    index: int
    exact: bool = Field(description="true: no better item exists; false: the index is approximate")
    hits: list[SearchHit]
    weak: Weak = False
    pool: int | None = Field(default=None, description="items looked at for `diversity` and `group_near`")
    reranked: int | None = Field(default=None, description="with `rerank`: items that it scored, at most `top`")
    match: SearchMatch | None = Field(
        default=None,
        description="with `presence`: whether anything matches; null where the query is not one text of which the "
        "model knows something",
    )
    facets: dict[str, FacetCounts] | None = Field(default=None, description="by field, if asked for")
    histogram: ScoreHistogram | None = Field(default=None, description="if asked for")
    scores: list[ItemStanding] | None = Field(default=None, description="in the order of `score_of`, if asked for")


class SearchResponse(Wire):
    model: str | None = Field(description="name@version that encoded the queries; null if there was nothing to encode")
    space: str
    results: list[QueryResult | ItemError]
    warnings: Warnings = []
