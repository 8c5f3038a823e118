"""Every refusal has the one shape, the right status, and says where; nothing of the request is echoed."""

import importlib
from collections.abc import Callable
from pathlib import Path
from pkgutil import walk_packages

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import model_store
import service
from clipworks import schemas
from clipworks._exchange import item_error
from model_store import errors as store_errors
from model_store.errors import ClipworksError, RepositoryError
from service import faults
from service.http.errors import STATUS, LingeringResponse, Problem, Refusal, problem_of, status_of
from service.http.validation import first_problem
from service.retrieval.errors import RetrievalError, ScanNeeded

STATUSES = {
    store_errors.InvalidImage: 422,
    store_errors.UnsupportedImage: 422,
    store_errors.ImageTooLarge: 413,
    store_errors.InvalidText: 422,
    store_errors.ArtifactNotFound: 404,
    store_errors.IntegrityError: 500,
    store_errors.GoldenError: 500,
    store_errors.SpaceMismatch: 409,
    faults.ServiceOverloaded: 429,
    faults.DeadlinePassed: 504,
    faults.ServiceNotReady: 503,
    faults.Draining: 503,
    faults.RunFailed: 500,
    faults.NoDirection: 422,
    faults.NotLoaded: 409,
    faults.TooManyItems: 413,
    faults.UnknownName: 404,
    faults.StateConflict: 409,
}


@pytest.fixture(scope="module", autouse=True)
def _every_module() -> None:
    """Classes exist once their module was imported: all of the server's are, whatever other tests need."""
    for package in (model_store, service):
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def every_class(root: type[ClipworksError]) -> set[type[ClipworksError]]:
    return {root}.union(*(every_class(each) for each in root.__subclasses__()))


@pytest.mark.parametrize(("kind", "status"), STATUSES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_status_of_each_error(kind: type[ClipworksError], status: int) -> None:
    problem = problem_of(kind("what happened"))
    assert (problem.status, problem.code) == (status, kind.code)
    assert (problem.message == "what happened") == (status != 500), "the words of a 500 are for the log"
    shown = schemas.ErrorDetail.model_validate(problem.detail())
    assert shown.type


def test_every_class_of_the_tree_was_given_its_status() -> None:
    """By itself or with the base of its kind; none is a 500 because nobody thought of it."""
    unthought = {ClipworksError, faults.ServiceFault, RetrievalError}
    for kind in every_class(ClipworksError) - every_class(Refusal) - {ScanNeeded} - unthought:
        nearest = next(each for each in kind.__mro__ if each in STATUS)
        assert nearest not in unthought, f"{kind.__module__}.{kind.__name__} is not in service.http.errors.STATUS"


def test_clients_raise_the_class_of_the_status_for_every_code() -> None:
    """An item's error inside a 200 has its code only: the client's table must know it."""
    for kind in every_class(ClipworksError) - every_class(Refusal) - {ScanNeeded}:
        status = next(STATUS[each] for each in kind.__mro__ if each in STATUS)
        if status == 500 or not kind.__module__.startswith(("service", "model_store")):
            continue
        seen = item_error(schemas.ErrorDetail(message="", type="", code=kind.code, param=None), 0)
        assert seen.status == status or status == 507, (kind.code, type(seen).__name__)


def test_every_code_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[3] / "docs" / "http.md").read_text(encoding="utf-8")
    unseen = every_class(Refusal) | {ScanNeeded} | every_class(RepositoryError)  # a server reads no repository
    for kind in every_class(ClipworksError) - unseen:
        assert f"`{kind.code}`" in reference, kind


