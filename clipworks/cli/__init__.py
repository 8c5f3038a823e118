"""The command line. Importing it costs typer and rich; each command imports what it needs when it runs.

Exit codes: 0 done; 1 some inputs, checks or requests failed, the others are done; 2 usage (arguments, settings,
recipes, files); 3 a server, model or artifact refused or failed; 4 a part is not installed; 130 interrupted.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

import clipworks
from clipworks.cli import (
    bench,
    classify,
    collections,
    data,
    distill,
    embed,
    export,
    index,
    label_sets,
    localize,
    models,
    rerank,
    search,
    serve,
    teach,
    train,
)
from clipworks.cli import eval as evaluation
from clipworks.cli.doctor import command as doctor
from clipworks.cli.environment import report_environment
from clipworks.cli.failures import ReportingGroup


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipworks {clipworks.__version__}")
        raise typer.Exit


_EPILOG = (
    "Exit codes: 0 done, 1 some inputs failed, 2 usage, 3 a server or model refused or failed, "
    "4 a part is not installed, 130 interrupted."
)

app = typer.Typer(
    name="clipworks",
    cls=ReportingGroup,
    help="Train CLIP variants, export them to verified ONNX artifacts, serve them over HTTP.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train CLIP variants, export them to verified ONNX artifacts, serve them over HTTP."""
    if context.invoked_subcommand not in ("serve", "doctor"):  # which look at their settings themselves
        report_environment(os.environ)


app.command("serve", cls=serve.ServeCommand)(serve.serve)
app.add_typer(models.app, name="models")
app.command("embed")(embed.embed)
app.command("classify")(classify.classify)
app.add_typer(label_sets.app, name="label-sets")
app.command("teach")(teach.teach)
app.command("localize")(localize.localize)
app.command("rerank")(rerank.rerank)
app.command("index")(index.index)
app.command("search")(search.search)
app.add_typer(collections.app, name="collections")
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("distill")(distill.distill)
app.command("export")(export.export)
app.add_typer(evaluation.app, name="eval")
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
