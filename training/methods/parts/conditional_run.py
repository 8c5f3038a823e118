"""A checkpoint of conditional contexts: opened behind its base, as what judges labels, and as a derivation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evaluation.metrics import normalize
from evaluation.zero_shot import class_matrix
from training.checkpoint import LoadedModel
from training.data.protocol import Source
from training.data.rows import Split
from training.encoder import TorchEncoder, encoder_of
from training.exporting.conditional import ConditionalSource
from training.exporting.derive import DerivationSource
from training.features import picture_vectors
from training.methods.parts.class_heads import F32, judge_head
from training.methods.parts.conditional import ConditionalText, MetaNet, judge_conditions, logits_given
from training.methods.parts.contexts import LearnedContexts, Position, PromptedText, name_ids
from training.methods.parts.few_shot import scale_of
from training.methods.parts.linear_heads import truth_of, zero_shot_head
from training.methods.parts.token_reader import token_reader
from training.publication import Publication
from training.saved import SavedRun


@dataclass(frozen=True, kw_only=True)
class ConditionalRun:
    """Averaged weights, in eval mode and without gradients, around the very base they were trained in."""

    run: SavedRun
    base: LoadedModel
    head: ConditionalText
    position: Position

    @classmethod
    def of(cls, run: SavedRun, *, position: Position) -> ConditionalRun:
        """Raises:
        ValueError: the base is not where the recipe says, or is another one.
        """
        base = run.base()
        contexts = LearnedContexts(run.state("contexts")["vectors"])
        text = PromptedText(token_reader(base.model), contexts, position=position)
        head = ConditionalText(text, MetaNet.of(run.state("meta_net")), scale=scale_of(base))
        return cls(run=run, base=base, head=head.eval().requires_grad_(False), position=position)

    def logits(self, vectors: F32, names: Sequence[str]) -> F32:
        """Logits [n, C] of unit vectors [n, D] against any names, as they are served."""
        tokenizer = self.base.tokenizer
        ids = tokenizer.pad([tokenizer.encode(name) for name in names])
        return logits_given(self.head, vectors.astype(np.float32), torch.from_numpy(ids))

    def encoder(self) -> TorchEncoder:
        """The base's vectors: contexts change logits, and neither tower."""
        model = self.base.model
        return self.run.encoder(model.encode_image, model.encode_text, base=self.base)

    def judge(self, source: Source, *, split: Split, label: str, templates: tuple[str, ...] | None) -> dict[str, Any]:
        """The trained classes of `label` on a split, beside zero-shot with `templates` and the two controls.

        Raises:
            ValueError: no picture of the split has one of the classes.
        """
        classes = self.run.info.labels
        truth = truth_of(source.labels(label, split), classes)
        known = truth >= 0
        if not known.any():
            raise ValueError(f"no picture of {split} has one of the {len(classes)} classes of {label!r}")
        vectors = normalize(picture_vectors(self.base, source.pictures(split)[known], device="cpu"))
        encoder = encoder_of(self.base, name="base")
        texts = class_matrix(encoder.encode_texts, classes, templates or self.base.info.templates)
        ids = name_ids(classes, self.base.tokenizer, count=self.head.prompted.contexts.count)
        return {
            "label": label,
            "without_a_class": int((~known).sum()),
            "zero_shot": judge_head(zero_shot_head(texts, scale=scale_of(self.base)), vectors, truth[known]),
            **judge_conditions(self.head, vectors, truth[known], ids),
        }

    def derivation(self, publication: Publication, *, label: str) -> DerivationSource:
        """The conditional head alone: pictures, texts and templates stay the base's."""
        base, info = publication.base(), self.run.info
        structure = f"conditional/1;{info.config.method};{self.position};{base.manifest.fingerprint.text}"
        what = f"contexts for {label} that depend on the picture, behind {base.reference}"
        return DerivationSource(
            base=base,
            structure=structure,
            provenance=publication.provenance(structure, what),
            conditional=ConditionalSource(module=self.head, context_length=self.head.prompted.context_length),
            metrics=publication.metrics(),
        )
