"""`python -m training.report CHECKPOINT --data FOLDER --split test`: its numbers on one split of its recipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from training.checkpoint import read_checkpoint
from training.config import TableData
from training.data.source import open_source
from training.encoder import open_checkpoint
from training.towers import image_spec as spec_of


def report_split(
    folder: Path, *, data_folder: Path | None = None, split: Literal["validation", "test"]
) -> dict[str, Any]:
    """Judge a checkpoint in fp32 on one split of its own recipe; captions that training saw count as seen titles.

    data_folder: where a table lies here; scenes need none.
    """
    config = read_checkpoint(folder).config
    if data_folder is not None and isinstance(config.data, TableData):
        config = config.model_copy(update={"data": config.data.model_copy(update={"folder": data_folder})})
    image_spec = spec_of(config.model)
    cache_spec = spec_of(config.model, size_px=config.data.cache_px)
    source = open_source(config, cache_spec=cache_spec, image_spec=image_spec)
    return source.judge(open_checkpoint(folder), split=split)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the table; none for scenes")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    numbers = report_split(options.checkpoint, data_folder=options.data, split=options.split)
    step = read_checkpoint(options.checkpoint).step
    text = json.dumps({"split": options.split, "step": step, "report": numbers}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
