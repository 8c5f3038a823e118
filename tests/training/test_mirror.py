"""Checkpoints copied elsewhere while a run goes on: whole or not at all, tried again, and never the end of the run."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from training import mirror as mirrors
from training.checkpoint import FILES, INFO_FILE, check_whole
from training.mirror import LATEST, Mirror

pytestmark = pytest.mark.torch
Train = Callable[..., Path]


class Unsteady(MemoryFileSystem):
    """Memory whose next uploads fail."""

    protocol = "unsteady"
    store: dict[str, Any] = {}
    pseudo_dirs: list[str] = [""]
    failures = 0

    def put_file(self, *args: Any, **more: Any) -> None:
        if Unsteady.failures:
            Unsteady.failures -= 1
            raise RuntimeError("the network is down")
        super().put_file(*args, **more)


@pytest.fixture
def unsteady() -> Iterator[type[Unsteady]]:
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    yield Unsteady
    Unsteady.failures = 0
    Unsteady.store.clear()
    Unsteady.pseudo_dirs[:] = [""]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "step-00000005"
    folder.mkdir(parents=True)
    for name in (*FILES, INFO_FILE):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_run_is_mirrored_whole(where: str, train_squares: Train, tmp_path: Path) -> None:
    address = "memory://bucket/run" if where == "memory" else str(tmp_path / "elsewhere")
    run = train_squares("optim.steps=4", "run.checkpoint_steps=2", f"run.mirror={json.dumps(address)}")
    files, root = fsspec.core.url_to_fs(address)
    assert json.loads(files.cat_file(f"{root}/{LATEST}")) == {"folder": "step-00000004"}
    back = tmp_path / "back"
    files.get(f"{root}/step-00000004", str(back), recursive=True)
    assert check_whole(back) == 4
    for name in (*FILES, INFO_FILE):  # the numbers of the last validation too
        assert (back / name).read_bytes() == (run / name).read_bytes()
    assert json.loads((back / INFO_FILE).read_text())["metrics"]["validation"]["all"]


def test_what_fails_is_tried_again(
    checkpoint: Path, unsteady: type[Unsteady], caplog: pytest.LogCaptureFixture
) -> None:
    unsteady.failures = 2
    with caplog.at_level(logging.WARNING), Mirror("unsteady://there", pauses_s=(0.0, 0.0)) as mirror:
        mirror.send(checkpoint)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert (
        "step-00000005 was not copied to unsteady://there (attempt 2): RuntimeError: the network is down" in caplog.text
    )
    files, root = fsspec.core.url_to_fs("unsteady://there")
    assert files.cat_file(f"{root}/step-00000005/{INFO_FILE}") == INFO_FILE.encode()


def test_a_mirror_that_is_down_does_not_end_the_run(
    train_squares: Train, unsteady: type[Unsteady], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "PAUSES_S", ())
    unsteady.failures = 1
    options = ("optim.steps=4", "run.checkpoint_steps=2", "run.mirror=unsteady://there")
    with caplog.at_level(logging.WARNING):
        run = train_squares(*options)
    assert check_whole(run) == 4
    assert caplog.text.count("the next checkpoint is tried anew") == 1
    files, root = fsspec.core.url_to_fs("unsteady://there")
    assert json.loads(files.cat_file(f"{root}/{LATEST}")) == {"folder": "step-00000004"}


def test_whoever_reads_the_newest_finds_it_whole(checkpoint: Path, unsteady: type[Unsteady]) -> None:
    """The third file fails: neither checkpoint.json nor latest.json is there."""
    put, seen = Unsteady.put_file, []

    def third_fails(self: Unsteady, local: str, remote: str, **more: Any) -> None:
        seen.append(remote.rsplit("/", 1)[1])
        if len(seen) == 3:
            raise RuntimeError("the network is down")
        put(self, local, remote, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unsteady, "put_file", third_fails)
        with Mirror("unsteady://there", pauses_s=()) as mirror:
            mirror.send(checkpoint)
    files, root = fsspec.core.url_to_fs("unsteady://there")
    assert len(seen) == 3
    assert not files.exists(f"{root}/step-00000005/{INFO_FILE}")
    assert not files.exists(f"{root}/{LATEST}")


def test_folders_on_their_way_are_in_use(checkpoint: Path, unsteady: type[Unsteady]) -> None:
    """One is being copied; of two that wait the newer one stays."""
    begun, let_go, put = threading.Event(), threading.Event(), Unsteady.put_file
    later = [checkpoint.with_name(f"step-0000000{step}") for step in (6, 7)]
    for folder in later:
        shutil.copytree(checkpoint, folder)

    def waits(self: Unsteady, *args: Any, **more: Any) -> None:
        begun.set()
        assert let_go.wait(60)
        put(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch, Mirror("unsteady://there", pauses_s=()) as mirror:
        patch.setattr(Unsteady, "put_file", waits)
        mirror.send(checkpoint)
        assert begun.wait(60)
        for folder in later:
            mirror.send(folder)
        assert mirror.in_use() == {checkpoint, later[1]}
        let_go.set()
    assert mirror.in_use() == set()
    files, root = fsspec.core.url_to_fs("unsteady://there")
    assert sorted(Path(each).name for each in files.ls(root, detail=False)) == [LATEST, checkpoint.name, later[1].name]


def test_an_address_that_cannot_be_opened_is_said_before_the_work(train_squares: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run.mirror nowhere://x: Protocol not known: nowhere"):
        train_squares("run.mirror=nowhere://x")
    assert not (tmp_path / "run").exists()
