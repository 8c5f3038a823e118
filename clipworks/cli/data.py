"""`clipworks data`: a query list out of texts, and a data set out of raw pairs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipworks._progress import progress_bar
from clipworks.cli import connect, output
from clipworks.cli.failures import FAILED_ITEMS, INTERRUPTED, UsageError
from clipworks.cli.model_stores import StoreFolder

if TYPE_CHECKING:
    from training.building.report import BuildReport

app = typer.Typer(
    help="Make a query list, and build a balanced data set out of raw pairs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("queries")
def queries(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the list is written.")],
    texts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="TEXT", help="Text files, plain or .gz, such as paragraphs of an encyclopedia."),
    ] = None,
    least: Annotated[int, typer.Option(min=1, help="Least occurrences of a word or a bigram.")] = 100,
    bits: Annotated[float, typer.Option(help="Least pointwise mutual information of a bigram, in bits.")] = 6.0,
    names: Annotated[
        list[Path] | None,
        typer.Option("--list", metavar="FILE", help="More queries, one a line, such as titles; may be repeated."),
    ] = None,
    wordnet: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="All nouns of a WordNet database (index.noun, data.noun)."),
    ] = None,
    as_json: connect.AsJson = False,
) -> None:
    """Make a list of queries as CLIP's data had one: words, bigrams, titles and nouns (needs the serve extra).

    One a line, with its source and its count; edit it as you like.
    """
    from training.building.mining import joined, listed, mined, nouns, text_lines
    from training.building.queries import write_queries

    if not texts and not names and wordnet is None:
        raise UsageError("queries of what? give text files, --list FILE or --wordnet FOLDER")
    try:
        parts = [mined(lambda: text_lines(texts), least=least, least_bits=bits)] if texts else []
        parts += [listed(path) for path in names or ()]
        parts += [nouns(wordnet)] if wordnet is not None else []
        found = joined(parts)
        if not found:
            raise ValueError(f"no word comes {least} times; try a smaller --least")
    except ValueError as error:
        raise UsageError(str(error)) from error
    write_queries(out, found, remark="query, source, count; made by clipworks data queries")
    sources: dict[str, int] = {}
    for query in found:
        sources[query.source] = sources.get(query.source, 0) + 1
    if as_json:
        output.print_json({"out": str(out), "queries": len(found), "sources": sources})
        return
    said = ", ".join(f"{count:,} {source}" for source, count in sources.items())
    output.say(f"{out}: {len(found):,} queries ({said})")


@app.command("build")
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Webdataset shards ({0000..0099}.tar, globs, addresses), folders with captions.csv or with shards, "
            ".csv or .parquet tables.",
        ),
    ],
    query_list: Annotated[Path, typer.Option("--queries", metavar="FILE", help="Queries, one a line.", exists=True)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where shards and report are written.")],
    balance: Annotated[
        Literal["wit", "metaclip", "none"],
        typer.Option(help="wit: each query chooses --most pairs. metaclip: each with the chance --most / its count."),
    ] = "wit",
    most: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs that a query chooses. Default: what makes --total; CLIP's 20,000 without it."),
    ] = None,
    total: Annotated[int | None, typer.Option(min=1, help="Pairs of the data set, if there are so many.")] = None,
    near: Annotated[
        int, typer.Option(min=-1, max=15, help="Near duplicates differ in at most so many of 256 bits; -1: keep them.")
    ] = 3,
    near_vectors: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            help="Near duplicates are also those whose vectors have this cosine or more, as 0.95.",
        ),
    ] = None,
    vector_model: Annotated[
        str | None,
        typer.Option(metavar="NAME[@VERSION]", help="A stored model for --near-vectors. Default: --filter-model."),
    ] = None,
    keep_duplicates: Annotated[
        bool,
        typer.Option("--keep-duplicates", help="Keep pairs whose pictures are equal or near, such as captions of one."),
    ] = False,
    least_px: Annotated[int, typer.Option(min=1, help="Least length of the shorter side.")] = 32,
    most_aspect: Annotated[float, typer.Option(min=1, help="Greatest long side by short side.")] = 5.0,
    filter_model: Annotated[
        str | None, typer.Option(metavar="NAME[@VERSION]", help="A stored model that scores pairs by their cosine.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the clean pairs that stays, the best scores.")
    ] = None,
    least_score: Annotated[float | None, typer.Option(help="Or: the least score that stays.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other pairs.")] = 0,
    shard_pairs: Annotated[int, typer.Option(min=1, max=100_000, help="Pairs of a shard.")] = 10_000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each core by default.", show_default=False)
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="What is found of each pair, for several builds. Default: OUT/work."),
    ] = None,
    table: Annotated[str, typer.Option(help="Name of the table in a folder.")] = "captions.csv",
    image_column: Annotated[str, typer.Option(help="Column of a table with the pictures.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Column of a table with the captions.")] = "caption",
    store: StoreFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Clean and balance raw pairs, and write them as webdataset shards (needs the serve extra; a plot needs eval).

    The same command again goes on where it was cut. Every pair is counted, as kept or with the reason why not.
    The exit code is 1 where none is kept.
    """
    from clipworks.cli.data_filter import StoredEmbedder, StoredScorer
    from training.building.build import BuildChoice, BuildPlan
    from training.building.build import build as run
    from training.building.scanning import ScanPlan
    from training.building.sources import TableColumns, find_units

    if filter_model is None and (keep is not None or least_score is not None):
        raise UsageError("--keep and --least-score need --filter-model NAME")
    if filter_model is not None and keep is None and least_score is None:
        raise UsageError("what stays of the scored pairs? give --keep SHARE or --least-score COSINE")
    vectors_of = vector_model or filter_model
    if near_vectors is None and vector_model is not None:
        raise UsageError("--vector-model needs --near-vectors COSINE")
    if near_vectors is not None and vectors_of is None:
        raise UsageError("vectors of which model? --near-vectors needs --vector-model NAME, or --filter-model")
    if near_vectors is not None and keep_duplicates:
        raise UsageError("--near-vectors takes out what --keep-duplicates keeps: give one of them")
    columns = TableColumns(table=table, image=image_column, caption=caption_column)
    try:
        plan = BuildPlan(
            units=tuple(find_units(sources, columns)),
            scan=ScanPlan(
                queries=query_list,
                least_px=least_px,
                most_aspect=most_aspect,
                scorer=StoredScorer.of(filter_model, store) if filter_model is not None else None,
                embedder=StoredEmbedder.of(vectors_of, store) if near_vectors is not None and vectors_of else None,
            ),
            choice=BuildChoice(
                balance=balance,
                most=most,
                total=total,
                near_bits=near if near >= 0 and not keep_duplicates else None,
                near_vectors=near_vectors,
                duplicates=keep_duplicates,
                share=keep,
                least_score=least_score,
                seed=seed,
            ),
            out=out,
            work=work or out / "work",
            shard_pairs=shard_pairs,
            workers=workers or os.cpu_count() or 1,
        )
        report = run(plan, progress=_progress(as_json))
    except ValueError as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        output.say(f"stopped; what is done stays. Go on with: {shlex.join(['clipworks', *sys.argv[1:]])}")
        raise typer.Exit(INTERRUPTED) from None
    _print(report, out, as_json)
    if not report.kept:
        raise typer.Exit(FAILED_ITEMS)


def _progress(as_json: bool) -> Callable[[str, int], AbstractContextManager[Callable[[int], None]]]:
    shown = sys.stderr.isatty() and not as_json
    return lambda label, total: progress_bar(label, total, shown=shown)


def _print(report: BuildReport, out: Path, as_json: bool) -> None:
    if as_json:
        output.print_json({"out": str(out), **report.to_json()})
        return
    rows = [(name, f"{count:,}") for name, count in report.stages.items()]
    output.print_table(("step", "pairs left"), rows)
    output.print_table(("left out as", "pairs"), [(name, f"{count:,}") for name, count in report.dropped.items()])
    output.say(f"{report.kept:,} pairs in {out}; see {out / 'report.md'}")
