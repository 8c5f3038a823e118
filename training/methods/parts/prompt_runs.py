"""A checkpoint of deep prompts: opened inside its base, as an encoder, and as a derivation with prompts inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.zero_shot import class_matrix
from training.checkpoint import LoadedModel
from training.data.protocol import Source
from training.data.rows import Split
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.exporting.graphs import EncoderGraph, ImageGraph
from training.methods.parts.class_heads import I64, LinearHead, judge_head
from training.methods.parts.deep_prompts import PromptedTowers, TowerPrompts
from training.methods.parts.few_shot import head_name, scale_of
from training.methods.parts.image_student import ImageStudent, image_proofs_that_hold
from training.methods.parts.linear_heads import truth_of, zero_shot_head
from training.methods.parts.text_tower import proofs_that_hold
from training.models.dense import DenseSource, dense_of_own
from training.models.towers import OpenClipDualEncoder, SmallDualEncoder
from training.publication import Publication
from training.saved import SavedRun


@dataclass(frozen=True, kw_only=True)
class DeepPromptedRun:
    """Trained prompts, in eval mode and without gradients, in the very base that they were trained in."""

    run: SavedRun
    base: LoadedModel
    towers: PromptedTowers

    @classmethod
    def of(cls, run: SavedRun) -> DeepPromptedRun:
        """Raises:
        ValueError: the base is not where the recipe says, or is another one.
        """
        base = run.base()
        prompts = TowerPrompts.of(run.state("prompts")).eval().requires_grad_(False)
        return cls(run=run, base=base, towers=PromptedTowers(base.model, prompts))

    def encoder(self) -> TorchEncoder:
        return self.run.encoder(self.towers.encode_image, self.towers.encode_text, base=self.base)

    def head(self) -> LinearHead:
        """The vectors of the trained classes, times the base's factor, without bias."""
        info = self.run.info
        return head_of(self.encoder(), info.labels, info.templates, scale=scale_of(self.base))

    def judge(self, source: Source, *, split: Split, label: str, templates: tuple[str, ...] | None) -> dict[str, Any]:
        """The trained classes of `label` on a split, beside zero-shot with `templates`, by default the base's.

        Raises:
            ValueError: no picture of the split has one of the classes.
        """
        classes, scale = self.run.info.labels, scale_of(self.base)
        truth = truth_of(source.labels(label, split), classes)
        known = truth >= 0
        if not known.any():
            raise ValueError(f"no picture of {split} has one of the {len(classes)} classes of {label!r}")
        before, pictures = encoder_of(self.base, name="base"), source.pictures(split)[known]
        without = head_of(before, classes, templates or self.base.info.templates, scale=scale)
        return {
            "label": label,
            "without_a_class": int((~known).sum()),
            "zero_shot": judge_pictures(before, without, pictures, truth[known]),
            "adapted": judge_pictures(self.encoder(), self.head(), pictures, truth[known]),
        }

    def derivation(self, publication: Publication, *, label: str) -> DerivationSource:
        """The towers that have prompts, and the class head of the trained classes behind them.

        Where one tower alone has prompts, it keeps the base's space if validation proves that pictures and texts still
        find each other across; where both have, the space is a new one.

        Raises:
            ValueError: the data are not where the recipe says.
        """
        base, info, towers = publication.base(), self.run.info, self.towers
        before = base.manifest.fingerprint
        structure = f"deep_prompts/1;{info.config.method};{before.image};{before.text}"
        where = " and ".join([*(["pictures"] if self._pictures else []), *(["texts"] if towers.text else [])])
        source = DerivationSource(
            base=base,
            structure=structure,
            provenance=publication.provenance(structure, f"learned prompts among {where} of {base.reference}"),
            text=towers.text,
            heads={head_name(label): self.head().source(info.labels)},
            templates=info.templates,
            metrics=publication.metrics(),
        )
        if self._pictures:
            source = replace(source, image=self._graph(), image_weights=self._weights(), dense=self._dense())
        if self._pictures and towers.text:
            return source
        if self._pictures:
            student = ImageStudent(run=self.run, base=self.base, tower=towers.image)
            proofs, measured = image_proofs_that_hold(publication, student, by_captions=True)
        else:
            proofs, measured = proofs_that_hold(publication, self.encoder())
        return replace(source, proofs=proofs, metrics={**source.metrics, **measured})

    @property
    def _pictures(self) -> bool:
        """Whether the image tower has prompts."""
        return self.towers.image is not self.base.model

    def _graph(self) -> nn.Module:
        """uint8 [B, H, W, 3] -> [B, D], in eval mode."""
        model, spec = self.towers.image, self.base.info.image_spec
        if isinstance(model, OpenClipDualEncoder):
            return ImageGraph(model.clip.get_submodule("visual"), spec.mean, spec.std).eval()
        return EncoderGraph(model, "encode_image").eval()

    def _weights(self) -> dict[str, Tensor]:
        """Of the image tower, prompts included."""
        parts = enumerate(self.towers.image.image_parts())
        return {f"{at}.{name}": tensor for at, part in parts for name, tensor in part.state_dict().items()}

    def _dense(self) -> DenseSource | str:
        model = self.towers.image
        if isinstance(model, SmallDualEncoder):
            return dense_of_own(model, self.base.info.image_spec)
        return "no vector for a position: the last attention of this tower is not known with prompts among its tokens"


def head_of(encoder: TorchEncoder, classes: Sequence[str], templates: Sequence[str], *, scale: float) -> LinearHead:
    """The class vectors that an encoder makes of names in templates, times `scale`, without bias."""
    return zero_shot_head(class_matrix(encoder.encode_texts, classes, templates), scale=scale)


def judge_pictures(
    encoder: TorchEncoder, head: LinearHead, pictures: NDArray[np.uint8], expected: I64
) -> dict[str, Any]:
    """How often a head behind an encoder names prepared pictures uint8 [n, H, W, 3] as expected, int64 [n]."""
    return judge_head(head, encoder.encode_prepared(pictures), expected)
