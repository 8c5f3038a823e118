"""Checks of what was set: values that do not parse, variables that mean nothing, a server open to everyone."""

from __future__ import annotations

from clipworks.cli.doctor.diagnosis import Diagnosis, failure, ok, warning
from clipworks.cli.doctor.subject import Subject

_PREFIX = "CLIPWORKS_"
_OF_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})


def check_settings(subject: Subject) -> Diagnosis | None:
    """Whether a server would take every value; values are never shown."""
    if subject.wrong:
        return failure(
            subject.wrong.replace("\n", "; "),
            "set these right, as `clipworks serve --help` says, or unset them; below, their defaults are looked at",
        )
    if subject.settings is None:
        return None
    known = {f"{_PREFIX}{name.upper()}" for name in type(subject.settings).model_fields}
    given = sorted(known & {name.upper() for name in subject.environment})
    return ok(f"set in the environment: {', '.join(given)}" if given else "none set in the environment: all defaults")


def check_variables(subject: Subject) -> Diagnosis | None:
    """Variables that begin with CLIPWORKS_ and that nothing reads."""
    try:
        from service.settings import unknown_variables
    except ImportError:
        return None
    unknown = unknown_variables(subject.environment)
    if not unknown:
        return ok(f"every {_PREFIX} variable is a setting")
    meant = [f"rename {name} to {near}" for name, near in unknown.items() if near]
    needless = [name for name, near in unknown.items() if not near]
    meant += [f"unset {', '.join(needless)}"] if needless else []
    return warning(f"no settings, ignored: {', '.join(unknown)}", "; ".join(meant))


def check_access(subject: Subject) -> Diagnosis | None:
    """Who may use a server with these settings."""
    settings = subject.settings
    if settings is None:
        return None
    from service.settings import BadSettings, refuse_open_by_typo

    if subject.url is None:  # else the key is meant for that server
        try:
            refuse_open_by_typo(settings, subject.environment)
        except BadSettings as error:
            return failure(str(error).partition(". ")[0], "set CLIPWORKS_API_KEYS, to nothing if open is meant")
    if settings.api_keys:
        return ok(f"{settings.host}, with {len(settings.api_keys)} keys")
    if settings.host in _OF_THIS_MACHINE:
        return ok(f"{settings.host} without keys: open to everyone on this machine")
    return warning(
        f"{settings.host} without keys: open to everyone who can reach it",
        "set CLIPWORKS_API_KEYS, or CLIPWORKS_HOST=127.0.0.1",
    )
