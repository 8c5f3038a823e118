"""Training methods, one file each; a method is found by its file's name, so adding one edits nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.modality.text import Tokenizer
from training.config import ModelConfig
from training.data.rows import Row

ModuleUse = Literal["export", "train_only", "frozen"]
Level = Literal["rows", "features", "dense"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method takes: batch fields, the level they come from, and the label columns it reads."""

    fields: tuple[str, ...]
    level: Level = "rows"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a method may look at before training; `rows` and `pixels` are the training split only."""

    model: ModelConfig
    tokenizer: Tokenizer
    rows: Sequence[Row]
    pixels: NDArray[np.uint8]
    texts: Sequence[str]
    batch_size: int
    device: str


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters by name (as `modules()` names them) with their share of the rate; `maximize` climbs."""

    parameters: dict[str, nn.Parameter]
    rate_share: float = 1.0
    weight_decay: float | None = None
    maximize: bool = False


@dataclass(frozen=True, kw_only=True)
class Produced:
    """What a trained method hands to the exporter: the doors of a module by role, and the default prompts."""

    graphs: dict[str, str]
    templates: tuple[str, ...] = ("{}",)


class Method(Protocol):
    """A model and its loss; the loop knows no method, only this."""

    needs: Needs

    def setup(self, context: Context) -> None:
        """Build modules and make one pass over the data where statistics are needed."""
        ...

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        """Decides what is saved, put in train mode, averaged and exported."""
        ...

    def param_groups(self) -> list[ParamGroup]: ...

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """Named losses of a batch, each a scalar, weighted already; `progress` is the share of steps done, [0, 1)."""
        ...

    def artifact(self) -> Produced: ...


def available() -> tuple[str, ...]:
    """Names of all methods: the modules of this package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def create(name: str, options: dict[str, Any]) -> Method:
    """Call `create(options)` of the module `training.methods.<name>`.

    Raises:
        ValueError: no such method, or options it does not know.
    """
    if name not in available():
        raise ValueError(f"no method {name!r}; there are: {', '.join(available())}")
    build: Callable[[dict[str, Any]], Method] = importlib.import_module(f"{__name__}.{name}").create
    return build(options)
