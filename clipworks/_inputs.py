"""Texts, paths, bytes and pictures as callers give them -> request inputs; files are read one request at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar

from clipworks._pictures import PictureError, axes_of, png_of
from clipworks.errors import UnreadableInput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image | NDArray[Any]

T = TypeVar("T")
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
class InputSource:
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
        if callable(getattr(value, "read", None)):
            return ImageBytes(self._read_file(value))
        try:
            return ImageBytes(png_of(value))
        except PictureError as error:
            raise UnreadableInput(f"images: {error}", index=self.index) from error

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

    def _read_file(self, file: Any) -> bytes:
        """All of an open file, from its start where it can be rewound, as Pillow reads it."""
        try:
            if callable(getattr(file, "seekable", None)) and file.seekable():
                file.seek(0)
            data = file.read()
        except Exception as error:  # a file object may raise anything
            raise UnreadableInput(f"{type(file).__name__} cannot be read: {error}", index=self.index) from error
        if not isinstance(data, bytes):
            raise UnreadableInput("images: the file was opened as text; open it with mode 'rb'", index=self.index)
        return data


def sources(texts: Iterable[str], images: Iterable[ImageSource]) -> list[InputSource]:
    """All inputs in one order: texts first, then images.

    Raises:
        TypeError: one text or one image where several are expected.
    """
    if isinstance(texts, str):
        raise TypeError("texts: expected several strings, got one; write texts=[text]")
    found = [InputSource(index, text, True) for index, text in enumerate(texts)]
    found += [InputSource(len(found) + index, image, False) for index, image in enumerate(several_images(images))]
    return found


def several_images(images: Iterable[ImageSource]) -> Iterable[ImageSource]:
    """`images` itself. Raises TypeError: it is one image (an array of fewer than four axes is one, not its rows)."""
    one = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(images, "read")
    axes = axes_of(images)
    if one or (axes is not None and axes < 4) or not hasattr(images, "__iter__"):
        raise TypeError("images: expected several images, got one; write images=[image]")
    return images


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
