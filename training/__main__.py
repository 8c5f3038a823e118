"""`python -m training CONFIG [--set key=value ...] [--resume]`: training without the rest of the command line."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from training.distributed import launched_first
from training.recipes import find_recipe


def main() -> int:
    # Here, because loader processes import this module again, and have no use for the loop.
    from training.loop import train

    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("config", help="a recipe: a TOML file, or the name of a shipped one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in run.folder")
    parser.add_argument("--from-step", type=int, metavar="STEP", help="go on from that step's checkpoint instead")
    arguments = parser.parse_args()
    console = Console()
    try:
        result = train(
            find_recipe(arguments.config),
            arguments.overrides,
            resume=arguments.resume,
            from_step=arguments.from_step,
            console=console,
        )
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False)
        return 1
    if launched_first():
        console.print(f"checkpoint at step {result.step}: {result.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
