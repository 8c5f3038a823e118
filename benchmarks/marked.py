"""Generated text between markers in hand-written pages, and the records that it was generated from.

A page holds `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; what stands between them belongs to the scripts.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDS = Path(__file__).parent / "records"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def replace_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """`page` with the text between the markers of each block replaced; blocks it does not mark are ignored.

    Raises:
        ValueError: a marker is opened and not closed.
    """
    for name, text in blocks.items():
        opening, closing = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        if opening not in page:
            continue
        if page.find(closing, page.find(opening)) < 0:
            raise ValueError(f"{opening} is not closed")
        pattern = re.compile(re.escape(opening) + ".*?" + re.escape(closing), re.DOTALL)
        page = pattern.sub(lambda _: f"{opening}\n{text}\n{closing}", page)  # noqa: B023  (called at once)
    return page


def publish(source: Path, record_name: str, blocks: Mapping[str, str]) -> list[Path]:
    """Copy a record to benchmarks/records/ and its blocks into every page that marks them; the pages that changed."""
    RECORDS.mkdir(exist_ok=True)
    if source.resolve() != (RECORDS / record_name).resolve():
        shutil.copyfile(source, RECORDS / record_name)
    changed = []
    for path in PAGES:
        if not path.exists():
            continue
        page = path.read_text(encoding="utf-8")
        updated = replace_blocks(page, blocks)
        if updated != page:
            path.write_text(updated, encoding="utf-8")
            changed.append(path)
    return changed
