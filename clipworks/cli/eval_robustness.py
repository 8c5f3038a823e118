"""`clipworks eval --suite robustness`: what people write there -> the task, of their own pictures in classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipworks.cli.failures import UsageError

if TYPE_CHECKING:
    from evaluation.robustness.task import Robustness

Pictures = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Of --suite robustness: pictures, with a sub-folder for each class."),
]
Epsilons = Annotated[
    list[float] | None,
    typer.Option(
        "--epsilon",
        help="Of --suite robustness: levels of 255 that an attack may move; may be repeated; default: 1 2 4.",
    ),
]
Most = Annotated[
    int | None,
    typer.Option("--most", min=1, help="Of --suite robustness: pictures that are asked about; default: 200."),
]
AttackSteps = Annotated[
    int | None, typer.Option(min=1, help="Of --suite robustness: steps of each gradient attack; default: 100.")
]
Queries = Annotated[
    int | None,
    typer.Option(min=0, help="Of --suite robustness: queries of the attack without gradients; default: 5000."),
]


def task(
    pictures: Path | None,
    epsilons: Sequence[float] | None,
    most: int | None,
    steps: int | None,
    queries: int | None,
    *,
    seed: int,
    suite: str | None,
) -> Robustness | None:
    """What --suite robustness asks; None for another suite.

    Raises:
        UsageError: options of another suite, no pictures, or a folder that cannot be used.
    """
    from evaluation.robustness.standard_attack import AttackPlan
    from evaluation.robustness.task import SUITE, Robustness
    from evaluation.standard.image_folder import read_image_folder

    if suite != SUITE:
        given = {
            "--pictures": pictures,
            "--epsilon": epsilons,
            "--most": most,
            "--attack-steps": steps,
            "--attack-queries": queries,
        }
        if named := [name for name, value in given.items() if value not in (None, [])]:
            raise UsageError(f"{', '.join(named)}: for --suite {SUITE}; nothing of it is asked")
        return None
    if pictures is None:
        raise UsageError(f"--suite {SUITE} needs --pictures DIR, with a sub-folder of pictures for each class")
    usual = AttackPlan()
    plan = AttackPlan(
        steps=usual.steps if steps is None else steps, queries=usual.queries if queries is None else queries, seed=seed
    )
    levels = tuple(sorted(epsilons)) if epsilons else (1.0, 2.0, 4.0)
    try:
        return Robustness(str(pictures), read_image_folder(pictures), levels, 200 if most is None else most, plan)
    except ValueError as error:
        raise UsageError(f"--suite {SUITE}: {error}") from error
