"""A checkpoint of learned contexts: opened behind its base, as an encoder, as a class head, and as a derivation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from training.aligned_config import AlignedConfig
from training.checkpoint import LoadedModel
from training.data.protocol import Source
from training.data.rows import Split
from training.encoder import TorchEncoder
from training.exporting.derive import DerivationSource
from training.exporting.storage import as_stored
from training.losses import unit
from training.methods.parts.class_heads import LinearHead
from training.methods.parts.contexts import LearnedContexts, Position, PromptedBase, PromptedText, name_ids
from training.methods.parts.few_shot import head_name, report_head, scale_of
from training.methods.parts.linear_heads import zero_shot_head
from training.methods.parts.text_tower import proofs_that_hold
from training.methods.parts.token_reader import token_reader
from training.models.aligned import AlignedDualEncoder
from training.publication import Publication
from training.saved import SavedRun

NAME_ALONE = ("{}",)
"""Templates of a model whose context is learnt: a name is all that is put among it."""


@dataclass(frozen=True, kw_only=True)
class PromptedRun:
    """Averaged contexts, in eval mode and without gradients, among the tokens of the very base they were trained in."""

    run: SavedRun
    base: LoadedModel
    text: PromptedText
    position: Position

    @classmethod
    def of(cls, run: SavedRun, *, position: Position) -> PromptedRun:
        """Raises:
        ValueError: the base is not where the recipe says, or is another one.
        """
        base = run.base()
        contexts = LearnedContexts(run.state("contexts")["vectors"])
        text = PromptedText(token_reader(base.model), contexts, position=position).eval().requires_grad_(False)
        return cls(run=run, base=base, text=text, position=position)

    @property
    def specific(self) -> bool:
        """Whether every class has a context of its own."""
        return self.text.contexts.vectors.ndim == 3

    def head(self) -> LinearHead:
        """The class vectors that the contexts make, times the base's factor, without bias."""
        names = self.run.info.labels
        ids = name_ids(names, self.base.tokenizer, count=self.text.contexts.count)
        with torch.inference_mode():
            return zero_shot_head(unit(self.text(ids)).numpy(), scale=scale_of(self.base))

    def encoder(self) -> TorchEncoder:
        """Raises:
        ValueError: contexts of classes encode those classes' names only.
        """
        if self.specific:
            raise ValueError(
                f"{self.run.folder} has a context for each of its {len(self.run.info.labels)} classes, and none for "
                "other texts: it is a class head, and encodes nothing"
            )
        model = PromptedBase(self.base.model, self.text)
        return self.run.encoder(model.encode_image, model.encode_text, base=self.base)

    def judge(self, source: Source, *, split: Split, label: str, templates: tuple[str, ...] | None) -> dict[str, Any]:
        """The trained classes of `label` on a split, beside zero-shot with `templates`, by default the base's.

        Raises:
            ValueError: no picture of the split has one of the classes.
        """
        return report_head(
            self.head(),
            self.base,
            source,
            split=split,
            label=label,
            labels=self.run.info.labels,
            templates=templates or self.base.info.templates,
        )

    def derivation(self, publication: Publication, *, label: str) -> DerivationSource:
        """The class head, and, of a context that all texts share, a text encoder with the context inside.

        The image tower is the base's, so its vectors stay. Texts keep the base's space where validation proves that
        they still find the base's pictures; else they are of a space of their own.
        """
        base, head, info = publication.base(), self.head(), self.run.info
        structure = f"contexts/1;{info.config.method};{self.position};{base.manifest.fingerprint.text}"
        what = f"{'class head of ' if self.specific else ''}learned contexts for {label} behind {base.reference}"
        whole = DerivationSource(
            base=base,
            structure=structure,
            provenance=publication.provenance(structure, what),
            heads={head_name(label): head.source(info.labels)},
            metrics=publication.metrics(),
        )
        if self.specific:
            return whole
        proofs, measured = proofs_that_hold(publication, self.encoder())
        metrics = {**whole.metrics, **measured}
        return replace(self._with_text(whole), proofs=proofs, templates=NAME_ALONE, metrics=metrics)

    def _with_text(self, source: DerivationSource) -> DerivationSource:
        """`source` with the text encoder; of an aligned base it is rounded and kept as the base's files are."""
        model, described = self.base.model, self.base.info.config.model
        if not (isinstance(model, AlignedDualEncoder) and isinstance(described, AlignedConfig)):
            return replace(source, text=self.text)
        rounded, state = as_stored(model, described)
        text = PromptedText(token_reader(rounded), self.text.contexts, position=self.position)
        weights = {name: each for name, each in state.items() if name.startswith("text.")}
        weights["contexts.vectors"] = self.text.contexts.vectors
        kept = text.eval().requires_grad_(False)
        return replace(source, text=kept, text_weights=weights, storage=described.storage)
