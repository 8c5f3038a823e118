"""`python -m training.shipped.everyday_tiny.publish RUN`: publish the student, in its teacher's space if it proves so.

    python -m training.shipped.everyday_tiny.publish runs/everyday-tiny --coco coco-mini --products fashion-products \\
        --name everyday-tiny --store models --notice training/shipped/everyday_tiny/NOTICE

Both towers are measured against the teacher's other tower, as they are stored: products of the validation split, and
the photographs that were not trained on. Where every proof holds, what is published derives from the teacher, whose
tokenizer, templates and label sets it keeps, and their collections are one another's. Else, and where its tokenizer is
another, it is a model of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.agreement import found_across
from evaluation.encoder import Encoder, open_artifact
from evaluation.retrieval import retrieval
from model_store.artifact import Artifact
from model_store.errors import ClipworksError
from model_store.manifest import Precision, SpaceProof, TowerName
from model_store.store import Store
from training.bases import stored_tokenizer
from training.checkpoint import load_model
from training.config import MixedData
from training.encoder import TorchEncoder
from training.exporting.derive import DerivationSource, export_derivation
from training.exporting.export import ExportSource, export_model, source_of_checkpoint
from training.methods.parts.image_student import NEAREST, PROOF_FOUND, PROOF_SHARE
from training.models.aligned import AlignedDualEncoder
from training.publication import WeightsStatement
from training.shipped.everyday.pictures import read_photographs, read_shop
from training.shipped.everyday_tiny.__main__ import HELD_PHOTOGRAPHS

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class CaptionedPictures:
    """paths[i] is shown, captions[i] said of it. asked: which captions are queries, None for all. nearest: a picture
    has to be found across among so many, more than one where pictures look alike.
    """

    name: str
    paths: Sequence[Path]
    captions: Sequence[str]
    nearest: int
    asked: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class PairOfVectors:
    """Unit vectors [N, D] of pictures and of captions, row by row."""

    image: F32
    text: F32


def validation_sets(coco: Path, products: Path, data: MixedData) -> list[CaptionedPictures]:
    """Products of the validation split; all photographs, with the captions of those not trained on as queries.

    Raises:
        OSError, ValueError: as of `read_photographs` and `read_shop`.
    """
    shop = read_shop(products, data.table.split, "validation")
    photographs, _ = read_photographs(coco)
    rows = [(at, each.path, text) for at, each in enumerate(photographs) for text in each.captions]
    held = np.array([at % HELD_PHOTOGRAPHS == 0 for at, _, _ in rows])
    return [
        CaptionedPictures("products", [each.path for each in shop], [each.title for each in shop], nearest=NEAREST),
        CaptionedPictures(
            "photographs", [path for _, path, _ in rows], [text for *_, text in rows], nearest=1, asked=held
        ),
    ]


def proofs_of(student: PairOfVectors, teacher: PairOfVectors, pictures: CaptionedPictures) -> list[SpaceProof]:
    """What each tower reaches in the place of the teacher's, and whether pictures are found across."""
    own = _found(teacher, pictures)
    asked = np.ones(len(pictures.captions), dtype=bool) if pictures.asked is None else pictures.asked
    said = {
        "image": "validation {}: captions by the teacher's text tower find the student's pictures",
        "text": "validation {}: captions by the student's text tower find the teacher's pictures",
    }
    mixed: dict[TowerName, PairOfVectors] = {
        "image": PairOfVectors(student.image, teacher.text),
        "text": PairOfVectors(teacher.image, student.text),
    }
    proofs = [
        SpaceProof(
            tower=tower,
            statement=said[tower].format(pictures.name),
            n=int(asked.sum()),
            metric="R@10",
            value=round(_found(pair, pictures), 4),
            at_least=round(PROOF_SHARE * own, 4),
            base_value=round(own, 4),
        )
        for tower, pair in mixed.items()
    ]
    shown = [at for at, path in enumerate(pictures.paths) if path not in pictures.paths[:at] and asked[at]]
    across = found_across(student.image[shown], teacher.image[shown], k=pictures.nearest)
    across_proof = SpaceProof(
        tower="image",
        statement=f"validation {pictures.name}: the student's vector of a picture finds the teacher's among the first "
        f"{pictures.nearest}, and back",
        n=len(shown),
        metric=f"picture R@{pictures.nearest}",
        value=round(across, 4),
        at_least=PROOF_FOUND,
        base_value=1.0,
    )
    return [*proofs, across_proof]


def holds(proof: SpaceProof) -> bool:
    return proof.at_least is not None and proof.value >= proof.at_least


