"""A projection fitted to a stored model, and its artifact: adapters behind the towers of that model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from evaluation.bias.groups_file import GroupedPictures
from evaluation.encoder import Encoder
from evaluation.retrieval import retrieval
from evaluation.standard.captioned import Captioned
from model_store.errors import ExportRefused
from model_store.manifest import Role, SpaceProof
from model_store.precisions.variants import Progress
from model_store.store import Artifact, Store
from training.debias.closed_forms import F64, applied, calibrated, differences, group_differences, removal
from training.debias.prompts_file import GroupPrompts
from training.exporting.derive import DerivationSource, export_derivation
from training.exporting.derived_graphs import AdapterSource
from training.exporting.export import provenance
from training.methods.parts.text_tower import PROOF_SHARE

Span = Literal["differences", "prompts"]
Sides = Literal["texts", "both"]
_FIRST = 10


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Matrices [D, D] for unit column vectors; pictures: None where pictures stay as they are. said: what was fitted on
    what, in a few words."""

    texts: F64
    pictures: F64 | None
    said: str

    @property
    def removed(self) -> int:
        """Dimensions that no text has any more."""
        return len(self.texts) - int(np.linalg.matrix_rank(self.texts, tol=1e-6))


def fitted_on_prompts(
    encoder: Encoder, given: GroupPrompts, *, sides: Sides, span: Span = "differences", weight: float = 0.0
) -> Projection:
    """span: "prompts" takes the prompts themselves out, as Chuang et al. do, "differences" what tells them apart.
    weight: of the calibration by the pairs; 0: none.

    Raises:
        ValueError: a weight without pairs, or prompts that leave nothing over.
    """
    if weight and not given.pairs:
        raise ValueError("a calibration wants pairs, and there are none")
    vectors = encoder.encode_texts(list(given.prompts))
    matrix = removal(vectors if span == "prompts" else differences(vectors))
    texts = matrix
    if weight:
        first, second = (encoder.encode_texts([pair[side] for pair in given.pairs]) for side in (0, 1))
        texts = calibrated(matrix, first, second, weight=weight)
    shaped = f", calibrated by {len(given.pairs)} pairs of weight {weight:g}" if weight else ""
    said = f"{span} of {len(given.prompts)} prompts{shaped}"
    return Projection(texts=texts, pictures=matrix if sides == "both" else None, said=said)


def fitted_on_pictures(encoder: Encoder, given: GroupedPictures, *, sides: Sides) -> Projection:
    """Of the differences of the groups' mean pictures, label by label where they have labels.

    Raises:
        ValueError: a picture that cannot be read, or no label with two groups.
    """
    vectors = encoder.encode_images([one.shown() for one in given.photographs])
    matrix = removal(group_differences(vectors, given.groups, given.labels))
    said = f"{len(set(given.groups))} groups of {len(given.groups)} pictures"
    return Projection(texts=matrix, pictures=matrix if sides == "both" else None, said=said)


def space_proof(encoder: Encoder, found: Projection, captioned: Captioned) -> SpaceProof:
    """How well projected captions find the pictures of the base, beside the base's own captions.

    A proof that does not hold (`holds`) leaves the artifact a space of its own.
    """
    photographs = list(dict.fromkeys(photograph for photograph, _ in captioned.pairs))
    pictures = [one.shown() for one in photographs]
    images = dict(zip(photographs, encoder.encode_images(pictures), strict=True))
    rows = np.stack([images[photograph] for photograph, _ in captioned.pairs])
    captions, names = [caption for _, caption in captioned.pairs], [one.name for one, _ in captioned.pairs]
    texts = encoder.encode_texts(captions)
    value, base = (
        retrieval(rows, each, captions, pictures=names)["t2i_r@10"].value
        for each in (applied(found.texts, texts).astype(np.float32), texts)
    )
    return SpaceProof(
        tower="text",
        statement="each caption finds its picture among all, image vectors of the base",
        n=len(captions),
        metric="R@10",
        value=value,
        at_least=PROOF_SHARE * base,
        base_value=base,
    )


def holds(proof: SpaceProof) -> bool:
    """Of ten pictures each is among the first ten, and texts that find nothing prove nothing."""
    return proof.n > _FIRST and proof.value > 0 and proof.at_least is not None and proof.value >= proof.at_least


def publish(
    base: Artifact,
    found: Projection,
    name: str,
    store: Store,
    *,
    proof: SpaceProof | None = None,
    notice: str = "",
    progress: Progress | None = None,
) -> Artifact:
    """A text adapter; with pictures also an image adapter, and one of positions where the base has them.

    proof: keeps the base's space where texts alone were projected and it holds; else the space is the artifact's own.

    Raises:
        ExportRefused: the base has adapters on a side that is projected, lies in another store, or a graph is not the
            matrix.
    """
    sides: tuple[Role, ...] = ("text_adapter",) if found.pictures is None else ("text_adapter", "image_adapter")
    taken = [role for role in sides if role in base.roles()]
    if taken:
        raise ExportRefused(f"{base.reference} has a {taken[0]} of its own: project the model that it derives from")
    structure = "projection/1"
    pictures = None if found.pictures is None else linear(found.pictures)
    kept = found.pictures is None and proof is not None and holds(proof)
    above = base.manifest.provenance
    what = "texts" if found.pictures is None else "texts and pictures"
    source = DerivationSource(
        base=base,
        structure=structure,
        provenance=provenance(
            source=f"{base.reference}, {found.said}",
            architecture=f"a projection of {what} behind {base.reference}",
            activation="other",
            structure=structure,
            licence=above.licence,
            training_data=above.training_data,
            limits=above.limits,
        ),
        text_adapter=linear(found.texts),
        image_adapter=pictures,
        dense_adapter=pictures if "dense_encoder" in base.roles() else None,
        proofs=(proof,) if kept and proof is not None else (),
        metrics={} if proof is None else {f"space proof/{proof.metric}": proof.value},
    )
    return export_derivation(source, name=name, store=store, notice=notice, progress=progress)


def linear(matrix: F64) -> AdapterSource:
    """A product needs no unit vectors before it, and so the mean of projected positions is the projected vector."""
    module = nn.Linear(len(matrix), len(matrix), bias=False).requires_grad_(False)
    module.weight.copy_(torch.from_numpy(matrix.astype(np.float32)))
    return AdapterSource(module=module.eval(), normalized_input=False)
