"""ftfy's fix_text, result for result, with a bound on its work.

ftfy peels one layer of HTML escapes or of wrongly decoded characters in each pass over a text, until nothing changes.
`&amp;amp;...` and `ÂÂÂ...™` have a layer for each few characters, so its time grows with the square of their length:
26 s for 8,192 characters. Here the passes are counted and a text that needs too many of them is refused.
"""

from __future__ import annotations

import unicodedata
from itertools import groupby

import ftfy
import regex
from ftfy import TextFixerConfig, fixes

from model_store.errors import InvalidText

# A plain text takes one or two passes. 8,192 characters in 16 layers are within it, and so is anything below 400.
MAX_WORK_CHARS = 16 * 8192
_MANY_MARKS = regex.compile(r"\p{M}{64,}+")
_CONFIG = TextFixerConfig(explain=False)
_FIXERS = (
    fixes.fix_c1_controls,
    fixes.fix_latin_ligatures,
    fixes.fix_character_width,
    fixes.uncurl_quotes,
    fixes.fix_line_breaks,
    fixes.fix_surrogates,
    fixes.remove_terminal_escapes,
    fixes.remove_control_chars,
)
# ftfy offers the whole loop or nothing; tests compare the loop below with its own.
_decode_one_layer = ftfy._fix_encoding_one_step_and_explain  # pyright: ignore[reportPrivateUsage]


def fix_text(text: str) -> str:
    """The same string as `ftfy.fix_text(text)`.

    Raises:
        InvalidText: it has so many layers that peeling them takes more than MAX_WORK_CHARS characters of work.
    """
    work = _Work()
    unescape = True
    lines: list[str] = []
    for line in _lines(text):
        unescape = unescape and "<" not in line  # as in ftfy: markup ends it for the lines that follow, too
        lines.append(_fix_line(line, unescape, work))
    return "".join(lines)


class _Work:
    """Characters that passes have gone over."""

    def __init__(self) -> None:
        self.chars = 0

    def add(self, text: str) -> None:
        self.chars += len(text)
        if self.chars > MAX_WORK_CHARS:
            raise InvalidText("text has too many layers of HTML escapes or of wrongly decoded characters")


def _lines(text: str) -> list[str]:
    """Pieces that end behind each line feed; other line ends are ftfy's to mend."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _fix_line(line: str, unescape: bool, work: _Work) -> str:
    while True:
        work.add(line)
        before = line
        if unescape:
            line = fixes.unescape_html(line)
        line = _fix_encoding(line, work)
        for fixer in _FIXERS:
            line = fixer(line)
        line = _compose(line)
        if line == before:
            return line


def _fix_encoding(line: str, work: _Work) -> str:
    while True:
        before = line
        line, _ = _decode_one_layer(line, _CONFIG)
        if line == before:
            return line
        work.add(line)


def _compose(line: str) -> str:
    """NFC. Python sorts marks by insertion; sorting a long run before that changes its time alone."""
    if line.isascii():
        return line
    return unicodedata.normalize("NFC", _MANY_MARKS.sub(_sorted_marks, line))


def _sorted_marks(run: regex.Match[str]) -> str:
    """The run in canonical order (Unicode 3.11, D109): a canonically equivalent string."""
    marks = "".join(unicodedata.normalize("NFD", mark) for mark in run.group())
    groups = groupby(marks, key=lambda mark: unicodedata.combining(mark) != 0)
    return "".join("".join(sorted(group, key=unicodedata.combining)) for _, group in groups)
