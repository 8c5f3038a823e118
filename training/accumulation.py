"""Gradients of a batch that memory holds a part of: GradCache (Gao et al., 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup"), open_clip's accum_freq.

Every part is encoded twice. The first pass keeps vectors only; the loss of all of them gives each vector's gradient;
the second pass carries it into the towers, one part after the other. Adding up the losses of small batches would be
another loss: a row would be compared with its part's rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from training.batch_norms import statistics_kept
from training.method import ContrastiveMethod, StepMethod

Losses = dict[str, Tensor]


def check_accumulation(name: str, method: StepMethod, parts: int) -> None:
    """Raises:
    ValueError: the method `name` works its losses out in one piece, and more than one part is asked for.
    """
    if parts > 1 and not (isinstance(method, ContrastiveMethod) and type(method).step is ContrastiveMethod.step):
        raise ValueError(
            f"optim.accumulate is {parts}, but method {name} does not encode rows apart from its losses: set it to 1 "
            "(base, negclip and negation can)"
        )


def add_gradients(
    method: StepMethod,
    batch: dict[str, Tensor],
    progress: float,
    *,
    parts: int,
    modules: Sequence[nn.Module],
    autocast: Callable[[], AbstractContextManager[object]],
    scaled: Callable[[Tensor], Tensor],
    reseed: Callable[[], object],
    before_last: Callable[[], None],
) -> Losses:
    """Losses of this process's batch, as `method.step` gives them; their sum's gradients are added to the parameters'.

    parts: how many pieces the rows are encoded in. scaled: what backward starts from, given the sum. reseed: puts the
    random numbers of dropout back to those of the step's beginning, so that both passes drop the same. before_last:
    called before the last backward pass.
    """
    reseed()
    if parts == 1 or not isinstance(method, ContrastiveMethod):
        with autocast():
            losses = method.step(batch, progress)
        before_last()
        scaled(total(losses)).backward()
        return losses

    pieces = split(batch, parts)
    vectors: list[dict[str, Tensor]] = []
    with torch.no_grad(), statistics_kept(modules):
        for piece in pieces:
            with autocast():
                vectors.append(method.encode(piece))
    whole = {name: torch.cat([each[name] for each in vectors]).requires_grad_() for name in vectors[0]}
    with autocast():
        losses = method.compare(whole, batch, progress)
    scaled(total(losses)).backward()

    reseed()
    sizes = [len(next(iter(each.values()))) for each in vectors]
    wanted = {name: vector.grad.split(sizes) for name, vector in whole.items() if vector.grad is not None}
    for at, piece in enumerate(pieces):
        # A context for each: autocast keeps weights that it has cast, and those of the first pass have no gradient.
        with autocast():
            again = method.encode(piece)
        moved = [name for name in wanted if again[name].requires_grad]
        if at == len(pieces) - 1:
            before_last()
        torch.autograd.backward([again[name] for name in moved], [wanted[name][at] for name in moved])
    return losses


def split(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """The rows of a batch in `parts` pieces whose sizes differ by one at most; fewer pieces if there are fewer rows."""
    parts = min(parts, min(len(tensor) for tensor in batch.values()))
    pieces = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
    return [{name: each[at] for name, each in pieces.items()} for at in range(parts)]


def total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.values())).sum()
