"""`python -m training CONFIG [--set key=value ...] [--resume]`: the loop without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from training.loop import train


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in run.folder")
    arguments = parser.parse_args()
    console = Console()
    try:
        result = train(arguments.config, arguments.overrides, resume=arguments.resume, console=console)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        return 1
    console.print(f"checkpoint at step {result.step}: {result.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