def as_derivation(source: ExportSource, teacher: Artifact, proofs: Sequence[SpaceProof]) -> DerivationSource:
    """The student with the teacher's tokenizer and templates."""
    return DerivationSource(
        base=teacher,
        structure=source.structure,
        provenance=source.provenance,
        image=source.image,
        image_spec=source.image_spec,
        text=source.text,
        image_weights=source.image_weights,
        text_weights=source.text_weights,
        storage=source.storage,
        proofs=tuple(proofs),
        logit_scale=source.logit_scale,
        metrics=source.metrics,
    )


def _found(pair: PairOfVectors, pictures: CaptionedPictures) -> float:
    names = [str(path) for path in pictures.paths]
    found = retrieval(pair.image, pair.text, pictures.captions, queries=pictures.asked, pictures=names)
    return found["t2i_r@10"].value


def _vectors(encoder: Encoder, pictures: CaptionedPictures) -> PairOfVectors:
    distinct = list(dict.fromkeys(pictures.paths))
    vectors = encoder.encode_images([path.read_bytes() for path in distinct])
    where = {path: at for at, path in enumerate(distinct)}
    return PairOfVectors(vectors[[where[path] for path in pictures.paths]], encoder.encode_texts(pictures.captions))


def publish(
    run: Path,
    name: str,
    store: Store,
    pictures: Sequence[CaptionedPictures],
    *,
    statement: WeightsStatement,
    precisions: Sequence[Precision] = ("fp32",),
    report: Mapping[str, object] | None = None,
    say: Callable[[str], None] = print,
) -> Artifact:
    """Raises:
    ExportRefused, ArtifactNotFound, ValueError: no sound checkpoint of a student, its teacher is not in `store`, or a
        graph is not the model.
    """
    loaded = load_model(run)
    if not isinstance(loaded.model, AlignedDualEncoder):
        raise ValueError(f"{run} is no aligned model")
    if loaded.info.distillation is None:
        raise ValueError(f"{run} was not taught")
    teacher = store.open(loaded.info.distillation.teacher)
    source = source_of_checkpoint(
        loaded,
        licence=statement.licence,
        training_data=statement.training_data,
        limits=statement.limits,
        report=report,
        dense="none",
    )
    student = TorchEncoder(  # rounded as it will be stored
        source.image,
        source.text,
        image_spec=source.image_spec,
        tokenizer=loaded.tokenizer,
        name=name,
        fingerprint=loaded.info.weights_sha256,
    )
    its = open_artifact(teacher)
    proofs = [proof for each in pictures for proof in proofs_of(_vectors(student, each), _vectors(its, each), each)]
    for proof in proofs:
        say(f"{proof.statement}: {proof.metric} {proof.value}, to hold {proof.at_least}")
    same_tokens = (loaded.info.text_spec, loaded.tokenizer_bytes) == stored_tokenizer(teacher)
    if same_tokens and all(holds(proof) for proof in proofs):
        derived = as_derivation(source, teacher, proofs)
        return export_derivation(derived, name=name, store=store, precisions=precisions, notice=statement.notice)
    say("a space of its own")
    measured = {f"space proof/{proof.tower}/{proof.statement}": proof.value for proof in proofs}
    source = dataclasses.replace(source, metrics={**source.metrics, **measured})
    return export_model(source, name=name, store=store, precisions=precisions, notice=statement.notice)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.shipped.everyday_tiny.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of the checkpoint")
    parser.add_argument("--coco", type=Path, required=True, help="folder with annotations/ and train2017/")
    parser.add_argument("--products", type=Path, required=True, help="folder with captions.csv and its pictures")
    parser.add_argument("--name", default="everyday-tiny")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--report", type=Path, help="JSON of `python -m training.report`")
    parser.add_argument("--notice", type=Path)
    parser.add_argument("--licence", default="not stated")
    parser.add_argument("--training-data", default="")
    parser.add_argument("--limits", default="")
    chosen = parser.parse_args(arguments)
    try:
        data = load_model(chosen.run).info.config.data
        if not isinstance(data, MixedData):
            raise ValueError(f"{chosen.run} was not made by python -m training.shipped.everyday_tiny")
        report = json.loads(chosen.report.read_text(encoding="utf-8")) if chosen.report else None
        artifact = publish(
            chosen.run,
            chosen.name,
            Store(chosen.store),
            validation_sets(chosen.coco, chosen.products, data),
            statement=WeightsStatement(
                licence=chosen.licence,
                training_data=chosen.training_data,
                limits=chosen.limits,
                notice=chosen.notice.read_text(encoding="utf-8") if chosen.notice else "",
            ),
            report=None if report is None else {report["split"]: report["report"]},
        )
    except (OSError, ValueError, ClipworksError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"published {artifact.reference} in {artifact.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
