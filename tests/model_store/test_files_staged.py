"""Folders in which artifacts are built: removed when their process was killed, left alone while it lives."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model_store.files import one_at_a_time, staged_folder

# Stages a folder with a file in it, says its name, and holds it until it is killed.
HOLDS = """
import sys, time
from pathlib import Path
from model_store.files import one_at_a_time, staged_folder
with one_at_a_time(Path(sys.argv[1]), "a", lambda: None), staged_folder(Path(sys.argv[1])) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(b"1" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(home: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(home)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        try:
            yield child, Path(child.stdout.readline().strip())
        finally:
            child.kill()


def folders(home: Path) -> list[Path]:
    return [each for each in home.iterdir() if each.is_dir()]


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with holding(tmp_path) as (child, left):
        with staged_folder(tmp_path) as folder:
            assert sorted(folders(tmp_path)) == sorted([folder, left])
            assert (left / "deep" / "weights").exists(), "the process that builds it is alive"
        child.kill()
        child.wait()
    assert folders(tmp_path) == [left]
    with staged_folder(tmp_path) as folder:
        assert folders(tmp_path) == [folder]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.name", "lock"]


def test_two_folders_of_one_process_do_not_remove_each_other(tmp_path: Path) -> None:
    with staged_folder(tmp_path) as first, staged_folder(tmp_path) as second:
        assert sorted(folders(tmp_path)) == sorted([first, second])
    with pytest.raises(RuntimeError), staged_folder(tmp_path) as folder:
        raise RuntimeError(folder)
    assert folders(tmp_path) == []


def test_a_folder_that_moved_away_stays(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "home") as folder:
        folder.rename(tmp_path / "published")
    with staged_folder(tmp_path / "home"):
        assert (tmp_path / "published").is_dir()


def test_one_name_at_a_time_whatever_happens_to_the_other(tmp_path: Path) -> None:
    with holding(tmp_path) as (child, _):
        with one_at_a_time(tmp_path, "other", pytest.fail) as waited:
            assert not waited
        asked: list[float] = []

        def waiting() -> None:
            asked.append(time.monotonic())
            child.kill()

        with one_at_a_time(tmp_path, "a", waiting) as waited:
            assert waited
            assert len(asked) == 1
            assert child.wait(10) < 0
