"""The report of one run of `clipworks index`: counts of every outcome, and their reasons."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipworks.cli import output
from clipworks.cli.file_names import text_of
from clipworks.cli.index_entries import EntryProblem
from clipworks.cli.picture_files import EXPLAINED, Skipped

_SHOWN_FAILURES = 50
_SHOWN_DUPLICATES = 20


@dataclass
class IndexReport:
    """Filled while a run goes on. began: when the model was ready (time.monotonic). copies: ids that were not stored
    because another one has the same content. hashes: sha256 of what was read, by id, in the order of reading."""

    began: float = field(default_factory=time.monotonic)
    stored: int = 0
    unchanged: int = 0
    pruned: int = 0
    failures: list[EntryProblem] = field(default_factory=list[EntryProblem])
    skipped: Skipped = field(default_factory=Skipped)
    copies: list[str] = field(default_factory=list[str])
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    duplicates: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @property
    def looked_at(self) -> int:
        return self.stored + self.unchanged + len(self.failures) + len(self.copies)

    def add_read(
        self, hashes: Mapping[str, str], *, unchanged: int, failures: Sequence[EntryProblem], copies: Sequence[str]
    ) -> None:
        self.hashes |= hashes
        self.unchanged += unchanged
        self.failures += failures
        self.copies += copies

    def add_stored(self, count: int, *, failures: Sequence[EntryProblem]) -> None:
        self.stored += count
        self.failures += failures

    def find_duplicates(self, elsewhere: Mapping[str, str], ids: Sequence[str]) -> None:
        """elsewhere: sha256 of items that were not read, by id. ids: what was, in the order in which it is listed."""
        first = {sha256: id for id, sha256 in reversed(list(elsewhere.items()))}
        left_out = set(self.copies)
        self.duplicates = []
        for id in sorted(ids, key=left_out.__contains__):  # stable: those that were stored come first
            sha256 = self.hashes.get(id)
            if sha256 is not None and first.setdefault(sha256, id) != id:
                self.duplicates.append((id, first[sha256]))

    def counts(self) -> str:
        parts = [f"{self.stored} stored", f"{self.unchanged} unchanged", f"{len(self.failures)} failed"]
        parts += [f"{len(self.skipped.each)} skipped"] if self.skipped.each else []
        parts += [f"{len(self.copies)} duplicates left out"] if self.copies else []
        parts += [f"{self.pruned} pruned"] if self.pruned else []
        return ", ".join(parts)

    def to_json(self, collection: str, seconds: float) -> dict[str, Any]:
        by_reason = {reason: len(names) for reason, names in self.skipped.by_reason().items()}
        return {
            "collection": collection,
            "stored": self.stored,
            "unchanged": self.unchanged,
            "pruned": self.pruned,
            "seconds": round(seconds, 3),
            "failures": [{"id": text_of(each.name), "message": text_of(each.reason)} for each in self.failures],
            "skipped": [{"name": each.below, "reason": each.reason} for each in self.skipped.each],
            "skipped_by_reason": by_reason,
            "duplicates": [{"id": id, "of": of, "stored": id not in self.copies} for id, of in self.duplicates],
        }


def print_report(report: IndexReport, collection: str, seconds: float) -> None:
    """A line of counts, then a line for each kind of what was left out, then tables of duplicates and failures."""
    rate = f" ({report.stored / seconds:.1f}/s)" if report.stored else ""
    output.say(f"{collection}: {report.counts()} in {seconds:.1f} s{rate}")
    for reason, names in report.skipped.by_reason().items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        output.say(f"skipped: {len(names)} {EXPLAINED[reason]}: {shown}")
    if report.duplicates:
        _print_duplicates(report)
    if report.failures:
        rows = [(text_of(each.name), text_of(each.reason)) for each in report.failures]
        shown_rows = rows[:_SHOWN_FAILURES] if output.is_terminal() else rows
        output.print_table(["failed", "why"], shown_rows)
        _say_rest(len(rows) - len(shown_rows))


def _print_duplicates(report: IndexReport) -> None:
    what = "left out" if report.copies else "stored all the same; --skip-duplicates leaves them out"
    count = len(report.duplicates)
    output.say(f"{count} exact duplicate{'' if count == 1 else 's'}, {what}")
    for id, of in report.duplicates[:_SHOWN_DUPLICATES]:
        output.say(f"  {id} = {of}")
    _say_rest(len(report.duplicates) - _SHOWN_DUPLICATES)


def _say_rest(count: int) -> None:
    if count > 0:
        output.say(f"... and {count} more; --json lists all")
