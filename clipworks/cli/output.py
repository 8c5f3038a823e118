"""Output of commands: tables for people, tab-separated lines for pipes, JSON when asked."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table

from clipworks.cli.failures import UsageError
from clipworks.cli.visible import visible

_LEAST_FOLDED = 12


def is_terminal() -> bool:
    return sys.stdout.isatty()


def say(message: str) -> None:
    """A remark to a person, on stderr, so that it never mixes with results."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(visible(message), markup=False)


@contextmanager
def saying_warnings() -> Generator[None]:
    """What the client warns of in the block is said at its end, each remark once."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(each.message) for each in said):
        say(f"warning: {text}")


def print_json(value: object) -> None:
    """One JSON document, indented on a terminal and on one line in a pipe."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2 if is_terminal() else None) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """A table on a terminal; without one, a header and rows separated by tabs."""
    if not is_terminal():
        for row in (columns, *rows):
            sys.stdout.write("\t".join(map(_one_field, row)) + "\n")
        return
    console = Console()
    widths = [max(len(column), *(len(row[place]) for row in rows), 0) for place, column in enumerate(columns)]
    longest = widths.index(max(widths))
    if sum(widths) - widths[longest] + _LEAST_FOLDED + 3 * len(widths) + 1 > console.width:
        _print_stacked(console, columns, rows, title)
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[place]) for row in rows)
        # Where the terminal is narrow, only the longest column gives way.
        table.add_column(column, overflow="fold", no_wrap=place != longest, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    console.print(table)


def _print_stacked(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    """A terminal too narrow for a table: one line for each cell, a blank line between rows."""
    if title:
        console.print(_plain(title), style="italic")
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            if cell:
                console.print(f"[bold]{column}[/bold] {_plain(cell)}", highlight=False)
        console.print()


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Name and value, one a line."""
    if not is_terminal():
        print_table(("name", "value"), facts)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, _plain(value))
    Console().print(table)


def _one_field(cell: str) -> str:
    """A cell as it is, so that an id survives a pipe; what would end the field or the line is written as \\xHH.

    Names of files have passed file_names.text_of already: their backslashes are escaped, and are not escaped again.
    """
    return "".join(_ESCAPES.get(character, character) for character in cell)


_ESCAPES = {
    **{chr(code): f"\\x{code:02x}" for code in (*range(0x20), 0x7F, 0x85)},
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def _plain(cell: str) -> str:
    """Text from outside is text, never markup or terminal control codes."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in cell))


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return not cell
    return True


def confirm(question: str) -> None:
    """Ask before something is deleted; ends the command on no. Raises UsageError: nobody is there to ask."""
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is there to ask; write --yes")
    typer.confirm(question, abort=True)


@contextmanager
def steps(title: str) -> Generator[Callable[[str], None]]:
    """Tell a person which step a long command is at: a spinner on a terminal, a line each elsewhere."""
    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    if not console.is_terminal:
        yield lambda step: say(f"{title}: {step}")
        return
    with console.status(title) as status:

        def show(step: str) -> None:
            status.update(f"{title}: {_plain(step)}")
            console.print(f"[dim]{time.monotonic() - began:6.1f} s[/dim]  {_plain(step)}")

        yield show


@contextmanager
def waiting(what: str, *, shown: bool) -> Generator[None]:
    """A spinner on stderr as long as the block, if someone is there to see it."""
    if not shown:
        yield
        return
    with Console(stderr=True).status(what):
        yield
