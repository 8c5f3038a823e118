"""pydantic's list of errors -> the one that helps: a path such as inputs[3].image and one sentence, without values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from clipworks import schemas
from clipworks.wire.common import ByContent

_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "inputs": 'an input is {"image": base64}, or, where texts are taken, a string or {"text": string}',
        "items": 'an item is {"id": string} with one of "text", "image", "image_url", "vector", and maybe "metadata"',
        "examples": 'examples are {label: [picture, ...]} or a list of {"label": string} with one of "image", '
        '"image_url", "item": {"collection", "id"}',
        "queries": 'a query is a string or has one of "text", "image", "image_url", "id", "vector", "combine"',
        "input": 'input is a string, a list of strings, or a list of {"text": string} and {"image": base64}',
        "labels": 'labels are a list of strings that are not empty and {"name": string, "prompts": [string, ...]}, '
        "or an object {name: [prompt, ...]}",
        "templates": 'templates are "none", "simple", "imagenet", or a list of strings with one {} each',
    }
)
_SAFE_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_-]{0,39}$")


@dataclass(frozen=True)
class FieldProblem:
    param: str | None
    message: str


@dataclass(frozen=True)
class _Located:
    path: tuple[str | int, ...]
    branch: tuple[str | int, ...]
    kind: str
    message: str


def first_problem(errors: Sequence[Any]) -> FieldProblem:
    """The most telling of pydantic's errors.

    A value that may have several forms gives errors for each. The form with the fewest errors is the one that was
    meant; when none stands out, the place alone is named.
    """
    located = [_locate(error) for error in errors]
    field = located[0].path[:2]
    same = [each for each in located if each.path[: len(field)] == field] or located
    by_branch: dict[tuple[str | int, ...], list[_Located]] = {}
    for each in same:
        by_branch.setdefault(each.branch, []).append(each)
    fewest = min(len(group) for group in by_branch.values())
    candidates = [group for group in by_branch.values() if len(group) == fewest]
    deepest = max(len(group[0].path) for group in candidates)
    best = [group[0] for group in candidates if len(group[0].path) == deepest and group[0].kind != "missing"]
    if len(best) == 1 or len(by_branch) == 1:
        chosen = best[0] if best else candidates[0][0]
        if chosen.kind != ByContent.NO_FORM:
            return FieldProblem(_written(chosen.path), _sentence(chosen))
    form = _FORMS.get(str(field[0])) if field else None
    return FieldProblem(
        _written(field), f"{_written(field) or 'the body'}: {form or 'none of the accepted forms fits'}"
    )


def _locate(error: Any) -> _Located:
    """Split pydantic's location into names and indexes of the body, and the union members it tried."""
    parts: Sequence[str | int] = error["loc"]
    names = _field_names()
    path: list[str | int] = []
    last_tag = 0
    for position, part in enumerate(parts):
        unknown_key = error["type"] == "extra_forbidden" and position == len(parts) - 1
        if isinstance(part, int) or part in names or unknown_key:
            path.append(part if isinstance(part, int) or _SAFE_NAME.match(part) else "?")
        else:
            last_tag = position + 1
    return _Located(tuple(path), tuple(parts[:last_tag]), str(error["type"]), str(error["msg"]))


def _sentence(problem: _Located) -> str:
    where = _written(problem.path)
    if problem.kind == "extra_forbidden":
        return f"{where}: there is no such field"
    if problem.kind == "missing":
        return f"{where}: the field is missing"
    if problem.kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{where or 'the body'}: should be a JSON object"
    message = problem.message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{where}: {message}" if where else message


def _written(path: Sequence[str | int]) -> str | None:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None


@cache
def _field_names() -> frozenset[str]:
    """Names of all fields of all bodies: what is none of them in a location is a member of a union."""
    models = [each for each in vars(schemas).values() if isinstance(each, type) and issubclass(each, BaseModel)]
    return frozenset(name for model in models for name in model.model_fields)
