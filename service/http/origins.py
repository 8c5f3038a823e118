"""Origins whose web pages may call the server, as they are written in a setting, and what they match."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_FORM = "expected *, null, or scheme://host[:port], where host may begin with *. and port may be *"


@dataclass(frozen=True)
class Origin:
    """One allowed origin: exact, or a pattern.

    `*` is every origin. `scheme://*` is every host of a scheme, `scheme://*.example.com` every host below that one (not
    the host itself), `scheme://host:*` every port. Plain comparisons: there is nothing that could backtrack.
    """

    text: str
    scheme: str
    host: str
    port: str

    def matches(self, origin: str) -> bool:
        """Whether a browser that sends `Origin: <origin>` is meant."""
        if self.text in ("*", origin):
            return True
        scheme, separator, rest = origin.partition("://")
        if not separator or scheme != self.scheme or "/" in rest:
            return False
        host, port = _split_port(rest)
        if self.host.startswith("*"):
            fits = len(host) >= len(self.host) and host.endswith(self.host[1:])
        else:
            fits = host == self.host
        return fits and self.port in ("*", port)


def parse_origin(text: str) -> Origin:
    """An allowed origin from its text.

    Raises:
        ValueError: it has another form, or is one that no browser sends.
    """
    if text in ("*", "null"):
        return Origin(text, "", "", "")
    if not text.isascii():
        raise ValueError("browsers send international host names as xn--..., write them so")
    scheme, separator, rest = text.lower().partition("://")
    host, port = _split_port(rest)
    name = host.removeprefix("*.") if host != "*" else "x"
    if not separator or not _SCHEME.fullmatch(scheme) or not _HOST.fullmatch(name):
        raise ValueError(_FORM + "; no path, no slash at the end")
    if rest.endswith(":") or (port not in ("", "*") and not (port.isdecimal() and 0 < int(port[:6]) < 65536)):
        raise ValueError(_FORM)
    if _DEFAULT_PORTS.get(scheme) == port:
        raise ValueError(f"browsers leave out :{port} of {scheme}, so this can match nothing; leave it out too")
    return Origin(f"{scheme}://{rest}", scheme, host, port)


def _split_port(rest: str) -> tuple[str, str]:
    """("host", "port" or ""); an IPv6 host keeps its brackets."""
    host, colon, port = rest.rpartition(":")
    return (rest, "") if not colon or port.endswith("]") else (host, port)
