"""`--wordnet` and `--phrases`: labels -> labels with prompts of their own, from their other names and descriptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from clipworks.cli import output
from clipworks.cli.failures import UsageError
from clipworks.cli.label_options import LabelLike, names_of

WordNetFolder = Annotated[
    Path | None,
    typer.Option(
        "--wordnet",
        metavar="FOLDER",
        help='A WordNet database, whose names and descriptions become prompts of labels. "crane (bird)" says a sense.',
        show_default=False,
    ),
]
PhrasesFile = Annotated[
    Path | None,
    typer.Option(
        "--phrases",
        metavar="FILE.json",
        help='{"label": ["another name", "a description", ...]}: put into the templates as the label is.',
        show_default=False,
    ),
]


def with_phrases(
    labels: list[LabelLike], file: Path | None, wordnet: Path | None, templates: str | list[str] | None
) -> tuple[list[LabelLike], str | list[str] | None]:
    """Labels with prompts where FILE or the database has phrases for them, and the templates of the others.

    Raises:
        UsageError: a file cannot be read, names a label that is not there, or the database has no such sense.
    """
    if file is None and wordnet is None:
        return labels, templates
    from clipworks.wordnet import prompts_of

    used = _written_out(templates)
    phrases = _of_file(file, names_of(labels)) if file else {}
    if wordnet:
        open_ones = [each for each in labels if isinstance(each, str) and each not in phrases]
        phrases |= _of_wordnet(wordnet, open_ones)
    made: list[LabelLike] = [
        prompts_of(each, phrases[each], used).model_dump() if isinstance(each, str) and each in phrases else each
        for each in labels
    ]
    return made, used


def _written_out(templates: str | list[str] | None) -> list[str]:
    from clipworks.wordnet import DEFAULT_TEMPLATES
    from model_store.templates import NAMES, named_templates

    if templates is None:
        return list(DEFAULT_TEMPLATES)
    if not isinstance(templates, str):
        return templates
    if templates not in NAMES:
        raise UsageError(f"--template {templates}: there are {', '.join(NAMES)}, or a text with one {{}}")
    return list(named_templates(templates))


def _of_file(file: Path, labels: Sequence[str]) -> dict[str, list[str]]:
    """The label itself, then its phrases."""
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise UsageError(f"--phrases {file}: {reason}") from None
    if not isinstance(found, dict):
        raise UsageError(f'--phrases {file}: expected {{"label": ["another name", "a description", ...]}}')
    phrases: dict[str, list[str]] = {}
    for label, given in cast("dict[str, Any]", found).items():
        several = cast("list[Any]", given) if isinstance(given, list) else [given]
        if label not in labels:
            raise UsageError(f"--phrases {file}: {label!r} is none of the labels: {', '.join(labels[:20])}")
        if not all(isinstance(each, str) and each.strip() for each in several):
            raise UsageError(f"--phrases {file}: {label!r}: expected texts, such as another name or a description")
        phrases[label] = [label, *several]
    return phrases


def _of_wordnet(folder: Path, labels: Sequence[str]) -> dict[str, list[str]]:
    """Says on stderr which sense was taken of a word that has several, and which labels are no nouns of it."""
    from clipworks.wordnet import WordNet

    try:
        wordnet = WordNet(folder)
        chosen = dict(zip(labels, wordnet.choose(labels), strict=True))
        phrases = {label: wordnet.phrases(label, sense) for label, sense in chosen.items() if sense}
        for label, sense in chosen.items():
            if sense is None:
                output.say(f"{label}: not in this WordNet; it stays as it is")
            elif (others := len(wordnet.senses(label)) - 1) > 0:
                more = f"{others} other sense{'s' if others > 1 else ''}"
                output.say(f"{label}: {wordnet.kind(sense)}, {sense.definition} ({more}: {label} (KIND) says which)")
    except (OSError, ValueError) as error:
        raise UsageError(f"--wordnet {folder}: {error}") from error
    return phrases
