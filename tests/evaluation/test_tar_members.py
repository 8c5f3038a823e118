"""Tar files read from front to back: the members that Python's writer put in, and no silence about what is missing."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.standard.tar_members import BLOCK, BrokenTar, TarMember, tar_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\"), min_size=1, max_size=12)
PATHS = st.lists(NAMES, min_size=1, max_size=14).map("/".join).filter(lambda path: not path.endswith("/"))


def tar_of(members: list[tuple[str, bytes]], kind: str, *, folders: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=FORMATS[kind]) as tar:
        for name, data in members:
            if folders:
                folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("link")
                folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(folder)
                tar.addfile(link)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes, *, at: int = 0, max_bytes: int = 10**6) -> list[TarMember]:
    return list(tar_members(io.BytesIO(data[at:]), at=at, max_bytes=max_bytes))


@settings(deadline=None, max_examples=60)
@given(
    members=st.lists(st.tuples(PATHS, st.binary(max_size=1500)), max_size=6),
    kind=st.sampled_from(["gnu", "pax"]),
    folders=st.booleans(),
)
def test_members_are_those_that_were_written(members: list[tuple[str, bytes]], kind: str, folders: bool) -> None:
    data = tar_of(members, kind, folders=folders)
    found = read(data)
    assert [(member.name, member.data) for member in found] == members
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.start for member in found] == [entry.offset_data for entry in tar if entry.isfile()]
    for number, member in enumerate(found):
        # Where a member ends, or begins, one can go on.
        assert read(data, at=member.at) == found[number:]
        assert read(data, at=member.end) == found[number + 1 :]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), kind=st.sampled_from([*FORMATS]))
def test_a_cut_is_never_taken_for_the_end(data: st.DataObject, kind: str) -> None:
    members = [(f"{number}.txt", bytes([number]) * 700) for number in range(3)]
    whole = tar_of(members, kind)
    end = read(whole)[-1].end
    cut = data.draw(st.integers(0, end + BLOCK - 1))
    seen: list[TarMember] = []
    with pytest.raises(BrokenTar):
        seen.extend(tar_members(io.BytesIO(whole[:cut]), max_bytes=10**6))
    assert len(read(whole[: end + BLOCK])) == 3


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_broken_header_is_never_taken_for_the_end(at: int) -> None:
    whole = bytearray(tar_of([(f"{number}.txt", b"x") for number in range(3)], "ustar"))
    header = read(bytes(whole))[at].at
    whole[header + 3] ^= 1
    found: list[str] = []
    with pytest.raises(BrokenTar, match=f"no header at byte {header}"):
        found.extend(member.name for member in tar_members(io.BytesIO(bytes(whole)), max_bytes=10**6))


@settings(deadline=None, max_examples=200)
@given(noise=st.binary(max_size=3000), kind=st.sampled_from([*FORMATS]), place=st.integers(0, 4000))
def test_noise_ends_in_members_or_in_an_error(noise: bytes, kind: str, place: int) -> None:
    whole = bytearray(tar_of([("a" * 150 if kind != "ustar" else "a", b"x" * 600), ("b", b"y")], kind))
    whole[place : place + len(noise)] = noise
    try:
        found = read(bytes(whole))
    except BrokenTar:
        return
    assert all(member.data is None or len(member.data) == member.size for member in found)


def test_a_member_over_the_limit_is_passed_over() -> None:
    data = tar_of([("a", b"x" * 5000), ("b", b"y" * 10), ("c", b"z" * 11)], "gnu")
    assert [(m.name, m.size, m.data) for m in read(data, max_bytes=10)] == [
        ("a", 5000, None),
        ("b", 10, b"y" * 10),
        ("c", 11, None),
    ]


class Drops(io.BytesIO):
    """A stream that gives a few bytes at a time, as a network does."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(7, size) if size is not None and size > 0 else size)


def test_short_reads_are_put_together() -> None:
    data = tar_of([("a", b"x" * 1000), ("b", b"")], "pax")
    assert list(tar_members(Drops(data), max_bytes=10**6)) == read(data)
