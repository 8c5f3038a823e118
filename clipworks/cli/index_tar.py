"""Pictures in webdataset tar files: of one key, .txt becomes the metadata `caption`, and .json becomes `json`."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipworks.cli.failures import UsageError
from clipworks.cli.file_names import name_of, text_of
from clipworks.cli.index_entries import Loaded, PictureEntry
from clipworks.cli.picture_files import MAX_FILE_BYTES, LeftOut, Reason, Selection, reason_by_name
from clipworks.errors import UnreadableInput

_BESIDE = ("txt", "json")


def entries_of_tar(path: Path, source: str, selection: Selection) -> Iterator[PictureEntry | LeftOut]:
    """Raises UsageError: not a whole, uncompressed tar file."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar.getmembers() if not member.isdir()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UsageError(f"{text_of(path)}: not a whole, uncompressed tar file: {error}") from error
    pictures: list[tarfile.TarInfo] = []
    others: list[tarfile.TarInfo] = []
    for member in members:
        reason = _left_out(member, selection)
        if reason is None:
            pictures.append(member)
        elif reason == "not a picture" and member.isreg() and _key(member.name)[2] in _BESIDE:
            others.append(member)
        else:
            yield LeftOut(member.name, reason)
    with_picture = {_key(member.name)[0] for member in pictures}
    sidecars: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in others:
        key, _, suffix = _key(member.name)
        if key in with_picture:
            sidecars.setdefault(key, {})[suffix] = member
        else:
            yield LeftOut(member.name, "not a picture")
    for member in pictures:
        beside = sidecars.get(_key(member.name)[0], {})
        load = _member_loader(path, source, member, beside)
        yield PictureEntry(text_of(f"{path.name}/{member.name}"), source, load, place=text_of(member.name))


def read_member(path: str, name: str) -> bytes:
    """The bytes of a member, by its name as `text_of` gave it. Raises OSError, UnreadableInput."""
    try:
        with tarfile.open(path, "r:") as tar:
            return _member_bytes(path, tar.getmember(name_of(name)))
    except (KeyError, tarfile.TarError) as error:
        raise UnreadableInput(f"{text_of(path)}: {name}: {error}") from error


def _left_out(member: tarfile.TarInfo, selection: Selection) -> Reason | None:
    """By the same rule as in folders: each folder on the way, then the file."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    for depth in range(1, len(parts) + 1):
        reason = selection.leaves_out("/".join(parts[:depth]), is_folder=depth < len(parts))
        if reason is not None:
            return reason
    return reason_by_name(member.name) if member.isreg() else "not a file"


def _key(name: str) -> tuple[str, str, str]:
    """webdataset's rule: up to the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    key, dot, suffix = last.partition(".")
    return folder + slash + key, dot, suffix.lower()


def _member_loader(
    path: Path, source: str, member: tarfile.TarInfo, beside: Mapping[str, tarfile.TarInfo]
) -> Callable[[Mapping[str, str]], Loaded]:
    def load(schema: Mapping[str, str]) -> Loaded:
        metadata: dict[str, Any] = {}
        if "txt" in beside:
            metadata["caption"] = _member_text(path, beside["txt"]).strip()
        if "json" in beside:
            try:
                metadata["json"] = json.loads(_member_text(path, beside["json"]))
            except (ValueError, RecursionError) as error:
                raise UnreadableInput(f"{text_of(beside['json'].name)}: not JSON: {error}") from error
        facts = {"path": text_of(os.path.abspath(path)), "source": source}
        facts |= {"member": text_of(member.name), "mtime": member.mtime}
        return Loaded(_member_bytes(path, member), metadata | facts)

    return load


def _member_text(path: str | Path, member: tarfile.TarInfo) -> str:
    try:
        return _member_bytes(path, member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{text_of(member.name)}: not UTF-8 text") from error


def _member_bytes(path: str | Path, member: tarfile.TarInfo) -> bytes:
    name = text_of(member.name)
    if member.size > MAX_FILE_BYTES or member.issparse():
        raise UnreadableInput(f"{name}: too large, or sparse")
    if not member.isreg():
        raise UnreadableInput(f"{name}: a link or a device, not a file")
    with open(path, "rb") as file:
        file.seek(member.offset_data)
        data = file.read(member.size)
    if len(data) != member.size:
        raise UnreadableInput(f"{name}: the tar file ends inside it")
    return data
