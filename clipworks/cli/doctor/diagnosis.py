"""What a check returns: how it is, what was found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Diagnosis:
    """remedy: a command or a setting by name; only what is ok has none."""

    status: Severity
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if (self.status == "ok") != (not self.remedy):
            raise ValueError(f"a remedy belongs to what is not ok, and only to that: {self.found}")


def ok(found: str) -> Diagnosis:
    return Diagnosis("ok", found)


def warning(found: str, remedy: str) -> Diagnosis:
    """It works, but not as well or not as safely as it could."""
    return Diagnosis("warning", found, remedy)


def failure(found: str, remedy: str) -> Diagnosis:
    """A server with these settings does not start here, or does not do what is asked."""
    return Diagnosis("failure", found, remedy)
