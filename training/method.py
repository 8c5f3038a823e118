"""The protocol of a training method, and the methods that there are: the files of `training.methods`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.manifest import ENCODERS, ROLES, Distillation, ImageSpec, Presence
from model_store.modality.text import Tokenizer
from training import methods
from training.checkpoint import LoadedModel
from training.config import ModelConfig
from training.data.batches import SecondLook
from training.data.protocol import Source, StepBatches
from training.encoder import TorchEncoder
from training.exporting.derive import DerivationSource
from training.features import Features
from training.options import meant
from training.progress import Track, untracked
from training.publication import Publication
from training.saved import SavedRun
from training.wise_ft import interpolate

ModuleUse = Literal["export", "train_only", "frozen"]
Level = Literal["rows", "features", "dense"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method takes: batch fields, the level they come from, and the label columns it reads.

    fields: a step is given these of its batch and no others; a method that is fitted in closed form names none.
    rows: pictures and captions. features: a frozen base's vectors of them, worked out once. dense: also its vectors
    for every position. captions: how many captions of each picture a batch holds, or are cached, for the last two.
    At the level dense one label may be named: the pictures are then those of `Source.labelled`, dense_px wide and high
    (None: as wide as those of the exported dense role).
    """

    fields: tuple[str, ...] = ()
    level: Level = "rows"
    labels: tuple[str, ...] = ()
    captions: int = 1
    dense_px: int | None = None

    @property
    def negatives(self) -> bool:
        return any(name.startswith("negative") for name in self.fields)

    def of(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The declared fields of a batch.

        Raises:
            ValueError: the data give no such field.
        """
        for name in self.fields:
            if name not in batch:
                raise ValueError(f"no batch field {name!r}{meant(name, batch)}; there are: {', '.join(sorted(batch))}")
        return {name: batch[name] for name in self.fields}


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a method may look at before training; `source` is the training split only, but for its judge.

    base: the checkpoint that the recipe starts from, in eval mode and frozen; None without one.
    features: of the base, for methods of that level. features_folder: where a method may keep what it has worked out.
    data_key: a digest of the data and of how they are augmented, for the names of such files.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    source: Source
    batch_size: int
    device: str
    seed: int
    base: LoadedModel | None = None
    features: Features | None = None
    features_folder: Path | None = None
    data_key: str = ""
    track: Track = untracked

    def required_base(self, method: str) -> LoadedModel:
        """Raises:
        ValueError: the recipe names no base.
        """
        if self.base is None:
            raise ValueError(f"method {method} starts from a checkpoint: set base to its folder")
        return self.base

    def required_features(self) -> Features:
        """Raises:
        ValueError: the method did not ask for this level.
        """
        if self.features is None:
            raise ValueError("this method declares level rows, and so has no cached features")
        return self.features


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters by name (as `modules()` names them) with their share of the rate; `maximize` climbs."""

    parameters: dict[str, nn.Parameter]
    rate_share: float = 1.0
    weight_decay: float | None = None
    maximize: bool = False


@dataclass(frozen=True, kw_only=True)
class Produced:
    """What a trained method hands to the exporter: the functions of its modules by role, and the default prompts.

    graphs: role -> `<module>.<attribute>`: an entry of `Method.modules()` and a function or submodule of it, such as
    `model.encode_image`. A method that takes steps names image_encoder and text_encoder, with which validation judges
    it, whether they are published or inherited; unless it has `Method.validated`.
    arrays: what is no module, such as a class head's weight [D, C] and bias [C]. labels: the classes of such a head.
    inherited: roles that the base keeps providing; with any, the method has a `Method.derivation`.
    behind_base: both towers are new and still no model of the checkpoint's own: what was trained works inside those of
    the base. Such a method has a `Method.derivation` too.
    presence: how scores of positions become "is it there?", where the method fitted that.
    model: of the checkpoint, where the method makes another one than the recipe's.
    distillation: whom it learned from, where the method has a teacher.
    """

    graphs: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)
    inherited: tuple[str, ...] = ()
    behind_base: bool = False
    presence: Presence | None = None
    model: ModelConfig | None = None
    distillation: Distillation | None = None


