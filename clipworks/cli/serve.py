"""`clipworks serve`: every setting of the server is a flag, made from service.settings when the command is used."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from typer.core import TyperCommand

from clipworks.cli import output

if TYPE_CHECKING:
    from service.settings import SettingField, Settings

_WIDE = 100


class ServeCommand(TyperCommand):
    """A command whose options are read from the server's settings only when they are needed."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [*_setting_options(), *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> None:
        from service.__main__ import serve as run
        from service.settings import read_settings

        given = {
            name: value
            for name, value in ctx.params.items()
            if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
        }
        raise typer.Exit(run(_with_model(read_settings(given))))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fifty settings in typer's boxes are unreadable, and cut off where the terminal is narrow."""
        from service.settings import PREFIX, setting_fields

        console = Console(highlight=False)
        console.print(f"\n[bold]Usage:[/bold] {escape(ctx.command_path)} [OPTIONS]\n", markup=True)
        console.print("Serve models over HTTP until SIGTERM or Ctrl-C.\n")
        console.print(
            f"Each flag is also an environment variable: --max-items is {PREFIX}MAX_ITEMS. Flags win. "
            "Lists are separated by commas.\n"
        )
        _print_settings(console, setting_fields())


def _with_model(settings: Settings) -> Settings:
    """Settings whose model is in the store: one of a hub is pulled first, or found there without a request."""
    from service.settings import HUB_PREFIX

    if settings.model is None or not settings.model.startswith(HUB_PREFIX):
        return settings
    from clipworks.cli.pull import default_store, pulled
    from model_store.hub.references import Reference
    from model_store.store import Store

    folder = settings.store or default_store()
    precisions = ("fp32", "int8") if settings.precision == "int8" else ("fp32",)
    artifact = pulled(Reference.parse(settings.model), Store(folder), precisions=precisions)
    output.say(f"{settings.model} is {artifact.reference} in {folder}")
    return settings.model_copy(update={"model": artifact.reference, "store": folder})


def serve() -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C."""


def _print_settings(console: Console, fields: Sequence[SettingField]) -> None:
    if console.width >= _WIDE:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("flag", no_wrap=True)
        table.add_column("default", overflow="fold", max_width=16)
        table.add_column("meaning", overflow="fold")
        for field in fields:
            table.add_row(escape(_flag(field)), escape(field.default or "unset"), escape(_meaning(field)))
        console.print(table)
        return
    for field in fields:
        console.print(f"[bold]{escape(_flag(field))}[/bold]  (default: {escape(field.default or 'unset')})")
        console.print(Padding(escape(_meaning(field)), (0, 0, 0, 4)))


def _flag(field: SettingField) -> str:
    return f"{field.flag}, --no-{field.flag[2:]}" if field.is_flag else f"{field.flag} VALUE"


def _meaning(field: SettingField) -> str:
    return f"{' | '.join(field.choices)}: {field.description}" if field.choices else field.description


def _setting_options() -> list[Any]:
    """Options as typer makes them from a function with one parameter for each setting."""
    from service.settings import setting_fields

    def accept(**values: object) -> None: ...

    parameters = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(field))
        for field in setting_fields()
    ]
    accept.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    accept.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    builder = typer.Typer(add_completion=False)
    builder.command()(accept)
    return [option for option in typer.main.get_command(builder).params if option.name != "help"]


def _annotation(field: SettingField) -> Any:
    """Values stay text: the settings themselves say what is wrong with one, as they do for the environment."""
    if field.is_flag:
        return Annotated[bool | None, typer.Option(f"{field.flag}/--no-{field.flag[2:]}", help=_meaning(field))]
    return Annotated[str | None, typer.Option(field.flag, help=_meaning(field))]
