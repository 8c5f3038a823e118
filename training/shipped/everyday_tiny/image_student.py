"""An image tower learns its teacher's vectors: a ridge regression on the features that it brings, then by steps.

Its first blocks stay as they are, so what they make of every view is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.agreement import found_across
from training.config import OptimConfig
from training.distillation_losses import vector_distance
from training.loop import rate_at
from training.losses import unit
from training.models.aligned import AlignedDualEncoder, FeatureHead
from training.shipped.everyday.photograph_head import Examples, Scaling, class_pictures, fit_ridge
from training.shipped.everyday_tiny.views import SeenViews

TERMS = {"image fd": 1.0}
F32 = NDArray[np.float32]
_CHUNK, _LINES = 64, 10
_RIDGE_VIEWS = 6000  # of each set at most
_RIDGE, _CLASS_WEIGHT = 3000.0, 1.0
_GATE = 3.0  # before the sigmoid
_TRUNK_RATE = 0.5  # of the head's


@dataclass(frozen=True)
class ViewShare:
    """views: of one kind of picture; share: of every batch."""

    views: SeenViews
    share: float


class DividedTower(nn.Module):
    """The image tower of `model`, whose trunk is a timm EfficientNet, divided behind `kept` of its blocks.

    Raises:
        ValueError: the head takes a stage behind them.
    """

    def __init__(self, model: AlignedDualEncoder, *, kept: int) -> None:
        super().__init__()
        if model.head is None:
            raise ValueError("the student has no head")
        names = {f"blocks.{at}": at for at in range(kept)}
        if unknown := set(model.stages) - set(names):
            raise ValueError(f"stages {sorted(unknown)} lie behind the {kept} blocks that stay as they are")
        self.model, trunk = model, model.trunk
        self.stages = [names[stage] for stage in model.stages]
        self.first = nn.ModuleList(trunk.blocks[:kept])
        self.rest = nn.Sequential(*trunk.blocks[kept:], trunk.conv_head, trunk.bn2)
        self.rest.to(memory_format=torch.channels_last)
        self.head: FeatureHead = model.head
        self.classifier: nn.Module = trunk.get_classifier()
        self.class_map: nn.Module | None = model.class_map

    def look(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float16], F32]:
        """uint8 [B, S, S, 3] -> the first blocks' maps [B, C, h, w] and the means of the stages [B, F]."""
        with torch.no_grad():
            trunk, read = self.model.trunk, self.model.pixel_input
            x = trunk.bn1(trunk.conv_stem(read(read.unit_range(torch.from_numpy(pixels)))))
            means: list[Tensor] = []
            for block in self.first:
                x = block(x)
                means.append(x.mean(dim=(2, 3)))
            stages = [means[at] for at in self.stages] or [x.new_zeros(len(x), 0)]
            return x.half().numpy(), torch.cat(stages, dim=1).numpy()

    def features(self, maps: Tensor, stages: Tensor) -> Tensor:
        """[B, F], as `AlignedDualEncoder.features`."""
        return torch.cat([self.model.trunk.forward_head(self.rest(maps), pre_logits=True), stages], dim=1)

    def forward(self, maps: Tensor, stages: Tensor) -> Tensor:
        """Unit vectors [B, D]."""
        features = self.features(maps, stages)
        return unit(self.model.from_features(features, self.model.logits(features)))


def start_at_ridge(tower: DividedTower, seen: Mapping[str, ViewShare], opened: str) -> None:
    """Set the linear head to the ridge regression of the teacher's vectors on the features of its untrained trunk, and
    its gate to that of whether a view is of the kind `opened`.

    The rows of the trunk's classifier stand for pictures of its classes.
    """
    if tower.model.class_map is None:
        raise ValueError("the student has no class map")
    inner = tower.model.trunk.head_hidden_size
    class_rows = tower.model.trunk.get_classifier().weight.detach().numpy()
    class_vectors = tower.model.class_map.vectors.detach().numpy()
    looked = {name: _features(tower, each.views) for name, each in seen.items()}
    scaling = Scaling.of(np.concatenate(list(looked.values())))
    pooled = Scaling(scaling.mean[:inner], scaling.deviation[:inner])
    length = float(np.mean([np.linalg.norm(scaling(rows)[:, :inner], axis=1).mean() for rows in looked.values()]))
    pictures = np.zeros((len(class_rows), len(scaling.mean)), dtype=np.float32)
    pictures[:, :inner] = class_pictures(class_rows, pooled, length=length)
    count = sum(map(len, looked.values()))
    examples = [
        Examples(
            scaling(rows),
            _beside(seen[name].views.vectors[: len(rows)], _GATE if name == opened else -_GATE),
            seen[name].share * count / len(rows),
        )
        for name, rows in looked.items()
    ]
    examples.append(Examples(pictures, _beside(class_vectors, -_GATE), _CLASS_WEIGHT))
    solved = fit_ridge(examples, strength=_RIDGE)
    weight, bias = scaling.folded(solved.T, np.zeros(solved.shape[1], dtype=np.float32))
    tower.head.out.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})


