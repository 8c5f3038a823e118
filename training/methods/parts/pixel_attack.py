"""Pictures changed within a ball so that a loss rises: projected gradient ascent, for training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from training.options import Options


class PixelAttack(Options):
    """The attack inside a training step, in levels of 0..255 as the graph takes pictures.

    epsilon: how far each value may be moved. attack_steps, step_size: steps of the sign of the gradient, and their
    length. Madry et al., 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks".
    """

    epsilon: float = Field(default=2.0, ge=0, le=255)
    attack_steps: int = Field(default=10, ge=1)
    step_size: float = Field(default=1.0, gt=0)


def attacked(pixels: Tensor, loss: Callable[[Tensor], Tensor], attack: PixelAttack) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, H, W, 3] in 0..255, at most epsilon from it, with a higher loss.

    loss: of float pictures, one value each [B]. The start is uniform in the ball, from torch's stream. Of what was met
    on the way, each picture has what raised its own loss most, the clean picture among it.
    """
    clean = pixels.to(torch.float32)
    best = clean.clone()
    if attack.epsilon == 0:
        return best
    low, high = (clean - attack.epsilon).clamp(min=0), (clean + attack.epsilon).clamp(max=255)
    with torch.no_grad():
        highest = loss(clean)
    x = low + (high - low) * torch.rand_like(clean)
    for step in range(attack.attack_steps + 1):
        x.requires_grad_(True)
        with torch.enable_grad():
            values = loss(x)
            last = step == attack.attack_steps
            slope = x if last else torch.autograd.grad(values.sum(), x)[0]
        with torch.no_grad():
            better = values > highest
            highest = torch.where(better, values, highest)
            best = torch.where(better.view(-1, 1, 1, 1), x, best)
            if not last:
                x = (x + attack.step_size * slope.sign()).clamp(low, high)
    return best.detach()
