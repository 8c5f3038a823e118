"""Shared by methods that learn deep prompts from a few pictures: start, shots, loss, validation, and what ships.

Pictures run through the tower in every step, and so do the names of all classes where texts have prompts.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from evaluation.zero_shot import class_matrix
from model_store.modality.text import Tokenizer
from training.data.protocol import Source
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.losses import unit
from training.method import Context, ModuleUse, Needs, ParamGroup, Produced, StepMethod
from training.methods.parts.contexts import name_ids, word_vectors
from training.methods.parts.deep_prompts import (
    PROMPT_STD,
    LayerPrompts,
    PromptedTowers,
    TextPrompts,
    TowerPrompts,
    image_transformer,
    text_shape,
)
from training.methods.parts.few_shot import scale_of
from training.methods.parts.prompt_runs import DeepPromptedRun, head_of, judge_pictures
from training.methods.parts.prompted import NAME_ALONE
from training.methods.parts.shots import ShotBatches, ShotOptions, shot_task
from training.methods.parts.token_reader import token_reader
from training.models.towers import DualEncoder
from training.publication import Publication
from training.saved import SavedRun

USUAL_DEPTH = 9
"""Layers of twelve that have prompts of their own in MaPLe, IVLP and PromptSRC."""


class TextPromptOptions(ShotOptions):
    """n_ctx: prompts of each layer. words: the first prompts of texts start as the embeddings of its first n_ctx
    tokens, and its other tokens stay as they are behind them; None: they are drawn, as those of deeper layers are.

    templates: of the zero-shot accuracy that is reported beside.
    """

    n_ctx: int = Field(default=2, ge=1)
    words: str | None = "a photo of a"


class TwoTowerOptions(TextPromptOptions):
    """image_depth, text_depth: how many layers of a tower have prompts of their own; None: nine, or all of fewer."""

    image_depth: int | None = Field(default=None, ge=1)
    text_depth: int | None = Field(default=None, ge=1)


class PromptMethod(StepMethod):
    """Subclasses say which prompts there are before the first step."""

    name: ClassVar[str]
    prompts: TowerPrompts
    shipped: TowerPrompts
    """What is judged and served, where that is not what the optimizer moves."""

    def __init__(self, options: ShotOptions) -> None:
        self.options = options
        self.needs = Needs(fields=("image", "class_id"))

    @abstractmethod
    def start(self, model: DualEncoder, tokenizer: Tokenizer) -> TowerPrompts:
        """Raises:
        ValueError: a tower has no place for them.
        """

    # Training

    def setup(self, context: Context) -> None:
        base, options, source = context.required_base(self.name), self.options, context.source
        model, tokenizer = base.model.to(context.device), context.tokenizer
        try:
            self.prompts = self.shipped = self.start(model, tokenizer).to(context.device)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self.task = shot_task(source, options)
        classes, self.scale = self.task.classes, scale_of(base)
        self.model, self.towers = model, PromptedTowers(model, self.prompts)
        self.base_templates = options.templates or base.info.templates
        self.base_encoder = encoder_of(base, name="base", device=context.device)
        matrix = class_matrix(self.base_encoder.encode_texts, classes, self.base_templates)
        self.base_classes = torch.from_numpy(matrix).to(context.device)
        if self.prompts.text is not None:
            self.ids = name_ids(classes, tokenizer, count=self.prompts.text.count).to(context.device)
        self.pictures = source.pictures("train")[self.task.rows]
        self._validation = source.pictures("validation")[self.task.known]
        self._spec, self._tokenizer, self._device = base.info.image_spec, tokenizer, context.device

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"prompts": (self.prompts, "train_only"), "model": (self._served, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={f"prompts.{name}": p for name, p in self.prompts.named_parameters()})]

    def batches(self, *, batch_size: int, seed: int) -> ShotBatches:
        return ShotBatches(fields=self.fields(), batch_size=batch_size, seed=seed)

    def fields(self) -> dict[str, np.ndarray[Any, Any]]:
        """What a batch has of its shots."""
        return {"image": self.pictures, "class_id": self.task.truth}

    def class_vectors(self) -> Tensor:
        """Vectors [C, D] of the classes, by the texts' prompts; without any, by the base and its templates."""
        return self.base_classes if self.towers.text is None else self.towers.text(self.ids)

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        images, texts = self.towers.encode_image(batch["image"]), self.class_vectors()
        with torch.autocast(images.device.type, enabled=False):
            logits = self.scale * unit(images) @ unit(texts).T
            return {"cross_entropy": functional.cross_entropy(logits, batch["class_id"])}

    def validated(self) -> dict[str, Any]:
        """The classes' accuracy on validation, beside the base's with its templates; data are judged by captions."""
        towers = self._served
        own = TorchEncoder(
            towers.encode_image,
            towers.encode_text,
            image_spec=self._spec,
            tokenizer=self._tokenizer,
            name="in training",
            fingerprint="in training",
            device=self._device,
        )
        judged = {"zero_shot": (self.base_encoder, self.base_templates), "adapted": (own, self._templates)}
        return {
            **{
                name: judge_pictures(
                    encoder,
                    head_of(encoder, self.task.classes, templates, scale=self.scale),
                    self._validation,
                    self.task.expected,
                )
                for name, (encoder, templates) in judged.items()
            },
            "shots": self.task.report(),
        }

    def weights(self) -> dict[str, Tensor]:
        """Of prompts alone, none of which depends on another one any more."""
        return {f"prompts.{name}": tensor for name, tensor in self.shipped.constant().items()}

    def artifact(self) -> Produced:
        without = {"image_encoder": self.prompts.image is None, "text_encoder": self.prompts.text is None}
        inherited = tuple(role for role, inherits in without.items() if inherits)
        return Produced(
            graphs={"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"},
            labels=self.task.classes,
            templates=self._templates,
            inherited=inherited,
            behind_base=not inherited,
        )

    @property
    def _served(self) -> PromptedTowers:
        """The towers that are judged and served."""
        return PromptedTowers(self.model, self.shipped)

    @property
    def _templates(self) -> tuple[str, ...]:
        """Of what ships."""
        return self.base_templates if self.prompts.text is None else NAME_ALONE

    # From a checkpoint

    def derivation(self, publication: Publication) -> DerivationSource:
        return DeepPromptedRun.of(publication.run).derivation(publication, label=self.options.label)

    def encoder(self, run: SavedRun) -> TorchEncoder:
        return DeepPromptedRun.of(run).encoder()

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """The trained classes, beside zero-shot with the templates."""
        opened, options = DeepPromptedRun.of(run), self.options
        return opened.judge(source, split=split, label=options.label, templates=options.templates)


