"""schemathesis against the app in this process: at least 100 generated requests for each operation of /openapi.json.

Of its checks these are left out, each for a reason:
- positive_data_acceptance: what fits the schema may still name an unknown model, bring a broken image or ask for 32 MB;
  JSON schema cannot say so, and those answers are tested by name in the other files.
- missing_required_header, ignored_auth: the app under test has keys, but requests are sent with them; test_auth.py
  walks all routes without.
- use_after_free, ensure_resource_availability: they need a stateful run; test_http.py walks a label set's whole life.
- response_headers_conformance, allow_header_conformance: the document declares no headers; test_errors.py checks Allow.
"""

import base64
import os
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Generator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from schemathesis.transport.serialization import Binary

from clipworks.schemas import IMAGE_FORMAT, VECTOR_FORMAT
from service.app import create_app
from service.settings import Settings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
TINY_STORE = Path(__file__).parents[2] / "fixtures" / "tiny_store"
DIM = 32
KEY = "an-admin-key"
EXAMPLES = 100
SNAPSHOT = "pets.snapshot"
DATA = Path(tempfile.gettempdir()) / f"clipworks-schema-{os.getpid()}"

Seen = dict[str, Counter[int]]


@pytest.fixture(scope="module")
def seen() -> Generator[Seen]:
    """Operation -> statuses of its answers; the run must have been as large as promised, and must have got through."""
    statuses: Seen = defaultdict(Counter)
    yield statuses
    shutil.rmtree(DATA, ignore_errors=True)
    for operation, counted in statuses.items():
        print(operation, dict(counted))
        assert counted.total() >= EXAMPLES or "{" not in operation and operation.startswith("GET"), operation
        refused = operation.endswith("/unload") or operation == "POST /rerank"  # the default model; it has no reranker
        assert any(200 <= status < 300 for status in counted) or refused, operation


def picture(form: str, width: int, height: int) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(levels).save(buffer, form)
    return buffer.getvalue()


def vectors_as_text() -> list[str]:
    """Vectors as a client may send them, and the odd ones: zero, NaN, too large, too small, of another dimension."""
    some = np.random.default_rng(0).standard_normal((4, DIM))
    odd = [np.zeros(DIM), np.full(DIM, np.nan), np.full(DIM, 3e38), np.full(DIM, 1e-45), some[0, :-1], some[:2].ravel()]
    return [base64.b64encode(np.asarray(each, "<f4").tobytes()).decode() for each in (*some, *odd)]


def document_of_an_app() -> schemathesis.BaseSchema:
    """The schema of an app in this process; real and broken pictures stand wherever a picture is asked for.

    Made when the tests are collected, because each operation is a test of its own; the app starts with the first.
    """
    good = [picture(form, *size) for form in ("PNG", "JPEG", "WEBP") for size in ((8, 8), (31, 17))]
    broken = [good[0][:40], good[2][: len(good[2]) // 2], b"", b"GIF89a", picture("BMP", 4, 4)]
    pictures = st.sampled_from(good + broken)
    texts = pictures.map(lambda data: base64.b64encode(data).decode())
    schemathesis.openapi.format(IMAGE_FORMAT, texts | texts.map("data:image/png;base64,{}".format))
    schemathesis.openapi.format(VECTOR_FORMAT, st.sampled_from(vectors_as_text()))
    schemathesis.openapi.format("binary", pictures.map(Binary))
    for media_type in ("image/jpeg", "image/png", "image/webp"):
        schemathesis.openapi.media_type(media_type, pictures)
    config = SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "generation": {"max-examples": EXAMPLES, "deterministic": True, "database": "none"},
            # Lists are counted before their elements are validated, so bad data may also be too much data: 413.
            "checks": {"negative_data_rejection": {"expected-statuses": [400, 404, 409, 413, 415, 422]}},
        }
    )
    app = create_app(
        Settings(  # type: ignore[call-arg]
            store=TINY_STORE,
            builtin=False,
            probe=False,
            access_log=False,
            data=DATA,
            model="tiny",
            extra_models=(),
            admin_keys=(KEY,),
            api_keys=(KEY,),
            max_items=8,
            max_upsert_items=8,
            max_label_texts=100,
            request_timeout_s=20,
        )  # fmt: skip
    )
    document = schemathesis.openapi.from_dict(app.openapi(), config=config)
    document.app = app
    return document


schema = document_of_an_app()


@pytest.fixture(autouse=True)
def ready() -> None:
    """schemathesis stops the app after each test; the first request starts it again."""
    with asgi.get_client(schema.app) as client:
        end = time.monotonic() + 60
        while client.get("/readyz").status_code != 200 and time.monotonic() < end:
            time.sleep(0.02)
        key = {"Authorization": f"Bearer {KEY}"}
        client.put("/label-sets/pets", json={"labels": ["cat", "dog"]}, headers=key)
        client.put("/collections/pets", json={"thumbnails": True}, headers=key)
        client.put("/collections/named", json={}, headers=key)
        client.put("/aliases/alias", json={"collection": "named"}, headers=key)
        client.post("/collections/pets/items", json={"items": [{"id": "a", "text": "a cat"}]}, headers=key)
        shown = {"image": picture("PNG", 8, 8)}
        client.post("/collections/pets/items", files=shown, data={"id": "shown"}, headers=key)
        if not (DATA / "snapshots" / SNAPSHOT).exists():
            made = client.post("/collections/pets/snapshot", headers=key).json()["snapshot"]
            (DATA / "snapshots" / made).rename(DATA / "snapshots" / SNAPSHOT)


