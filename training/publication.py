"""Context of publishing a checkpoint as a derivation: the run, the store, and what the publisher was told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import ArtifactNotFound, ExportRefused
from model_store.manifest import Provenance, Role
from model_store.store import Artifact, Store
from training.bases import stored_digest
from training.exporting.export import provenance
from training.log import flatten
from training.saved import SavedRun


@dataclass(frozen=True, kw_only=True)
class WeightsStatement:
    """What the publisher says of the weights; kept in the artifact.

    notice: attributions and licence texts, which become the artifact's file NOTICE.
    """

    licence: str = "not stated"
    training_data: str = ""
    limits: str = ""
    notice: str = ""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One checkpoint on its way into a store.

    base_name: the artifact it is to derive from; None: whichever of the store fits. report: more measurements, by
    split. data_folder: where the table of the recipe lies now.
    """

    run: SavedRun
    store: Store
    statement: WeightsStatement = WeightsStatement()
    base_name: str | None = None
    report: Mapping[str, object] | None = None
    data_folder: Path | None = None

    def base(self, *, roles: tuple[Role, ...] = (), own_image: bool = False) -> Artifact:
        """The artifact that was made of the very weights that training started from, and that has `roles`.

        own_image: the checkpoint brings an image tower for pictures of its own size.

        Raises:
            ExportRefused: the store has none, or another one was named.
        """
        info = self.run.info

        def fits(artifact: Artifact) -> bool:
            names = (artifact.manifest.provenance.source_sha256, stored_digest(artifact))
            made = info.base_sha256 in names and (own_image or artifact.image_spec == info.image_spec)
            return made and set(roles) <= set(artifact.roles())

        having = f", with a {' and a '.join(roles)}" if roles else ""
        return self._found(fits, f"made of weights {(info.base_sha256 or '')[:12]}{having}")

    def base_with_image_tower(self, fingerprint: str | None) -> Artifact:
        """The artifact whose image tower has this fingerprint; for methods that change the text tower only.

        Raises:
            ExportRefused: the store has none, or another one was named.
        """
        return self._found(
            lambda artifact: artifact.manifest.fingerprint.image == fingerprint, f"image fingerprint {fingerprint}"
        )

    def provenance(self, structure: str, what: str) -> Provenance:
        """Of adapters and heads. what: in a few words what the new graphs are."""
        info, statement = self.run.info, self.statement
        step = f"step {info.step}, " if info.step else ""  # a closed form has taken none
        return provenance(
            source=f"clipworks checkpoint {info.config.name}, {step}data {info.data_digest[:16]}",
            architecture=what,
            activation="other",
            structure=structure,
            licence=statement.licence,
            training_data=statement.training_data,
            limits=statement.limits,
            source_sha256=info.weights_sha256,
            distillation=info.distillation,
        )

    def metrics(self) -> dict[str, float]:
        """The measurements of the checkpoint and of `report`, flat."""
        return flatten({**self.run.info.metrics, **(self.report or {})})

    def _found(self, fits: Callable[[Artifact], bool], what: str) -> Artifact:
        """The named artifact when it fits, else the newest of the store that does."""
        if self.base_name is not None:
            try:
                artifact = self.store.open(self.base_name)
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
        found = [artifact for artifact in self.store.list() if fits(artifact)]
        if not found:
            raise ExportRefused(
                f"no artifact of the store is the base of this checkpoint ({what}); publish it first: "
                f"clipworks export {self.run.info.config.base or 'BASE'} --name NAME"
            )
        return max(found, key=lambda artifact: (artifact.manifest.kind == "base", artifact.manifest.version))
