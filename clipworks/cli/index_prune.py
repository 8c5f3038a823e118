"""`index --prune`: find and remove items whose files are gone, unless a whole drive or folder is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from clipworks.cli.failures import UsageError
from clipworks.cli.file_names import name_of
from clipworks.cli.index_entries import SourceListing
from clipworks.cli.index_run import Known

_MOUNTS = Path("/etc/fstab")


def gone(listing: SourceListing, known: Mapping[str, Known], *, prefix: str) -> list[str]:
    """Ids of items that came from these sources and are not there any more; what was left out is there."""
    there = {entry.id for entry in listing.entries}
    return [
        id
        for id, each in known.items()
        if each.source in listing.sources and id not in there and not _is_present(listing, each.source, id, prefix)
    ]


def refuse_absent_drives(listing: SourceListing, known: Mapping[str, Known], *, mounts: Path = _MOUNTS) -> None:
    """A folder in which a drive should be mounted looks as if somebody had emptied it.

    Raises:
        UsageError: a source is empty, the collection has items of it, and fstab mounts something there that is not
            mounted, or the folder was last changed before those files were written, so nobody removed them from it.
    """
    filled = {entry.source for entry in listing.entries} | {source for source, _ in listing.present}
    for source in sorted(listing.sources - filled):
        written = [each.mtime for each in known.values() if each.source == source]
        folder = name_of(source)
        if not written or not os.path.isdir(folder) or os.listdir(folder):
            continue
        if _is_unmounted(folder, mounts):
            why = "a file system belongs there that is not mounted"
        elif os.stat(folder).st_mtime < max(written):
            why = "it is older than the files that were in it, so they were not removed from it: is a drive missing?"
        else:
            continue
        raise UsageError(
            f"{source} is empty, and {why}. Nothing was pruned. If its {len(written)} items shall go: clipworks "
            f'collections delete-items NAME --filter \'{{"source": "{source}"}}\''
        )


def _is_present(listing: SourceListing, source: str, id: str, prefix: str) -> bool:
    """The file itself, or a folder that it is in, was seen and left out."""
    steps = id.removeprefix(prefix).split("/")
    return any((source, "/".join(steps[:depth])) in listing.present for depth in range(1, len(steps) + 1))


def _is_unmounted(folder: str, mounts: Path) -> bool:
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    points = [fields[1] for line in lines if not line.startswith("#") and len(fields := line.split()) > 1]
    inside = [point for point in points if point != "/" and (folder + "/").startswith(point.rstrip("/") + "/")]
    return any(not os.path.ismount(point) for point in inside)
