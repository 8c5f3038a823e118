"""HTML that escapes by default: strings are text, only `Markup` is HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

_VOID = {"br", "img", "meta", "col"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, str] | None = None, *children: str) -> Markup:
    """One element. Attribute values and children are escaped, unless a child is `Markup`."""
    opened = name + "".join(f' {key}="{escape(value)}"' for key, value in (attributes or {}).items())
    if name in _VOID:
        return Markup(f"<{opened}>")
    return Markup(f"<{opened}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))
