"""Plain data that routes hand to service.collections.facade: rows to store and queries to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model_store.errors import InputError
from service.collections.arranging import Arrangement
from service.collections.presence import SearchEvidence
from service.collections.rescoring import Rescoring
from service.retrieval.records import ViewName
from service.retrieval.surveys import SurveySpec
from service.tasks.pipeline import Input, TextItem


class FieldRefused(InputError):
    """Another error together with the place in the request that it is about."""

    def __init__(self, error: InputError, param: str) -> None:
        super().__init__(str(error))
        self.code = error.code
        self.param = param


@dataclass(frozen=True)
class GivenVector:
    """Floats, or base64 of little-endian float32; not checked yet."""

    value: Sequence[float] | str


@dataclass(frozen=True)
class StoredId:
    """The vector of an item that the collection holds."""

    id: str


@dataclass(frozen=True)
class NewRow:
    """An item to store, by what its vector comes from."""

    id: str
    source: Input | GivenVector
    metadata: dict[str, Any]


Source = Input | GivenVector | StoredId


@dataclass(frozen=True)
class QueryPlan:
    """One query: the normalised sum of its parts. `is_single`: one part, whose weight says nothing."""

    parts: tuple[Source, ...]
    weights: tuple[float, ...] = (1.0,)
    is_single: bool = True

    @property
    def text(self) -> str | None:
        """The one text that it is, if it is one."""
        only = self.parts[0]
        return only.text if self.is_single and isinstance(only, TextItem) else None


@dataclass(frozen=True, kw_only=True)
class SearchParameters:
    """What all queries of a request share. view: that they read, of a collection that keeps two vectors of an item."""

    top_k: int
    offset: int
    filter: dict[str, Any] | None
    min_score: float | None
    with_metadata: bool
    with_vectors: bool
    arrangement: Arrangement
    survey: SurveySpec
    rescoring: Rescoring | None = None
    evidence: SearchEvidence | None = None
    view: ViewName | None = None
