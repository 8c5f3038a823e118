"""CoOp: context vectors beside class names are learnt from a few pictures; both towers stay frozen.

Zhou et al., 2022, "Learning to Prompt for Vision-Language Models". One context of all classes ships as a text encoder
that any name can be given to, beside a class head; contexts of classes ship as a class head alone.
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
from training.methods.parts.contexts import (
    NOISE_STD,
    LearnedContexts,
    Position,
    PromptedBase,
    PromptedText,
    name_ids,
    word_vectors,
)
from training.methods.parts.few_shot import scale_of
from training.methods.parts.linear_heads import zero_shot_head
from training.methods.parts.prompted import NAME_ALONE, PromptedRun
from training.methods.parts.shots import ShotBatches, ShotOptions, shot_task
from training.methods.parts.token_reader import TokenReader, embedded, token_reader
from training.publication import Publication
from training.saved import SavedRun


class CoopOptions(ShotOptions):
    """n_ctx: how many vectors, drawn at random. words: they start as the embeddings of these words instead, one for
    each token, and n_ctx says nothing.

    specific: every class learns a context of its own. position: where the name stands among its context; in the middle,
    half of the vectors, rounded down, are in front of it. templates: of the zero-shot accuracy that is reported beside.
    """

    n_ctx: int = Field(default=16, ge=1)
    words: str | None = None
    specific: bool = False
    position: Position = "end"

    def start(self, reader: TokenReader, tokenizer: Tokenizer, *, classes: int) -> Tensor:
        """The vectors before the first step, [n, W], or [C, n, W] of classes.

        Raises:
            ValueError: words without a token.
        """
        every = (classes,) if self.specific else ()
        if self.words is not None:
            words = word_vectors(self.words, reader, tokenizer)
            return words.expand(*every, *words.shape)
        some = embedded(reader, [0])
        return torch.randn(*every, self.n_ctx, some.shape[1]).to(some.device) * NOISE_STD


def create(options: dict[str, Any]) -> CoopMethod:
    return CoopMethod(CoopOptions.parse(options, method="coop"))


class CoopMethod(StepMethod):
    def __init__(self, options: CoopOptions) -> None:
        self.options = options
        self.needs = Needs(fields=("image_embeds", "class_id"), level="features", labels=(options.label,), captions=0)

    # Training

    def setup(self, context: Context) -> None:
        base, options = context.required_base("coop"), self.options
        model = base.model.to(context.device)
        try:
            reader = token_reader(model)
        except ValueError as error:
            raise ValueError(f"coop: {error}") from error
        self.task = shot_task(context.source, options)
        classes, features = self.task.classes, context.required_features()
        self._images = normalize(features.image[self.task.rows])
        self._validation = normalize(features.validation[self.task.known])
        self.contexts = LearnedContexts(options.start(reader, context.tokenizer, classes=len(classes)))
        self.ids = name_ids(classes, context.tokenizer, count=self.contexts.count).to(context.device)
        self.prompted = PromptedText(reader, self.contexts, position=options.position)
        self.model, self.scale = PromptedBase(model, self.prompted), scale_of(base)
        self.templates = options.templates or base.info.templates
        encoder = encoder_of(base, name="base", device=context.device)
        self.zero_shot = zero_shot_head(class_matrix(encoder.encode_texts, classes, self.templates), scale=self.scale)

    def modules(self) -> dict[str, tuple[nn.Module, ModuleUse]]:
        return {"contexts": (self.contexts, "export"), "model": (self.model, "frozen")}

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup(parameters={"contexts.vectors": self.contexts.vectors})]

    def batches(self, *, batch_size: int, seed: int) -> ShotBatches:
        fields = {"image_embeds": self._images, "class_id": self.task.truth}
        return ShotBatches(fields=fields, batch_size=batch_size, seed=seed)

    def step(self, batch: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        texts = self.prompted(self.ids)
        with torch.autocast(texts.device.type, enabled=False):
            logits = self.scale * unit(batch["image_embeds"]) @ unit(texts).T
            return {"cross_entropy": functional.cross_entropy(logits, batch["class_id"])}

    def validated(self) -> dict[str, Any]:
        """The classes' accuracy on validation, beside zero-shot with the templates; data are judged by captions."""
        with torch.no_grad():
            vectors = unit(self.prompted(self.ids)).cpu().numpy()
        heads = {"zero_shot": self.zero_shot, "head": zero_shot_head(vectors, scale=self.scale)}
        judged = {name: judge_head(head, self._validation, self.task.expected) for name, head in heads.items()}
        return {**judged, "shots": self.task.report()}

    def artifact(self) -> Produced:
        classes = self.task.classes
        if self.options.specific:
            inherited = ("image_encoder", "text_encoder")
            return Produced(labels=classes, templates=self.templates, inherited=inherited)
        graphs = {"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"}
        return Produced(graphs=graphs, labels=classes, templates=NAME_ALONE, inherited=("image_encoder",))

    # From a checkpoint

    def derivation(self, publication: Publication) -> DerivationSource:
        return self._opened(publication.run).derivation(publication, label=self.options.label)

    def encoder(self, run: SavedRun) -> TorchEncoder:
        return self._opened(run).encoder()

    def judge(self, run: SavedRun, source: Source, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """The trained classes, beside zero-shot with the templates."""
        opened, label = self._opened(run), self.options.label
        return opened.judge(source, split=split, label=label, templates=self.options.templates)

    def _opened(self, run: SavedRun) -> PromptedRun:
        return PromptedRun.of(run, position=self.options.position)
