"""CoCoOp: context vectors to which every picture adds something of its own; both towers stay frozen.

Zhou et al., 2022, "Conditional Prompt Learning for Vision-Language Models". Ships as a conditional head, which names a
picture with any labels. A batch of B pictures and C classes is B x C texts; the official recipe takes one picture a
step for their memory, here they are read in blocks.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from evaluation.metrics import normalize
from evaluation.zero_shot import class_matrix
from model_store.modality.text import Tokenizer
from training.data.protocol import Source
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.losses import unit
from training.method import Context, ModuleUse, Needs, ParamGroup, Produced, StepMethod
from training.methods.parts.class_heads import judge_head
from training.methods.parts.conditional import (
    TEXTS_AT_ONCE,
    ConditionalText,
    MetaNet,
    judge_conditions,
    logits_in_blocks,
)
from training.methods.parts.conditional_run import ConditionalRun
from training.methods.parts.contexts import (
    NOISE_STD,
    LearnedContexts,
    Position,
    PromptedText,
    name_ids,
    word_vectors,
)
from training.methods.parts.few_shot import scale_of
from training.methods.parts.linear_heads import zero_shot_head
from training.methods.parts.shots import ShotBatches, ShotOptions, shot_task
from training.methods.parts.token_reader import TokenReader, embedded, token_reader
from training.publication import Publication
from training.saved import SavedRun


class CocoopOptions(ShotOptions):
    """words: the context starts as the embeddings of these words, one vector a token. n_ctx: or so many vectors, drawn
    at random; words then say nothing. position: as in CoOp.

    reduction: the meta-net's hidden layer has a picture's dimension over this. texts_at_once: most texts of a step that
    are in memory at one time; a step of more reads each twice. templates: of the zero-shot accuracy beside.
    """

    words: str = "a photo of a"
    n_ctx: int | None = Field(default=None, ge=1)
    position: Position = "end"
    reduction: int = Field(default=16, ge=1)
    texts_at_once: int = Field(default=TEXTS_AT_ONCE, ge=1)

    def start(self, reader: TokenReader, tokenizer: Tokenizer) -> Tensor:
        """The vectors before the first step, [n, W].

        Raises:
            ValueError: words without a token.
        """
        if self.n_ctx is None:
            return word_vectors(self.words, reader, tokenizer)
        some = embedded(reader, [0])
        return torch.randn(self.n_ctx, some.shape[1]).to(some.device) * NOISE_STD


def create(options: dict[str, Any]) -> CocoopMethod:
    return CocoopMethod(CocoopOptions.parse(options, method="cocoop"))


class CocoopMethod(StepMethod):
    def __init__(self, options: CocoopOptions) -> None:
        self.options = options
        self.needs = Needs(fields=("image_embeds", "class_id"), level="features", labels=(options.label,), captions=0)

    # Training

    def setup(self, context: Context) -> None:
        base, options = context.required_base("cocoop"), self.options
        self.model = base.model.to(context.device)
        try:
            reader = token_reader(self.model)
        except ValueError as error:
            raise ValueError(f"cocoop: {error}") from error
        self.task = shot_task(context.source, options)
        classes, features = self.task.classes, context.required_features()
        self._images = normalize(features.image[self.task.rows])
        self._validation = normalize(features.validation[self.task.known])
        self.contexts = LearnedContexts(options.start(reader, context.tokenizer))
        dim, width = self._images.shape[1], self.contexts.vectors.shape[1]
        self.meta_net = MetaNet(dim, width, hidden=max(1, dim // options.reduction)).to(context.device)
        self.ids = name_ids(classes, context.tokenizer, count=self.contexts.count).to(context.device)
        prompted = PromptedText(reader, self.contexts, position=options.position)
        self.head = ConditionalText(prompted, self.meta_net, scale=scale_of(base))
        self.templates = options.templates or base.info.templates
        encoder = encoder_of(base, name="base", device=context.device)
        texts = class_matrix(encoder.encode_texts, classes, self.templates)
        self.zero_shot = zero_shot_head(texts, scale=self.head.scale)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {
            "contexts": (self.contexts, "export"),
            "meta_net": (self.meta_net, "export"),
            "model": (self.model, "frozen"),
        }

    def param_groups(self) -> list[ParamGroup]:
        trained = {f"meta_net.{name}": parameter for name, parameter in self.meta_net.named_parameters()}
        return [ParamGroup(parameters={"contexts.vectors": self.contexts.vectors, **trained})]

    def batches(self, *, batch_size: int, seed: int) -> ShotBatches:
        fields = {"image_embeds": self._images, "class_id": self.task.truth}
        return ShotBatches(fields=fields, batch_size=batch_size, seed=seed)

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        images = unit(batch["image_embeds"])
        logits = logits_in_blocks(self.head, images, self.ids, texts=self.options.texts_at_once)
        return {"cross_entropy": functional.cross_entropy(logits, batch["class_id"])}

    def validated(self) -> dict[str, Any]:
        """The classes' accuracy on validation with the two controls of `judge_conditions`, beside zero-shot."""
        expected = self.task.expected
        return {
            "zero_shot": judge_head(self.zero_shot, self._validation, expected),
            **judge_conditions(self.head, self._validation, expected, self.ids),
            "shots": self.task.report(),
        }

    def artifact(self) -> Produced:
        return Produced(labels=self.task.classes, templates=self.templates, inherited=("image_encoder", "text_encoder"))

    # From a checkpoint

    def derivation(self, publication: Publication) -> DerivationSource:
        return self._opened(publication.run).derivation(publication, label=self.options.label)

    def encoder(self, run: SavedRun) -> TorchEncoder:
        return self._opened(run).encoder()

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """The trained classes with the two controls, beside zero-shot with the templates."""
        opened, label = self._opened(run), self.options.label
        return opened.judge(source, split=split, label=label, templates=self.options.templates)

    def _opened(self, run: SavedRun) -> ConditionalRun:
        return ConditionalRun.of(run, position=self.options.position)
