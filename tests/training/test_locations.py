"""Where pretrained weights lie: paths, and files inside installed packages."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from training.locations import located


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that must not be imported, with a file of weights in it."""
    folder = tmp_path / "some_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "models" / "w.pth").write_bytes(b"w")
    (tmp_path / "secret").write_bytes(b"s")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder


def test_a_path_and_a_file_of_a_package(package: Path) -> None:
    assert located(str(package / "models" / "w.pth")) == package / "models" / "w.pth"
    assert located("package:some_weights/models/w.pth").read_bytes() == b"w"
    assert located("package:some_weights/models") == package / "models"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nowhere/at.all", "no such file"),
        ("package:not_installed_at_all/w.pth", "no package 'not_installed_at_all'"),
        ("package:some_weights/other.pth", "has no such file"),
        ("package:some_weights/../secret", "has no such file"),
        ("package:../some_weights", "no package"),
    ],
)
def test_what_is_not_there_is_said(package: Path, where: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        located(where)


def test_no_way_out_of_a_package(package: Path) -> None:
    with pytest.raises(ValueError, match="has no such file"):
        located(f"package:some_weights/{package.parent / 'secret'}")
