"""The facts of an artifact, as rows of a table and as JSON, for the commands that print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_store.manifest import HeadSpec, Manifest, Precision, Provenance, Role, SpaceProof
    from model_store.store import Artifact

UNSEALED = "none: made before manifests had a digest; import or export it again to have one"
_LABELS_SHOWN = 8


def precisions(artifact: Artifact) -> list[Precision]:
    """Those in which at least one encoder, own or inherited, can be served."""
    from model_store.manifest import ENCODERS, PRECISIONS

    roles: list[Role] = [role for role in ENCODERS if role in artifact.roles()]
    return [each for each in PRECISIONS if any(artifact.served_precision(role, each) == each for role in roles)]


def megabytes(artifact: Artifact) -> str:
    """What its own files weigh on disk."""
    return f"{sum(entry.size_bytes for entry in artifact.manifest.files) / 1e6:.1f}"


def summary(artifact: Artifact) -> dict[str, object]:
    """What `--json` prints of each model of a list."""
    manifest = artifact.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "base": artifact.base.reference if artifact.base else None,
        "dim": manifest.dim,
        "heads": {name: len(head.labels) for name, head in artifact.heads().items()},
        "roles": list(artifact.roles()),
        "precisions": precisions(artifact),
        "fingerprint": manifest.fingerprint.model_dump(),
        "space": manifest.space,
        "bytes": sum(entry.size_bytes for entry in manifest.files),
        "shipped": not artifact.writable,
        "sealed": artifact.sealed,
    }


def description(artifact: Artifact) -> list[tuple[str, str]]:
    """(fact, value) of everything that `models show` prints above its table of graphs."""
    manifest, provenance = artifact.manifest, artifact.manifest.provenance
    image, text = artifact.image_spec, artifact.text_spec
    facts = [
        ("model", artifact.reference),
        ("folder", str(artifact.folder)),
        ("size", f"{megabytes(artifact)} MB"),
        ("seal", "ok" if artifact.sealed else UNSEALED),
        ("base", artifact.base.reference if artifact.base else ""),
        ("roles", ", ".join(_roles(artifact))),
        ("vectors", f"{manifest.dim} numbers, {_scale(manifest)}"),
        (
            "images",
            f"{image.width_px} x {image.height_px}, {image.resize_mode}, {image.interpolation}" if image else "-",
        ),
        ("texts", f"{text.context_length} tokens of {text.vocab_size}, {text.kind}" if text else "-"),
        ("templates", " | ".join(manifest.templates)),
        ("space", _space(artifact)),
        ("fingerprint image", manifest.fingerprint.image or "-"),
        ("fingerprint text", manifest.fingerprint.text or "-"),
        ("source", provenance.source),
        ("verified", _proven(provenance)),
        ("architecture", f"{provenance.architecture}, {provenance.activation}"),
        ("licence", provenance.licence),
        ("made", provenance.created_utc),
        ("trained on", provenance.training_data),
        ("distilled", _distilled(provenance)),
        ("limits", provenance.limits),
    ]
    facts += [(f"head {name}", _head(head)) for name, head in artifact.heads().items()]
    facts += [(f"proof {proof.tower}", _proof(proof)) for proof in manifest.space_proofs]
    facts += [(f"measured {metric}", f"{value:.4g}") for metric, value in manifest.metrics.items()]
    return [(fact, value) for fact, value in facts if value]


def of_pulled(artifact: Artifact) -> list[tuple[str, str]]:
    """What a person should know of a model that somebody else exported."""
    manifest = artifact.manifest
    recall = manifest.metrics.get("wrapped/captions recall@1")
    facts = [
        ("source", manifest.provenance.source),
        ("licence", manifest.provenance.licence),
        ("verified", _proven(manifest.provenance)),
        ("photographs find captions", "" if recall is None else f"{recall:.0%}"),
        ("scores", _scale(manifest)),
    ]
    return [(fact, value) for fact, value in facts if value]


def _distilled(provenance: Provenance) -> str:
    """Whom it learned from, and the terms of the loss."""
    lesson = provenance.distillation
    if lesson is None:
        return ""
    terms = ", ".join(f"{term} {weight:g}" for term, weight in lesson.terms.items())
    return f"from {lesson.teacher} ({lesson.teacher_digest[:16]}) by {terms}"


def _proven(provenance: Provenance) -> str:
    if provenance.verified == "torch":
        return "compared with torch"
    return f"wrapped: another project's export ({provenance.layout}), compared with itself, not with its torch model"


def _scale(manifest: Manifest) -> str:
    """Such as: softmax, scale 100.00 (of the weights)."""
    if manifest.logit_scale is None:
        return f"cosines only: {manifest.scale_source}"
    return f"{manifest.activation}, scale {manifest.logit_scale:.2f} (from {manifest.scale_source})"


def _roles(artifact: Artifact) -> list[str]:
    """Each role once, with where it comes from when that is a base."""
    named = [(role, artifact.owner(role)) for role in artifact.roles()]
    return [f"{role} (of {owner.reference})" if owner and owner is not artifact else role for role, owner in named]


def _space(artifact: Artifact) -> str:
    above = artifact.base.manifest.space if artifact.base else None
    if above is None or artifact.base is None:
        return artifact.manifest.space
    same = artifact.manifest.space == above
    return f"{artifact.manifest.space} ({'that' if same else 'not that'} of {artifact.base.reference})"


def _head(head: HeadSpec) -> str:
    """Such as: 3 labels, softmax: red, green, blue."""
    shown = ", ".join(head.labels[:_LABELS_SHOWN]) + (", ..." if len(head.labels) > _LABELS_SHOWN else "")
    return f"{len(head.labels)} labels, {head.activation}, temperature {head.temperature:g}: {shown}"


def _proof(proof: SpaceProof) -> str:
    bound = "" if proof.at_least is None else f", at least {proof.at_least:g} was asked for"
    before = "" if proof.base_value is None else f", the base has {proof.base_value:.4g}"
    return f"{proof.metric} {proof.value:.4g} over {proof.n}{bound}{before}: {proof.statement}"