def _beside(vectors: F32, gate: float) -> F32:
    return np.concatenate([vectors, np.full((len(vectors), 1), gate, dtype=np.float32)], axis=1)


def train_image_tower(
    tower: DividedTower,
    seen: Mapping[str, ViewShare],
    validation: Mapping[str, SeenViews],
    optim: OptimConfig,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Train the later blocks, class map and head in place: FD, the squared distance of unit vectors. Batch norms keep
    the statistics that they came with: most of the views are of few photographs.
    """
    rng = np.random.default_rng(seed)
    classes = [] if tower.class_map is None else [*tower.classifier.parameters(), *tower.class_map.parameters()]
    trained = [*tower.rest.parameters(), *classes]
    rest, norms = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": rest, "weight_decay": optim.weight_decay, "part": _TRUNK_RATE},
        {"params": norms, "weight_decay": 0.0, "part": _TRUNK_RATE},
        {"params": list(tower.head.parameters()), "weight_decay": 0.0, "part": 1.0},
    ]
    parameters = [p for group in groups for p in group["params"]]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, lr=optim.rate, betas=optim.betas, eps=optim.epsilon)
    tower.eval()
    say(f"image step 0: {_nearness(tower, validation)}")
    for step in range(optim.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, optim) * group["part"]
        maps, stages, wanted = _batch(seen, optim.batch_size, rng)
        loss = TERMS["image fd"] * wanted.shape[1] * vector_distance(tower(maps, stages), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        optimizer.step()
        if (step + 1) % max(1, optim.steps // _LINES) == 0:
            say(f"image step {step + 1}: loss {loss.item():.3f}, {_nearness(tower, validation)}")
    tower.requires_grad_(False)


def _vectors(tower: DividedTower, views: SeenViews) -> F32:
    with torch.no_grad():
        parts = [tower(*_inputs(views, slice(at, at + _CHUNK))) for at in range(0, len(views), _CHUNK)]
    return torch.cat(parts).numpy()


def _features(tower: DividedTower, views: SeenViews) -> F32:
    count = min(len(views), _RIDGE_VIEWS)
    with torch.no_grad():
        parts = [tower.features(*_inputs(views, slice(at, min(at + _CHUNK, count)))) for at in range(0, count, _CHUNK)]
    return torch.cat(parts).numpy()


def _inputs(views: SeenViews, rows: slice | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    maps = torch.from_numpy(views.maps[rows].astype(np.float32)).contiguous(memory_format=torch.channels_last)
    return maps, torch.from_numpy(views.stages[rows])


def _batch(seen: Mapping[str, ViewShare], size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    counts = rng.multinomial(size, [each.share for each in seen.values()])
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for count, each in zip(counts, seen.values(), strict=True):
        rows = np.sort(rng.integers(len(each.views), size=count))
        parts.append((*_inputs(each.views, rows), torch.from_numpy(each.views.vectors[rows])))
    maps, stages, vectors = (torch.cat(each) for each in zip(*parts, strict=True))
    return maps, stages, vectors


def _nearness(tower: DividedTower, validation: Mapping[str, SeenViews]) -> str:
    """How near the student is to its teacher on whole pictures: mean cosine, and how many are found across."""
    lines = []
    for name, each in validation.items():
        own = _vectors(tower, each)
        near, found = float((own * each.vectors).sum(axis=1).mean()), found_across(own, each.vectors, k=1)
        lines.append(f"{name} cosine {near:.4f}, found across {found:.3f}")
    return "; ".join(lines)
