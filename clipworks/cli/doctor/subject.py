"""What is looked at: the settings that a server would have here, and where they come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_store.artifact import Artifact
    from model_store.store import Store
    from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Subject:
    """settings: of the server; one that has a wrong value has its default here. None: no server is installed.

    wrong: a line for each wrong value.
    """

    settings: Settings | None
    wrong: str
    environment: Mapping[str, str]
    url: str | None
    api_key: str | None
    quick: bool

    @property
    def folder(self) -> Path | None:
        """The data folder; None where there is none: no server, or one that keeps everything in memory."""
        return self.settings.data if self.settings else None


def subject_of(
    overrides: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    url: str | None,
    api_key: str | None,
    quick: bool,
) -> Subject:
    """overrides: settings that were given as options; they win over the environment."""
    settings, wrong = _settings(overrides)
    return Subject(settings=settings, wrong=wrong, environment=environment, url=url, api_key=api_key, quick=quick)


def _settings(overrides: Mapping[str, Any]) -> tuple[Settings | None, str]:
    try:
        from service.settings import BadSettings, Settings, read_settings
    except ImportError:  # the check of the packages says which
        return None, ""
    try:
        return read_settings(overrides), ""
    except BadSettings as error:
        defaults = {name: Settings.model_fields[name].default for name in error.names if name in Settings.model_fields}
        try:
            return read_settings({**overrides, **defaults}), str(error)
        except BadSettings:  # a default does not go with another value
            return None, str(error)


def store_of(settings: Settings) -> Store:
    """The store that `clipworks serve` would open with these settings; makes no folder."""
    from clipworks.cli.pull import DEFAULT_STORE
    from model_store.store import Store
    from service.settings import HUB_PREFIX

    folder = settings.store
    if folder is None and settings.model is not None and settings.model.startswith(HUB_PREFIX):
        folder = Path(os.path.expanduser(DEFAULT_STORE))
    return Store(folder, builtin=settings.builtin)


def served_model(settings: Settings, store: Store) -> Artifact | None:
    """The artifact of requests that name no model; None: it is on the hub and not in the store yet.

    Raises:
        ArtifactError: it is not there, cannot be read, or nothing says which of several it is.
    """
    from model_store.errors import ArtifactNotFound
    from service.settings import HUB_PREFIX

    if settings.model is not None and settings.model.startswith(HUB_PREFIX):
        from model_store.hub.references import Reference, find_pulled

        reference = Reference.parse(settings.model)
        return find_pulled(store, reference, commit=reference.revision if reference.is_commit else None)
    name = settings.model or store.default_name()
    if name is None:
        known = ", ".join(sorted({artifact.manifest.name for artifact in store.list()})) or "none"
        raise ArtifactNotFound(f"nothing says which model to serve; the store has: {known}")
    return store.open(name)