@schema.parametrize()
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_operation(case: schemathesis.Case, seen: Seen) -> None:
    if case.meta is not None and case.meta.generation.mode.is_positive:
        aim(case)
    response = case.call(headers={"Authorization": f"Bearer {KEY}"})
    seen[case.operation.label][response.status_code] += 1
    case.validate_response(response, checks=CHECKS)


def aim(case: schemathesis.Case) -> None:
    """Let what fits the schema also make sense, so that good requests reach the model and not only validation.

    Names exist, dimensions are the model's, labels come once, and nothing stands both in the query and in the body.
    """
    if "name" in case.path_parameters:
        case.path_parameters["name"] = "tiny" if "/models" in case.operation.path else "pets"
    if "snapshot" in case.path_parameters:
        case.path_parameters["snapshot"] = SNAPSHOT
    if case.operation.path.startswith("/v1/models/"):
        case.path_parameters["id"] = "tiny"
    if case.operation.path.startswith("/collections"):
        aim_at_collection(case)
    if case.operation.path.startswith("/label-sets/") and case.operation.method in ("put", "post"):
        aim_at_label_set(case)
    if case.operation.path.startswith("/aliases/"):
        case.path_parameters["name"] = "alias"
        if isinstance(case.body, dict):
            case.body |= {"collection": "named"}
            case.body.pop("keep_as", None)
            case.body.pop("if_sequence", None)
    if case.operation.method != "post" or case.operation.path not in (
        "/embed",
        "/classify",
        "/localize",
        "/v1/embeddings",
    ):
        return
    body = case.body if isinstance(case.body, dict) else {}
    form = case.media_type == "multipart/form-data"
    if form:
        body.pop("request", None)
        if not body.get("image"):
            body["image"] = [Binary(picture("PNG", 8, 8))]
    for place in (body, case.query):
        for name, value in (("model", "tiny"), ("dimensions", 32), ("label_set", "pets")):
            if place.get(name) is not None:
                place[name] = value
    for name in body:
        case.query.pop(name, None)
    if case.operation.path in ("/classify", "/localize"):
        for place in (body, case.query):
            place.pop("heatmap_labels", None)  # a label of the request, or 422
        everything = {**body, **case.query}
        if everything.get("label_set") is not None:
            for place in (body, case.query):
                place.pop("labels", None)
                place.pop("templates", None)
        elif everything.get("labels") is None:
            (body if case.media_type == "application/json" else case.query)["labels"] = ["cat", "dog"]


def aim_at_label_set(case: schemathesis.Case) -> None:
    """Files have labels, labels can be read, and items are of a collection that is there."""
    if case.operation.method == "put":
        case.path_parameters["name"] = "new"
    case.query.clear()
    if (case.media_type or "").startswith("image/"):
        case.query["label"] = ["cat"]
    if not isinstance(case.body, dict):
        return
    body = case.body
    if body.get("model") is not None:
        body["model"] = "tiny"
    if case.media_type == "multipart/form-data":
        body.pop("request", None)
        body["image"] = body.get("image") or [Binary(picture("PNG", 8, 8))]
        body["label"] = ["cat"] * len(body["image"])
        return
    if case.operation.method == "put" and body.get("labels") is None:
        body["labels"] = ["cat", "dog"]
    given = body.get("examples")
    if isinstance(given, dict):
        body["examples"] = {f"label {number}": each for number, each in enumerate(given.values())}
    for each in given if isinstance(given, list) else ():
        if isinstance(each, dict):
            each["label"] = "cat"
            if "item" in each:
                each["item"] = {"collection": "pets", "id": "a"}


def aim_at_collection(case: schemathesis.Case) -> None:
    """Ids exist, vectors have the collection's dimension, and a new collection has a name of its own."""
    if "id" in case.path_parameters:
        case.path_parameters["id"] = "shown" if case.operation.path.endswith("/thumbnail") else "a"
    body = case.body if isinstance(case.body, dict) else {}
    form = case.media_type == "multipart/form-data"
    if form:
        body.pop("request", None)
        image = body.get("image") or [Binary(picture("PNG", 8, 8))]
        body["image"] = image
        if case.operation.path.endswith("/items"):
            body["id"] = [f"file{n}" for n in range(len(image))]
    if case.operation.path.endswith("/items") and (case.media_type or "").startswith("image/"):
        case.query["id"] = "raw"
    for place in (body, case.query):
        place.pop("space", None)
        place.pop("cursor", None)
        if place.get("model") is not None:
            place["model"] = "tiny"
    for name in body:
        case.query.pop(name, None)
    if case.media_type == "application/json":
        case.query.pop("id", None)
        if case.operation.method == "put":
            case.path_parameters["name"] = f"new-{len(str(body))}"
        if case.operation.path.endswith("/restore"):
            case.path_parameters["name"] = f"restored-{time.monotonic_ns()}"
            body["snapshot"] = SNAPSHOT
        listed = [body.get(field) for field in ("items", "queries")]
        sources = [each for field in listed if isinstance(field, list) for each in field]
        sources += [part for each in sources if isinstance(each, dict) for part in each.get("combine", ())]
        for source in sources:
            if isinstance(source, dict) and isinstance(source.get("vector"), list):
                source["vector"] = [1.0] * DIM
