"""A reader of meanings over frozen pictures: what the text tower would say if it understood every sentence.

A frozen image tower may hold what a contrastive loss is slow to find: which colour belongs to which shape is a
ten-thousandth of a picture vector's variance. One linear layer on what a sentence means finds it in seconds, and a text
tower that learns to say the same (knowledge distillation, Hinton et al., 2015) need not look for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.scenes.meaning import Meaning
from training.data.meaning_code import MeaningCode
from training.data.rows import Drawn

_PICTURES, _RATE, _DECAY, _START_SCALE = 128, 3e-3, 1e-4, 20.0
_NEVER = -1e4  # as a logit: no weight in a sum of exponentials


def fit_reader(
    pictures: Tensor, captions: Sequence[tuple[int, Drawn]], code: MeaningCode, *, seed: int, steps: int = 4000
) -> nn.Linear:
    """Codes [n, code.size] -> text vectors [n, D] to be normalised, frozen.

    pictures: unit vectors [N, D] of the frozen image tower. captions: (picture, drawn), as many of each picture.
    Fitted so that every caption of a picture beats all false captions of that picture.

    Raises:
        ValueError: no caption has a hard negative that the code can say.
    """
    asked = _questions(captions, code)
    if not bool(asked.deniable.any()):
        raise ValueError("a reader of meanings needs captions with hard negatives, of things with a shape or a colour")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = nn.Linear(code.size, pictures.shape[1])
    log_scale = nn.Parameter(torch.tensor(math.log(_START_SCALE)))
    optimizer = torch.optim.AdamW([*reader.parameters(), log_scale], lr=_RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    shown = pictures.to("cpu", torch.float32)[asked.rows]
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(steps):
            picks = torch.randint(len(shown), (_PICTURES,), generator=generator)
            texts = functional.normalize(reader(asked.codes[asked.places[picks]]), dim=-1)
            right, wrong = (log_scale.exp() * (texts * shown[picks][:, None]).sum(-1)).chunk(2, dim=1)
            sayable, deniable = asked.sayable[picks], asked.deniable[picks]
            strongest = wrong.masked_fill(~deniable, _NEVER).logsumexp(1, keepdim=True)
            optimizer.zero_grad()
            (functional.softplus(strongest - right) * sayable).sum().div(sayable.sum().clamp(min=1)).backward()
            optimizer.step()
            schedule.step()
    return reader.requires_grad_(False).to(pictures.device)


@dataclass(frozen=True, kw_only=True)
class _Questions:
    """R pictures with K captions and K hard negatives each: rows [R]; places [R, 2K] in codes [U, C], the false behind.

    sayable, deniable: bool [R, K], which of the captions and of the negatives the code can say.
    """

    rows: Tensor
    codes: Tensor
    places: Tensor
    sayable: Tensor
    deniable: Tensor


def _questions(captions: Sequence[tuple[int, Drawn]], code: MeaningCode) -> _Questions:
    by_row: dict[int, list[Drawn]] = {}
    for row, drawn in captions:
        by_row.setdefault(row, []).append(drawn)
    where: dict[Meaning | None, int] = {}
    places = [
        [where.setdefault(one.meaning, len(where)) for one in some]
        + [where.setdefault(one.negative_meaning if one.negative else None, len(where)) for one in some]
        for some in by_row.values()
    ]
    codes, known = code.of(list(where))
    at = torch.tensor(places)
    sayable, deniable = torch.from_numpy(known)[at].chunk(2, dim=1)
    return _Questions(
        rows=torch.tensor(list(by_row)), codes=torch.from_numpy(codes), places=at, sayable=sayable, deniable=deniable
    )
