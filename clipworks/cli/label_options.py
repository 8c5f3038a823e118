"""`--labels` and `--template`: what people write there -> the labels of a request."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeGuard, cast

import typer

from clipworks.cli import output
from clipworks.cli.failures import UsageError

LabelLike = str | Mapping[str, Any]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        help="Labels separated by commas; or @FILE, with one on each line, or .json with prompts. May be repeated."
    ),
]
LabelSet = Annotated[str | None, typer.Option(help="A label set that the server has stored.")]
Templates = Annotated[
    list[str] | None,
    typer.Option("--template", help="none, simple, imagenet, or a text with one {}; may be repeated."),
]
_FILE_NAME = re.compile(r"\.(txt|json|csv|tsv)$", re.IGNORECASE)


def labels_of(given: Sequence[str] | None, label_set: str | None) -> list[LabelLike] | None:
    """The labels that were given, each once, in order; None: those of a label set.

    A label is a name, or a name with its own prompts: {"name", "prompts"}.

    Raises:
        UsageError: neither or both were given, there is no label, or a file cannot be read.
    """
    if bool(given) == (label_set is not None):
        raise UsageError("give either --labels cat,dog or --label-set NAME")
    if not given:
        return None
    return _once([label for each in given for label in _labels(each)])


def names_of(labels: Iterable[LabelLike]) -> list[str]:
    return [label if isinstance(label, str) else str(label["name"]) for label in labels]


def templates_of(given: list[str] | None) -> str | list[str] | None:
    return given[0] if given and len(given) == 1 and "{" not in given[0] else given or None


def _labels(given: str) -> list[LabelLike]:
    if given.startswith("@"):
        found = _of_file(Path(given[1:]))
    elif given.lstrip().startswith(("[", "{")):
        found = _of_json(given, "--labels")
    elif _FILE_NAME.search(given) and "," not in given:
        if not Path(given).is_file():
            raise UsageError(f"--labels {given}: no such file (labels are separated by commas: cat,dog)")
        found = _of_file(Path(given))
        output.say(f"--labels {given}: read as a file, {len(found)} labels")
    else:
        found = _of_line(given)
    if not found:
        raise UsageError(f"--labels {given!r}: expected labels separated by commas, such as cat,dog")
    return found


def _of_line(text: str) -> list[LabelLike]:
    """Separated by commas; one with a comma in it stands in double quotes, as in csv."""
    try:
        [cells] = csv.reader([text], skipinitialspace=True, strict=True) if text else [[]]
    except (csv.Error, ValueError) as error:
        raise UsageError(f'--labels {text!r}: {error} (a label with a comma in it is written "salt, pepper")') from None
    return [cell.strip() for cell in cells if cell.strip()]


def _of_file(path: Path) -> list[LabelLike]:
    """Raises UsageError: it cannot be read, or is not what its name says."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--labels {path}: {reason}") from error
    if path.suffix.lower() == ".json":
        return _of_json(text, f"--labels {path}")
    # CRLF and CR became LF; "# " begins a comment, "#1 fan" is a label.
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and line != "#" and not line.startswith("# ")]


def _of_json(text: str, where: str) -> list[LabelLike]:
    """{"shirt": ["a photo of a shirt", ...], ...}, or a list of names and of {"name", "prompts"}.

    Raises:
        UsageError: with the place of what is none of these.
    """
    try:
        found = json.loads(text, object_pairs_hook=_distinct(where))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if isinstance(found, dict):
        found = [{"name": name, "prompts": prompts} for name, prompts in found.items()]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(found, list):
        raise UsageError(f'{where}: expected {{"label": ["a prompt", ...]}} or a list of labels')
    return [_label(each, f"{where}[{place}]") for place, each in enumerate(found)]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _label(found: Any, where: str) -> LabelLike:
    if _is_text(found):
        return found.strip()
    if isinstance(found, dict):
        fields = cast("dict[str, Any]", found)
        name, prompts = fields.get("name"), fields.get("prompts")
        several = [prompts] if isinstance(prompts, str) else prompts
        if fields.keys() == {"name", "prompts"} and _is_text(name) and _are_texts(several):
            return {"name": name.strip(), "prompts": several}
    raise UsageError(f'{where}: expected a label, or a name with its prompts: "shirt": ["a photo of a shirt"]')


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(_is_text(each) for each in cast("list[Any]", value))


def _distinct(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """The last of two equal keys would win silently."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise UsageError(f"{where}: the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
        return found

    return check


def _once(labels: list[LabelLike]) -> list[LabelLike]:
    """Two equal labels would share one score between them.

    Raises:
        UsageError: one name with different prompts.
    """
    kept: dict[str, LabelLike] = {}
    repeated: dict[str, None] = {}
    for label, name in zip(labels, names_of(labels), strict=True):
        if name in kept:
            if kept[name] != label:
                raise UsageError(f"--labels: {name!r} is there twice, with different prompts")
            repeated[name] = None
        kept[name] = label
    if repeated:
        output.say(f"labels given more than once count once: {', '.join(list(repeated)[:10])}")
    return list(kept.values())
