"""Files that are whole or not there, whatever happens while they are written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.files import replace_folder, whole_file, write_whole


@pytest.mark.parametrize("by_many", [False, True])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, by_many: bool) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def fail() -> None:
        with whole_file(path, by_many=by_many) as stream:
            stream.write(b"half of the new")
            stream.flush()
            assert path.read_bytes() == b"old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"old"


def test_what_was_written_can_be_read_before_it_counts(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as stream:
        stream.write(b"12345")
        stream.seek(1)
        assert stream.read() == b"2345"
    assert (tmp_path / "a").read_bytes() == b"12345"


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")
    code = (
        "import os, sys; from pathlib import Path; from model_store.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'new' * 100_000); stream.flush(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")  # over what the killed one left
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new", ["a"])


def test_a_full_disk_or_a_missing_folder_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "no" / "folder", b"")


def two_folders(parent: Path) -> tuple[Path, Path]:
    for name in ("live", "new"):
        (parent / name / "sub").mkdir(parents=True)
        (parent / name / "sub" / "a").write_text(name)
    return parent / "live", parent / "new"


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    live, new = two_folders(tmp_path)
    (live / "gone").touch()
    replace_folder(live, new)
    assert [each.name for each in tmp_path.iterdir()] == ["live"]
    assert [each.name for each in live.rglob("*")] == ["sub", "a"]
    assert (live / "sub" / "a").read_text() == "new"


def test_a_folder_that_cannot_be_moved_in_changes_nothing(tmp_path: Path) -> None:
    live, new = two_folders(tmp_path)
    with pytest.raises(FileNotFoundError):
        replace_folder(live, tmp_path / "no such")
    assert (live / "sub" / "a").read_text() == "live"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["live", "new"]
    assert new.is_dir()
