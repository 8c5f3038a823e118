"""POST /classify: images against labels, zero-shot."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import ClassifyRequest, ClassifyResponse
from model_store.errors import InputError
from service.faults import NoDirection, TooManyItems
from service.http.errors import Refusal, located
from service.http.openapi import answers, bodies
from service.http.options import Options
from service.routes.common import classes_of
from service.routes.direct import DirectRoute
from service.routes.labelled import LabelledAnswer, LabelledRequest, answer, label_vectors, read_asked, warnings_of
from service.tasks import pipeline
from service.tasks.label_tokens import LabelTokens
from service.tasks.scoring import ClassMatrix, Scored, presence_for
from service.teaching.head import TaughtHead

OPTIONS: Options = {
    "model": "text",
    "labels": "list",
    "label_set": "text",
    "templates": "templates",
    "activation": "text",
    "top_k": "whole",
    "threshold": "number",
    "on_error": "text",
    "on_unknown": "text",
}
router = APIRouter(route_class=DirectRoute)


@router.post(
    "/classify",
    summary="Classify images with labels given as text",
    description="Scores each image against each label, best first. Labels come inline or from a stored label set.",
    responses=answers(ClassifyResponse, 400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=bodies(ClassifyRequest, OPTIONS),
)
async def classify(request: Request) -> Response:
    asked = await read_asked(request, ClassifyRequest, OPTIONS)
    return await answer(request, asked, _score(asked), _shown)


async def _score(asked: LabelledRequest[ClassifyRequest]) -> LabelledAnswer[list[Scored]]:
    services, model, body = asked.services, asked.model, asked.body
    if body.labels is not None:
        _check_classes(asked, len(body.labels))  # before any of them is encoded
    presence = presence_for(model.manifest, body.activation, is_dense=model.dense_spec is not None)
    templates = body.templates
    if templates is None and presence is not None:
        templates = list(presence.positive_templates)  # it was calibrated with them
    if presence is None and (tokens := await _label_tokens(asked)) is not None:
        outcomes = await pipeline.classify_by_conditional_head(
            model,
            asked.images,
            tokens,
            pool=services.pool,
            activation=body.activation,
            top_k=body.top_k,
            threshold=body.threshold,
            budget=asked.budget,
        )
        return LabelledAnswer(outcomes, _said_of(asked, tokens))
    classes = await classes_of(services, model, body, templates, asked.budget)
    if isinstance(classes, ClassMatrix):
        _check_classes(asked, len(classes.names))
        if presence is None:
            _refuse_unknown_scale(asked)
    elif isinstance(classes, TaughtHead):
        _check_amount(asked, len(classes.names))
        _refuse_uncalibrated(asked, classes)
    else:
        _check_amount(asked, len(classes.spec.labels))
    if presence is not None and isinstance(classes, ClassMatrix):
        outcomes = await pipeline.classify_by_presence(
            model,
            asked.images,
            classes,
            await label_vectors(asked, classes, presence),
            presence,
            pool=services.pool,
            top_k=body.top_k,
            threshold=body.threshold,
            budget=asked.budget,
        )
        return LabelledAnswer(outcomes, warnings_of(classes))
    outcomes = await pipeline.classify(
        model,
        asked.images,
        classes,
        pool=services.pool,
        activation=body.activation,
        top_k=body.top_k,
        threshold=body.threshold,
        budget=asked.budget,
    )
    return LabelledAnswer(outcomes, _warnings(asked, classes) if isinstance(classes, ClassMatrix) else ())


async def _label_tokens(asked: LabelledRequest[ClassifyRequest]) -> LabelTokens | None:
    """The labels as the model's conditional head takes them; None: it has none, or the label set is a head itself.

    Raises:
        Refusal: 404, no such label set; 422, a label or its number is wrong.
        TooManyItems: 413, before an image is decoded or a text is made.
        As LabelSets.classes.
    """
    services, model, body = asked.services, asked.model, asked.body
    if not model.has_conditional_head:
        return None
    labels, templates, limits = body.labels, body.templates, services.zero_shot.limits
    if body.label_set is not None:
        if not isinstance(await classes_of(services, model, body, None, asked.budget), ClassMatrix):
            return None
        stored = services.label_sets.request_of(body.label_set)
        labels, templates, limits = stored.labels, stored.templates, services.label_sets.limits
        _check_classes(asked, len(labels or ()))
    try:
        return await services.label_tokenizer.tokens(
            model,
            labels or (),
            templates,
            images=len(asked.images),
            on_unknown=body.on_unknown,
            limits=limits,
        )
    except (InputError, NoDirection) as error:
        raise located(error, "labels" if body.label_set is None else "label_set") from None


def _warnings(asked: LabelledRequest[ClassifyRequest], classes: ClassMatrix) -> list[str]:
    manifest = asked.model.manifest
    if manifest.logit_scale is None:
        return [
            *warnings_of(classes),
            f"score: a cosine: the logit scale of {manifest.name} is not known ({manifest.scale_source})",
        ]
    return _said_of(asked, classes)


def _said_of(asked: LabelledRequest[ClassifyRequest], classes: ClassMatrix | LabelTokens) -> list[str]:
    """What to know of labels of which the model knows nothing."""
    compared = len(classes.names) - len(classes.weak)
    softmax = (asked.body.activation or asked.model.manifest.activation) == "softmax"
    if not classes.weak or compared != 1 or not softmax:
        return warnings_of(classes)
    return [
        *warnings_of(classes),
        "labels: softmax compares labels, and one is left to compare: it scores 1 whatever the picture shows",
    ]


def _refuse_unknown_scale(asked: LabelledRequest[ClassifyRequest]) -> None:
    """Raises Refusal (422): scores that need a logit scale, of a model that came without one."""
    manifest, activation = asked.model.manifest, asked.body.activation
    if manifest.logit_scale is None and activation in ("softmax", "sigmoid"):
        message = (
            f"{manifest.name} has no logit scale ({manifest.scale_source}), so it has no {activation} scores: "
            'leave activation out, or ask for "none"'
        )
        raise Refusal(422, "scale_unknown", message, param="activation")


def _refuse_uncalibrated(asked: LabelledRequest[ClassifyRequest], classes: TaughtHead) -> None:
    """Raises Refusal (422): sigmoid of a set whose examples do not say what a logit is worth."""
    if asked.body.activation == "sigmoid" and classes.sigmoid is None:
        message = (
            f"label set {asked.body.label_set} has no sigmoid scores: {classes.no_sigmoid}. Ask for softmax, or add "
            "examples"
        )
        raise Refusal(422, "scale_unknown", message, param="activation")


def _check_classes(asked: LabelledRequest[ClassifyRequest], labels: int) -> None:
    """Raises Refusal (422), TooManyItems (413) for a number of labels that no answer is for."""
    if labels == 1:
        _refuse_softmax_of_one(asked)
    _check_amount(asked, labels)


def _check_amount(asked: LabelledRequest[ClassifyRequest], labels: int) -> None:
    """Raises TooManyItems (413): more predictions than an answer holds, counted before anything is decoded."""
    images, limit = len(asked.images), asked.services.settings.max_predictions
    shown = min(labels, asked.body.top_k or labels)
    if images * shown > limit:
        raise TooManyItems(
            f"{images} images x {shown} labels are {images * shown} predictions, the limit is {limit} "
            "(CLIPWORKS_MAX_PREDICTIONS): ask for fewer with top_k, or send fewer images"
        )


def _refuse_softmax_of_one(asked: LabelledRequest[ClassifyRequest]) -> None:
    """Raises Refusal (422): the score of the only label would be 1 whatever the picture shows."""
    if (asked.body.activation or asked.model.manifest.activation) == "softmax":
        message = (
            "softmax compares labels, and of one label it is always 1: add what else the picture may show, or ask for "
            'activation "none" (the cosine) or "sigmoid"'
        )
        param = "labels" if asked.body.label_set is None else "label_set"
        raise Refusal(422, "invalid_field", message, param=param)


def _shown(predictions: list[Scored]) -> dict[str, Any]:
    return {"predictions": [_prediction(each) for each in predictions]}


def _prediction(found: Scored) -> dict[str, Any]:
    shown: dict[str, Any] = {"label": found.label, "score": found.score, "similarity": found.similarity}
    return {**shown, "weak": True} if found.weak else shown
