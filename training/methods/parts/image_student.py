"""An image tower in its teacher's space as a derivation of the teacher's artifact, with what proves the space."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from evaluation.agreement import found_across
from model_store.manifest import SpaceProof
from training.config import ImageTowerConfig, with_data_folder
from training.data.source import open_source
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.models.dense import DenseSource, dense_of_own
from training.models.image_tower import ImageTower, tower_spec
from training.publication import Publication

PROOF_SHARE, PROOF_FOUND = 0.9, 0.9
"""A student keeps its teacher's space while captions find its pictures nine tenths as well as the teacher's, or, where
pictures have no captions, while nine tenths of them are found across: teacher's vectors by the student's and back."""


def image_derivation(publication: Publication, student: ImageTower, config: ImageTowerConfig) -> DerivationSource:
    """The student with the teacher's texts; in the teacher's space if it proves to be, else in one of its own.

    Raises:
        ValueError: the teacher or the data are not where the recipe says.
        ExportRefused: the store has no artifact of the teacher.
    """
    structure = f"kd_image/1;{config.model_dump_json()}"
    proof = space_proof(publication, student)
    holds = proof.at_least is not None and proof.value >= proof.at_least
    return DerivationSource(
        base=publication.base(own_image=True),
        structure=structure,
        provenance=publication.provenance(structure, f"{config.trunk}, distilled"),
        image=student,
        image_spec=tower_spec(config),
        dense=_dense(student, config),
        proofs=(proof,) if holds else (),
        metrics=publication.metrics() | {f"space proof/{proof.metric}": proof.value},
    )


def space_proof(publication: Publication, student: ImageTower) -> SpaceProof:
    """Measured on the validation pictures of the recipe.

    Raises:
        ValueError: the data are not where the recipe says.
    """
    run = publication.run
    base, spec = run.base(), run.info.image_spec
    own = run.encoder(student.encode_image, base.model.encode_text, base=base, image_spec=spec)
    config = with_data_folder(run.info.config, publication.data_folder)
    source = open_source(config, cache_spec=spec, image_spec=spec)
    if source.captioned:
        # The teacher is asked about pictures as it takes them, the student as it does.
        wide = open_source(config, cache_spec=base.info.image_spec, image_spec=base.info.image_spec)
        found = [
            _r10(each.judge(encoder, split="validation"))
            for each, encoder in ((source, own), (wide, encoder_of(base, name="teacher")))
        ]
        (value, n), (base_value, _) = found
        return SpaceProof(
            tower="image",
            statement="each validation caption, by the teacher's text tower, finds its picture among all",
            n=n,
            metric="R@10",
            value=value,
            at_least=PROOF_SHARE * base_value,
            base_value=base_value,
        )
    vectors = (
        _vectors(own, source.pictures("validation")),
        _vectors(encoder_of(base, name="teacher"), source.pictures("validation", base.info.image_spec)),
    )
    return SpaceProof(
        tower="image",
        statement="the student's vector of a validation picture finds the teacher's among all, and the other way round",
        n=len(vectors[0]),
        metric="R@1",
        value=found_across(*vectors),
        at_least=PROOF_FOUND,
        base_value=1.0,
    )


def _vectors(encoder: TorchEncoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return encoder.encode_prepared(pixels)


def _r10(report: dict[str, object]) -> tuple[float, int]:
    found = report["all"]["t2i_r@10"]  # pyright: ignore[reportIndexIssue]
    found = found if isinstance(found, dict) else asdict(found)
    return found["value"], found["n"]


def _dense(student: ImageTower, config: ImageTowerConfig) -> DenseSource | str:
    if config.size_px % 8:
        return "its pictures are no multiple of the trunk's stride"
    return dense_of_own(student, tower_spec(config))
