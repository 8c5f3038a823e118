r"""Text from outside as a terminal may be given it: control characters and marks of direction as \xHH and \uHHHH."""

from __future__ import annotations

import re

# C0 but tab and line feed, DEL, C1 (U+009B begins an escape sequence too), and what turns characters' order round.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with nothing in it that a terminal acts on but tabs and line ends."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
