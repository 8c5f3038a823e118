"""A changed image tower beside the texts of its base or teacher: its derivation, and what proves the space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.agreement import found_across
from model_store.manifest import SpaceProof
from training.checkpoint import LoadedModel
from training.config import ImageTowerConfig, with_data_folder
from training.data.protocol import Source
from training.data.source import TableSource, open_source
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.models.dense import DenseSource, dense_of_own
from training.models.image_tower import ImageTower, tower_spec
from training.models.towers import DualEncoder
from training.models.trunks import TOTAL_STRIDE
from training.publication import Publication
from training.saved import SavedRun

Tower = TypeVar("Tower", bound=ImageTower | DualEncoder, covariant=True)

PROOF_SHARE, PROOF_FOUND, NEAREST, LEAST_PICTURES = 0.9, 0.9, 10, 8
"""A student keeps its teacher's space while nine tenths of the pictures are found across, the teacher's vectors by the
student's and back. Where captions judge, pictures may look alike: then each has to be among the ten nearest, and
captions have to find the student's pictures nine tenths as well as the teacher's. Fewer than eight pictures prove
nothing, nor do fewer than twenty where ten answers count: among twenty, chance finds one in two.
"""


@dataclass(frozen=True, kw_only=True)
class ImageStudent(Generic[Tower]):
    """A trained image tower, in eval mode, and the teacher or base whose texts it shares."""

    run: SavedRun
    base: LoadedModel
    tower: Tower

    def encoder(self) -> TorchEncoder:
        texts = self.base.model.encode_text
        return self.run.encoder(self.tower.encode_image, texts, base=self.base, image_spec=self.run.info.image_spec)

    def both_vectors(
        self, source: Source, split: Literal["validation", "test"]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors [N, D] of a split's pictures, of the student and of its teacher, each as it takes pictures."""
        own = self.encoder().encode_prepared(source.pictures(split, self.run.info.image_spec))
        teacher = encoder_of(self.base, name="teacher")
        return own, teacher.encode_prepared(source.pictures(split, self.base.info.image_spec))


def image_derivation(
    publication: Publication, student: ImageStudent[ImageTower], config: ImageTowerConfig
) -> DerivationSource:
    """The student with the teacher's texts; in the teacher's space if it proves to be, else in one of its own.

    Raises:
        ValueError: the data are not where the recipe says.
        ExportRefused: the store has no artifact of the teacher.
    """
    structure = f"kd_image/1;{config.model_dump_json()}"
    proofs, measured = image_proofs_that_hold(publication, student)
    return DerivationSource(
        base=publication.base(own_image=True),
        structure=structure,
        provenance=publication.provenance(structure, f"{config.trunk}, distilled"),
        image=student.tower,
        image_spec=tower_spec(config),
        dense=_dense(student.tower, config),
        proofs=proofs,
        metrics=publication.metrics() | measured,
    )


def image_proofs_that_hold(
    publication: Publication,
    student: ImageStudent[ImageTower] | ImageStudent[DualEncoder],
    *,
    by_captions: bool = False,
) -> tuple[tuple[SpaceProof, ...], dict[str, float]]:
    """(the proofs that its pictures keep the space, or none; what was measured, for the artifact's metrics).

    by_captions: of what was trained to tell a few classes apart, which draws the pictures of each together: pictures
        alone prove nothing, and each has to be the very first, not one of ten that may be all of its class.

    Raises:
        ValueError: the data are not where the recipe says.
    """
    proofs = space_proofs(publication, student, by_captions=by_captions)
    holds = all(_holds(proof) for proof in proofs)
    return proofs if holds else (), {f"space proof/{proof.metric}": proof.value for proof in proofs}


def space_proofs(
    publication: Publication,
    student: ImageStudent[ImageTower] | ImageStudent[DualEncoder],
    *,
    by_captions: bool = False,
) -> tuple[SpaceProof, ...]:
    """Measured on the validation pictures of the recipe; none where captions are needed and there are none.

    Raises:
        ValueError: the data are not where the recipe says.
    """
    config, spec = with_data_folder(student.run.info.config, publication.data_folder), student.run.info.image_spec
    source = open_source(config, cache_spec=spec, image_spec=spec)
    judged = isinstance(source, TableSource) and source.captioned
    if by_captions and not judged:
        return ()
    vectors = student.both_vectors(source, "validation")
    k = NEAREST if judged and not by_captions else 1
    pictures = SpaceProof(
        tower="image",
        statement=f"the vector of a validation picture finds the base's among the first {k}, and back",
        n=len(vectors[0]),
        metric="picture R@10" if k > 1 else "R@1",
        value=found_across(*vectors, k=k),
        at_least=PROOF_FOUND,
        base_value=1.0,
    )
    if not judged:
        return (pictures,)
    wide = student.base.info.image_spec
    as_teacher = open_source(config, cache_spec=wide, image_spec=wide)
    own, its = (
        of.judge(encoder, split="validation")["all"]["t2i_r@10"]
        for of, encoder in ((source, student.encoder()), (as_teacher, encoder_of(student.base, name="teacher")))
    )
    captions = SpaceProof(
        tower="image",
        statement="each validation caption, by the base's text tower, finds its picture among all",
        n=own["n"],
        metric="R@10",
        value=own["value"],
        at_least=PROOF_SHARE * its["value"],
        base_value=its["value"],
    )
    return pictures, captions


def _holds(proof: SpaceProof) -> bool:
    least = LEAST_PICTURES if proof.metric == "R@1" else 2 * NEAREST
    return proof.n >= least and proof.value > 0 and proof.at_least is not None and proof.value >= proof.at_least


def _dense(tower: ImageTower, config: ImageTowerConfig) -> DenseSource | str:
    if config.size_px % TOTAL_STRIDE:
        return "its pictures are no multiple of the trunk's stride"
    return dense_of_own(tower, tower_spec(config))
