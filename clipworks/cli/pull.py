"""`clipworks models pull`, and what `clipworks serve --model hub:...` does before it serves."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from clipworks.cli import output
from clipworks.cli.download_progress import download_progress
from clipworks.cli.failures import INTERRUPTED, RefusedError, UsageError

if TYPE_CHECKING:
    from model_store.hub.checks import Pairs
    from model_store.hub.pulling import Plan
    from model_store.hub.references import Reference
    from model_store.hub.repository import Repository
    from model_store.manifest import Precision
    from model_store.store import Artifact, Store

DEFAULT_STORE = "~/.local/share/clipworks-artifacts"
_HUB = "pip install 'clipworks[hub]'"
# Graphs of a fixed batch lie there once more while they are changed and compared, and one tower a third time.
_ROOM_FACTOR = 3
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def pull_model(
    repository: Repository,
    *,
    other: Repository | None,
    name: str,
    store: Store,
    precisions: Sequence[Precision],
    ask: bool,
    pairs: Pairs | None = None,
    made_meanwhile: Callable[[], Artifact | None] = lambda: None,
) -> Artifact:
    """Say how large the files are, ask if wanted, download, wrap and publish; weights for torch go through torch.

    One process at a time makes a model of one name. made_meanwhile: asked after waiting for another process, and
    returned where it is an artifact.

    Raises:
        RefusedError: there are only weights for torch, and no torch.
        UsageError: the name is none, or the store cannot be written or is too small.
        Exit: interrupted; nothing is published.
    """
    from model_store.manifest import NAME_PATTERN

    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"--name {name[:80]!r}: expected a small letter or digit, then up to 63 of a-z 0-9 . _ -")
    try:
        return _pull(
            repository, other=other, name=name, store=store, precisions=precisions, ask=ask, pairs=pairs,
            made_meanwhile=made_meanwhile,
        )  # fmt: skip
    except KeyboardInterrupt:
        output.say(f"interrupted: {name} is not published; the next pull goes on with the download where it stopped")
        raise typer.Exit(INTERRUPTED) from None


def _pull(
    repository: Repository,
    *,
    other: Repository | None,
    name: str,
    store: Store,
    precisions: Sequence[Precision],
    ask: bool,
    pairs: Pairs | None,
    made_meanwhile: Callable[[], Artifact | None],
) -> Artifact:
    from model_store.errors import RepositoryNotFound, TorchNeeded
    from model_store.hub.names import advice
    from model_store.hub.publishing import publish_foreign
    from model_store.hub.pulling import download, plan_pull

    try:
        plan = plan_pull(repository, other=other)
    except TorchNeeded as error:
        _check_torch(repository, str(error))
        from training.importing.importer import import_repository

        with _making(store, name, None) as waited:
            if waited and (made := made_meanwhile()):
                return made
            with output.steps(name) as step:
                return import_repository(repository, name=name, store=store, precisions=precisions, progress=step)
    except RepositoryNotFound as error:
        if known := advice(repository.name):
            raise RefusedError(f"{error}; {known}") from error
        raise
    _announce(repository, plan, ask=ask)
    with _making(store, name, plan.bytes) as waited:
        if waited and (made := made_meanwhile()):
            return made
        with download_progress(repository.name) as show:
            model = download(plan, show)
        with large_temporary_files(store), output.steps(name) as step:
            return publish_foreign(model, name=name, store=store, precisions=precisions, pairs=pairs, progress=step)


@contextmanager
def _making(store: Store, name: str, model_bytes: int | None) -> Generator[bool]:
    """Make a model of that name in the store; True where another process did so first. model_bytes: of its files.

    Raises:
        UsageError: the store cannot be written, or has no room for it.
    """
    try:
        if model_bytes and store.root and store.root.is_dir() and shutil.disk_usage(store.root).free < model_bytes:
            raise UsageError(_too_small(store.root, os.strerror(errno.ENOSPC), model_bytes))
        with store.making(
            name, lambda: output.say(f"{name}: another process is making it; waiting for it to end")
        ) as waited:
            yield waited
    except OSError as error:
        root, full = store.root, error.errno in _NO_ROOM
        there = root is not None and error.filename and Path(os.fsdecode(error.filename)).is_relative_to(root)
        if root is None or not (
            there or (full and not error.filename)
        ):  # a full disk is met in writing, without a name
            raise
        if full:
            raise UsageError(_too_small(root, error.strerror or "", model_bytes)) from error
        raise UsageError(
            f"{root}: {error.strerror}: models are published there, and this process must be able to write to it; "
            "another folder: --store, or CLIPWORKS_STORE"
        ) from error


def _too_small(root: Path, said: str, model_bytes: int | None) -> str:
    from rich.filesize import decimal

    wanted = f", making this model takes up to {decimal(_ROOM_FACTOR * model_bytes)}" if model_bytes else ""
    return (
        f"{root}: {said}: {decimal(shutil.disk_usage(root).free)} are free there{wanted}. Nothing was published. "
        "Another folder: --store, or CLIPWORKS_STORE"
    )


def _announce(repository: Repository, plan: Plan, *, ask: bool) -> None:
    from rich.filesize import decimal

    what = (
        f"{repository.name}: {decimal(plan.bytes)} in {plan.files} files, licence {repository.licence or 'not stated'}"
    )
    if ask and repository.revision is not None:
        output.confirm(f"{what}. Download what of it is not here yet?")
    else:
        output.say(what)


def _check_torch(repository: Repository, why: str) -> None:
    """Raises RefusedError: weights for torch cannot be exported here."""
    from model_store.hub.names import advice

    if find_spec("open_clip") is None:
        known = advice(repository.name)
        raise RefusedError(
            f"{repository.name}: {why}. With torch it can be exported: pip install 'clipworks[train,serve]', then "
            f"the same command again{f'. {known}' if known else ''}"
        )


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
        repository,
        other=None,
        name=reference.model_name,
        store=store,
        precisions=precisions,
        ask=False,
        made_meanwhile=lambda: find_pulled(store, reference, commit=repository.revision),
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
    # What the client has to say comes as errors; its own lines hold what a server sent, as it was sent.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="huggingface_hub")
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
