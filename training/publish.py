"""A checkpoint -> a published artifact: a model of its own, or a derivation of the base whose parts it keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.scenes_report import single_accuracy
from model_store.errors import ArtifactNotFound, ExportRefused
from model_store.manifest import Precision, Provenance, SpaceProof
from model_store.store import Artifact, Store
from training.bases import stored_digest
from training.checkpoint import Checkpoint, LoadedModel, is_head, load_head, load_model, read_checkpoint
from training.config import SceneData, TableData
from training.data.scenes import scene_splits
from training.data.source import JUDGED, open_source
from training.dense import DEFAULT_DENSE, DenseChoice
from training.derive import DerivationSource, export_derivation
from training.encoder import TorchEncoder, encoder_of
from training.export import (
    ALL_PRECISIONS,
    Progress,
    export_checkpoint,
    fingerprints_of,
    provenance,
    source_of_checkpoint,
)
from training.followers import AdapterSource, linear_head
from training.log import flatten
from training.methods.parts.unmix import is_unmix, load_unmix
from training.towers import image_spec as spec_of

PROOF_SHARE = 0.9
"""A changed text tower keeps its base's space while it finds pictures nine tenths as well as the base's own."""
_NAMED = 512
Fits = Callable[[Artifact], bool]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the publisher says of the weights; kept in the artifact."""

    licence: str = "not stated"
    training_data: str = ""
    limits: str = ""


def publish_checkpoint(
    path: Path,
    name: str,
    store: Store,
    *,
    base: str | None = None,
    data_folder: Path | None = None,
    precisions: Iterable[Precision] = ALL_PRECISIONS,
    pictures: Sequence[bytes] = (),
    texts: Sequence[str] = (),
    said: Said | None = None,
    report: Mapping[str, object] | None = None,
    dense: DenseChoice = DEFAULT_DENSE,
    progress: Progress | None = None,
) -> Artifact:
    """Publish a checkpoint folder; one that inherits roles becomes a derivation with only what is its own.

    base: the artifact it derives from, found in `store` when none is named. data_folder: where the table of its recipe
    lies now, for the proof of a changed text tower. dense: as in `source_of_checkpoint`, for a model of its own.

    Raises:
        ExportRefused: no sound checkpoint, no such base in the store, another base than the checkpoint's, or a graph
            that is not the model.
        ManifestError: the changed text tower no longer fits the base's image vectors.
    """
    said = said or Said()
    try:
        info = read_checkpoint(path)
    except (OSError, ValueError, KeyError) as error:
        raise ExportRefused(f"{path.name} is not a checkpoint that can be exported: {error}") from error
    if not info.inherited:
        if base is not None:
            raise ExportRefused(f"{path.name} (method {info.config.method}) inherits nothing: leave --base out")
        return export_checkpoint(
            path,
            name,
            store,
            precisions=precisions,
            pictures=pictures,
            texts=texts,
            licence=said.licence,
            training_data=said.training_data,
            limits=said.limits,
            report=report,
            dense=dense,
            progress=progress,
        )
    try:
        if is_head(info):
            source = _head_source(path, store, base=base, said=said, report=report)
        elif is_unmix(info):
            source = _unmix_source(path, store, base=base, said=said, report=report)
        else:
            source = _text_source(path, store, base=base, data_folder=data_folder, said=said, report=report)
    except (OSError, ValueError, KeyError) as error:
        raise ExportRefused(f"{path.name} cannot be exported: {error}") from error
    return export_derivation(
        source, name=name, store=store, precisions=precisions, pictures=pictures, texts=texts, progress=progress
    )


def _head_source(
    path: Path, store: Store, *, base: str | None, said: Said, report: Mapping[str, object] | None
) -> DerivationSource:
    """Only the head is new; its base is the artifact that was made of the very weights it was fitted on."""
    head = load_head(path)
    info = head.info
    found = _base_of(store, base, _made_of(info), f"made of weights {head.base_sha256[:12]}", info)
    label = str(info.config.method_options["label"])
    structure = f"class_head/1;{info.config.method}"
    return DerivationSource(
        base=found,
        structure=structure,
        provenance=_follower_provenance(info, said, structure, what=f"class head of {info.config.method} for {label}"),
        heads={head_name(label): linear_head(head.weight.T, head.bias, head.labels)},
        metrics=flatten({**info.metrics, **(report or {})}),
    )


def _unmix_source(
    path: Path, store: Store, *, base: str | None, said: Said, report: Mapping[str, object] | None
) -> DerivationSource:
    """Two adapters and a presence behind the artifact that was made of the very weights they were fitted on.

    Positions and pooled vectors go through the same map and are not normalised before it, so the mean of a picture's
    positions stays its vector. Both towers changed and nothing is claimed about the base's space: it is one of its own.
    """
    unmix = load_unmix(path)
    info = unmix.info
    found = _base_of(
        store,
        base,
        lambda artifact: _made_of(info)(artifact) and "dense_encoder" in artifact.roles(),
        f"made of weights {(info.base_sha256 or '')[:12]}, with a dense_encoder",
        info,
    )
    structure = f"adapters/1;{info.config.method}"
    pictures = AdapterSource(module=unmix.heads.image, normalized_input=False)
    return DerivationSource(
        base=found,
        structure=structure,
        provenance=_follower_provenance(
            info, said, structure, what=f"adapters of {info.config.method} behind {found.reference}"
        ),
        image_adapter=pictures,
        dense_adapter=pictures,
        text_adapter=AdapterSource(module=unmix.heads.text),
        templates=info.templates,
        presence=unmix.presence,
        metrics=flatten({**info.metrics, **(report or {})}),
    )


