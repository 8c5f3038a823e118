"""`clipworks eval`: judge any encoder by probes and real data; `clipworks eval compare`: two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipworks.cli import connect, eval_bias, eval_encoders, eval_robustness, eval_runs, eval_tables, output
from clipworks.cli.failures import UsageError

if TYPE_CHECKING:
    from evaluation.results_file import EvaluationRun

app = typer.Typer(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(help="NAME or NAME@VERSION; default: the server's, or the embedded one. Needed by an endpoint."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="In place of --model: a folder of `clipworks train`, in this process."),
    ] = None,
    url: connect.Url = None,
    dialect: Annotated[
        Literal["clipworks", "jina", "infinity"],
        typer.Option(help="What --url speaks: our API, or /embeddings as OpenAI's with one of two ways for pictures."),
    ] = "clipworks",
    suite: Annotated[
        str | None,
        typer.Option(
            help="quick, full, localize, bias, robustness or a probe's name; default: quick, none with --data alone."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:PATH", help="Real data, such as folder:photos,templates=80; may be repeated."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "int8"] | None,
        typer.Option(help="Of a model in this process; default: fp32. (fp16 is for GPUs: serve it, and give --url.)"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other scenes.")] = 0,
    pairs: Annotated[
        Literal["all", "trained", "held-out"],
        typer.Option(help="Shapes with colours of drawn scenes: all, those that recipes train on, or the others."),
    ] = "all",
    short_px: Annotated[
        int | None,
        typer.Option(min=8, max=4096, help="To say where, look at pictures at this short side. Default: the model's."),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option("--template", help="To say where, put labels into this text with one {}; may be repeated."),
    ] = None,
    image_px: Annotated[
        int | None,
        typer.Option(
            "--image-px", min=48, max=448, help="Side of drawn pictures; default: the model's, 224 if unknown."
        ),
    ] = None,
    groups: eval_bias.Groups = None,
    queries: eval_bias.Queries = None,
    top: eval_bias.Top = None,
    pictures: eval_robustness.Pictures = None,
    epsilon: eval_robustness.Epsilons = None,
    most: eval_robustness.Most = None,
    attack_steps: eval_robustness.AttackSteps = None,
    attack_queries: eval_robustness.Queries = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep each result here and use those that are; default: until done, in a cache."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the run as JSON, for `eval compare`.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report with pictures.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a long run.")] = False,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Judge a model by probes on drawn scenes, and on your own data: in this process, or behind any endpoint.

    An interrupted run goes on where it stopped when it is called again. `eval compare` puts two runs side by side.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options_before(ctx)
        return
    for path in (out, html):
        _refuse_unwritable(path)
    bias = eval_bias.task(groups, queries, top, suite=suite)
    robustness = eval_robustness.task(pictures, epsilon, most, attack_steps, attack_queries, seed=seed, suite=suite)
    with eval_encoders.opened(
        model=model,
        checkpoint=checkpoint,
        url=url,
        dialect=dialect,
        precision=precision,
        image_px=image_px,
        api_key=api_key,
        store=store,
    ) as encoder:
        plan = eval_runs.plan(
            encoder,
            suite_name=suite,
            data=data or (),
            seed=seed,
            pairs=pairs,
            looking=eval_runs.looking(short_px, templates),
            own=bias or robustness,
        )
        eval_runs.confirm(encoder, plan, yes=yes)
        with eval_runs.kept_results(encoder, plan, folder=folder) as kept:
            run = eval_runs.run(encoder, plan, folder=kept)
            _write(run, out=out, html=html)
    if as_json:
        from evaluation.results_file import run_to_json

        output.print_json(run_to_json(run))
    else:
        eval_tables.print_run(run)
    for path in (out, html):
        if path is not None:
            output.say(f"written: {path}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A file of `eval --out`.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another one, of the same suite and seed.")],
    as_json: connect.AsJson = False,
) -> None:
    """Put two runs side by side: B less A, its interval, and whether it is more than luck.

    Both were asked the same questions, so the test is paired: groups of scenes are drawn again together. p is corrected
    for the number of rows (Holm); only what is significant after that is marked.
    """
    from evaluation.compare import compare as compare_runs
    from evaluation.results_file import read_run

    try:
        ours, theirs = read_run(a), read_run(b)
        found = compare_runs(ours.results, theirs.results)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if as_json:
        output.print_json(eval_tables.comparison_to_json(ours, theirs, found))
    else:
        eval_tables.print_comparison(ours, theirs, found)


def _refuse_options_before(ctx: typer.Context) -> None:
    """Raises UsageError: `eval --json compare` would print no JSON, and say nothing."""
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"write the options of compare after it: clipworks eval {ctx.invoked_subcommand} A B ...")


def _refuse_unwritable(path: Path | None) -> None:
    """Raises UsageError: found out now, not after an hour."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        reason = "this is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UsageError(f"{path}: {reason}")


def _write(run: EvaluationRun, *, out: Path | None, html: Path | None) -> None:
    if out is not None:
        from evaluation.results_file import write_run

        write_run(run, out)
    if html is not None:
        from evaluation.report import write_html

        write_html(run.results, html, title=eval_tables.title_of(run))