@pytest.mark.parametrize(
    ("family", "statuses"),
    [
        ("invalid_request_error", (400, 405, 413, 415, 422)),
        ("authentication_error", (401,)),
        ("permission_error", (403,)),
        ("not_found_error", (404,)),
        ("timeout_error", (408, 504)),
        ("conflict_error", (409,)),
        ("rate_limit_error", (429,)),
        ("server_error", (500, 507)),
        ("unavailable_error", (503,)),
    ],
)
def test_every_type_names_its_family(family: str, statuses: tuple[int, ...]) -> None:
    assert {Problem(status, "", "").type for status in statuses} == {family}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/embed", "POST"),
        ("PATCH", "/label-sets/pets", "DELETE, GET, HEAD, PUT"),
        ("POST", "/models", "GET, HEAD"),
        ("OPTIONS", "/classify", "POST"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
def test_405_names_every_method_of_the_path(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert schemas.ErrorResponse.model_validate_json(response.content).error.code == "method_not_allowed"


@pytest.mark.parametrize("path", ["/nowhere", "/embed/", "/models/tiny/", "/%2e%2e/etc/passwd", "/ui/nothing.js"])
def test_unknown_paths_are_404_in_the_error_shape(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert schemas.ErrorResponse.model_validate_json(response.content).error.type == "not_found_error"


def test_a_defect_is_500_with_the_shape_and_without_its_text(make_app: Callable[..., FastAPI], caplog) -> None:
    app = make_app()

    async def broken() -> None:
        raise KeyError("a secret detail")

    app.add_api_route("/broken", broken)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/broken", headers={"X-Request-Id": "find-me"})
    assert response.status_code == 500
    error = schemas.ErrorResponse.model_validate_json(response.content).error
    assert (error.code, error.type) == ("internal_error", "server_error")
    assert "secret" not in response.text
    assert "find-me" in error.message
    assert any("a secret detail" in str(record.exc_info) for record in caplog.records)


def test_no_error_of_a_500_shows_its_own_words(make_app: Callable[..., FastAPI], caplog) -> None:
    app = make_app()
    secret = "/srv/data/collections.db: disk I/O error in libsomething"
    kinds = [each for each in all_errors() if status_of(each(secret)) == 500]
    assert {"run_failed", "store_corrupt", "artifact_corrupt"} <= {each.code for each in kinds}

    async def fail(number: int) -> None:
        raise kinds[number](secret)

    app.add_api_route("/fail/{number}", fail)
    with TestClient(app, raise_server_exceptions=False) as client:
        for number, kind in enumerate(kinds):
            response = client.get(f"/fail/{number}")
            error = schemas.ErrorResponse.model_validate_json(response.content).error
            assert (response.status_code, error.code) == (500, kind.code)
            assert "/srv" not in response.text
            assert "libsomething" not in response.text
    assert sum(secret in record.getMessage() for record in caplog.records) == len(kinds)


def all_errors() -> list[type[ClipworksError]]:
    """Every error class that can be made of a message alone."""
    found, waiting = [], [ClipworksError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        try:
            kind("")
        except TypeError:
            continue
        found.append(kind)
    return found


def test_overload_says_when_to_come_back(client: TestClient, make_app: Callable[..., FastAPI]) -> None:
    app = make_app()

    async def full() -> None:
        raise faults.ServiceOverloaded("no room", retry_after_s=2.2)

    app.add_api_route("/full", full)
    with TestClient(app) as client:
        response = client.get("/full")
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


def test_names_of_a_wrong_form_are_422(client: TestClient) -> None:
    for path in ("/models/UPPER", "/label-sets/a%20b", "/models/..%5c..", "/label-sets/" + "a" * 65):
        response = client.get(path)
        assert response.status_code == 422, path
        assert response.json()["error"]["param"] == "name"


def _error(kind: str, *loc: str | int, msg: str = "Input should be right") -> dict[str, object]:
    return {"type": kind, "loc": loc, "msg": msg}


@pytest.mark.parametrize(
    ("errors", "param"),
    [
        ([_error("missing", "inputs")], "inputs"),
        ([_error("string_type", "inputs", 3, "ImageInput", "image")], "inputs[3].image"),
        (
            [
                _error("string_type", "inputs", 0, "str"),
                _error("missing", "inputs", 0, "TextInput", "text"),
                _error("extra_forbidden", "inputs", 0, "TextInput", "image"),
                _error("string_type", "inputs", 0, "ImageInput", "image"),
            ],
            "inputs[0].image",
        ),
        ([_error("extra_forbidden", "a\nb")], "?"),
        ([_error("value_error", msg="Value error, give one")], None),
    ],
)
def test_the_most_telling_place_is_named(errors: list[dict[str, object]], param: str | None) -> None:
    assert first_problem(errors).param == param


def test_lingering_answers_carry_the_same_body() -> None:
    problem = Problem(413, "too large", "body_too_large")
    assert isinstance(problem.response(linger=True), LingeringResponse)
    assert problem.response(linger=True).body == problem.response().body