def _follower_provenance(info: Checkpoint, said: Said, structure: str, *, what: str) -> Provenance:
    """Of what follows a base's encoders; a closed form has taken no step."""
    step = f"step {info.step}, " if info.step else ""
    return provenance(
        source=f"clipworks checkpoint {info.config.name}, {step}data {info.data_digest[:16]}",
        architecture=what,
        activation="other",
        structure=structure,
        licence=said.licence,
        training_data=said.training_data,
        limits=said.limits,
        source_sha256=info.weights_sha256,
    )


def _made_of(info: Checkpoint) -> Fits:
    """Is an artifact made of the weights that `info` started from?"""

    def fits(artifact: Artifact) -> bool:
        names = (artifact.manifest.provenance.source_sha256, stored_digest(artifact))
        return info.base_sha256 in names and artifact.image_spec == info.image_spec

    return fits


def _text_source(
    path: Path,
    store: Store,
    *,
    base: str | None,
    data_folder: Path | None,
    said: Said,
    report: Mapping[str, object] | None,
) -> DerivationSource:
    """A cured text tower beside the base's image tower, with the proof that the two still fit."""
    loaded = load_model(path)
    info = loaded.info
    if info.inherited != ("image_encoder",):
        raise ValueError(f"it inherits {list(info.inherited)}: only an inherited image_encoder is known here")
    whole = source_of_checkpoint(
        loaded, licence=said.licence, training_data=said.training_data, limits=said.limits, report=report
    )
    image = fingerprints_of(whole).image
    found = _base_of(
        store, base, lambda artifact: artifact.manifest.fingerprint.image == image, f"image fingerprint {image}", info
    )
    return DerivationSource(
        base=found,
        structure=whole.structure,
        provenance=whole.provenance,
        text=whole.text,
        text_weights=whole.text_weights,
        proofs=(space_proof(loaded, data_folder=data_folder),),
        templates=whole.templates,
        logit_scale=whole.logit_scale,
        logit_bias=whole.logit_bias,
        activation=whole.activation,
        metrics=whole.metrics,
    )


def space_proof(loaded: LoadedModel, *, data_folder: Path | None = None) -> SpaceProof:
    """Measure on validation how well the cured texts find the base's pictures, next to the base's own texts.

    Raises:
        ValueError: the base's checkpoint is not where the recipe says, or is another one.
    """
    config = loaded.info.config
    if config.base is None:
        raise ValueError("its recipe names no base")
    before = load_model(Path(config.base))
    if before.info.weights_sha256 != loaded.info.base_sha256:
        raise ValueError(f"base {config.base} has other weights than those that training started from")
    encoders = encoder_of(loaded, name="cured"), encoder_of(before, name="base")
    if isinstance(config.data, SceneData):
        statement = f"naming the one thing in each of {_NAMED} drawn validation scenes, all pairs to choose from"
        metric, n, (value, base_value) = "accuracy", _NAMED, (_naming(each, config.data) for each in encoders)
    else:
        statement, metric = "each validation caption finds its picture among all, image vectors of the base", "R@10"
        (value, n), (base_value, _) = _retrieval(encoders, loaded.info, data_folder)
    return SpaceProof(
        tower="text",
        statement=statement,
        n=n,
        metric=metric,
        value=value,
        at_least=PROOF_SHARE * base_value,
        base_value=base_value,
    )


def head_name(label: str) -> str:
    """A label column as a head is called: small letters, digits and . _ - only."""
    return re.sub(r"[^a-z0-9._-]+", "-", label.casefold()).strip("-._")[:64] or "classes"


def _naming(encoder: TorchEncoder, data: SceneData) -> float:
    pairs = scene_splits(data).validation.pairs
    return single_accuracy(encoder, pairs=pairs, seed=JUDGED["validation"], count=_NAMED)


def _retrieval(encoders: Sequence[TorchEncoder], info: Checkpoint, data_folder: Path | None) -> list[tuple[float, int]]:
    config = info.config
    if data_folder is not None and isinstance(config.data, TableData):
        config = config.model_copy(update={"data": config.data.model_copy(update={"folder": data_folder})})
    cache_spec = spec_of(config.model, size_px=config.data.cache_px)
    source = open_source(config, cache_spec=cache_spec, image_spec=info.image_spec)
    found = [source.judge(encoder, split="validation")["all"]["t2i_r@10"] for encoder in encoders]
    return [(each["value"], each["n"]) for each in found]


def _base_of(store: Store, named: str | None, fits: Fits, what: str, info: Checkpoint) -> Artifact:
    """The named artifact when it fits, else the newest of the store that does.

    Raises:
        ExportRefused: there is none.
    """
    if named is not None:
        try:
            artifact = store.open(named)
        except ArtifactNotFound as error:
            raise ExportRefused(f"--base: {error}") from error
        if not fits(artifact):
            manifest = artifact.manifest
            raise ExportRefused(
                f"--base {artifact.reference} is not the base of this checkpoint: expected {what}, it has "
                f"image fingerprint {manifest.fingerprint.image}, made of weights "
                f"{(manifest.provenance.source_sha256 or 'unknown')[:12]}"
            )
        return artifact
    found = [artifact for artifact in store.list() if fits(artifact)]
    if not found:
        raise ExportRefused(
            f"no artifact of the store is the base of this checkpoint ({what}); publish it first: "
            f"clipworks export {info.config.base or 'BASE'} --name NAME"
        )
    return max(found, key=lambda artifact: (artifact.manifest.kind == "base", artifact.manifest.version))
