r"""Names of files as text that any program can hold: what is no UTF-8 and control characters become \xHH.

`caf\xe9.jpg` stands for a name with the byte E9 in it. A backslash that stands before x and two hexadecimal digits in
the name itself becomes \x5c, so that `name_of(text_of(name)) == name` for every name.
"""

from __future__ import annotations

import os
import re

_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
# As the server's rule for ids: C0, DEL and C1. Lone surrogates U+DC80-DCFF are Python's form of single bytes.
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]|\\(?=x[0-9a-f]{2})")


def text_of(name: str | os.PathLike[str]) -> str:
    """A path or a name, as Python has it from the system, in printable UTF-8; unchanged in nearly all cases."""
    return _HIDDEN.sub(_escaped, os.fspath(name))


def name_of(text: str) -> str:
    """The path that `text_of` was given."""
    if not _ESCAPED.search(text):
        return text
    parts = _ESCAPED.split(text)
    data = b"".join(
        bytes([int(part, 16)]) if place % 2 else part.encode("utf-8", "surrogateescape")
        for place, part in enumerate(parts)
    )
    return data.decode("utf-8", "surrogateescape")


def _escaped(found: re.Match[str]) -> str:
    data = found[0].encode("utf-8", "surrogateescape" if "\udc80" <= found[0] <= "\udcff" else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)
