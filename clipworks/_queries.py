"""The small requests: one function each, as steps that both clients can drive."""

from __future__ import annotations

import random
import warnings
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from clipworks import errors
from clipworks._exchange import Pause, Request, Steps, api_error, check, exchange
from clipworks._json import json_bytes
from clipworks.retry import RetryPolicy
from clipworks.schemas import (
    ExampleList,
    Health,
    KnownExample,
    LabelSetDetail,
    LabelSetInfo,
    LabelSetList,
    ModelDetail,
    ModelList,
    ModelSummary,
)

B = TypeVar("B", bound=BaseModel)
_POLL_S = 0.2
_ONCE = RetryPolicy(attempts=1)
_UNREADY: tuple[Literal["starting", "draining", "failed"], ...] = ("starting", "draining", "failed")


class Queries:
    """Requests without batches, under one retry policy."""

    def __init__(self, policy: RetryPolicy, chance: random.Random) -> None:
        self._policy = policy
        self._chance = chance

    def models(self) -> Steps[list[ModelSummary]]:
        found = yield from self._get("/models", ModelList)
        return found.data

    def model(self, name: str) -> Steps[ModelDetail]:
        return (yield from self._get(f"/models/{_name(name)}", ModelDetail))

    def load_model(self, name: str) -> Steps[None]:
        yield from self._do("POST", f"/models/{_name(name)}/load")

    def unload_model(self, name: str) -> Steps[None]:
        yield from self._do("POST", f"/models/{_name(name)}/unload")

    def label_sets(self) -> Steps[list[LabelSetInfo]]:
        found = yield from self._get("/label-sets", LabelSetList)
        return found.data

    def label_set(self, name: str) -> Steps[LabelSetDetail]:
        return (yield from self._get(f"/label-sets/{_name(name)}", LabelSetDetail))

    def taught(self, name: str) -> Steps[LabelSetDetail]:
        """The set when its examples are fitted. Raises ServerFault: they were not, with its reason."""
        while True:
            found = yield from self.label_set(name)
            if found.failed is not None:
                raise errors.ServerFault(f"label set {name}: {found.failed}", status=500, code="label_set_failed")
            if found.ready:
                return found
            yield Pause(_POLL_S)

    def examples(self, name: str) -> Steps[list[KnownExample]]:
        return (yield from self._get(f"/label-sets/{_name(name)}/examples", ExampleList)).data

    def remove_examples(self, name: str, body: dict[str, Any]) -> Steps[None]:
        yield from self._json("DELETE", f"/label-sets/{_name(name)}/examples", body)

    def _json(self, method: str, path: str, body: dict[str, Any]) -> Steps[None]:
        headers = {"Content-Type": "application/json"}
        request = Request(method=method, path=path, content=json_bytes(body), headers=headers)
        check((yield from exchange(request, self._policy, self._chance)))

    def delete_label_set(self, name: str) -> Steps[None]:
        yield from self._do("DELETE", f"/label-sets/{_name(name)}")

    def put_label_set(self, name: str, body: dict[str, Any], *, wait: bool) -> Steps[LabelSetInfo]:
        """Store it; with `wait`, come back when it is encoded.

        Raises:
            ServerFault: the server could not encode it, with its reason.
        """
        request = Request(
            method="PUT",
            path=f"/label-sets/{_name(name)}",
            content=json_bytes(body),
            headers={"Content-Type": "application/json"},
        )
        answer = check((yield from exchange(request, self._policy, self._chance)))
        info = parse(answer.body, LabelSetInfo, request.path)
        while wait and not info.ready and info.failed is None:
            yield Pause(_POLL_S)
            info = yield from self._get(request.path, LabelSetDetail)
        if info.failed is not None:
            raise errors.ServerFault(f"label set {name}: {info.failed}", status=500, code="label_set_failed")
        for text in info.warnings:
            warnings.warn(f"label set {name}: {text}", stacklevel=2)
        return info

    def health(self) -> Steps[Health]:
        """What /readyz says; a 503 of it is an answer here, not an error, so nothing is retried."""
        request = Request(method="GET", path="/readyz")
        answer = yield from exchange(request, _ONCE, self._chance)
        if answer.status != 503:
            return parse(check(answer).body, Health, request.path)
        error = api_error(answer)
        for status in _UNREADY:
            if isinstance(error, errors.ApiError) and error.code == status:
                return Health(status=status, detail=str(error).removeprefix(status).removeprefix(": ") or None)
        raise error

    def _get(self, path: str, shape: type[B]) -> Steps[B]:
        answer = yield from exchange(Request(method="GET", path=path), self._policy, self._chance)
        return parse(check(answer).body, shape, path)

    def _do(self, method: str, path: str) -> Steps[None]:
        check((yield from exchange(Request(method=method, path=path), self._policy, self._chance)))


def _name(name: str) -> str:
    return quote(name, safe="@")


def parse(body: bytes, shape: type[B], path: str) -> B:
    """Fields that a newer server adds are ignored; a missing or wrong one is a BadAnswer."""
    try:
        return shape.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "body"
        raise errors.BadAnswer(f"{path}: unexpected answer at {where}: {first['msg']}") from error
