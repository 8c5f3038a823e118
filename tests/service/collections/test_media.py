"""Files of a media root are walked to without following links, whatever is put there between two looks."""

import os
from pathlib import Path

import pytest

from service.collections.media import open_below


def test_a_link_that_is_put_there_meanwhile_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real place was looked up before: a lookup that follows nothing stands for one that came too early."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "inside", outside):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(folder.name.encode())
    (root / "folder").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "a.jpg")
    os.mkfifo(root / "pipe.jpg")
    monkeypatch.setattr(os.path, "realpath", lambda path, strict: os.path.abspath(path))
    with open(open_below(root, "inside/a.jpg"), "rb") as file:
        assert file.read() == b"inside"
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    refused = ("folder/a.jpg", "file.jpg", "pipe.jpg", "inside/nothing.jpg", "inside", "../outside/a.jpg", ".")
    for path in refused:
        with pytest.raises((OSError, ValueError)):
            open_below(root, path)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stays open for each file that is refused"
