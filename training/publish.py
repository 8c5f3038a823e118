"""A checkpoint -> a published artifact: a model of its own, or a derivation of the base whose parts it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model_store.errors import ExportRefused
from model_store.manifest import Precision
from model_store.precisions.variants import ALL_PRECISIONS, Progress
from model_store.store import Artifact, Store
from training.checkpoint import read_checkpoint
from training.exporting.derive import export_derivation
from training.exporting.export import export_checkpoint
from training.models.dense import DEFAULT_DENSE, DenseChoice
from training.opening import method_of
from training.publication import Publication, WeightsStatement
from training.saved import SavedRun


def publish_checkpoint(
    path: Path,
    name: str,
    store: Store,
    *,
    base: str | None = None,
    base_folder: Path | None = None,
    data_folder: Path | None = None,
    precisions: Iterable[Precision] = ALL_PRECISIONS,
    text_precisions: Iterable[Precision] | None = None,
    pictures: Sequence[bytes] = (),
    texts: Sequence[str] = (),
    statement: WeightsStatement | None = None,
    report: Mapping[str, object] | None = None,
    dense: DenseChoice = DEFAULT_DENSE,
    progress: Progress | None = None,
) -> Artifact:
    """Publish a checkpoint folder; one that inherits roles of its base, or works behind it, becomes the
    derivation that its method makes of it.

    base: the artifact it derives from, found in `store` when none is named. base_folder: where the checkpoint of the
    base that it was trained behind lies now; None: where its recipe says. data_folder: where the table of its recipe
    lies now, for the proof of a changed tower. text_precisions: as in `export_checkpoint`, for a model of its own.
    dense: as there; a derivation heeds "none" alone: its new image tower then has no dense role.

    Raises:
        ExportRefused: no sound checkpoint, no such base in the store, another base than the checkpoint's, or a graph
            that is not the model.
        ManifestError: the changed text tower no longer fits the base's image vectors.
    """
    statement = statement or WeightsStatement()
    try:
        info = read_checkpoint(path)
    except (OSError, ValueError, KeyError) as error:
        raise ExportRefused(f"{path.name} is not a checkpoint that can be exported: {error}") from error
    if not info.derives:
        if base is not None:
            raise ExportRefused(f"{path.name} (method {info.config.method}) inherits nothing: leave --base out")
        return export_checkpoint(
            path,
            name,
            store,
            precisions=precisions,
            text_precisions=text_precisions,
            pictures=pictures,
            texts=texts,
            licence=statement.licence,
            training_data=statement.training_data,
            limits=statement.limits,
            notice=statement.notice,
            report=report,
            dense=dense,
            progress=progress,
        )
    if text_precisions is not None:
        said = f"inherits {', '.join(info.inherited)}" if info.inherited else "works behind its base"
        raise ExportRefused(f"{path.name} {said}: leave --text-precision out")
    publication = Publication(
        run=SavedRun(folder=path, info=info, base_folder=base_folder),
        store=store,
        statement=statement,
        base_name=base,
        report=report,
        data_folder=data_folder,
    )
    try:
        source = method_of(info).derivation(publication)
    except (OSError, ValueError, KeyError) as error:
        raise ExportRefused(f"{path.name} cannot be exported: {error}") from error
    return export_derivation(
        replace(source, dense=None) if dense == "none" else source,
        name=name,
        store=store,
        precisions=precisions,
        pictures=pictures,
        texts=texts,
        notice=statement.notice,
        progress=progress,
    )
