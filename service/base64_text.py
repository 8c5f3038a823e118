"""Base64 as people and libraries write it -> bytes: the one decoder for pictures and vectors.

Taken are the standard and the URL-safe alphabet, with padding or without, line breaks wherever a tool puts them, and
data: URIs. Whatever could be read in two ways is refused, because a picture or a vector that was decoded wrongly gives
a vector like any other.
"""

from __future__ import annotations

import binascii
import re

_MAX_HEAD = 200
_DATA_URI = re.compile(r"\s{0,16}data:", re.IGNORECASE)
_PICTURE_URI = re.compile(r"\s{0,16}data:(image/|[^,\s]{0,200};\s?base64\s?,)", re.IGNORECASE)
_IS_BASE64 = re.compile(r";\s{0,16}base64\s{0,16}$", re.IGNORECASE)
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_LINE_BREAKS = b"\r\n\t"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# All that percent-encoding, which belongs to URIs alone, makes of base64: its sign is in no alphabet.
_PERCENT = {"%2B": "+", "%2F": "/", "%3D": "=", "%2D": "-", "%5F": "_", "%0A": "", "%0D": ""}


class NotBase64(ValueError):
    """The text is no base64, or no single reading of it; the message says why."""


def is_data_uri(text: str) -> bool:
    """Whether a text is a data: URI with base64 or of a picture, and so is no sentence."""
    return _PICTURE_URI.match(text) is not None


def decode_base64(text: str) -> bytes:
    """The bytes of base64, bare or in a data: URI.

    Raises:
        NotBase64: anything else, and what could be read in two ways.
    """
    payload = _payload(text)
    if len(payload) % 4 == 0:  # strict mode lets a surplus "=" pass
        try:
            return binascii.a2b_base64(payload, strict_mode=True)
        except ValueError:
            pass  # another dialect, or none
    return _decode_dialect(payload)


def _payload(text: str) -> str:
    """What stands behind the comma of a data: URI, or the text itself."""
    if _DATA_URI.match(text) is None:
        return text
    head, comma, payload = text.partition(",")
    if not comma or len(head) > _MAX_HEAD or _IS_BASE64.search(head) is None:
        raise NotBase64("a data: URI must have the form data:image/...;base64,...")
    if "%" in payload:
        for code, character in _PERCENT.items():
            payload = payload.replace(code, character).replace(code.lower(), character)
    return payload


def _decode_dialect(payload: str) -> bytes:
    try:
        digits = payload.strip().encode("ascii").translate(None, _LINE_BREAKS)
    except UnicodeEncodeError:
        raise NotBase64("it holds a character of neither alphabet") from None
    unpadded = digits.rstrip(b"=")
    padding = len(digits) - len(unpadded)
    if b"-" in unpadded or b"_" in unpadded:
        if b"+" in unpadded or b"/" in unpadded:
            raise NotBase64("it mixes the standard alphabet (+ and /) with the URL-safe one (- and _)")
        unpadded = unpadded.translate(_TO_STANDARD)
    other = unpadded.translate(None, _ALPHABET)
    if other:
        raise NotBase64(_why_not(other[:1]))
    missing = -len(unpadded) % 4
    if missing == 3:
        raise NotBase64(f"{len(unpadded)} characters are no whole number of bytes: some are missing")
    if padding and padding != missing:
        raise NotBase64(f"it ends with {padding} of '=' where {missing} belong")
    return binascii.a2b_base64(unpadded + b"=" * missing, strict_mode=True)


def _why_not(character: bytes) -> str:
    if character == b" ":
        return "it holds spaces between characters; a '+' that passed through a form or a query becomes one"
    if character == b"=":
        return "it goes on behind its padding"
    return "it holds a character of neither alphabet"
