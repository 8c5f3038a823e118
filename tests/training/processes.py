"""What each of several processes does in test_distributed: run by torchrun, with a folder, a recipe and overrides."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from training import distributed
from training.distributed import Gathering
from training.loop import train
from training.losses import (
    focal_negative_loss,
    info_nce,
    negclip_loss,
    positive_pairs,
    sigmoid_loss,
    usable_negatives,
)

LOSSES = ("info_nce", "sigmoid", "negclip", "own", "focal", "excused")
GATHERINGS = {
    "whole": Gathering(),
    "local": Gathering(local_loss=True),
    "apart": Gathering(with_gradient=False),
}
CAPTION_ID = torch.tensor([0, 1, 1, 2, 0, 3, 4, 1])
NEGATIVE_ID = torch.tensor([5, 6, 0, 7, 8, 3, 2, 9])
HAS_NEGATIVE = torch.tensor([True, True, True, False, True, True, True, True])


class Towers(nn.Module):
    """Two linear towers with a temperature and a bias: small, and every gradient is dense."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(7, 5), nn.Linear(6, 5)
        self.scale, self.bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-2.0))


def loss_and_gradients(loss: str, gathering: Gathering) -> dict[str, torch.Tensor]:
    """The loss of a batch of eight and every parameter's gradient, as the loop would see them in this process."""
    towers, stream = Towers(), torch.Generator().manual_seed(1)
    batch = distributed.part_of(
        {
            "image": torch.randn(8, 7, generator=stream),
            "text": torch.randn(8, 6, generator=stream),
            "negative": torch.randn(8, 6, generator=stream),
            "caption_id": CAPTION_ID,
            "negative_id": NEGATIVE_ID,
            "has_negative": HAS_NEGATIVE,
            "excused": torch.rand(8, 16, generator=stream) < 0.3,
        }
    )
    image, text, negative = (
        gathering.vectors(functional.normalize(vectors, dim=-1))
        for vectors in (towers.image(batch["image"]), towers.text(batch["text"]), towers.text(batch["negative"]))
    )
    ids, negative_id, has = (gathering.facts(batch[name]) for name in ("caption_id", "negative_id", "has_negative"))
    rows, scale, positives = gathering.rows(len(batch["image"])), towers.scale.exp(), positive_pairs(ids)
    usable = usable_negatives(ids, negative_id, has, own_only=loss == "own")
    if loss == "info_nce":
        value = info_nce(image, text, scale, positives, rows=rows)
    elif loss == "sigmoid":
        value = sigmoid_loss(image, text, scale, towers.bias, positives, rows=rows)
    elif loss == "focal":
        value = focal_negative_loss(image, text, negative, scale, has_negative=has, rows=rows)
    else:
        excused = gathering.facts(batch["excused"]) if loss == "excused" else None
        value = negclip_loss(
            image, text, negative, scale, positives=positives, usable=usable, excused=excused, rows=rows
        )
    value.backward()
    distributed.average_gradients(towers.parameters())
    found = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}
    return {"loss": distributed.mean(value.detach()), **found}


def compare_losses(folder: Path) -> None:
    if distributed.count() != 2:
        raise ValueError(f"expected two processes, got {distributed.count()}")
    found = {
        f"{loss}/{kind}/{name}": tensor
        for loss in LOSSES
        for kind, gathering in GATHERINGS.items()
        for name, tensor in loss_and_gradients(loss, gathering).items()
    }
    norm = nn.BatchNorm1d(2)
    norm(torch.full((4, 2), float(distributed.rank())) + torch.arange(4.0)[:, None])
    distributed.average_statistics([norm])
    found |= {"norm/running_mean": norm.running_mean, "norm/running_var": norm.running_var}
    save_file(found, folder / f"{distributed.rank()}.safetensors")
    try:
        distributed.part_of({"image": torch.zeros(7)})
    except ValueError as error:
        (folder / f"{distributed.rank()}.txt").write_text(str(error))


def train_together(folder: Path, recipe: Path, overrides: list[str]) -> None:
    result = train(recipe, overrides)
    told = {"step": result.step, "metrics": result.metrics}
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(told, sort_keys=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, recipe, *overrides = sys.argv[1:]
    with distributed.joined("cpu"):
        compare_losses(Path(where))
        train_together(Path(where), Path(recipe), overrides)
