"""A changed text tower beside the base's image tower: its derivation, and the proof that the two still fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.scenes_report import single_accuracy
from model_store.manifest import SpaceProof
from training.checkpoint import Checkpoint
from training.config import SceneData, StoredModel, with_data_folder
from training.data.scenes import scene_splits
from training.data.source import JUDGED, open_source
from training.encoder import TorchEncoder, encoder_of
from training.exporting.derive import DerivationSource
from training.exporting.export import fingerprints_of, source_of_checkpoint
from training.models.building import image_spec as spec_of
from training.publication import Publication
from training.saved import SavedRun

PROOF_SHARE = 0.9
"""A changed text tower keeps its base's space while it finds pictures nine tenths as well as the base's own."""
_NAMED = 512
_FIRST = 10


def text_derivation(publication: Publication, *, may_leave: bool = False) -> DerivationSource:
    """The text tower of a checkpoint that holds a whole model and inherits its base's image tower.

    It has to keep its base's space. may_leave: else it has a space of its own, see `proofs_that_hold`.

    Raises:
        ValueError: it inherits something else, or the base's checkpoint is not where the recipe says.
        ExportRefused: no artifact has its image tower.
    """
    run, statement = publication.run, publication.statement
    loaded = run.model()
    inherited = loaded.info.inherited
    if inherited != ("image_encoder",):
        raise ValueError(f"it inherits {list(inherited)}: only an inherited image_encoder is known here")
    whole = source_of_checkpoint(
        loaded,
        licence=statement.licence,
        training_data=statement.training_data,
        limits=statement.limits,
        report=publication.report,
    )
    changed = encoder_of(loaded, name="cured")
    if may_leave:
        proofs, measured = proofs_that_hold(publication, changed)
    else:
        proofs, measured = (space_proof(run, changed, data_folder=publication.data_folder),), {}
    return DerivationSource(
        base=publication.base_with_image_tower(fingerprints_of(whole).image),
        structure=whole.structure,
        provenance=whole.provenance,
        text=whole.text,
        text_weights=whole.text_weights,
        proofs=proofs,
        templates=whole.templates,
        logit_scale=whole.logit_scale,
        logit_bias=whole.logit_bias,
        activation=whole.activation,
        metrics={**whole.metrics, **measured},
        storage=whole.storage,
    )


def space_proof(run: SavedRun, cured: TorchEncoder, *, data_folder: Path | None = None) -> SpaceProof:
    """Measure on validation how well the changed texts find the base's pictures, next to the base's own texts.

    Raises:
        ValueError: the base is not where the recipe says, or is another one.
    """
    config = run.info.config
    encoders = cured, encoder_of(run.base(), name="base")
    if isinstance(config.data, SceneData):
        statement = f"naming the one thing in each of {_NAMED} drawn validation scenes, all pairs to choose from"
        metric, n, (value, base_value) = "accuracy", _NAMED, (_naming(each, config.data) for each in encoders)
    else:
        statement, metric = "each validation caption finds its picture among all, image vectors of the base", "R@10"
        (value, n), (base_value, _) = _retrieval(encoders, run.info, data_folder)
    return SpaceProof(
        tower="text",
        statement=statement,
        n=n,
        metric=metric,
        value=value,
        at_least=PROOF_SHARE * base_value,
        base_value=base_value,
    )


def proofs_that_hold(
    publication: Publication, changed: TorchEncoder
) -> tuple[tuple[SpaceProof, ...], dict[str, float]]:
    """(the proof that `changed` keeps its base's space, or none; what was measured, for the artifact's metrics).

    For methods that may leave the space: without a proof the artifact has one of its own. Pictures without captions
    prove nothing, and neither do so few that each is among the first ten, or texts that find nothing.

    Raises:
        ValueError: the base or the data are not where the recipe says, or are others.
    """
    run, folder = publication.run, publication.data_folder
    config, spec = with_data_folder(run.info.config, folder), run.info.image_spec
    if not (isinstance(config.data, SceneData) or open_source(config, cache_spec=spec, image_spec=spec).captioned):
        return (), {}
    proof = space_proof(run, changed, data_folder=folder)
    holds = proof.n > _FIRST and proof.value > 0 and proof.at_least is not None and proof.value >= proof.at_least
    return (proof,) if holds else (), {f"space proof/{proof.metric}": proof.value}


def _naming(encoder: TorchEncoder, data: SceneData) -> float:
    pairs = scene_splits(data).validation.pairs
    return single_accuracy(encoder, pairs=pairs, seed=JUDGED["validation"], count=_NAMED)


def _retrieval(encoders: Sequence[TorchEncoder], info: Checkpoint, data_folder: Path | None) -> list[tuple[float, int]]:
    config = with_data_folder(info.config, data_folder)
    stored = isinstance(config.model, StoredModel)
    cache_spec = info.image_spec if stored else spec_of(config.model, size_px=config.data.cache_px)
    source = open_source(config, cache_spec=cache_spec, image_spec=info.image_spec)
    found = [source.judge(encoder, split="validation")["all"]["t2i_r@10"] for encoder in encoders]
    return [(each["value"], each["n"]) for each in found]
