"""CLIPWORKS_ variables that no command reads are named: one that is misspelt would be ignored without a word."""

from __future__ import annotations

from collections.abc import Mapping

from clipworks.cli import output

_PREFIX = "CLIPWORKS_"
# What the commands themselves read, so that most of the time the server's settings need not be looked up.
_OWN = frozenset({"URL", "API_KEY", "MODEL", "STORE", "DATA"})


def report_environment(environment: Mapping[str, str]) -> None:
    """Say on stderr which variables mean nothing, and what may be meant."""
    if all(name.removeprefix(_PREFIX) in _OWN for name in environment if name.startswith(_PREFIX)):
        return
    try:
        from service.settings import unknown_variables
    except ModuleNotFoundError:  # a client's installation does not know the server's settings
        return
    for name, near in unknown_variables(environment).items():
        output.say(f"{name} is no setting and is ignored" + (f"; is {near} meant?" if near else ""))
