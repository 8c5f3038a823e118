"""`python -m training.report CHECKPOINT --data FOLDER --split test`: its numbers on one split of its recipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from training.bases import open_base
from training.checkpoint import is_head, load_head, load_model, read_checkpoint
from training.config import with_data_folder
from training.data.protocol import Source
from training.data.source import open_source
from training.encoder import open_checkpoint
from training.methods.parts.few_shot import report_head


def report_split(
    folder: Path, *, data_folder: Path | None = None, split: Literal["validation", "test"], base: Path | None = None
) -> dict[str, Any]:
    """Judge a checkpoint in fp32 on one split of its own recipe; captions that training saw count as seen titles.

    data_folder: where a table lies here; scenes need none. base: where the base of a class head lies, by default where
    its recipe says; a head is judged behind it, beside zero-shot.

    Raises:
        ValueError: a checkpoint that cannot be opened, or a head with another base than its own.
    """
    info = read_checkpoint(folder)
    source = _source(folder, data_folder)
    if is_head(info):
        return _of_head(folder, source, base=base, split=split)
    return source.judge(open_checkpoint(folder), split=split)


def _of_head(
    folder: Path, source: Source, *, base: Path | None, split: Literal["validation", "test"]
) -> dict[str, Any]:
    head = load_head(folder)
    model = load_model(base) if base is not None else open_base(head.info.config)
    if model is None:
        raise ValueError(f"{folder} is a class head and its recipe names no base: pass --base")
    if model.info.weights_sha256 != head.base_sha256:
        raise ValueError(
            f"{folder} was fitted on weights {head.base_sha256[:12]}, the base {base or head.info.config.base} has "
            f"{model.info.weights_sha256[:12]}"
        )
    return report_head(head, model, source, split=split)


def _source(folder: Path, data_folder: Path | None) -> Source:
    info = read_checkpoint(folder)
    config = with_data_folder(info.config, data_folder)
    return open_source(config, cache_spec=info.image_spec, image_spec=info.image_spec)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the table; none for scenes")
    parser.add_argument("--base", type=Path, help="a class head's base, where it is not where its recipe says")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        numbers = report_split(options.checkpoint, data_folder=options.data, split=options.split, base=options.base)
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
