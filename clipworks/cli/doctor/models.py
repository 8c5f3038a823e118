"""Checks of the store of models, and of the model that would be served."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from clipworks.cli.doctor.diagnosis import Diagnosis, failure, ok, warning
from clipworks.cli.doctor.subject import Subject, served_model, store_of

if TYPE_CHECKING:
    from model_store.artifact import Artifact
    from model_store.manifest import Role
    from service.settings import Settings

_SHOWN = 8


def check_store(subject: Subject) -> Diagnosis | None:
    """Manifests of all artifacts, and the sizes of their files."""
    settings = subject.settings
    if settings is None:
        return None
    if settings.store is not None and not settings.store.is_dir():
        return failure(
            f"{settings.store}: no such folder",
            f"`clipworks models pull ORG/REPO --store {settings.store}` makes it; or correct CLIPWORKS_STORE (--store)",
        )
    store = store_of(settings)
    artifacts = store.list()
    faults = [*store.problems(), *(fault for artifact in artifacts for fault in _misfits(artifact))]
    if faults:
        return failure(
            "; ".join(faults[:_SHOWN]) + ("; ..." if len(faults) > _SHOWN else ""),
            "`clipworks models remove NAME@VERSION`, then pull, import or export it again; what is shipped comes back "
            "by pip install --force-reinstall clipworks",
        )
    where = f"{settings.store} and shipped" if settings.store and settings.builtin else settings.store or "shipped"
    names = ", ".join(artifact.reference for artifact in artifacts[:_SHOWN]) or "none"
    return ok(f"{names}{', ...' if len(artifacts) > _SHOWN else ''} ({where}): manifests and sizes are right")


def check_model(subject: Subject) -> Diagnosis | None:
    """The models that a server would load at start; unless quick, every byte of them and their golden cases."""
    from model_store.errors import ClipworksError

    settings = subject.settings
    if settings is None:
        return None
    store = store_of(settings)
    try:
        default = served_model(settings, store)
        artifacts = [*([default] if default else []), *(store.open(name) for name in settings.extra_models)]
    except ClipworksError as error:
        return failure(str(error), "set CLIPWORKS_MODEL (--model) to one of `clipworks models list`")
    if default is None:
        return _unpulled(settings)
    if faults := [] if subject.quick else [fault for artifact in artifacts for fault in _unproven(artifact)]:
        return failure("; ".join(faults), _remedy(artifacts))
    how = "not run (--quick)" if subject.quick else "every file and the golden cases are right"
    found = f"{', '.join(artifact.reference for artifact in artifacts)}: {how}"
    if lacking := _fallbacks(default, settings):
        return warning(
            f"{found}; {default.reference} has no {settings.precision} for {' and '.join(lacking)}, which run in fp32",
            "set CLIPWORKS_PRECISION=auto, or pull or import the model with that precision",
        )
    return ok(found)


def _unpulled(settings: Settings) -> Diagnosis:
    repository = (settings.model or "").partition(":")[2]
    if find_spec("huggingface_hub") is None or find_spec("onnx") is None:
        return failure(f"{repository} must be pulled, which is not installed", "pip install 'clipworks[hub,serve]'")
    return warning(
        f"{repository} is pulled when the server starts", f"pull it now: `clipworks models pull {repository}`"
    )


def _misfits(artifact: Artifact) -> list[str]:
    """Files that are missing, of another size, or of no manifest."""
    from model_store.errors import IntegrityError

    faults: list[str] = []
    for entry in artifact.manifest.files:
        try:
            size = os.stat(artifact.folder / entry.path).st_size
        except OSError as error:
            faults.append(f"{artifact.reference}: {entry.path}: {error.strerror}")
            continue
        if size != entry.size_bytes:
            faults.append(f"{artifact.reference}: {entry.path} has {size} bytes, its manifest says {entry.size_bytes}")
    try:
        artifact.refuse_unlisted()
    except IntegrityError as error:
        faults.append(str(error))
    return faults


def _unproven(artifact: Artifact) -> list[str]:
    from clipworks.cli.model_facts import UNSEALED
    from clipworks.cli.models import verify_one

    results = verify_one(artifact, goldens=True)
    return [
        each["result"] if artifact.reference in each["result"] else f"{artifact.reference}: {each['result']}"
        for each in results
        if each["result"] not in ("ok", UNSEALED)
    ]


def _remedy(artifacts: list[Artifact]) -> str:
    own = [artifact.reference for artifact in artifacts if artifact.writable]
    again = [f"`clipworks models remove {reference}`, then pull, import or export it again" for reference in own]
    again += ["pip install --force-reinstall clipworks"] if len(own) < len(artifacts) else []
    return "; ".join([*again, "which check failed: `clipworks models verify`"])


def _fallbacks(artifact: Artifact, settings: Settings) -> list[str]:
    """Encoders for which the precision that is asked for was not built."""
    from model_store.manifest import ENCODERS

    if settings.precision == "auto":
        return []
    wanted = settings.precision
    roles: list[Role] = [role for role in ENCODERS if role in artifact.roles()]
    return [role for role in roles if artifact.served_precision(role, wanted) != wanted]
