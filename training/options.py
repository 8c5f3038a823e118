"""`method_options` of a recipe, parsed in one way for every method."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError


class Options(BaseModel):
    """The options of a method: a subclass declares them as fields, with defaults and ranges."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, options: dict[str, Any], *, method: str) -> Self:
        """Raises:
        ValueError: an option that `method` does not know, or a wrong value; the message names each.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            lines = [f"  {cls._explained(each['loc'], each['type'], each['msg'])}" for each in error.errors()]
            raise ValueError(f"method_options of {method}: {len(lines)} refused\n" + "\n".join(lines)) from error

    @classmethod
    def _explained(cls, place: tuple[str | int, ...], kind: str, message: str) -> str:
        key = ".".join(map(str, place))
        if kind == "extra_forbidden":
            return f"{key}: there is no such option{meant(key, cls.model_fields)}"
        return f"{key}: {message}" if key else message


def meant(word: str, known: Iterable[str]) -> str:
    """The known name that is nearest to a wrong one, as the end of a message; "" where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; is {near[0]} meant?" if near else ""
