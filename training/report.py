"""`python -m training.report CHECKPOINT --data FOLDER --split test`: its numbers on one split of its recipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args

from training.checkpoint import read_checkpoint
from training.config import SplitBy, divided_by, with_data_folder
from training.data.protocol import Source
from training.data.source import open_source
from training.opening import method_of
from training.saved import SavedRun


def report_split(
    folder: Path,
    *,
    data_folder: Path | None = None,
    split: Literal["validation", "test"],
    by: SplitBy | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Judge a checkpoint in fp32 on one split of its own recipe; captions that training saw count as seen titles.

    data_folder: where a table lies here; scenes need none. by: what divides a table, by default what its recipe says; a
    model that was trained by family is judged by number too, see training.data.families. base: where the base of
    adapters or of a class head lies, by default where its recipe says; they are judged behind it.

    Raises:
        ValueError: a checkpoint that cannot be opened, or another base than its own.
    """
    run = SavedRun(folder=folder, info=read_checkpoint(folder), base_folder=base)
    source = _source(folder, data_folder, by)
    if not run.info.derives:
        return source.judge(run.own_encoder(), split=split)
    return method_of(run.info).judge(run, source, split=split)


def _source(folder: Path, data_folder: Path | None, by: SplitBy | None) -> Source:
    info = read_checkpoint(folder)
    config = divided_by(with_data_folder(info.config, data_folder), by)
    return open_source(config, cache_spec=info.image_spec, image_spec=info.image_spec)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the table; none for scenes")
    parser.add_argument("--base", type=Path, help="base of adapters or a head, where it is not where its recipe says")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--by", choices=get_args(SplitBy), help="what divides a table; by default what its recipe says")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        numbers = report_split(
            options.checkpoint, data_folder=options.data, split=options.split, by=options.by, base=options.base
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    step = read_checkpoint(options.checkpoint).step
    text = json.dumps({"split": options.split, "step": step, "report": numbers}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
