"""Results of calls: answers, inputs that failed beside them (`on_error="item"`), stored items and hits.

`warnings` of a result are what the server says of it, such as inputs of which the model knows nothing.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from clipworks.schemas import (
    EncoderFingerprint,
    FacetCounts,
    ItemStanding,
    LabelSetDetail,
    NearHit,
    Prediction,
    ScoreHistogram,
    SearchMatch,
    ViewName,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipworks.errors import ClientError

    Vectors = NDArray[np.float32]
    Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model answered. Vectors may be compared when their `space` is equal (classify does not tell it)."""

    model: str
    fingerprint: EncoderFingerprint
    space: str | None = None
    dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """vectors: float32 [n, dim] in the order of the inputs, NaN in the rows of `errors` (index -> why).

    Without numpy, a list of lists. `identity` is None when every input failed before it was sent.
    """

    vectors: Vectors
    errors: dict[int, ClientError]
    identity: ModelIdentity | None
    texts: int
    images: int
    tokens: int
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class ClassifyResult:
    """predictions: one list per image, best first, empty for those in `errors` (index -> why)."""

    predictions: list[list[Prediction]]
    errors: dict[int, ClientError]
    identity: ModelIdentity | None
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Pixels of the upright original that belong to a box; `counts` is COCO's compressed text, for pycocotools too."""

    height: int
    width: int
    counts: str

    def array(self) -> NDArray[np.bool_]:
        """Bool [height, width]. Needs numpy. Raises ValueError when the run lengths do not fill the picture."""
        import numpy as np

        runs = _run_lengths(self.counts)
        if sum(runs) != self.height * self.width or min(runs, default=0) < 0:
            raise ValueError(f"run lengths do not fill a picture of {self.width}x{self.height} px")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((self.height, self.width), order="F")


@dataclass(frozen=True, kw_only=True)
class Box:
    """A place in pixels of the upright original; x1 and y1 are the far edges. `mask` is None if not asked for."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    mask: Mask | None = None


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """A label's map over the whole picture, as `heatmap_format` asked for it.

    values: float32 [rows, columns] on the model's own grid, a list of lists without numpy. png: the map enlarged to the
    picture as a grey PNG, whose 0 and 255 stand for `low` and `high`. One of the two is None.
    """

    values: Vectors | None
    png: bytes | None
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LocatedLabel:
    """boxes: best first, empty unless the label is present and boxes were asked for.

    weak: the model knows nothing of the label.
    """

    label: str
    score: float
    present: bool
    boxes: list[Box]
    heatmap: Heatmap | None = None
    weak: bool = False


@dataclass(frozen=True, kw_only=True)
class Located:
    """What is where in one picture; width and height are those of the upright original. labels: all, best first."""

    width: int
    height: int
    labels: list[LocatedLabel]


@dataclass(frozen=True, kw_only=True)
class LocalizeResult:
    """images: in the order given, None for those in `errors` (index -> why); `threshold` decided about `present`."""

    images: list[Located | None]
    errors: dict[int, ClientError]
    identity: ModelIdentity | None
    threshold: float | None
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class UpsertResult:
    """ids: of the items that are stored now, in the caller's order; `errors` (index -> why) has the others."""

    upserted: int
    ids: list[str]
    errors: dict[int, ClientError]
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class RankedDocument:
    """index: among the documents that were given. score: how probable the model holds the match, 0 to 1."""

    index: int
    score: float


