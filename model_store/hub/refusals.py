"""Errors of the hub's client as ours: one sentence that names the repository and the remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus

import httpx2
from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model_store.errors import RepositoryError, RepositoryGated, RepositoryNotFound

_OF_THE_FOLDER = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})


@contextmanager
def explained(name: str, revision: str, path: str | None = None) -> Generator[None]:
    """Turn what the hub's client raises inside into a RepositoryError.

    Raises:
        RepositoryError: or one of its kinds; no message holds a header or a token.
    """
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, HFValidationError, EntryNotFoundError, ConnectionError) as error:
        raise _refusal(error, name, revision, path) from None  # it holds the request, and with it the token
    except OSError as error:
        where = error.filename or (constants.HF_HUB_CACHE if error.errno else None)
        other = "; another folder: HF_HOME" if error.errno in _OF_THE_FOLDER else ""
        said = " ".join((error.strerror or str(error)).split())
        raise RepositoryError(f"{name}: {f'{where}: ' if where else ''}{said}{other}") from error


def check_proxy() -> None:
    """Raises RepositoryError: the variables name a proxy that the hub's client cannot use; its address is not said."""
    try:
        get_session()
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        if not (named := _proxy_variables()):
            raise
        raise RepositoryError(
            f"{' and '.join(named)}: expected http://HOST:PORT or https://HOST:PORT"
            + ("; SOCKS needs the package socksio" if isinstance(error, ImportError) else "")
        ) from None


def _proxy_variables() -> list[str]:
    known = (f"{scheme}_proxy" for scheme in ("http", "https", "all"))
    return [name for each in known for name in (each, each.upper()) if os.environ.get(name)]


def not_cached(name: str, revision: str, missing: str) -> RepositoryError:
    """Offline, and `missing` (some files, or all of them) is not on this machine."""
    at = "" if revision == constants.DEFAULT_REVISION else f"@{revision}"
    return RepositoryError(
        f"offline (HF_HUB_OFFLINE), and {missing} of {name} is not in {constants.HF_HUB_CACHE}: "
        f"run `clipworks models pull {name}{at}` once with a connection"
    )


def _refusal(error: BaseException, name: str, revision: str, path: str | None) -> RepositoryError:
    page = f"{constants.ENDPOINT}/{name}"
    match error:
        case GatedRepoError():
            return RepositoryGated(_gated(error.response.status_code, name, page))
        case RevisionNotFoundError():
            return RepositoryNotFound(f"{name} has no revision {revision!r}")
        case RepositoryNotFoundError():
            return RepositoryNotFound(
                f"there is no repository {name} at {constants.ENDPOINT}; if it is private, set HF_TOKEN to a token "
                "that may read it"
            )
        case HfHubHTTPError() if isinstance(error, EntryNotFoundError):
            return RepositoryNotFound(f"{name}@{revision} has no file {path}")
        case HfHubHTTPError():
            return _of_status(error.response.status_code, name, page)
        case HFValidationError():
            return RepositoryNotFound(f"{name!r} is not the name of a repository, which is ORGANISATION/NAME")
        case OfflineModeIsEnabled():
            return not_cached(name, revision, path or "the listing")
        case EntryNotFoundError() if error.__cause__ is not None:
            return _refusal(error.__cause__, name, revision, path)
        case EntryNotFoundError():
            return not_cached(name, revision, path or "the listing")
        case _:
            through = f"; proxies are set by {' and '.join(named)}" if (named := _proxy_variables()) else ""
            return RepositoryError(
                f"{name}: {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error}){through}"
            )


def _gated(status: int, name: str, page: str) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return f"{name} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account"
    return f"{name} is gated, and the account of HF_TOKEN was not given access: accept its terms at {page}"


def _of_status(status: int, name: str, page: str) -> RepositoryError:
    if status == HTTPStatus.UNAUTHORIZED:
        what = "does not accept the token in HF_TOKEN" if get_token() else "asks for a token: set HF_TOKEN"
        return RepositoryGated(f"{name}: {constants.ENDPOINT} {what}")
    if status == HTTPStatus.FORBIDDEN:
        return RepositoryGated(f"{name}: access is forbidden; see {page}, and which rights the token in HF_TOKEN has")
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return RepositoryError(f"{name}: the proxy asks for a name and a password: http://NAME:PASSWORD@HOST:PORT")
    return RepositoryError(f"{name}: {constants.ENDPOINT} answered with status {status}")
