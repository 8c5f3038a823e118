"""Calibrated probabilities of a search: what they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipworks.schemas import SearchRequest, TextInput
from model_store.search_presence import neutral_mean
from service.collections.presence import SearchEvidence
from service.engine.running import RunningModel
from service.http.errors import Refusal
from service.services import Services
from service.timing import Budget

if TYPE_CHECKING:
    from service.retrieval import CollectionSpec


async def evidence_for(
    services: Services, spec: CollectionSpec, model: RunningModel | None, body: SearchRequest, budget: Budget
) -> SearchEvidence | None:
    """What the queries' model compares hits with; None: that was not asked for, or no query is a text.

    Raises:
        Refusal: 422, the model was not calibrated for searches, or knows nothing of the texts that it is calibrated
            with, or the collection keeps two vectors of each item.
        ServiceOverloaded, DeadlinePassed
    """
    if body.presence is None:
        return None
    if spec.views is not None:
        message = "searches of a collection with two views are not calibrated: leave presence out"
        raise Refusal(422, "unsupported_input", message, param="presence")
    if model is None or not any(isinstance(query, (str, TextInput)) for query in body.queries):
        return None
    calibration = model.manifest.search
    if calibration is None:
        message = (
            f"{model.reference} was not calibrated for searches: leave presence out, or calibrate it "
            "(python -m training.shipped.search_fit)"
        )
        raise Refusal(422, "unsupported_input", message, param="presence")
    neutral = await services.zero_shot.bare_vectors(model, calibration.neutral_texts, budget=budget)
    if not neutral.any():
        message = (
            f"{model.reference} knows nothing of its own neutral texts (`search` in GET /models/{{name}}), so it is "
            "not calibrated for searches: leave presence out"
        )
        raise Refusal(422, "unsupported_input", message, param="presence")
    threshold = calibration.threshold if body.presence.threshold is None else body.presence.threshold
    return SearchEvidence(neutral_mean(neutral), calibration, threshold)
