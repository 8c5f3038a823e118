"""/v1: the OpenAI-compatible face, with the image dialects of infinity and Jina."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import (
    ImageInput,
    ImageUrlInput,
    TextInput,
    V1EmbeddingsRequest,
    V1EmbeddingsResponse,
    V1Item,
    V1Model,
    V1ModelList,
)
from model_store.errors import InputError
from service.base64_text import is_data_uri
from service.engine.running import RunningModel
from service.engine.vectors import unknown_inputs
from service.http.context import while_connected
from service.http.errors import Refusal, located
from service.http.ingress import Received, read_json
from service.http.inputs import items_of, param_of
from service.http.openapi import answers, json_body
from service.http.respond import encoded, entries, json_response, model_headers, model_response
from service.routes.common import budget_for, check_count, check_towers, model_for, until_first_failure
from service.routes.direct import DirectRoute
from service.services import services_of
from service.tasks import pipeline

router = APIRouter(prefix="/v1", route_class=DirectRoute)
Id = Annotated[str, Path(description="name, or name@version; slashes are part of it")]
_UNNAMED = "default/not-specified"  # what infinity's client sends when its user names no model
AnyInput = str | TextInput | ImageInput | ImageUrlInput


@router.post(
    "/embeddings",
    summary="Embed, as OpenAI's API does",
    description=(
        "`input` is a text or texts; with `modality: image` base64 images (infinity's dialect); or a list of "
        '`{"text"}` and `{"image"}` (Jina\'s dialect). Unknown fields are ignored. Vectors have length 1.'
    ),
    responses=answers(V1EmbeddingsResponse, 400, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=json_body(V1EmbeddingsRequest),
)
async def create_embeddings(request: Request) -> Response:
    services = services_of(request)
    budget = budget_for(request)
    body = await read_json(request, V1EmbeddingsRequest, services.limits, budget=budget)
    inputs = inputs_of(body)
    check_count(services, sum(not isinstance(each, (str, TextInput)) for each in inputs))
    model = model_for(services, None if body.model == _UNNAMED else body.model)
    items = await items_of(request, Received(body), inputs, services.limits, budget)
    check_towers(model, items, inputs, name="input")
    work = pipeline.embed(
        model,
        until_first_failure(items, "fail"),
        pool=services.pool,
        normalize=True,
        dimensions=body.dimensions or None,
        on_unknown=body.on_unknown or "warn",
        budget=budget,
    )
    try:
        result = await while_connected(request, work)
    except InputError as error:
        raise located(error, "dimensions") from None

    def show(vector: pipeline.Vector) -> dict[str, Any]:
        return {"object": "embedding", "embedding": encoded(vector, body.encoding_format or "float")}

    def place(index: int) -> str:
        return "input" if isinstance(body.input, str) else param_of(inputs, index, name="input")

    data = entries(result.outcomes, show, on_error="fail", place=place, telemetry=services.telemetry)
    usage = {"prompt_tokens": result.tokens, "total_tokens": result.tokens}
    payload: dict[str, Any] = {"object": "list", "data": data, "model": model.reference, "usage": usage}
    if warnings := unknown_inputs([place(index) for index in result.weak]):
        payload["warnings"] = warnings
    return json_response(payload, headers=model_headers(model))


@router.get("/models", summary="List the models that run, as OpenAI's API does", responses=answers(V1ModelList))
async def list_models(request: Request) -> Response:
    return model_response(V1ModelList(data=[_shown(model) for model in services_of(request).registry.running()]))


@router.get(
    "/models/{id:path}",
    summary="Show a model that runs, as OpenAI's API does",
    responses=answers(V1Model, 404, 409, 422, 503),
)
async def get_model(request: Request, id: Id) -> Response:
    return model_response(_shown(model_for(services_of(request), id)))


def inputs_of(body: V1EmbeddingsRequest) -> list[AnyInput]:
    """The three dialects as the inputs of /embed.

    Raises:
        Refusal: 422, token ids or nothing at all.
    """
    given: Sequence[Any] = [body.input] if isinstance(body.input, str) else body.input
    if not given:
        raise Refusal(422, "invalid_field", "input: there is nothing to embed", param="input")
    inputs: list[AnyInput] = []
    for index, each in enumerate(given):
        if isinstance(each, str):
            inputs.append(_image(each) if body.modality == "image" or is_data_uri(each) else each)
        elif isinstance(each, V1Item) and each.image is not None:
            inputs.append(_image(each.image))
        elif isinstance(each, V1Item) and each.text is not None:
            inputs.append(TextInput(text=each.text))
        else:
            message = (
                "input: token ids are not taken, send the text itself (LangChain: check_embedding_ctx_length=False)"
            )
            raise Refusal(422, "tokens_not_supported", message, param=f"input[{index}]")
    return inputs


def _shown(model: RunningModel) -> V1Model:
    created = _unix_time(model.manifest.provenance.created_utc)
    return V1Model(id=model.reference, created=created, owned_by="clipworks")


def _image(value: str) -> ImageInput | ImageUrlInput:
    """Both dialects allow an address in the place of base64."""
    return (
        ImageUrlInput(image_url=value[:2048])
        if value[:8].lower().startswith(("http://", "https://"))
        else ImageInput(image=value)
    )


def _unix_time(utc: str) -> int:
    try:
        moment = datetime.fromisoformat(utc)
    except ValueError:
        return 0
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
