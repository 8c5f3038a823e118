"""The page on collections says what the records of its benchmark say."""

from __future__ import annotations

from benchmarks.marked import replace_blocks
from benchmarks.retrieval_tables import BLOCK, KEPT, PAGE, text_of


def test_docs_say_what_the_records_say() -> None:
    records = sorted(KEPT.glob("*.json"))
    assert [path.stem for path in records] == ["retrieval-100k", "retrieval-1m", "retrieval-photos"]
    page = PAGE.read_text(encoding="utf-8")
    assert f"<!-- bench:{BLOCK} -->" in page
    assert replace_blocks(page, {BLOCK: text_of(records)}) == page
