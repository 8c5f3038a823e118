"""The command line that the laboratory's studies share: list, run, judge, write the page.

Runs lie on this machine, in .runs/lab; records lie in git, in benchmarks/lab. What is run is run here: a record is
never handed back for it.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console

from benchmarks.lab_records import Record, here_state, judged_here, keep, record_state, write_judged
from benchmarks.lab_runs import ROOT, StudyRun, standing, throw_away, train_missing

REPLICATIONS = 3


@dataclass(frozen=True, kw_only=True)
class Study:
    """`runs` of so many replications, toys or not, bases first. `measure` gives plain numbers, `lines` prints a record,
    `write` makes the page."""

    about: str
    runs: Callable[[int, bool], list[StudyRun]]
    measure: Callable[[StudyRun], Record]
    lines: Callable[[Record], Iterable[str]]
    write: Callable[[Sequence[StudyRun], bool], None]


def command_line(study: Study, arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=study.about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="what was run here, and what there are records of")
    parser.add_argument("--run", metavar="PATTERN", action="append", default=[], help="train and judge what is not yet")
    parser.add_argument("--again", action="store_true", help="with --run: throw the pattern's runs away first")
    parser.add_argument(
        "--judge", metavar="PATTERN", action="append", default=[], help="judge anew what was trained here"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="keep what was judged here as records; write the page"
    )
    parser.add_argument(
        "--replications", type=int, metavar="N", help=f"of the headline runs; by default {REPLICATIONS}"
    )
    parser.add_argument(
        "--toy", action="store_true", help="steps of seconds, to try the commands; writes to .runs/lab/toy"
    )
    options = parser.parse_args(arguments)
    replications = options.replications or (1 if options.toy else REPLICATIONS)
    runs = study.runs(replications, options.toy)
    run, judge = _chosen(runs, options.run), _chosen(runs, options.judge)
    if missed := [each for each in (*options.run, *options.judge) if not _chosen(runs, [each])]:
        parser.error(f"no run is called {', '.join(missed)}; --list shows them")
    try:
        if options.again:
            for one in run:
                throw_away(one)
        for one in run:
            train_missing(one, Console(stderr=True))
            _measured(study, one, again=one in judge)
        for one in judge:
            if one not in run and standing(one) == "trained":
                _measured(study, one, again=True)
            elif one not in run:
                print(f"== {one.name}: not trained here")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if options.write_docs:
        kept = [one.name for one in runs if keep(one)]
        print(f"kept as records: {', '.join(kept) or 'nothing, the page is of the records in git'}")
        study.write(runs, options.toy)
    if options.list or not (run or judge or options.write_docs):
        print(f"{'run':32} {'on this machine':28} in {runs[0].record.parent.relative_to(ROOT)}")
        for one in runs:
            print(f"{one.name:32} {here_state(one):28} {record_state(one)}")
    return 0


def _measured(study: Study, one: StudyRun, *, again: bool) -> None:
    """Judge the run where that was not done, and print what came out."""
    if one.measured == "nothing":
        return
    found = None if again else judged_here(one)
    if found is None:
        print(f"== {one.name}: judging", flush=True)
        from training.checkpoint import git_sha

        found = write_judged(one, study.measure(one), code=git_sha(ROOT))
    else:
        print(f"== {one.name}: judged here before, --again runs it anew", flush=True)
    for line in study.lines(found):
        print(f"   {line}", flush=True)


def _chosen(runs: Sequence[StudyRun], patterns: Sequence[str]) -> list[StudyRun]:
    return [one for one in runs if any(fnmatch.fnmatch(one.name, pattern) for pattern in patterns)]
