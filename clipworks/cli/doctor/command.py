"""The command: options, what is printed, the exit status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import clipworks
from clipworks.cli import connect, output
from clipworks.cli.doctor.diagnosis import Diagnosis, Severity
from clipworks.cli.failures import FAILED_ITEMS
from clipworks.cli.visible import visible

_COLOURS: dict[Severity, str] = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def doctor(
    store: Annotated[
        Path | None, typer.Option(envvar="CLIPWORKS_STORE", help="Folder of model artifacts.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="CLIPWORKS_DATA", help="Folder of collections.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="NAME or NAME@VERSION; default: what a server takes.")] = None,
    url: Annotated[
        str | None, typer.Option(envvar="CLIPWORKS_URL", help="Look at this running server too.", show_default=False)
    ] = None,
    api_key: connect.ApiKey = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run no model: manifests and sizes only.")] = False,
    as_json: connect.AsJson = False,
) -> None:
    """Look at this installation, its machine and its settings, and say what to do about each thing that is wrong.

    Exit status 1 if something failed; warnings do not count.
    """
    from clipworks.cli.doctor.checks import examine
    from clipworks.cli.doctor.subject import subject_of

    given = {"store": store, "data": None if data is None else str(data), "model": model}
    overrides = {name: value for name, value in given.items() if value is not None}
    subject = subject_of(overrides, os.environ, url=url, api_key=api_key, quick=quick)
    with output.waiting("looking", shown=output.is_terminal()):
        found = list(examine(subject))
    failed = sum(finding.status == "failure" for _, finding in found)
    if as_json:
        checks = [
            {"check": name, "status": each.status, "found": each.found, "remedy": each.remedy or None}
            for name, each in found
        ]
        output.print_json({"ok": not failed, "checks": checks})
    else:
        _print(found)
        warnings = sum(finding.status == "warning" for _, finding in found)
        output.say(f"clipworks {_version()}: {len(found)} checks, {failed} failed, {warnings} warnings")
    if failed:
        raise typer.Exit(FAILED_ITEMS)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return clipworks.__version__
    except PackageNotFoundError:
        return "of unknown version"


def _print(found: list[tuple[str, Diagnosis]]) -> None:
    if not output.is_terminal():
        rows = [[each.status, name, each.found, each.remedy] for name, each in found]
        output.print_table(["status", "check", "found", "remedy"], rows)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, each in found:
        what = Text(visible(each.found))
        if each.remedy:
            what.append(f"\n-> {visible(each.remedy)}", style=_COLOURS[each.status])
        table.add_row(Text(each.status, style=_COLOURS[each.status]), name, what)
    Console().print(table)
