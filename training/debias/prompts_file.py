"""Prompts that name the groups, and pairs that differ in the group alone: a .txt or .json file of a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
FORM = 'a .txt file, a prompt a line; or a .json file, {"prompts": [...], "pairs": [["...", "..."], ...]}'


class GroupPrompts(BaseModel):
    """prompts: "a photo of a woman", "a photo of a man". pairs: "a photo of a female doctor", "... male doctor"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: tuple[Text, ...] = Field(min_length=2)
    pairs: tuple[tuple[Text, Text], ...] = ()

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("a prompt comes twice")
        if any(first == second for first, second in self.pairs):
            raise ValueError("a pair of one and the same text")
        return self


def read_prompts(path: Path) -> GroupPrompts:
    """Raises:
    ValueError: no such file, or none of FORM.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return GroupPrompts.model_validate_json(text)
        return GroupPrompts(prompts=tuple(line for line in text.splitlines() if line.strip()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path.name}: {f'{where}: ' if where else ''}{first['msg']}; expected {FORM}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as text in UTF-8 ({error}); expected {FORM}") from error
