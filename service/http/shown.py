"""Models, collections and reports as bodies of the wire."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from clipworks.schemas import (
    CollectionIndex,
    CollectionInfo,
    CollectionLoss,
    CollectionViews,
    DoctorResponse,
    EncoderFingerprint,
    HeadInfo,
    KeptPositions,
    ModelDetail,
    ModelSummary,
    Providers,
    ThumbnailTotals,
)
from model_store.manifest import ENCODERS, Precision, Role
from model_store.presence import presence_of
from service.engine.opening import choose_precision

if TYPE_CHECKING:
    from model_store.artifact import Artifact
    from service.engine.registry import Registry
    from service.retrieval import CollectionDescription as StoredInfo
    from service.retrieval import DoctorReport, Loss

_MAX_BAD_ROWS = 1000


def model_summary(registry: Registry, artifact: Artifact) -> ModelSummary:
    """What an artifact is, and how it runs or would run."""
    manifest, running = artifact.manifest, registry.instance_of(artifact)
    device, wanted = registry.settings.device, registry.settings.precision
    roles = artifact.roles()
    precision: dict[Role, Precision] = {
        role: choose_precision(artifact, role, wanted, device) for role in roles if role in (*ENCODERS, "dense_encoder")
    }
    specs = [found[1] for role, p in precision.items() if (found := artifact.graph_spec(role, p))]
    graphs = [tower.encoder for tower in running.opened.towers.values()] if running else []
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        fingerprint=EncoderFingerprint(image=manifest.fingerprint.image, text=manifest.fingerprint.text),
        build=running.build if running else artifact.build(wanted or "fp32"),
        space=manifest.space,
        kind=manifest.kind,
        dim=manifest.dim,
        roles=list(roles),
        precision={role: str(p) for role, p in precision.items()},
        batch_invariant=all(spec.batch_invariant for spec in specs),
        providers=Providers(
            requested=list(graphs[0].providers_requested) if graphs else [],
            active=list(graphs[0].providers_active) if graphs else [],
        ),
        loaded=running is not None,
        sealed=artifact.sealed,
        sessions=running.sessions if running else [],
        base=artifact.base.reference if artifact.base else None,
        heads=[
            HeadInfo(name=head.name, labels=len(head.labels), activation=head.activation)
            for head in artifact.heads().values()
        ],
        verified=manifest.provenance.verified,
        licence=manifest.provenance.licence,
        source=manifest.provenance.source,
    )


def model_detail(registry: Registry, name: str) -> ModelDetail:
    """All that is known of one artifact of the store, loaded or not.

    Raises:
        ArtifactNotFound: no such model.
    """
    artifact = registry.store.open(name)
    manifest = artifact.manifest
    image, text, dense = artifact.image_spec, artifact.text_spec, artifact.dense_spec
    return ModelDetail(
        **model_summary(registry, artifact).model_dump(),
        image_spec=image.model_dump(mode="json") if image else None,
        text_spec=text.model_dump(mode="json") if text else None,
        dense_spec=dense.model_dump(mode="json") if dense else None,
        # What /localize decides by, the training-free default included; None where there is nothing to localise with.
        presence=presence_of(artifact).model_dump(mode="json") if dense else None,
        search=manifest.search.model_dump(mode="json") if manifest.search else None,
        templates=list(manifest.templates),
        activation=manifest.activation,
        logit_scale=manifest.logit_scale,
        logit_bias=manifest.logit_bias,
        scale_source=manifest.scale_source,
        dimensions=list(manifest.dimensions),
        metrics=manifest.metrics,
        provenance=manifest.provenance.model_dump(mode="json"),
        skipped=[skipped.model_dump(mode="json") for skipped in manifest.skipped],
        space_proofs=[proof.model_dump(mode="json") for proof in manifest.space_proofs],
    )


_PRINTS = {"cross": {"fingerprints"}, "intra": {"fingerprints"}}


def collection_info(info: StoredInfo) -> CollectionInfo:
    """The store's description of a collection."""
    spec = info.spec
    return CollectionInfo(
        name=info.name,
        backend=info.backend,
        model=spec.model,
        space=spec.space,
        fingerprint=EncoderFingerprint(image=spec.fingerprints.get("image"), text=spec.fingerprints.get("text")),
        dim=spec.dim,
        metadata_schema=spec.metadata_schema,
        index=CollectionIndex.model_validate(spec.index.model_dump()),
        kind=info.kind,
        exact=info.exact,
        count=info.count,
        dead=info.dead,
        sequence=info.sequence,
        index_bytes=info.index_bytes,
        disk_bytes=info.disk_bytes,
        durability=info.durability,
        rebuilding=info.rebuilding,
        warnings=list(info.warnings),
        aliases=list(info.aliases),
        losses=[collection_loss(each) for each in info.losses],
        thumbnails=None if info.thumbnails is None else ThumbnailTotals(**asdict(info.thumbnails)),
        rerank=_kept_positions(info),
        views=None if spec.views is None else CollectionViews.model_validate(spec.views.model_dump(exclude=_PRINTS)),
    )


def _kept_positions(info: StoredInfo) -> KeptPositions | None:
    if info.spec.rerank is None or info.positions is None:
        return None
    return KeptPositions(model=info.spec.rerank.model, count=info.positions.count, bytes=info.positions.bytes)


def collection_loss(loss: Loss) -> CollectionLoss:
    """Acknowledged changes that a collection does not have any more."""
    return CollectionLoss(
        collection=loss.collection,
        kind=loss.kind,
        reached=loss.reached,
        found=loss.found,
        items_before=loss.items_before,
        items_after=loss.items_after,
        noticed_at=loss.noticed_at,
    )


def doctor_response(report: DoctorReport) -> DoctorResponse:
    """The store's report of a check; of damaged rows the first thousand."""
    return DoctorResponse(
        healthy=report.healthy,
        rows=report.rows,
        indexed=report.indexed,
        bad_count=len(report.bad_rows),
        bad_rows=list(report.bad_rows[:_MAX_BAD_ROWS]),
        differing_slots=report.differing_slots,
        recall=report.recall,
        recall_at=report.recall_at,
        sampled=report.sampled,
        problems=list(report.problems),
    )
