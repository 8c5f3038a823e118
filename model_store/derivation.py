"""Checks of an opened artifact: its parts fit together, and its space is its base's only where that is proven."""

from __future__ import annotations

from model_store.artifact import Artifact
from model_store.errors import ManifestError
from model_store.identity import space_of
from model_store.manifest import ADAPTERS, ENCODERS, GraphSpec, Manifest, SpaceProof, TowerName

TOWERS: tuple[TowerName, ...] = ("image", "text")


def check_parts(artifact: Artifact) -> None:
    """Check the sizes of adapters and heads against what they follow and, for a derivation, its space.

    Raises:
        ManifestError: names the part and what it should be.
    """
    for encoder, adapter in zip(ENCODERS, ADAPTERS, strict=True):
        _check_sizes(artifact, artifact.graph_spec(encoder, "fp32"), artifact.graph_spec(adapter, "fp32"))
    for name in artifact.heads():
        _check_input(artifact, artifact.head_graph(name)[1], artifact.manifest.dim)
    if conditional := artifact.graph_spec("conditional_head", "fp32"):
        _check_input(artifact, conditional[1], artifact.manifest.dim)
        if artifact.text_spec is None:
            raise ManifestError(f"{artifact.reference}: a conditional_head takes ids, and it has no text encoder")
    if artifact.base is not None:
        _check_space(artifact, artifact.base)
    _check_dense(artifact)
    _check_reranker(artifact)


def _check_sizes(
    artifact: Artifact, encoder: tuple[Artifact, GraphSpec] | None, adapter: tuple[Artifact, GraphSpec] | None
) -> None:
    if encoder is None:
        if adapter is not None:
            raise ManifestError(f"{artifact.reference}: {adapter[1].role} has no encoder before it")
        return
    if adapter is not None and encoder[1].size is not None:
        _check_input(artifact, adapter[1], encoder[1].size)
    last = (adapter or encoder)[1]
    if last.size != artifact.manifest.dim:
        raise ManifestError(
            f"{artifact.reference}: {last.role} gives {last.size} numbers, the manifest says {artifact.manifest.dim}"
        )


def _check_dense(artifact: Artifact) -> None:
    """Positions must be comparable with the artifact's texts, and prepared for the encoder's own normalisation."""
    encoder, adapter = (artifact.graph_spec(role, "fp32") for role in ("dense_encoder", "dense_adapter"))
    _check_sizes(artifact, encoder, adapter)
    image, dense = artifact.graph_spec("image_encoder", "fp32"), artifact.dense_spec
    if encoder is not None and image is not None and encoder[1].size != image[1].size:
        raise ManifestError(
            f"{artifact.reference}: dense_encoder gives {encoder[1].size} numbers, its image_encoder {image[1].size}"
        )
    spec = artifact.image_spec
    if dense is not None and spec is not None and (dense.mean, dense.std) != (spec.mean, spec.std):
        raise ManifestError(f"{artifact.reference}: mean and std of its dense and its image spec differ")


def _check_reranker(artifact: Artifact) -> None:
    """A reranker takes the positions and the tokens that the artifact itself gives."""
    found, tokens = artifact.graph_spec("reranker", "fp32"), artifact.graph_spec("token_encoder", "fp32")
    if found is None or tokens is None:
        return
    encoder, adapter = (artifact.graph_spec(role, "fp32") for role in ("dense_encoder", "dense_adapter"))
    last = adapter or encoder
    if last is None or artifact.text_spec is None:
        raise ManifestError(f"{artifact.reference}: a reranker needs a dense_encoder and a text encoder")
    taken = (found[1].inputs[0].shape[-1], found[1].inputs[1].shape[-1])
    if taken != (last[1].size, tokens[1].size):
        raise ManifestError(
            f"{artifact.reference}: reranker takes positions of {taken[0]} and tokens of {taken[1]} numbers, what "
            f"comes before it gives {last[1].size} and {tokens[1].size}"
        )


def _check_input(artifact: Artifact, graph: GraphSpec, size: int) -> None:
    taken = graph.inputs[0].shape[1]
    if taken != size:
        name = f"class_head {graph.head}" if graph.head else graph.role
        raise ManifestError(f"{artifact.reference}: {name} takes {taken} numbers, what comes before it gives {size}")


def _check_space(artifact: Artifact, base: Artifact) -> None:
    """A space is the base's when each tower is untouched or proved to agree; else it is the artifact's own."""
    manifest, where = artifact.manifest, artifact.reference
    changed = [tower for tower in TOWERS if _changed(artifact, base, tower)]
    if idle := [proof.tower for proof in manifest.space_proofs if proof.tower not in changed]:
        raise ManifestError(f"{where}: a space proof for the {idle[0]} tower, which is its base's own")
    if manifest.space != base.manifest.space:
        if manifest.space != space_of(manifest.fingerprint):
            raise ManifestError(f"{where}: its space is neither its base's nor the one its own encoders make")
        return
    for tower in changed:
        proofs = [proof for proof in manifest.space_proofs if proof.tower == tower]
        if not proofs:
            raise ManifestError(
                f"{where} says its vectors are of the space of {base.reference}, but its {tower} tower is another one, "
                "and there is no measured proof (space_proofs)"
            )
        for proof in proofs:
            _check_proof(proof, where, manifest)


def _changed(artifact: Artifact, base: Artifact, tower: TowerName) -> bool:
    """Is the tower another one than the base's?

    Raises:
        ManifestError: it is inherited, and has another name or input spec than the base's.
    """
    position, manifest = TOWERS.index(tower), artifact.manifest
    encoder, adapter = ENCODERS[position], ADAPTERS[position]
    own, inherited = (manifest.image, base.image_spec) if tower == "image" else (manifest.text, base.text_spec)
    same = getattr(manifest.fingerprint, tower) == getattr(base.manifest.fingerprint, tower)
    untouched = not manifest.owns((encoder, adapter))
    if (untouched and not same) or (own is not None and own != inherited and not manifest.owns((encoder,))):
        raise ManifestError(
            f"{artifact.reference}: the {encoder} is inherited, but its fingerprint or spec is not that of "
            f"{base.reference}"
        )
    return not same


def _check_proof(proof: SpaceProof, where: str, manifest: Manifest) -> None:
    if proof.fingerprint != getattr(manifest.fingerprint, proof.tower):
        raise ManifestError(f"{where}: the space proof is about another {proof.tower} tower")
    if proof.at_least is None:
        raise ManifestError(f"{where}: the space proof ({proof.metric}) has no bound to reach (at_least)")
    if proof.value < proof.at_least:
        raise ManifestError(
            f"{where}: the space proof fails: {proof.metric} is {proof.value:g}, at least {proof.at_least:g} is needed"
        )
