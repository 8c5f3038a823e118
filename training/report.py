"""`python -m training.report CHECKPOINT --data FOLDER --split test`: its numbers on one split of its recipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from training.checkpoint import LoadedModel, load_model
from training.data.reader import load_pixels, read_table
from training.data.rows import Split
from training.judge import judge_encoders


def report_split(loaded: LoadedModel, *, data_folder: Path, split: Split) -> dict[str, Any]:
    """Judge a checkpoint in fp32 on one split of its own recipe; captions that training saw count as seen titles."""
    config = loaded.info.config
    rows = read_table(
        data_folder / config.data.table,
        image_column=config.data.image_column,
        caption_column=config.data.caption_column,
        label_columns=config.data.label_columns,
    )
    rule = config.data.split.rule()
    judged = [row for row in rows if rule.of(row.group) == split]
    return judge_encoders(
        loaded.model.encode_image,
        loaded.model.encode_text,
        lambda texts: loaded.tokenizer.pad([loaded.tokenizer.encode(text) for text in texts]),
        rows=judged,
        pixels=load_pixels(data_folder, judged, loaded.info.image_spec),
        training_titles=frozenset(row.caption.casefold() for row in rows if rule.of(row.group) == "train"),
        report=config.run.report,
        templates=loaded.info.templates,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    loaded = load_model(options.checkpoint)
    numbers = report_split(loaded, data_folder=options.data, split=options.split)
    text = json.dumps({"split": options.split, "step": loaded.info.step, "report": numbers}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