def image_start(model: DualEncoder, *, n_ctx: int, depth: int | None, usual: int = USUAL_DEPTH) -> LayerPrompts:
    """Drawn prompts of an image tower.

    Raises:
        ValueError: it has no place for them, or fewer layers.
    """
    transformer = image_transformer(model)
    depth = depth_within(depth, transformer.layers, usual=usual, tower="image")
    return LayerPrompts(torch.randn(depth, n_ctx, transformer.width) * PROMPT_STD)


def text_start(
    model: DualEncoder,
    tokenizer: Tokenizer,
    *,
    words: str | None,
    n_ctx: int,
    depth: int | None,
    most: int | None = None,
) -> TextPrompts:
    """Prompts of a text tower: the first from words or drawn, those of deeper layers drawn.

    most: layers that may have prompts, where another tower has fewer.

    Raises:
        ValueError: it has no place for them, or fewer layers; or words have fewer tokens than there are prompts.
    """
    reader = token_reader(model)
    layers, width = text_shape(reader)
    layers = min(layers, most or layers)
    depth = depth_within(depth, layers, usual=USUAL_DEPTH, tower="text" if most is None else "smaller")
    drawn = torch.randn(depth, n_ctx, width) * PROMPT_STD
    if words is None:
        return TextPrompts(drawn, drawn[0, :0])
    found = word_vectors(words, reader, tokenizer).cpu()
    if len(found) < n_ctx:
        raise ValueError(f"words {words!r} have {len(found)} tokens, fewer than n_ctx = {n_ctx} prompts")
    return TextPrompts(torch.cat([found[None, :n_ctx], drawn[1:]]), found[n_ctx:])


def both_start(model: DualEncoder, tokenizer: Tokenizer, options: TwoTowerOptions) -> TowerPrompts:
    """Prompts of both towers that know nothing of each other.

    Raises:
        ValueError: a tower has no place for them, or fewer layers.
    """
    image = image_start(model, n_ctx=options.n_ctx, depth=options.image_depth)
    depth, words = options.text_depth, options.words
    return TowerPrompts(image, text_start(model, tokenizer, words=words, n_ctx=options.n_ctx, depth=depth))


def depth_within(wanted: int | None, layers: int, *, usual: int, tower: str) -> int:
    """How many layers have prompts of their own: `wanted`, else `usual` or all of fewer.

    Raises:
        ValueError: there are fewer than wanted.
    """
    if wanted is not None and wanted > layers:
        raise ValueError(f"prompts in front of {wanted} layers are wanted, and the {tower} tower has {layers}")
    return min(usual, layers) if wanted is None else wanted
