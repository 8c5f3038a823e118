"""`clipworks eval --suite bias`: what people write there -> the task, of their own groups and queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipworks.cli.failures import UsageError

if TYPE_CHECKING:
    from evaluation.bias.task import Bias

Groups = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Of --suite bias: .csv or .json with path, group and perhaps label of pictures."),
]
Queries = Annotated[
    list[str] | None,
    typer.Option("--query", help="Of --suite bias: a text that names no group, or @FILE, one a line; may be repeated."),
]
Top = Annotated[
    int | None,
    typer.Option(min=1, help="Of --suite bias: the k of MaxSkew@k; default: a tenth of the pictures, at most 1000."),
]


def task(groups: Path | None, queries: Sequence[str] | None, top: int | None, *, suite: str | None) -> Bias | None:
    """What --suite bias asks; None for another suite.

    Raises:
        UsageError: options of another suite, no groups, no queries, or a file that cannot be used.
    """
    from evaluation.bias.groups_file import FORM, read_groups
    from evaluation.bias.task import SUITE, Bias

    if suite != SUITE:
        given = [name for name, value in (("--groups", groups), ("--query", queries), ("--top", top)) if value]
        if given:
            raise UsageError(f"{', '.join(given)}: for --suite {SUITE}; nothing of it is asked")
        return None
    if groups is None:
        raise UsageError(f"--suite {SUITE} needs --groups FILE: {FORM}")
    if not queries:
        raise UsageError(f'--suite {SUITE} needs --query TEXT, such as "a photo of a good person", or --query @FILE')
    texts = [text for each in queries for text in (_lines(Path(each[1:])) if each.startswith("@") else [each])]
    try:
        return Bias(str(groups), read_groups(groups), tuple(dict.fromkeys(texts)), top)
    except ValueError as error:
        raise UsageError(f"--suite {SUITE}: {error}") from error


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"--query @{path}: cannot be read as text in UTF-8 ({error})") from error
    if not found:
        raise UsageError(f"--query @{path}: no line in it")
    return found
