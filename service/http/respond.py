"""Answers as bytes: vectors go straight from numpy to JSON, base64 or .npy, never through a model of the wire."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from clipworks.schemas import EncodingFormat, OnError
from model_store.errors import ClipworksError
from service.engine.running import RunningModel
from service.http.errors import located, problem_of
from service.telemetry import Telemetry

NPY = "application/x-npy"
JSON = "application/json"
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_T = TypeVar("_T")


def json_response(payload: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Response:
    """200 with `payload`, in which float32 arrays are allowed."""
    return Response(orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type=JSON)


def model_response(body: BaseModel, *, status: int = 200) -> Response:
    """A small answer, from its wire model."""
    return Response(body.model_dump_json(), status_code=status, media_type=JSON)


def npy_response(vectors: Sequence[NDArray[np.float32]], *, headers: Mapping[str, str]) -> Response:
    """200 with float32 [n, dim] in the .npy format."""
    rows = np.stack(vectors).astype("<f4", copy=False)
    return Response(_npy_header(rows.shape) + rows.tobytes(), headers=headers, media_type=NPY)


@lru_cache(maxsize=256)
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """What stands before little-endian float32 rows of that shape; the same few come again and again."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def wants_npy(request: Request) -> bool:
    """Whether the Accept headers name .npy, and do not prefer JSON by name.

    Libraries add wildcards that nobody wrote, so those neither ask for .npy nor outweigh it.
    """
    accepted = ",".join(request.headers.getlist("accept"))
    weights = [(name, weight) for name, weight in map(_weighted, accepted.split(",")) if weight > 0]
    npy = max((weight for name, weight in weights if name == NPY), default=0.0)
    json = max((weight for name, weight in weights if name == JSON), default=0.0)
    return npy > 0 and npy >= json


def _weighted(media_range: str) -> tuple[str, float]:
    """(name in lower case, its weight): 1 without one, 0 for one that is no weight."""
    name, *parameters = (part.strip().lower() for part in media_range.split(";"))
    weight = next((part.partition("=")[2].strip() for part in parameters if part.partition("=")[0].strip() == "q"), "1")
    return name, float(weight) if _WEIGHT.fullmatch(weight) else 0.0


def encoded(vector: NDArray[np.float32], encoding: EncodingFormat) -> NDArray[np.float32] | str:
    """A vector for `json_response`: itself, or base64 of its little-endian bytes."""
    return (
        base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii") if encoding == "base64" else vector
    )


def entries(
    outcomes: Sequence[_T | ClipworksError],
    show: Callable[[_T], Mapping[str, Any]],
    *,
    on_error: OnError,
    place: Callable[[int], str],
    telemetry: Telemetry,
    weak: Collection[int] = (),
) -> list[dict[str, Any]]:
    """One entry for each item; `show` makes the fields of a good one, `place` names an item in the request.

    weak: indices of items of which the model knows nothing.

    Raises:
        Refusal: with on_error "fail", the failure of lowest index.
    """
    made: list[dict[str, Any]] = []
    for index, outcome in enumerate(outcomes):
        if not isinstance(outcome, ClipworksError):
            made.append({"index": index, **show(outcome), **({"weak": True} if index in weak else {})})
            continue
        telemetry.item_error(outcome.code)
        if on_error == "fail":
            raise located(outcome, place(index))
        made.append({"index": index, "error": problem_of(outcome, place(index)).detail()})
    return made


def model_headers(model: RunningModel) -> dict[str, str]:
    fingerprint = model.fingerprint
    parts = [f"{tower}={value}" for tower, value in (("image", fingerprint.image), ("text", fingerprint.text)) if value]
    return {"X-Model-Fingerprint": ", ".join(parts)}