@dataclass(frozen=True, kw_only=True)
class RerankedDocuments:
    """documents: best first, equal ones in the order given, without those in `errors` (index -> why)."""

    documents: list[RankedDocument]
    errors: dict[int, ClientError]
    identity: ModelIdentity | None
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, kw_only=True)
class TeachResult:
    """What the label set says of itself now; ids of the examples by (label, place), and why others are not in it."""

    label_set: LabelSetDetail
    ids: Mapping[tuple[str, int], str]
    errors: Mapping[tuple[str, int], ClientError]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One item of a collection. `metadata` is empty and `vector` None where they were not asked for.

    vector: float32 [dim], a list without numpy. sequence: grows with every change of the collection.
    """

    id: str
    sequence: int
    metadata: dict[str, Any]
    vector: Vector | None = None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One found item; `score` is the cosine. `metadata` and `vector` as in `Stored`.

    near: with `group_near`, the items that were folded into it. rerank_score: with `rerank`, the match with the text, 0
    to 1; None where it was not matched and keeps its place. presence: with `presence`, the calibrated probability that
    it shows what the text says; None where the query is not one text.
    """

    id: str
    score: float
    metadata: dict[str, Any]
    vector: Vector | None = None
    near: list[NearHit] = field(default_factory=list[NearHit])
    rerank_score: float | None = None
    presence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The answer to one query, best first. `exact` False: the index is approximate and may have missed a better one.

    weak: the model knows nothing of the query. pool: how many of the best items were arranged anew. reranked: how many
    were matched with the text. match: with `presence`, how likely anything shows what the text says; `match.good` False
    says "no good match". facets (by field), histogram, scores (in the order of `score_of`): where asked for.
    """

    exact: bool
    hits: list[Hit]
    weak: bool = False
    pool: int | None = None
    reranked: int | None = None
    match: SearchMatch | None = None
    facets: dict[str, FacetCounts] = field(default_factory=dict[str, FacetCounts])
    histogram: ScoreHistogram | None = None
    scores: list[ItemStanding] = field(default_factory=list[ItemStanding])


class SearchOptions(TypedDict, total=False):
    """What a search may be asked for beside the best items. None is the same as leaving it out.

    diversity: 0 (best first) to 1: hits unlike each other, by maximal marginal relevance.
    group_near: a hit whose cosine to a better one is at least this is folded into it (`Hit.near`).
    pool: best items that these two look at, at most 2,000; without it 100, or more where it takes more.
    facets: metadata fields whose values are counted. facet_values: how many values of each are shown.
    histogram: bins of a histogram of all items' scores. score_of: ids of items whose score and rank to tell.
    rerank: {"model": a model with a reranker, "top": how many of the best items it orders anew}, both optional; only in
        a collection that was made with `rerank`.
    presence: {"threshold": from which on a match is a good one}, which is optional: tell how likely hits of a text are
        right (`Hit.presence`), and whether anything matches (`Hits.match`).
    views: "cross" or "intra": what all queries read of a collection that was made with `views`. Without it texts read
        the former, pictures and stored items the latter.
    """

    diversity: float | None
    group_near: float | None
    pool: int | None
    facets: Sequence[str] | None
    facet_values: int | None
    histogram: int | None
    score_of: Sequence[str] | None
    rerank: Mapping[str, Any] | None
    presence: Mapping[str, Any] | None
    views: ViewName | None


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """results: in the order of the queries, without hits for those in `errors` (index -> why).

    warnings: what the server says of the search, such as fields of the filter that no item has.
    """

    results: list[Hits]
    errors: dict[int, ClientError]
    warnings: list[str] = field(default_factory=list[str])


def vector_of(encoded: list[float] | str | None) -> Vector | None:
    """A vector of the wire. Raises ValueError for text that is not base64 of float32 values."""
    if encoded is None:
        return None
    rows = Rows(1)
    rows.put(0, encoded)
    return rows.assemble(len(rows.found[0]) // 4)[0]


def _run_lengths(text: str) -> list[int]:
    """COCO's packed run lengths: 5 bits a character from code 48, low bits first; differences from the fourth on.

    Raises ValueError for other characters, or when the text ends within a number.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError("packed run lengths have a character that is none of theirs")
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            value -= (code & 0x10) << (shift - 4)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("packed run lengths end within a number")
    return runs


@dataclass
class Rows:
    """Vectors as they come in, in any order; one float32 array in the end, or lists where numpy is missing."""

    count: int
    found: dict[int, Any] = field(default_factory=dict[int, Any])

    def put(self, index: int, embedding: list[float] | str) -> None:
        """Raises ValueError for text that is not base64 of float32 values."""
        if isinstance(embedding, str):
            self.found[index] = base64.b64decode(embedding, validate=True)
        else:
            self.found[index] = array("f", embedding).tobytes()
        if len(self.found[index]) % 4:
            raise ValueError("an embedding is not a whole number of float32 values")

    def assemble(self, dim: int) -> Vectors:
        """[count, dim]; missing rows are NaN. Raises ValueError when a row has another length."""
        if any(len(row) != 4 * dim for row in self.found.values()):
            raise ValueError(f"an embedding does not have {dim} values")
        try:
            import numpy as np
        except ImportError:
            return self._lists(dim)  # pyright: ignore[reportReturnType]
        vectors = np.full((self.count, dim), np.nan, dtype=np.float32)
        for index, row in self.found.items():
            vectors[index] = np.frombuffer(row, dtype="<f4")
        return vectors

    def _lists(self, dim: int) -> list[list[float]]:
        lists: list[list[float]] = []
        for index in range(self.count):
            row = array("f", self.found.get(index, array("f", [float("nan")] * dim).tobytes()))
            if sys.byteorder == "big" and index in self.found:
                row.byteswap()
            lists.append(row.tolist())
        return lists
