"""Collections and label sets that are bound to one version of a model."""

from __future__ import annotations

import asyncio
from pathlib import Path

from clipworks.cli import connect
from clipworks.cli.failures import RefusedError, UsageError
from clipworks.client import Client
from clipworks.errors import ClientError


def users_of(reference: str, *, data: Path | None, api_key: str | None) -> list[str]:
    """Such as "collection photos", of the data folder or of the server that holds it.

    Raises:
        UsageError: they cannot be asked for; the message says how to go on without.
    """
    from model_store.errors import ClipworksError

    try:
        folder = connect.data_folder(data)
    except UsageError:  # memory: nothing outlives its server
        return []
    try:
        if url := asyncio.run(connect.holder_of(folder)):
            return _served(reference, url, api_key)
        return _stored(reference, folder)
    except (ClientError, ClipworksError, RefusedError, OSError) as error:
        raise UsageError(
            f"{folder}: what is bound to {reference} cannot be read ({error}); --force does not ask"
        ) from error


def _served(reference: str, url: str, api_key: str | None) -> list[str]:
    with Client(url, api_key=api_key) as client:
        collections = [f"collection {each.name}" for each in client.collections() if each.model == reference]
        label_sets = [each for each in client.label_sets() if each.model == reference and not each.built_in]
    return collections + [f"label set {each.name}" for each in label_sets]


def _stored(reference: str, folder: Path) -> list[str]:
    from service.retrieval.truth.bindings import bound_models
    from service.tasks.label_set_files import Damaged, LabelSetFiles

    users = [f"collection {name}" for name, model in sorted(bound_models(folder).items()) if model == reference]
    files = LabelSetFiles(folder / "label-sets")
    for name in files.names():
        try:
            if files.read(name).model == reference:
                users.append(f"label set {name}")
        except Damaged:
            continue  # it is of no use with any model
    return users
