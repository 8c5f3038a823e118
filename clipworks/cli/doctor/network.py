"""Checks of the port that a server would listen on, and of a server that runs."""

from __future__ import annotations

import httpx2

from clipworks.cli.doctor.data_folder import holder_of
from clipworks.cli.doctor.diagnosis import Diagnosis, failure, ok, warning
from clipworks.cli.doctor.subject import Subject
from clipworks.client import Client
from clipworks.errors import ClientError, Unauthorized
from clipworks.retry import RetryPolicy
from clipworks.schemas import Health

_TIMEOUT_S = 10.0


def check_port(subject: Subject) -> Diagnosis | None:
    """Whether a server could listen; the address is taken for an instant, and nothing is sent."""
    settings = subject.settings
    if settings is None:
        return None
    from service.connection.listening import CannotListen, listen

    where = f"port {settings.port} of {settings.host}"
    try:
        listeners = listen(settings.host, settings.port, backlog=1)
    except CannotListen as error:
        if _is_known(subject, settings.port):
            return ok(f"{where} is taken by the server that is looked at here")
        return failure(error.reason, error.advice)
    for listener in listeners:
        listener.close()
    return ok(f"{where} is free" if settings.port else "a free port is taken at start (CLIPWORKS_PORT is 0)")


def check_server(subject: Subject) -> Diagnosis | None:
    """What the server at --url says of itself."""
    if subject.url is None:
        return None
    try:
        with Client(
            subject.url, api_key=subject.api_key, timeout_s=_TIMEOUT_S, retry=RetryPolicy(attempts=1)
        ) as client:
            health = client.health()
            if health.status != "ok":
                return _unready(client.url, health)
            models = [f"{each.name}@{each.version}" for each in client.models() if each.loaded]
            version = _version_at(client.url)
            found = f"{client.url} is ready, clipworks {version}, serves {', '.join(models)}"
    except ValueError as error:
        return failure(str(error), "write it as --url http://HOST:PORT")
    except Unauthorized as error:
        return failure(f"ready, but refuses this key: {error}", "give its key with --api-key or CLIPWORKS_API_KEY")
    except ClientError as error:
        return failure(
            str(error), "start one there: `clipworks serve`; or set --url (CLIPWORKS_URL) to where a server listens"
        )
    if health.detail:
        return warning(
            f"{found}; {health.detail}", "`clipworks collections doctor`, then `clipworks collections acknowledge-loss`"
        )
    return _compared(found, version)


def _compared(found: str, version: str) -> Diagnosis:
    import clipworks

    if version == clipworks.__version__:
        return ok(found)
    return warning(
        f"{found}; this is clipworks {clipworks.__version__}", "pip install the same version of clipworks on both sides"
    )


def _unready(url: str, health: Health) -> Diagnosis:
    found = f"{url} is {health.status}" + (f": {health.detail}" if health.detail else "")
    if health.status == "starting":
        return warning(found, "wait, and look again with `clipworks doctor --url`; its log says what it is doing")
    if health.status == "draining":
        return warning(found, "it is stopping; start another with `clipworks serve`")
    return failure(found, "read its log, then `clipworks doctor` on its own machine")


def _version_at(url: str) -> str:
    """Of the server; its description needs no key."""
    try:
        answer = httpx2.get(f"{url}/openapi.json", timeout=_TIMEOUT_S)
        return str(answer.raise_for_status().json()["info"]["version"])
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return "of unknown version"


def _is_known(subject: Subject, port: int) -> bool:
    """Whether the port is that of the server at --url, or of the one that holds the data folder."""
    addresses = [subject.url, holder_of(subject.folder) if subject.folder else None]
    return any(_port_of(address) == port for address in addresses if address)


def _port_of(address: str) -> int | None:
    try:
        return httpx2.URL(address if "://" in address else f"http://{address}").port
    except (httpx2.InvalidURL, ValueError):
        return None
