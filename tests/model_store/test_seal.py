"""No bit of a sealed manifest changes unseen; artifacts of before have no seal and say so."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.errors import ArtifactError, ArtifactNotFound, IntegrityError, ManifestError
from model_store.graph import open_graph
from model_store.manifest import Manifest
from model_store.seal import MANIFEST_FILE, SEAL_FILE, write_manifest
from model_store.store import Artifact, Store


@pytest.fixture
def sealed(store: Store, tiny: Artifact) -> Artifact:
    write_manifest(tiny.folder, tiny.manifest)
    return store.open("tiny")


def test_every_flipped_bit_is_refused(store: Store, sealed: Artifact) -> None:
    assert sealed.sealed
    rng = random.Random(11)
    for name in (MANIFEST_FILE, SEAL_FILE):
        path = sealed.folder / name
        good = path.read_bytes()
        for place in rng.sample(range(8 * len(good)), 300):
            bad = bytearray(good)
            bad[place // 8] ^= 1 << (place % 8)
            path.write_bytes(bad)
            with pytest.raises(IntegrityError, match="seal"):
                store.open("tiny")
        path.write_bytes(good)
    assert store.open("tiny").sealed


@pytest.mark.parametrize("data", [b"", b"0" * 64, b"x" * 200, b"\xff"])
def test_a_seal_that_is_none_is_refused_and_does_not_hide_other_models(
    store: Store, sealed: Artifact, data: bytes
) -> None:
    (sealed.folder / SEAL_FILE).write_bytes(data)
    with pytest.raises(IntegrityError):
        store.open("tiny")
    assert any("seal" in problem for problem in store.problems())


def test_artifacts_of_before_have_no_seal_and_load(store: Store, tiny: Artifact) -> None:
    assert not tiny.sealed
    tiny.verify()


def test_what_is_published_is_sealed_and_coreutils_agree(store: Store, tiny: Artifact) -> None:
    with store.staging() as folder:
        for entry in tiny.manifest.files:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny.folder / entry.path, folder / entry.path)
        published = store.publish(folder, tiny.manifest.model_copy(update={"version": 2}))
    assert published.sealed
    published.verify()
    check = subprocess.run(["sha256sum", "-c", SEAL_FILE], cwd=published.folder, capture_output=True, check=False)
    assert check.returncode == 0
    assert Manifest.model_validate_json((published.folder / MANIFEST_FILE).read_bytes()) == published.manifest


def test_the_shipped_artifacts_are_sealed() -> None:
    assert {artifact.sealed for artifact in Store(None).list()} == {True}


def link_folder(folder: Path, elsewhere: Path) -> None:
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


def link_name(folder: Path, elsewhere: Path) -> None:
    link_folder(folder.parent, elsewhere)


def link_manifest(folder: Path, elsewhere: Path) -> None:
    link_folder(folder / MANIFEST_FILE, elsewhere)


def pipe_for_manifest(folder: Path, elsewhere: Path) -> None:
    (folder / SEAL_FILE).write_bytes(b"")
    os.unlink(folder / SEAL_FILE)
    os.mkfifo(folder / SEAL_FILE)


@pytest.mark.parametrize("change", [link_folder, link_name, link_manifest, pipe_for_manifest])
def test_links_and_pipes_are_refused(
    store: Store, tiny: Artifact, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    change(tiny.folder, tmp_path / "elsewhere")
    with pytest.raises((IntegrityError, ManifestError)):
        store.open("tiny")
    assert store.problems()


@pytest.mark.parametrize(
    "reference",
    ["tiny@" + "9" * 5000, "tiny@1" + "0" * 400, "tiny@\u0661", "tiny@01", "tiny@-1", "tiny@1.0", "tiny@", "x" * 9000],
)
def test_strange_versions_are_not_found(store: Store, reference: str) -> None:
    with pytest.raises(ArtifactNotFound) as caught:
        store.open(reference)
    assert len(str(caught.value)) < 300


def test_external_data_that_is_not_listed_is_not_loaded(store: Store, tiny: Artifact) -> None:
    """A graph names its data files itself; only those that the manifest lists may lie beside it."""
    onnx = pytest.importorskip("onnx")
    from model_store.store import file_entries

    spec = next(each for each in tiny.manifest.graphs if each.role == "text_encoder")
    path = tiny.folder / spec.file
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="own.data", size_threshold=0)
    listed = tuple(entry for entry in file_entries(tiny.folder) if entry.path != "own.data")
    write_manifest(tiny.folder, tiny.manifest.model_copy(update={"files": listed}))
    changed = store.open("tiny")
    with pytest.raises(ArtifactError):
        open_graph(changed, spec)
    graphs = tuple(
        each.model_copy(update={"external_files": (tiny.manifest.goldens,)}) if each == spec else each
        for each in tiny.manifest.graphs
    )
    write_manifest(tiny.folder, tiny.manifest.model_copy(update={"files": listed, "graphs": graphs}))
    changed = store.open("tiny")
    found = changed.manifest.graph("text_encoder", spec.precision)
    assert found
    with pytest.raises(IntegrityError, match=r"own\.data"):
        open_graph(changed, found)
