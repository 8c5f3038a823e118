"""`clipworks models pull`, and what `clipworks serve --model hub:...` does before it serves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from clipworks.cli import output
from clipworks.cli.download_progress import download_progress
from clipworks.cli.failures import RefusedError, UsageError

if TYPE_CHECKING:
    from model_store.hub.checks import Pairs
    from model_store.hub.pulling import Plan
    from model_store.hub.references import Reference
    from model_store.hub.repository import Repository
    from model_store.manifest import Precision
    from model_store.store import Artifact, Store

DEFAULT_STORE = "~/.local/share/clipworks-artifacts"
_HUB = "pip install 'clipworks[hub]'"


def pull_model(
    repository: Repository,
    *,
    other: Repository | None,
    name: str,
    store: Store,
    precisions: Sequence[Precision],
    ask: bool,
    pairs: Pairs | None = None,
) -> Artifact:
    """Say how large the files are, ask if wanted, download, wrap and publish; weights for torch go through torch.

    Raises:
        RefusedError: there are only weights for torch, and no torch.
    """
    from model_store.errors import RepositoryNotFound, TorchNeeded
    from model_store.hub.names import advice
    from model_store.hub.publishing import publish_foreign
    from model_store.hub.pulling import download, plan_pull

    try:
        plan = plan_pull(repository, other=other)
    except TorchNeeded as error:
        return _with_torch(repository, str(error), name=name, store=store, precisions=precisions)
    except RepositoryNotFound as error:
        if known := advice(repository.name):
            raise RefusedError(f"{error}; {known}") from error
        raise
    _announce(repository, plan, ask=ask)
    with download_progress(repository.name) as show:
        model = download(plan, show)
    with large_temporary_files(store), output.steps(name) as step:
        return publish_foreign(model, name=name, store=store, precisions=precisions, pairs=pairs, progress=step)


def _announce(repository: Repository, plan: Plan, *, ask: bool) -> None:
    from rich.filesize import decimal

    what = (
        f"{repository.name}: {decimal(plan.bytes)} in {plan.files} files, licence {repository.licence or 'not stated'}"
    )
    if ask and repository.revision is not None:
        output.confirm(f"{what}. Download what of it is not here yet?")
    else:
        output.say(what)


def _with_torch(
    repository: Repository, why: str, *, name: str, store: Store, precisions: Sequence[Precision]
) -> Artifact:
    """Export weights for torch, where it is installed."""
    from model_store.hub.names import advice

    if find_spec("open_clip") is None:
        known = advice(repository.name)
        raise RefusedError(
            f"{repository.name}: {why}. With torch it can be exported: pip install 'clipworks[train,serve]', then "
            f"the same command again{f'. {known}' if known else ''}"
        )
    from training.importing.importer import import_repository

    with output.steps(name) as step:
        return import_repository(repository, name=name, store=store, precisions=precisions, progress=step)


def default_store() -> Path:
    """Where pulled models go when no folder is named; made when it is not there."""
    folder = Path(os.path.expanduser(DEFAULT_STORE))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pulled(reference: Reference, store: Store, *, precisions: Sequence[Precision] = ("fp32",)) -> Artifact:
    """The artifact of a repository: from the store where it is there (no request), else pulled into it."""
    from model_store.hub.references import find_pulled

    if reference.revision is None or reference.is_commit:
        found = find_pulled(store, reference, commit=reference.revision)
        if found is not None:
            return found
    repository = open_repository(reference)
    found = find_pulled(store, reference, commit=repository.revision)
    return found or pull_model(
        repository, other=None, name=reference.model_name, store=store, precisions=precisions, ask=False
    )


def open_source(name: str | None, folder: Path | None, revision: str | None) -> Repository:
    """A folder, or the repository of this name; a name that is a folder here is taken for one.

    Raises:
        UsageError: two revisions, or the extra `hub` is not installed.
        RepositoryError: not of that form.
    """
    from model_store.hub.references import Reference

    folder = folder or (Path(name) if name and Path(name).is_dir() else None)
    if folder is not None:
        try:
            from model_store.hub.folder import FolderRepository
        except ModuleNotFoundError as error:
            raise UsageError(f"pulling models needs {error.name}: {_HUB}") from error
        return FolderRepository(folder)
    from model_store.errors import RepositoryError
    from model_store.hub.names import advice

    try:
        reference = Reference.parse(name or "")
    except RepositoryError as error:
        raise UsageError(f"{name}: {known}" if (known := advice(name or "")) else str(error)) from error
    if revision is not None:
        if reference.revision not in (None, revision):
            raise UsageError(f"{name} and --revision {revision} name two revisions")
        reference = Reference(reference.repository, revision)
    return open_repository(reference)


def open_repository(reference: Reference) -> Repository:
    """Raises UsageError: the extra `hub` is not installed."""
    try:
        from model_store.hub.remote import HubRepository
    except ModuleNotFoundError as error:
        raise UsageError(f"pulling models needs {error.name}: {_HUB}") from error
    return HubRepository(reference.repository, reference.revision)


@contextmanager
def large_temporary_files(store: Store) -> Generator[None]:
    """Temporary files beside the artifacts: a container's /tmp is smaller than a model."""
    before = tempfile.tempdir
    with store.staging() as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before
