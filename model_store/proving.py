"""Running graphs against the golden cases of the artifacts that bring them: encoders, adapters and heads alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import GoldenError
from model_store.golden import Goldens, output_key
from model_store.manifest import ADAPTERS, ENCODERS, Role
from model_store.modality.text import Tokenizer
from model_store.reranking import Reranker, check_reranker
from model_store.towers import ConditionalHead, DenseTower, OpenedHead, Tower, Vectors, adapt, adapt_positions


class Proof:
    """The golden cases along an artifact's chain of bases, each read once.

    Raises:
        GoldenError: an artifact has none, or says something else of its heads or its space than was published.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._cases: dict[str, Goldens] = {}
        owner: Artifact | None = artifact
        while owner is not None:
            self._of(owner).check_declarations()
            owner = owner.base

    def check_inputs(self, tokenizer: Tokenizer | None) -> None:
        """Prepare every golden picture and tokenise every golden text again."""
        if self._artifact.image_spec:
            self._for("image_encoder").check_pixels()
        if self._artifact.dense_spec:
            self._for("dense_encoder").check_dense_pixels()
        if tokenizer:
            self._for("text_encoder").check_tokens(tokenizer)

    def check_tower(
        self,
        role: Role,
        tower: Tower,
        heads: Mapping[str, OpenedHead],
        *,
        batch_size: int,
        conditional: ConditionalHead | None = None,
    ) -> None:
        """Run an encoder in batches as it is served, then what comes behind it; heads follow the image encoder.

        Raises:
            GoldenError: a part does not give what it gave in torch, or has no golden case.
        """
        precision, goldens = tower.encoder.spec.precision, self._for(role)
        vectors = _in_batches(tower.encoder, goldens.inputs(role), batch_size)
        goldens.check_outputs(role, precision, vectors)
        last = role
        if tower.adapter is not None:
            vectors, last = adapt(tower.adapter, vectors), tower.adapter.spec.role
            self._for(last).check_outputs(last, precision, vectors)
        self._check_name(role, last)
        if role == "image_encoder":
            for name, head in heads.items():
                owner = self._artifact.head_graph(name)[0]
                self._of(owner).check_outputs("class_head", precision, head(vectors), head=name)
            if conditional is not None:
                cases = self._for("conditional_head")
                logits = conditional.in_blocks(vectors, cases.conditional_ids())
                cases.check_outputs("conditional_head", precision, logits)

    def check_dense(self, tower: DenseTower) -> None:
        """Run the dense encoder on its golden pictures one by one, then its adapter.

        Raises:
            GoldenError: a part does not give what it gave in torch, or has no golden case.
        """
        precision, goldens = tower.encoder.spec.precision, self._for("dense_encoder")
        bare = DenseTower(tower.encoder)
        found = {name: bare(pixels) for name, pixels in goldens.dense_inputs().items()}
        positions = {name: each.positions for name, each in found.items()}
        goldens.check_dense("dense_encoder", precision, positions)
        goldens.check_dense_pooled(precision, {name: each.pooled for name, each in found.items()})
        if tower.adapter is not None:
            adapted = {name: adapt_positions(tower.adapter, each) for name, each in positions.items()}
            self._for("dense_adapter").check_dense("dense_adapter", precision, adapted)

    def check_reranker(self, reranker: Reranker) -> None:
        """Run both graphs of a reranker on the golden texts and positions; the dense encoder need not be open.

        Raises:
            GoldenError: a part does not give what it gave in torch, or has no golden case.
        """
        check_reranker(self._for("reranker"), reranker)

    def _check_name(self, role: Role, last: Role) -> None:
        """A tower that an artifact brings under its base's fingerprint must have its base's reference vectors."""
        owner = self._artifact.owner(last)
        if owner is None or owner.base is None:
            return
        side = "image" if role == "image_encoder" else "text"
        if getattr(owner.manifest.fingerprint, side) != getattr(owner.base.manifest.fingerprint, side):
            return
        above = Proof(owner.base)
        adapter = ADAPTERS[ENCODERS.index(role)]
        above_last = adapter if owner.base.owner(adapter) else role
        self._for(last).check_same_reference(output_key(last), above._for(above_last), output_key(above_last))

    def _for(self, role: Role) -> Goldens:
        owner = self._artifact.owner(role)
        if owner is None:
            raise GoldenError(f"{self._artifact.reference} has no {role} to compare with golden cases")
        return self._of(owner)

    def _of(self, owner: Artifact) -> Goldens:
        if owner.reference not in self._cases:
            self._cases[owner.reference] = Goldens(owner)
        return self._cases[owner.reference]


def _in_batches(encode: Callable[[NDArray[Any]], Vectors], inputs: NDArray[Any], size: int) -> Vectors:
    return np.concatenate([encode(inputs[start : start + size]) for start in range(0, len(inputs), size)])