class Method(ABC):
    """A model and how it is fitted; the loop knows no method, only this and its two kinds."""

    needs: Needs
    neighbours: NDArray[np.int64] | None = None
    """int64 [N, K] after `setup`: rows that belong in one batch with each row, or None."""
    looks: int = 0
    """In how many ways, drawn once for all, a row is shown and said; 0: in another one at every step."""
    second: SecondLook | None = None
    """After `setup`: how another model takes the pictures and captions of a batch, see `BatchPlan`."""

    def image_spec(self, spec: ImageSpec) -> ImageSpec:
        """How pictures reach what is trained; `spec` is that of the recipe's model or of its base."""
        return spec

    @abstractmethod
    def setup(self, context: Context) -> None:
        """Build modules and make one pass over the data where statistics are needed."""

    @abstractmethod
    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        """Every module of the method by name, with what becomes of its weights:

        export: trained, averaged, and written to the checkpoint as `<name>.<path>`. train_only: trained and averaged,
        kept for resuming, and thrown away at the end. frozen: in eval mode without gradients, written nowhere.

        The use is about weights, not about graphs: a frozen base is listed too, so that `artifact` can name its
        functions. Submodules share their module's fate, so what is trained must not be a submodule of what is frozen.
        """

    @abstractmethod
    def artifact(self) -> Produced:
        """What there is to export; asked before the first step and at every checkpoint."""

    # Asked of a method that `create` has just made of a checkpoint's options: `setup` has not run, and what was trained
    # comes from the checkpoint. Only checkpoints that inherit roles or work behind their base ask; others hold a model,
    # which needs no method.

    def derivation(self, publication: Publication) -> DerivationSource:
        """What `publication.run` brings of its own, on top of the artifact that it derives from.

        Raises:
            ValueError: the checkpoint holds no such thing.
            ExportRefused: no artifact of the store is its base.
        """
        raise ValueError(
            f"{type(self).__module__} inherits roles of its base, or works behind it, and defines no derivation()"
        )

    def encoder(self, run: SavedRun) -> TorchEncoder:
        """The checkpoint as an encoder, as it will be served; by default the model that it holds.

        Raises:
            ValueError: it cannot be opened, or encodes nothing.
        """
        return run.own_encoder()

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """Numbers of the checkpoint on one split of its recipe, nested; by default the source judges `encoder`.

        Raises:
            ValueError: it cannot be opened, or the split cannot judge it.
        """
        return source.judge(self.encoder(run), split=split)

    def validated(self) -> dict[str, Any] | None:
        """Validation numbers of a method that the source's judge does not ask about what it was trained for, nested;
        None: the judge is right. The averaged weights are in place.
        """
        return None

    def between(self, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """What is trained, `<module>.<path>`, at `alpha` between its start and its end, for WiSE-FT: 0 is the base.

        A method whose tensors are no weights of the model overrides it so that the model's weights are interpolated.
        """
        return interpolate(start, end, alpha)

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint ships: the state of every module to export, as `<module>.<path>`.

        Called with the averaged weights in place, before `artifact` is asked for what else the checkpoint says.
        """
        return {
            f"{prefix}.{name}": tensor
            for prefix, (module, use) in self.modules().items()
            if use == "export"
            for name, tensor in module.state_dict().items()
        }


class StepMethod(Method):
    """Fitted by gradient steps."""

    @abstractmethod
    def param_groups(self) -> list[ParamGroup]:
        """What the optimizer moves; everything else keeps its value."""

    def batches(self, *, batch_size: int, seed: int) -> StepBatches | None:
        """Batches of what `setup` has worked out; None: of the source, or of the base's features."""
        return None

    def prepare(self, step: int, progress: float) -> None:
        """Work out what all rows of a step share, such as a random mask; called before each step, without gradients.

        It must depend on the 0-based step, the seed and the trained state only: several processes, and the parts of a
        batch that `optim.accumulate` makes, then have the same.
        """

    @abstractmethod
    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """Named losses of a batch, each a scalar, weighted already; `progress` is the share of steps done, [0, 1)."""

    def constrain(self) -> None:
        """Bring parameters back into their range; called without gradients before the first step and after each."""

    def stepped(self, step: int, progress: float) -> None:
        """Note what the method keeps of the trained state, such as an average of its own; called without gradients
        after the 0-based `step` and `constrain`. `progress` is the share of steps done by now, (0, 1].

        What it notes comes back on resuming where it lies in the state of a module that is trained.
        """


class ContrastiveMethod(StepMethod):
    """A step in two halves: every row is encoded by itself, then the losses compare all rows of the batch.

    That lets the loop encode a batch in parts (`optim.accumulate`): see `training.accumulation`. A subclass that
    overrides `step` gives that up.
    """

    @abstractmethod
    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the losses compare, by name: [b, ...] of this process's rows, row i of row i of the batch alone."""

    @abstractmethod
    def compare(self, vectors: dict[str, Tensor], batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        """Named losses as `step` gives them, of what `encode` gives for the whole batch; encodes nothing itself."""

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        return self.compare(self.encode(batch), batch, progress)


class FitMethod(Method):
    """Fitted in closed form, from cached features."""

    @abstractmethod
    def fit(self, features: Features) -> None:
        """Work the result out; `artifact` and `weights` have it afterwards."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Numbers on validation, nested; every knob was set there."""


def available() -> tuple[str, ...]:
    """Names of all methods: the files of `training.methods`; folders and names that begin with "_" are helpers."""
    found = pkgutil.iter_modules(methods.__path__)
    return tuple(sorted(each.name for each in found if not each.ispkg and not each.name.startswith("_")))


def create(name: str, options: dict[str, Any]) -> Method:
    """Call `create(options)` of the module `training.methods.<name>`.

    Raises:
        ValueError: no such method, or options it does not know.
    """
    if name not in available():
        raise ValueError(f"no method {name!r}{meant(name, available())}; there are: {', '.join(available())}")
    build: Callable[[dict[str, Any]], Method] = importlib.import_module(f"{methods.__name__}.{name}").create
    return build(options)


def check_produced(name: str, method: Method) -> Produced:
    """What the method `name` has to export, once roles, paths and uses were found to exist.

    Raises:
        ValueError: a role or use that there is not, or a path that leads nowhere.
    """
    modules, produced = method.modules(), method.artifact()
    for module, (_, use) in modules.items():
        if use not in get_args(ModuleUse):
            raise ValueError(
                f"method {name}: modules() says {use!r} of {module}, expected one of {', '.join(get_args(ModuleUse))}"
            )
    for role in (*produced.graphs, *produced.inherited):
        if role not in ROLES:
            raise ValueError(
                f"method {name}: artifact() names the role {role!r}{meant(role, ROLES)}; there are: {', '.join(ROLES)}"
            )
    for role, path in produced.graphs.items():
        try:
            function_at(method, path)
        except ValueError as error:
            raise ValueError(f"method {name}: artifact() gives {role} as {path!r}: {error}") from error
    return produced


def function_at(method: Method, path: str) -> Callable[[Tensor], Tensor]:
    """The function that `path` names, `<module>.<attribute>`, for example `model.encode_image`.

    Raises:
        ValueError: there is none.
    """
    modules = method.modules()
    module, _, attribute = path.partition(".")
    if module not in modules:
        raise ValueError(f"modules() has no {module!r}{meant(module, modules)}; it has: {', '.join(modules)}")
    found: Callable[[Tensor], Tensor] | None = getattr(modules[module][0], attribute, None) if attribute else None
    if not callable(found):
        near = meant(attribute, dir(modules[module][0]))
        raise ValueError(f"{module} has no function {attribute!r}{near}")
    return found


def judging_functions(name: str, method: Method) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The functions that encode pictures and texts while a method is trained.

    Raises:
        ValueError: `artifact` does not name both encoders.
    """
    graphs = method.artifact().graphs
    for role in ENCODERS:
        if role not in graphs:
            raise ValueError(
                f"method {name}: artifact() names no {role}: validation needs both encoders, trained or inherited "
                "(or the method defines validated())"
            )
    return function_at(method, graphs["image_encoder"]), function_at(method, graphs["text_encoder"])
