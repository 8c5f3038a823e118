"""What each process does in test_stream_training: run by torchrun, with a folder, a recipe and overrides.

Loader processes import this file again, so what is heavy is imported by the functions.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.fetching import Fetching

EPOCH_STEPS, MIDDLE = 6, 2


def fetching(recipe: Path, overrides: list[str]) -> Fetching:
    """This process's batches, as the loop gets them."""
    from training.config import load_config
    from training.data.batches import BatchPlan, TextIds
    from training.data.source import open_source
    from training.data.vocabulary import tokenizer_of
    from training.fetching import Fetching
    from training.models.building import image_spec

    config = load_config(recipe, overrides)
    source = open_source(
        config, cache_spec=image_spec(config.model, size_px=config.data.cache_px), image_spec=image_spec(config.model)
    )
    batches = source.batches(
        TextIds(*tokenizer_of(config.model)),
        BatchPlan(batch_size=config.optim.batch_size),
    )
    return Fetching(batches, lambda batch: batch, batch_size=config.optim.batch_size, device="cpu")


def epoch(folder: Path, recipe: Path, overrides: list[str]) -> None:
    """The rows of an epoch, and those of another try that begins in its middle."""
    import torch
    from safetensors.torch import save_file

    from training import distributed

    whole = fetching(recipe, overrides)
    rows, position = [], {}
    for step in range(EPOCH_STEPS):
        rows.append(whole(step)["row"])
        if step + 1 == MIDDLE:
            position = whole.position()
    bad = whole.bad_samples()
    again = fetching(recipe, overrides)
    again.resume(position)
    rest = [again(step)["row"] for step in range(MIDDLE, EPOCH_STEPS)]
    for each in (whole, again):
        each.close()
    save_file(
        {
            "rows": torch.stack(rows),
            "rest": torch.stack(rest),
            "bad": torch.tensor(sum(bad.values())),
            **{f"position/{name}": tensor for name, tensor in position.items()},
        },
        folder / f"{distributed.rank()}.safetensors",
    )


def main(where: str, recipe: str, *overrides: str) -> None:
    import torch

    from training import distributed
    from training.loop import train

    torch.set_num_threads(1)
    with distributed.joined("cpu"):
        epoch(Path(where), Path(recipe), [*overrides])
        train(Path(recipe), overrides)
        train(Path(recipe), [*overrides, "run.checkpoint_steps=5"], resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
