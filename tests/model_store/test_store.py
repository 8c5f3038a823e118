"""Opening, tampering, publishing: an artifact is complete and untouched, or it is refused by name."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_store.errors import ArtifactError, ArtifactExists, ArtifactNotFound, IntegrityError, ManifestError
from model_store.identity import fingerprint, space_of
from model_store.manifest import Fingerprint, Manifest
from model_store.store import DEFAULT_MODEL, Artifact, Store, copy_to_change, file_entries, replace
from tests.stores import TINY_STORE

TINY_FILES = sorted(
    p.relative_to(TINY_STORE / "tiny" / "1").as_posix()
    for p in (TINY_STORE / "tiny" / "1").rglob("*")
    if p.is_file() and p.name != "manifest.json"
)


BUILD = "986bcdaf9fc6ab0919264b46bc33f06b7a451654c697ccf34a3fc6b9ad912674"  # as first published


def edit_manifest(artifact: Artifact, **changes: object) -> None:
    path = artifact.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (artifact.folder / "manifest.sha256").unlink(missing_ok=True)  # what is checked is behind the seal


def test_open_by_name_and_by_version(store: Store, tiny: Artifact) -> None:
    assert store.open("tiny@1").manifest == tiny.manifest
    assert [a.reference for a in store.list()] == ["tiny@1"]
    tiny.verify()


def test_a_manifest_with_the_keys_of_the_first_artifacts_is_read(store: Store, tiny: Artifact) -> None:
    """They held `arrays: []` and `labels: null`, whatever the model; the files and the seal stay as they were."""
    stored = (tiny.folder / "manifest.json").read_bytes()
    old = json.loads(stored)
    assert old["arrays"] == []
    assert {graph["labels"] for graph in old["graphs"]} == {None}
    found = store.open("tiny@1")
    written = found.manifest.model_dump()
    assert "arrays" not in written
    assert not [graph for graph in written["graphs"] if "labels" in graph]
    assert found.build("fp32") == BUILD
    assert (tiny.folder / "manifest.json").read_bytes() == stored


@pytest.mark.parametrize(
    "change",
    [
        {"arrays": [{"role": "reranker", "file": "a.npy", "shape": [3], "labels": None}]},
        {"graphs": [{"labels": ["cat"]}]},
        {"images": []},
    ],
    ids=["an array", "labels of a graph", "an unknown key"],
)
def test_a_manifest_that_says_more_than_is_understood_is_refused(
    store: Store, tiny: Artifact, change: dict[str, list[dict[str, object]]]
) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_bytes())
    changed = {key: [{**manifest[key][0], **value[0]}] if key == "graphs" else value for key, value in change.items()}
    edit_manifest(tiny, **changed)
    with pytest.raises(ManifestError, match="Extra inputs"):
        store.open("tiny@1")


def test_the_default_is_the_only_model_of_a_folder(store: Store, tiny: Artifact, tmp_path: Path) -> None:
    assert store.default_name() == "tiny"
    assert Store(tmp_path / "none", builtin=False).default_name() is None
    add_name(store, tiny, "other")
    assert store.default_name() is None


def test_a_shipped_model_comes_first_and_among_several_the_one_that_the_code_names(
    store: Store, tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = Store(None).default_name()
    assert shipped in {artifact.manifest.name for artifact in Store(None).list()}
    assert Store(store.root).default_name() == shipped
    monkeypatch.setattr("model_store.store.BUILTIN_FOLDER", tmp_path / "builtin")
    assert Store(store.root).default_name() == "tiny"
    builtin = Store(tmp_path / "builtin", builtin=False)
    for name, expected in (("zebra", "zebra"), ("aardvark", None), (DEFAULT_MODEL, DEFAULT_MODEL)):
        add_name(builtin, tiny, name)
        assert Store(store.root).default_name() == expected
    assert builtin.default_name() is None  # it names a shipped model, not any of this name


def add_name(store: Store, tiny: Artifact, name: str) -> None:
    """Put a copy of the tiny artifact under another name."""
    assert store.root
    folder = Path(shutil.copytree(tiny.folder, store.root / name / "1"))
    edit_manifest(dataclasses.replace(tiny, folder=folder), name=name)


@pytest.mark.parametrize(
    "name", ["nope", "tiny@2", "tiny@", "tiny@x", "../tiny", "", "Tiny", "a" * 100, "tiny@1@1", "."]
)
def test_an_unknown_or_improper_name_is_not_found(store: Store, name: str) -> None:
    with pytest.raises(ArtifactNotFound):
        store.open(name)


@pytest.mark.parametrize("file", TINY_FILES)
def test_one_flipped_bit_in_any_file_is_refused_by_name(tiny: Artifact, file: str) -> None:
    path = tiny.folder / file
    data = bytearray(path.read_bytes())
    position = random.Random(file).randrange(len(data) * 8)
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=file):
        tiny.read(file)
    with pytest.raises(IntegrityError, match=file):
        tiny.verify()


def test_a_truncated_file_is_refused(tiny: Artifact) -> None:
    path = tiny.folder / "image_encoder.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="bytes"):
        tiny.verify()


def test_links_are_refused(tiny: Artifact, tmp_path: Path) -> None:
    path = tiny.folder / "image_encoder.fp32.onnx"
    copy = tmp_path / "copy.onnx"
    shutil.copy(path, copy)
    path.unlink()
    path.symlink_to(copy)
    with pytest.raises(IntegrityError):
        tiny.read("image_encoder.fp32.onnx")
    path.unlink()
    os.link(copy, path)
    with pytest.raises(IntegrityError, match="hard links"):
        tiny.read("image_encoder.fp32.onnx")


def test_a_fifo_a_folder_link_and_an_extra_file_are_refused(tiny: Artifact, tmp_path: Path) -> None:
    (tiny.folder / "extra.txt").write_text("x")
    with pytest.raises(IntegrityError, match=r"extra\.txt"):
        tiny.verify()
    (tiny.folder / "extra.txt").unlink()
    shutil.move(tiny.folder / "goldens", tmp_path / "elsewhere")
    (tiny.folder / "goldens").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="outside"):
        tiny.read("goldens/cases.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"colour": "red"},
        {"activation": "relu"},
        {"version": 7},
        {"name": "other"},
        {"templates": ["no placeholder"]},
        {"goldens": "../../secret"},
        {"logit_scale": -1},
        {"files": []},
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(store: Store, tiny: Artifact, changes: dict[str, object]) -> None:
    edit_manifest(tiny, **changes)
    with pytest.raises(ManifestError):
        store.open("tiny")
    assert store.list() == []
    assert len(store.problems()) == 1


@given(st.data())
def test_a_damaged_manifest_is_an_error_of_the_tree_or_still_valid(data: st.DataObject) -> None:
    source = (TINY_STORE / "tiny" / "1" / "manifest.json").read_bytes()
    raw = bytearray(source)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValidationError):
        Manifest.model_validate_json(bytes(raw))


def stage(store: Store, folder: Path, tiny: Artifact, **changes: object) -> Manifest:
    for file in TINY_FILES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tiny.folder / file, folder / file)
    return tiny.manifest.model_copy(update={"files": file_entries(folder), **changes})


def test_publish_makes_a_version_that_opens(store: Store, tiny: Artifact) -> None:
    with store.staging() as folder:
        manifest = stage(store, folder, tiny, version=store.next_version("tiny"))
        published = store.publish(folder, manifest)
    published.verify()
    assert store.open("tiny").reference == "tiny@2"
    assert [each.name for each in (store.root / ".staging").iterdir()] == ["lock"]  # type: ignore[operator]


def test_publish_never_overwrites(store: Store, tiny: Artifact) -> None:
    with store.staging() as folder, pytest.raises(ArtifactExists):
        store.publish(folder, stage(store, folder, tiny))


def test_publish_refuses_files_that_are_not_the_manifests(store: Store, tiny: Artifact) -> None:
    with store.staging() as folder:
        manifest = stage(store, folder, tiny, version=2)
        (folder / "text_encoder.fp32.onnx").write_bytes(b"other")
        with pytest.raises(IntegrityError, match="text_encoder"):
            store.publish(folder, manifest)
    assert store.open("tiny").reference == "tiny@1"


def test_a_folder_without_a_manifest_is_no_artifact(store: Store) -> None:
    (store.root / "tiny" / "9").mkdir()  # type: ignore[operator]
    assert store.open("tiny").reference == "tiny@1"


def test_remove(store: Store) -> None:
    store.remove("tiny", 1)
    assert store.list() == []


def test_a_derivation_inherits_roles_and_checks_its_base(store: Store, tiny: Artifact) -> None:
    def derive(folder: Path, fingerprint: Fingerprint) -> Manifest:
        manifest = stage(store, folder, tiny)
        text = manifest.graph("text_encoder", "fp32")
        base = {"name": "tiny", "version": 1, "fingerprint": fingerprint}
        changes = {"name": "child", "kind": "derivation", "base": base, "graphs": [text], "image": None, "dense": None}
        return Manifest.model_validate(manifest.model_dump() | changes)

    with store.staging() as folder:
        child = store.publish(folder, derive(folder, tiny.manifest.fingerprint))
    owner, spec = child.graph_spec("image_encoder", "fp32") or pytest.fail("no inherited graph")
    assert owner.reference == "tiny@1"
    assert child.image_spec == tiny.image_spec
    assert spec.role in child.roles()
    edit_manifest(child, base={"name": "tiny", "version": 1, "fingerprint": {"image": "0" * 64, "text": None}})
    with pytest.raises(IntegrityError, match="fingerprints differ"):
        store.open("child")


def test_build_changes_with_precision_and_fingerprint_does_not(tiny: Artifact) -> None:
    assert tiny.build("fp32") != tiny.build("int8")
    assert tiny.manifest.space == space_of(tiny.manifest.fingerprint)


def test_fingerprint_follows_weights_names_spec_and_recipe(tiny: Artifact) -> None:
    import numpy as np

    spec = tiny.manifest.image
    assert spec is not None
    weights = [("a", np.ones((2, 3))), ("b", np.zeros(4))]
    first = fingerprint(weights, spec, "1")
    assert fingerprint(reversed(weights), spec, "1") == first
    others = [
        fingerprint([("a", np.ones((3, 2))), weights[1]], spec, "1"),
        fingerprint([("c", weights[0][1]), weights[1]], spec, "1"),
        fingerprint(weights, spec, "2"),
        fingerprint(weights, spec.model_copy(update={"interpolation": "bilinear"}), "1"),
        fingerprint(weights, spec, "1", b"tokenizer"),
    ]
    assert len({first, *others}) == 6


def test_errors_have_one_tree() -> None:
    assert issubclass(IntegrityError, ArtifactError)


def test_a_changed_copy_takes_the_place_of_an_artifact(store: Store, tiny: Artifact) -> None:
    templates = tiny.manifest.model_copy(update={"templates": ("a drawing of {}",)})
    with copy_to_change(tiny) as staged:
        replace(tiny, staged, templates)
    found = store.open("tiny@1")
    assert (found.manifest.templates, found.sealed) == (("a drawing of {}",), True)
    found.verify()
    assert [each.name for each in tiny.folder.parent.iterdir()] == ["1"]


def test_a_copy_that_is_not_its_manifest_changes_nothing(store: Store, tiny: Artifact) -> None:
    with copy_to_change(tiny) as staged:
        (staged / "image_encoder.fp32.onnx").write_bytes(b"other")
        with pytest.raises(IntegrityError):
            replace(tiny, staged, tiny.manifest)
    store.open("tiny@1").verify()
    assert [each.name for each in tiny.folder.parent.iterdir()] == ["1"]
