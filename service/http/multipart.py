"""multipart/form-data -> parts, under a limit of their number; headers of a part are bounded by the parser."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.faults import TooManyItems
from service.http.errors import Refusal

# Charsets that a part may declare for its text; some libraries still write Latin-1 unless they are told otherwise.
_CHARSETS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin1": "latin-1",
    "windows-1252": "cp1252",
}
_IDENTITY = frozenset({b"7bit", b"8bit", b"binary"})


@dataclass
class FormPart:
    """One part; `name` is that of its Content-Disposition, `charset` that of its Content-Type."""

    name: str = ""
    charset: str = "utf-8"
    chunks: list[bytes] = field(default_factory=list[bytes])

    @property
    def data(self) -> bytes:
        return self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)

    def text(self) -> str:
        """Raises Refusal (422) unless the part is UTF-8, or of the charset that it declares."""
        codec = _CHARSETS.get(self.charset.lower())
        if codec is None:
            message = f"the part {self.name} declares a charset that is not taken: send UTF-8"
            raise Refusal(422, "invalid_field", message, param=self.name)
        try:
            return self.data.decode(codec)
        except UnicodeDecodeError:
            shown = "UTF-8" if codec == "utf-8" else f"the {self.charset.lower()} that it declares"
            message = f"the part {self.name} is not {shown}"
            raise Refusal(422, "invalid_field", message, param=self.name) from None


def boundary_of(parameters: str) -> bytes:
    """The boundary of a multipart Content-Type's parameters.

    Raises:
        Refusal: 400, there is none or it is not one.
    """
    boundary = parse_options_header(f"multipart/form-data;{parameters}")[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Refusal(400, "invalid_multipart", "the Content-Type needs a boundary of 1 to 70 characters")
    return boundary


def read_parts(raw: bytes, boundary: bytes, *, max_parts: int) -> list[FormPart]:
    """Split a whole body.

    Raises:
        Refusal: 400, broken or cut off; 415, a part is encoded.
        TooManyItems: more than `max_parts`.
    """
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_header_field": collector.header_name,
                "on_header_value": collector.header_value,
                "on_header_end": collector.header_end,
                "on_part_data": collector.data,
                "on_end": collector.end,
            },
        )
        parser.write(raw)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "invalid_multipart", "the multipart body is broken") from None
    if not collector.ended:
        raise Refusal(400, "invalid_multipart", "the multipart body ends before its last boundary")
    if any(not part.name for part in collector.parts):
        raise Refusal(400, "invalid_multipart", "a part has no name in its Content-Disposition")
    return collector.parts


class _Collector:
    """Callbacks of the parser."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[FormPart] = []
        self.ended = False
        self._max_parts = max_parts
        self._header_name = b""
        self._header_value = b""

    def begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise TooManyItems(f"the multipart body has more than {self._max_parts} parts")
        self.parts.append(FormPart())

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        name, value, part = self._header_name.lower(), self._header_value, self.parts[-1]
        if name == b"content-disposition":
            part.name = parse_options_header(value)[1].get(b"name", b"").decode("utf-8", "replace")
        elif name == b"content-type":
            part.charset = parse_options_header(value)[1].get(b"charset", b"utf-8").decode("utf-8", "replace")
        elif name == b"content-transfer-encoding" and value.strip().lower() not in _IDENTITY:
            raise Refusal(415, "unsupported_encoding", "send the parts without Content-Transfer-Encoding")
        self._header_name = self._header_value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].chunks.append(data[start:end])

    def end(self) -> None:
        self.ended = True
