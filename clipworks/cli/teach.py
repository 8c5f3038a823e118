"""`clipworks teach`: a folder of pictures for each class -> a label set that recognises them."""

from __future__ import annotations

import asyncio
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from clipworks.cli import connect, output, picture_files
from clipworks.cli.embed import Taken, taken_pictures
from clipworks.cli.failures import FAILED_ITEMS, UsageError
from clipworks.cli.file_names import text_of
from clipworks.cli.label_options import Labels, Templates, labels_of, templates_of
from clipworks.errors import ApiError
from clipworks.results import TeachResult
from clipworks.schemas import LabelSetDetail

_SHOWN = 10
_PLACES = re.compile(r"\bexamples\[([0-9]{1,9})\]")


def teach(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="One folder of pictures for each class.")],
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the label set.", show_default=False)],
    labels: Labels = None,
    templates: Templates = None,
    add: Annotated[
        bool, typer.Option("--add", help="Keep what the label set was taught with; default: replace it.")
    ] = False,
    exclude: picture_files.Exclude = None,
    include: picture_files.Include = None,
    hidden: picture_files.Hidden = False,
    follow_links: picture_files.FollowLinks = False,
    model: connect.Model = None,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Teach a label set from examples, and say how well each class is known.

    The names of the folders are the labels. Then: clipworks classify IMAGE --label-set NAME
    """
    if add and (labels or templates or model):
        raise UsageError("--add keeps the set's labels, templates and model: leave --labels, --templates, --model out")
    selection = picture_files.Selection(
        hidden=hidden, follow_links=follow_links, include=include or (), exclude=exclude or ()
    )
    taken = classes_in(folder, selection)
    wanted = labels_of(labels, None) if labels else None
    examples = {label: found.paths for label, found in taken.items()}

    async def run() -> TeachResult:
        async with connect.collections_client(
            url=url, api_key=api_key, model=model, store=store, data=data, timeout_s=timeout_s, creates=True
        ) as client:
            shown = sys.stderr.isatty() and not as_json
            if add:
                return await client.add_examples(name, examples, progress=shown)
            return await client.teach(
                name, examples, labels=wanted, templates=templates_of(templates), model=model, progress=shown
            )

    with output.saying_warnings():
        try:
            result = asyncio.run(run())
        except ApiError as error:
            error.args = (_with_files(str(error), [path for paths in examples.values() for path in paths]),)
            raise
    failures = [(examples[label][place], error) for (label, place), error in result.errors.items()]
    if as_json:
        output.print_json(
            {**result.label_set.model_dump(), "failures": [{"image": path, "message": str(e)} for path, e in failures]}
        )
    else:
        _print(result.label_set)
        for path, error in failures:
            output.say(f"failed: {text_of(path)}: {error}")
    for found in taken.values():
        found.say()
    if failures or any(found.unread for found in taken.values()):
        raise typer.Exit(FAILED_ITEMS)


def _with_files(said: str, paths: Sequence[str]) -> str:
    """The places that an error names, such as examples[3], as the files that they are."""

    def named(place: re.Match[str]) -> str:
        index = int(place.group(1))
        return text_of(paths[index]) if index < len(paths) else place.group()

    return _PLACES.sub(named, said)


def classes_in(folder: Path, selection: picture_files.Selection) -> Mapping[str, Taken]:
    """Pictures by the name of their folder below `folder`, in the order of these names.

    Raises:
        UsageError: no such folder, fewer than two classes, or a class without a picture.
    """
    try:
        inside = sorted(each for each in folder.iterdir() if each.is_dir())
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from error
    chosen = [each for each in inside if selection.leaves_out(each.name, is_folder=True) is None]
    if len(chosen) < 2:
        raise UsageError(
            f"{folder}: {len(chosen)} folders in it; expected one folder of pictures for each class, and two classes"
        )
    found: dict[str, Taken] = {}
    for each in chosen:
        label = _label_of(each)
        if label in found:
            raise UsageError(f"{folder}: two folders are the label {label!r}; rename one of them")
        found[label] = taken_pictures([str(each)], selection)
    return found


def _label_of(folder: Path) -> str:
    """Its name without the space around it, in one form of Unicode (folders of macOS have another)."""
    label = unicodedata.normalize("NFC", folder.name).strip()
    try:
        label.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{text_of(str(folder))}: the name of a label has to be UTF-8; rename the folder") from None
    if not label:
        raise UsageError(f"{text_of(str(folder))}: the name of a label needs a character; rename the folder")
    return label


def print_report(found: LabelSetDetail) -> None:
    """Leave-one-out beside zero-shot, each label, and which are mixed up."""
    whole = found.leave_one_out
    if whole is not None:
        texts = whole.zero_shot
        beside = "" if texts is None else f"; from the texts alone {_share(texts, whole.zero_shot_interval)}"
        output.say(f"left out one by one: {_share(whole.accuracy, whole.interval)} of {whole.tested} right{beside}")
    rows = [
        [each.label, str(each.examples), _accuracy(each.accuracy), _accuracy(each.zero_shot)]
        for each in found.per_label or ()
    ]
    output.print_table(["label", "examples", "right when left out", "from the texts"], rows)
    for each in (found.confused or ())[:_SHOWN]:
        output.say(f"{each.count} of {each.label} taken for {each.taken_for}")
    for warning in found.warnings:
        output.say(f"warning: {warning}")


def _print(found: LabelSetDetail) -> None:
    what = f"{found.examples} examples of {found.labels} labels"
    output.say(f"taught {found.name}: {what}, for {found.model} (version {found.version})")
    print_report(found)


def _accuracy(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _share(value: float, interval: Sequence[float] | None) -> str:
    within = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{value:.3f}{within}"
