"""What callers give (texts, paths, bytes, pictures) -> what is sent; files are read one request at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from clipworks.errors import UnreadableInput

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image

T = TypeVar("T")
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})
_ADDRESSES = ("http://", "https://")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class ImageBytes:
    data: bytes


@dataclass(frozen=True)
class ImageAddress:
    url: str


Loaded = Text | ImageBytes | ImageAddress


@dataclass(frozen=True)
class Source:
    """One input as the caller gave it, at its place in the caller's order."""

    index: int
    value: ImageSource
    is_text: bool

    def load(self) -> Loaded:
        """Read or encode it; blocking.

        Raises:
            UnreadableInput: no such file, not readable, or a text that UTF-8 cannot hold.
        """
        if self.is_text:
            return self._text()
        value = self.value
        if isinstance(value, str) and value.lower().startswith(_ADDRESSES):
            return ImageAddress(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return ImageBytes(bytes(value))
        if isinstance(value, (str, os.PathLike)):
            return ImageBytes(self._read(value))
        return ImageBytes(self._png(value))

    def _text(self) -> Text:
        if not isinstance(self.value, str):
            raise UnreadableInput(f"texts: expected str, got {type(self.value).__name__}", index=self.index)
        try:
            self.value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UnreadableInput(f"text holds a lone surrogate at {error.start}", index=self.index) from None
        return Text(self.value)

    def _read(self, path: str | os.PathLike[str]) -> bytes:
        try:
            with open(path, "rb") as file:
                return file.read()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UnreadableInput(f"{os.fspath(path)!r}: {reason}", index=self.index) from error

    def _png(self, picture: object) -> bytes:
        """A picture of PIL as lossless PNG, its EXIF orientation kept, so that it gives the vector of its file."""
        save = getattr(picture, "save", None)
        mode = getattr(picture, "mode", None)
        if not callable(save) or not isinstance(mode, str):
            kind = type(picture).__name__
            raise UnreadableInput(f"images: expected a path, bytes or a PIL image, got {kind}", index=self.index)
        return _encode_png(picture, mode, self.index)  # pyright: ignore[reportArgumentType]


def sources(texts: Iterable[str], images: Iterable[ImageSource]) -> list[Source]:
    """All inputs in one order: texts first, then images.

    Raises:
        TypeError: a single str or bytes where several are expected.
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected several strings, got one; write texts=[text]")
    if isinstance(images, (str, bytes, bytearray, os.PathLike)):
        raise TypeError("images: expected several images, got one; write images=[image]")
    found = [Source(index, text, True) for index, text in enumerate(texts)]
    found += [Source(len(found) + index, image, False) for index, image in enumerate(images)]
    return found


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _encode_png(picture: Image, mode: str, index: int) -> bytes:
    sink = io.BytesIO()
    try:
        exif = picture.getexif()
        drawn = picture if mode in _PNG_MODES else picture.convert("RGB")
        drawn.save(sink, "PNG", compress_level=1, exif=exif)
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"this picture cannot be written as PNG: {error}", index=index) from error
    return sink.getvalue()
