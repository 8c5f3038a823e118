"""Folders as repositories, the paths that a listing may hold, and the head of a README.md."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import IntegrityError, RepositoryError, RepositoryNotFound
from model_store.hub.downloading import check
from model_store.hub.folder import FolderRepository
from model_store.hub.repository import RepositoryFile, check_path, read_card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "exported"
    (root / "onnx").mkdir(parents=True)
    (root / "onnx" / "model.onnx").write_bytes(bytes(range(100)))
    (root / "config.json").write_text("{}")
    (root / ".cache").mkdir()
    (root / ".cache" / "hidden").write_text("hidden")
    (root / ".gitattributes").write_text("hidden")
    return root


def test_a_folder_lists_its_files(folder: Path) -> None:
    repository = FolderRepository(folder)
    assert (repository.name, repository.revision, repository.licence) == ("exported", None, None)
    assert repository.files() == {
        "config.json": RepositoryFile(path="config.json", size_bytes=2),
        "onnx/model.onnx": RepositoryFile(path="onnx/model.onnx", size_bytes=100),
    }
    assert repository.fetch(["onnx/model.onnx"]) == folder
    assert repository.read_range("onnx/model.onnx", 10, 3) == b"\n\v\f"
    with pytest.raises(RepositoryNotFound, match=r"exported has no file other\.json"):
        repository.fetch(["config.json", "other.json"])
    with pytest.raises(RepositoryError, match="has 100 bytes, not 102"):
        repository.read_range("onnx/model.onnx", 98, 4)
    with pytest.raises(RepositoryError, match="is not a folder"):
        FolderRepository(folder / "config.json")


def test_a_link_may_not_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "same.json").symlink_to("config.json")
    assert "same.json" in FolderRepository(folder).files()
    (tmp_path / "secret").write_text("secret")
    (folder / "link.json").symlink_to("../secret")
    with pytest.raises(RepositoryError, match=r"exported/link\.json is a link to .*/secret, outside of the folder"):
        FolderRepository(folder).files()


def test_a_snapshot_of_the_hubs_cache_is_a_folder_too(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_bytes(b"12345")
    (snapshot / "model.onnx").symlink_to("../../blobs/abc")
    repository = FolderRepository(snapshot)
    assert repository.files()["model.onnx"].size_bytes == 5
    assert (repository.fetch(["model.onnx"]) / "model.onnx").read_bytes() == b"12345"
    (tmp_path / "models--c--d").mkdir()
    (tmp_path / "models--c--d" / "other").write_bytes(b"other")
    (snapshot / "other.onnx").symlink_to("../../../models--c--d/other")
    with pytest.raises(RepositoryError, match="outside of the folder"):
        FolderRepository(snapshot).files()


def test_a_pointer_of_git_lfs_is_no_model(folder: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 352000000\n"
    (folder / "onnx" / "model.onnx").write_text(pointer)
    with pytest.raises(RepositoryError, match="git lfs pull"):
        FolderRepository(folder).fetch(["onnx/model.onnx"])


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../a", "/etc/passwd", "a/../../b", "a/..", "a//b", "a/./b", "a\\b", "C:/a", "a\0b", "a/"]
)
def test_paths_that_leave_a_folder_are_refused(path: str) -> None:
    with pytest.raises(RepositoryError, match="does not stay in its folder"):
        check_path(path, "acme/clip")


@given(st.text(alphabet="ab./\\:\0 é*", max_size=12))
def test_an_accepted_path_stays_in_its_folder(path: str) -> None:
    try:
        accepted = check_path(path, "acme/clip")
    except RepositoryError:
        return
    joined = (Path("/folder") / accepted).resolve()
    assert joined.relative_to("/folder").as_posix() == path


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": "other", "license_name": "apple-amlr", "license_link": "LICENSE"}, "apple-amlr"),
        ({"license_name": "acme"}, "acme"),
        ({"license": "other"}, "other"),
        ({"license": ["mit", "apache-2.0"]}, "mit, apache-2.0"),
        ({"license": 3}, None),
        ({"tags": ["clip"]}, None),
    ],
)
def test_the_licence_is_what_the_readme_states(tmp_path: Path, head: dict[str, object], licence: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n# A model\nlicense: not-here\n")
    assert FolderRepository(tmp_path).licence == licence


def test_base_models_are_what_the_readme_states(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nbase_model: openai/clip-vit-base-patch32\n---\n")
    assert FolderRepository(tmp_path).base_models == ("openai/clip-vit-base-patch32",)


@given(st.text(max_size=60) | st.text(alphabet="-:&*[]{}#\n ab!", max_size=60))
def test_no_readme_stops_a_pull(tmp_path_factory: pytest.TempPathFactory, head: str) -> None:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "README.md").write_text(f"---\n{head}\n---\n", encoding="utf-8", errors="surrogatepass")
    card = read_card(folder)
    assert card.licence is None or isinstance(card.licence, str)


def test_a_file_is_compared_with_what_is_stated(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    check(file, RepositoryFile(path="model.onnx", size_bytes=3, sha256=digest))
    with pytest.raises(IntegrityError, match="has 3 bytes, expected 4"):
        check(file, RepositoryFile(path="model.onnx", size_bytes=4, sha256=digest))
    with pytest.raises(IntegrityError, match=f"has sha256 {digest}, expected {'0' * 64}"):
        check(file, RepositoryFile(path="model.onnx", size_bytes=3, sha256="0" * 64))


def test_a_licence_moves_no_terminal(tmp_path: Path) -> None:
    """What a stranger writes there is printed: no control characters, no lines, and not much of it."""
    licence = r"\e[31mmit\e]0;title\a\u202e\nsecond" + "x" * 5000
    (tmp_path / "README.md").write_text(f'---\nlicense: "{licence}"\n---\n', encoding="utf-8")
    found = FolderRepository(tmp_path).licence
    assert found
    assert found.startswith("[31mmit]0;titlesecond")
    assert found.isprintable()
    assert len(found) == 200
