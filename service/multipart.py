"""multipart/form-data -> parts, under a limit of their number; headers of a part are bounded by the parser."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import Refusal
from service.faults import TooManyItems


@dataclass
class Part:
    """One part; `name` is that of its Content-Disposition."""

    name: str = ""
    chunks: list[bytes] = field(default_factory=list[bytes])

    @property
    def data(self) -> bytes:
        return self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)

    def text(self) -> str:
        """Raises Refusal (422) unless the part is UTF-8."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            raise Refusal(422, "invalid_field", f"the part {self.name} is not UTF-8", param=self.name) from None


def boundary_of(parameters: str) -> bytes:
    """The boundary of a multipart Content-Type's parameters.

    Raises:
        Refusal: 400, there is none or it is not one.
    """
    boundary = parse_options_header(f"multipart/form-data;{parameters}")[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Refusal(400, "invalid_multipart", "the Content-Type needs a boundary of 1 to 70 characters")
    return boundary


def read_parts(raw: bytes, boundary: bytes, *, max_parts: int) -> list[Part]:
    """Split a whole body.

    Raises:
        Refusal: 400, broken or cut off.
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
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._header_name = b""
        self._header_value = b""

    def begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise TooManyItems(f"the multipart body has more than {self._max_parts} parts")
        self.parts.append(Part())

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            name = parse_options_header(self._header_value)[1].get(b"name", b"")
            self.parts[-1].name = name.decode("utf-8", "replace")
        self._header_name = self._header_value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].chunks.append(data[start:end])

    def end(self) -> None:
        self.ended = True
