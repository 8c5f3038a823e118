"""Derivations: what is inherited, which space a changed tower may claim, and heads that say what was published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model_store.errors import ArtifactInUse, ArtifactNotFound, GoldenError, IntegrityError, ManifestError
from model_store.golden import DerivationGoldens, Goldens, output_key, tolerance_for, write_goldens
from model_store.identity import space_of
from model_store.manifest import ADAPTERS, ENCODERS, Fingerprint, GraphSpec, HeadSpec, Manifest, TensorSpec
from model_store.proving import Proof
from model_store.session import SessionSettings
from model_store.store import Artifact, Store, file_entries
from model_store.towers import adapt, normalized, on_cpu, open_head, open_tower

onnx = pytest.importorskip("onnx")

OTHER = "1" * 64
LABELS = ("red", "green", "blue")
MEASURED = {
    "n": 12, "cosine_min": 1.0, "cosine_mean": 1.0, "centred_cosine_min": 1.0, "centred_cosine_mean": 1.0,
    "centred_relative_l2": 0.0,
}  # fmt: skip
PROOF = {
    "tower": "text", "statement": "captions find their pictures", "n": 100, "metric": "R@1", "value": 0.8,
    "at_least": 0.5, "base_value": 0.4, "fingerprint": OTHER,
}  # fmt: skip


def write_linear(path: Path, weight: np.ndarray, bias: np.ndarray, output: str) -> None:
    """An ONNX file: output = vectors @ weight.T + bias."""
    helper, kinds = onnx.helper, onnx.TensorProto
    size, dim = weight.shape
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["vectors", "weight", "bias"], [output], transB=1)],
        "linear",
        [helper.make_tensor_value_info("vectors", kinds.FLOAT, ["batch", dim])],
        [helper.make_tensor_value_info(output, kinds.FLOAT, ["batch", size])],
        initializer=[
            onnx.numpy_helper.from_array(weight.astype(np.float32), "weight"),
            onnx.numpy_helper.from_array(bias.astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def follower(role: str, file: str, dim: int, size: int, **more: Any) -> GraphSpec:
    output = "logits" if role == "class_head" else "adapted"
    return GraphSpec.model_validate(
        {
            "role": role, "precision": "fp32", "file": file, "normalized_input": True, "batch_invariant": True,
            "batch_difference": 0, "chain": {"fp32": MEASURED, "int8": {**MEASURED, "centred_relative_l2": 0.05}},
            "inputs": (TensorSpec(name="vectors", dtype="float32", shape=("batch", dim)),),
            "outputs": (TensorSpec(name=output, dtype="float32", shape=("batch", size)),), **more,
        }
    )  # fmt: skip


def publish_head(store: Store, tiny: Artifact, *, seed: int = 0, reference: np.ndarray | None = None) -> Artifact:
    """`head@1`: tiny with a head of three colours; `reference` are other golden logits than its own."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((3, 32)), rng.standard_normal(3)
    spec = HeadSpec(name="colours", labels=LABELS, input_fingerprint=tiny.manifest.fingerprint.image or "")
    graph = follower("class_head", "head.onnx", 32, 3, head="colours")
    logits = normalized(Goldens(tiny).arrays["image_embeds"]) @ weight.T + bias
    with store.staging() as folder:
        write_linear(folder / "head.onnx", weight, bias, "logits")
        goldens = DerivationGoldens(
            outputs={"head.colours": (logits if reference is None else reference).astype(np.float32)},
            head_tolerances={"colours": {p: tolerance_for(p, f) for p, f in graph.chain.items()}},
            heads=(spec,),
        )
        write_goldens(folder, image=None, text=None, tolerances={}, derived=goldens)
        return store.publish(folder, derived(tiny, folder, "head", graphs=(graph,), heads=(spec,)))


def publish_text(store: Store, tiny: Artifact, *, base: Artifact | None = None, **changes: Any) -> Artifact:
    """`cured@1`: tiny with a text tower under another name, and a proof that it may keep the space."""
    with store.staging() as folder:
        graphs = tuple(g for g in tiny.manifest.graphs if g.role == "text_encoder")
        copy_graphs(tiny, graphs, folder)
        shutil.copytree(tiny.folder / "goldens", folder / "goldens")
        cases = json.loads((folder / "goldens/cases.json").read_text()) | {"space_proofs": [PROOF]}
        (folder / "goldens/cases.json").write_text(json.dumps(cases))
        names = {"image": tiny.manifest.fingerprint.image, "text": OTHER}
        fields = {"graphs": graphs, "fingerprint": names, "space_proofs": (PROOF,)} | changes
        return store.publish(folder, derived(base or tiny, folder, "cured", **fields))


def copy_graphs(source: Artifact, graphs: Iterable[GraphSpec], folder: Path) -> None:
    for name in {name for graph in graphs for name in graph.files}:
        shutil.copyfile(source.folder / name, folder / name)


def derived(base: Artifact, folder: Path, name: str, **changes: Any) -> Manifest:
    above = base.manifest
    fields = above.model_dump() | {
        "name": name, "kind": "derivation", "image": None, "text": None, "dense": None, "graphs": (), "skipped": (),
        "heads": (),
        "base": {"name": above.name, "version": above.version, "fingerprint": above.fingerprint},
        "files": file_entries(folder),
    }  # fmt: skip
    return Manifest.model_validate(fields | changes)


def edit(artifact: Artifact, change: Callable[[dict[str, Any]], object]) -> None:
    path = artifact.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    (artifact.folder / "manifest.sha256").unlink(missing_ok=True)  # what is checked is behind the seal


def prove(artifact: Artifact, precision: Any = "fp32") -> None:
    settings = SessionSettings(intra_threads=1)
    proof = Proof(artifact)
    proof.check_inputs(artifact.tokenizer())
    heads = {name: open_head(artifact, name, settings) for name in artifact.heads()}
    for role in ENCODERS:
        tower = open_tower(artifact, role, artifact.served_precision(role, precision), settings)
        proof.check_tower(role, tower, heads, batch_size=4)


def test_a_head_is_inherited_with_its_encoder_and_proves_itself(store: Store, tiny: Artifact) -> None:
    head = publish_head(store, tiny)
    assert head.manifest.space == tiny.manifest.space
    assert set(head.roles()) == {"class_head", "dense_encoder", *ENCODERS}
    assert head.build("fp32") != tiny.build("fp32")
    cured = publish_text(store, tiny, base=head)
    assert cured.heads()["colours"].labels == LABELS  # another text tower: the image vectors are the same
    assert cured.head_graph("colours")[0].reference == "head@1"
    for artifact in (head, cured):
        for precision in ("fp32", "int8"):
            prove(artifact, precision)
    with pytest.raises(ArtifactNotFound, match=r"no class head 'shapes', it has \['colours'\]"):
        head.head_graph("shapes")


def test_a_new_image_encoder_inherits_neither_heads_nor_adapters(store: Store, tiny: Artifact) -> None:
    head = publish_head(store, tiny)
    image = tuple(g for g in tiny.manifest.graphs if g.role == "image_encoder")
    names = Fingerprint(image=OTHER, text=tiny.manifest.fingerprint.text)
    with store.staging() as folder:
        copy_graphs(tiny, image, folder)
        shutil.copytree(tiny.folder / "goldens", folder / "goldens")
        child = derived(head, folder, "student", graphs=image, fingerprint=names, space=space_of(names))
        student = store.publish(folder, child)
    assert student.heads() == {}
    assert not {"class_head", "dense_encoder"} & set(student.roles())  # another encoder: another tower's positions
    assert student.dense_spec is None
    assert student.manifest.space != tiny.manifest.space


def test_an_int8_encoder_that_its_head_was_not_measured_with_is_not_served(store: Store, tiny: Artifact) -> None:
    head = publish_head(store, tiny)
    assert head.served_precision("image_encoder", "int8") == "int8"
    edit(head, lambda m: m["graphs"][0]["chain"].pop("int8"))
    lame = store.open("head")
    assert [lame.served_precision(role, "int8") for role in ENCODERS] == ["fp32", "int8"]
    with pytest.raises(ArtifactNotFound, match="not measured with it in int8"):
        open_tower(lame, "image_encoder", "int8", SessionSettings())


def test_an_adapter_has_a_space_of_its_own_and_keeps_a_zero_vector_zero(store: Store, tiny: Artifact) -> None:
    weight, bias = np.random.default_rng(1).standard_normal((32, 32)), np.ones(32)
    graph = follower("image_adapter", "adapter.onnx", 32, 32)
    names = Fingerprint(image=OTHER, text=tiny.manifest.fingerprint.text)
    adapted = normalized(Goldens(tiny).arrays["image_embeds"]) @ weight.T + bias
    with store.staging() as folder:
        write_linear(folder / "adapter.onnx", weight, bias, "adapted")
        tolerances = {"image_adapter": {p: tolerance_for(p, f) for p, f in graph.chain.items()}}
        outputs = {output_key("image_adapter"): adapted.astype(np.float32)}
        write_goldens(folder, image=None, text=None, tolerances=tolerances, derived=DerivationGoldens(outputs=outputs))  # type: ignore[arg-type]
        manifest = derived(tiny, folder, "adapted", graphs=(graph,), fingerprint=names)
        with pytest.raises(ManifestError, match="image tower is another one"):
            store.publish(folder, manifest)
        adapter = store.publish(folder, manifest.model_copy(update={"space": space_of(names)}))
    prove(adapter)
    opened = open_tower(adapter, "image_encoder", "fp32", SessionSettings())
    vectors = np.stack([np.zeros(32), np.eye(32)[0] * 5]).astype(np.float32)
    assert opened.adapter is not None
    got = adapt(opened.adapter, vectors)
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1], weight[:, 0] + 1, rtol=1e-5, atol=1e-5)
    edit(adapter, lambda m: m.update(dim=16))
    with pytest.raises(ManifestError, match="gives 32 numbers, the manifest says 16"):
        store.open("adapted")


SPACE_CASES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no proof": (lambda m: m.update(space_proofs=[]), "no measured proof"),
    "proof of another tower": (lambda m: m["space_proofs"][0].update(fingerprint="2" * 64), "about another text tower"),
    "proof without a tower": (lambda m: m["space_proofs"][0].update(fingerprint=None), "about another text tower"),
    "no bound": (lambda m: m["space_proofs"][0].update(at_least=None), "no bound to reach"),
    "missed bound": (lambda m: m["space_proofs"][0].update(value=0.49), "R@1 is 0.49, at least 0.5"),
    "one of two fails": (lambda m: m["space_proofs"].append({**PROOF, "value": 0.1}), "R@1 is 0.1"),
    "idle proof": (lambda m: m["space_proofs"].append({**PROOF, "tower": "image"}), "which is its base's own"),
    "any space": (lambda m: m.update(space="3" * 64), "neither its base's nor"),
    "renamed image tower": (lambda m: m["fingerprint"].update(image="4" * 64), "image_encoder is inherited"),
    "other pictures": (lambda m: m.update(image=IMAGE_SPEC), "image_encoder is inherited"),
    "other dim": (lambda m: m.update(dim=31), "gives 32 numbers"),
}
IMAGE_SPEC = {
    "height_px": 48, "width_px": 48, "resize_mode": "squash", "interpolation": "bicubic", "mean": [0, 0, 0],
    "std": [1, 1, 1],
}  # fmt: skip


@pytest.mark.parametrize("case", SPACE_CASES)
def test_a_claim_on_the_bases_space_needs_its_proof(store: Store, tiny: Artifact, case: str) -> None:
    cured = publish_text(store, tiny)
    assert cured.manifest.space == tiny.manifest.space
    prove(cured)
    change, message = SPACE_CASES[case]
    edit(cured, change)
    with pytest.raises(ManifestError, match=message):
        store.open("cured")
    assert [artifact.reference for artifact in store.list()] == ["tiny@1"]


def test_without_a_proof_a_changed_tower_makes_a_space_of_its_own(store: Store, tiny: Artifact) -> None:
    names = Fingerprint(image=tiny.manifest.fingerprint.image, text=OTHER)
    cured = publish_text(store, tiny, space_proofs=(), space=space_of(names))
    assert cured.manifest.space != tiny.manifest.space


def test_nothing_refused_is_left_in_the_store(store: Store, tiny: Artifact) -> None:
    with pytest.raises(ManifestError, match="no measured proof"):
        publish_text(store, tiny, space_proofs=())
    assert store.problems() == []
    assert [artifact.reference for artifact in store.list()] == ["tiny@1"]


def test_another_tower_under_the_bases_fingerprint_is_found_out(store: Store, tiny: Artifact) -> None:
    """Manifest and golden cases agree with each other, but not with the base whose name they use."""
    same = publish_text(store, tiny, fingerprint=tiny.manifest.fingerprint, space_proofs=())
    path = same.folder / "goldens" / "cases.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"space_proofs": []}))
    refresh(same)
    prove(store.open("cured"))
    cases = json.loads(path.read_text())
    path.write_text(json.dumps(cases | {"texts": cases["texts"][::-1]}))
    arrays = same.folder / "goldens" / "arrays.npz"
    with np.load(arrays) as stored:
        changed = dict(stored)
    changed["text_embeds"] = changed["text_embeds"][::-1].copy()  # still what its own graph gives for its own texts
    np.savez_compressed(arrays, **changed)
    refresh(same)
    with pytest.raises(GoldenError, match="golden vectors differ"):
        prove(store.open("cured"))


def refresh(artifact: Artifact) -> None:
    """Make the manifest list the files as they are now."""
    entries = [entry.model_dump() for entry in file_entries(artifact.folder)]
    edit(artifact, lambda m: m.update(files=entries))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["heads"][0].update(labels=["green", "red", "blue"]),
        lambda m: m["heads"][0].update(temperature=0.1),
        lambda m: m["heads"][0].update(activation="sigmoid"),
    ],
)
def test_labels_and_temperature_cannot_be_edited_in_the_manifest(
    store: Store, tiny: Artifact, change: Callable[[dict[str, Any]], object]
) -> None:
    head = publish_head(store, tiny)
    edit(head, change)
    edited = store.open("head")
    with pytest.raises(GoldenError, match="heads of the manifest are not those of its golden cases"):
        Proof(edited)
    with pytest.raises(GoldenError, match="heads of the manifest are not those of its golden cases"):
        open_head(edited, "colours", SessionSettings())


def test_a_proofs_numbers_cannot_be_edited_in_the_manifest(store: Store, tiny: Artifact) -> None:
    cured = publish_text(store, tiny)
    edit(cured, lambda m: m["space_proofs"][0].update(value=0.99))
    with pytest.raises(GoldenError, match="space_proofs of the manifest are not those of its golden cases"):
        Proof(store.open("cured"))


def test_edited_golden_cases_and_another_graph_are_refused(store: Store, tiny: Artifact) -> None:
    head = publish_head(store, tiny)
    cases = head.folder / "goldens" / "cases.json"
    text = cases.read_text()
    cases.write_text(text.replace("green", "grean"))
    with pytest.raises(IntegrityError, match=r"cases\.json"):
        Proof(head)
    cases.write_text(text)
    write_linear(head.folder / "head.onnx", np.eye(3, 32), np.zeros(3), "logits")
    refresh(head)
    with pytest.raises(GoldenError, match="class_head colours fp32 is not the exported model"):
        prove(store.open("head"))


def test_golden_logits_are_compared(store: Store, tiny: Artifact) -> None:
    with pytest.raises(GoldenError, match="class_head colours fp32 is not the exported model"):
        prove(publish_head(store, tiny, reference=np.random.default_rng(9).standard_normal((12, 3))))


HEAD_CASES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another encoder": (lambda m: m["heads"][0].update(input_fingerprint=OTHER), "fitted on another image encoder"),
    "a label too few": (lambda m: m["heads"][0]["labels"].pop(), "2 labels, its graph gives 3"),
    "a label twice": (lambda m: m["heads"][0].update(labels=["a", "b", "a"]), "a label occurs twice"),
    "an empty label": (lambda m: m["heads"][0].update(labels=["a", "b", ""]), "at least 1 character"),
    "no labels": (lambda m: m["heads"][0].update(labels=[]), "at least 1 item"),
    "a temperature of 0": (lambda m: m["heads"][0].update(temperature=0), "greater than 0"),
    "no graph": (lambda m: m.update(graphs=[]), "must be the same"),
    "a graph without a name": (lambda m: m["graphs"][0].update(head=None), "names its head"),
    "not measured": (lambda m: m["graphs"][0].update(chain={}), "not measured behind the fp32 encoder"),
    "another precision": (lambda m: m["graphs"][0].update(precision="int8"), "built in fp32 only"),
    "labels of a graph": (lambda m: m["graphs"][0].update(labels=["a"]), "Extra inputs"),
    "two inputs": (lambda m: m["graphs"][0]["inputs"].append(m["graphs"][0]["inputs"][0]), "has one input"),
    "other vectors": (lambda m: m["graphs"][0]["inputs"][0].update(shape=["batch", 8]), "takes 8 numbers"),
    "a fixed batch": (lambda m: m["graphs"][0]["inputs"][0].update(shape=[1, 32]), "free batch axis"),
    "an array nobody runs": (
        lambda m: m.update(arrays=[{"role": "class_head", "file": "head.onnx", "shape": [3]}]),
        "Extra inputs",
    ),
    "its own base": (lambda m: m["base"].update(name="head"), "cannot be its own base"),
}


@pytest.mark.parametrize("case", HEAD_CASES)
def test_a_head_that_does_not_fit_is_refused(store: Store, tiny: Artifact, case: str) -> None:
    head = publish_head(store, tiny)
    change, message = HEAD_CASES[case]
    edit(head, change)
    with pytest.raises(ManifestError, match=message):
        store.open("head")


def test_a_ring_of_bases_and_another_base_are_refused(store: Store, tiny: Artifact) -> None:
    first = publish_head(store, tiny)
    second = publish_text(store, tiny, base=first)
    edit(first, lambda m: m["base"].update(name="cured", fingerprint=second.manifest.fingerprint.model_dump()))
    with pytest.raises(ManifestError, match="head@1 -> cured@1 -> head@1"):
        store.open("head")
    edit(first, lambda m: m["base"].update(name="tiny", fingerprint={"image": OTHER, "text": None}))
    with pytest.raises(IntegrityError, match="fingerprints differ"):
        store.open("cured")


def test_a_base_in_use_is_not_removed(store: Store, tiny: Artifact) -> None:
    publish_head(store, tiny)
    with pytest.raises(ArtifactInUse, match="base of head@1"):
        store.remove("tiny", 1)
    store.remove("head", 1)
    store.remove("tiny", 1)
    assert store.list() == []


def conditional(**changes: Any) -> dict[str, Any]:
    """The manifest's line of a conditional head."""
    inputs = [
        {"name": "image_embeds", "dtype": "float32", "shape": ["batch", 32]},
        {"name": "ids", "dtype": "int64", "shape": ["labels", "length"]},
    ]
    outputs = [{"name": "logits", "dtype": "float32", "shape": ["batch", "labels"]}]
    line: dict[str, Any] = {"role": "conditional_head", "precision": "fp32", "file": "c.onnx", "normalized_input": True}
    line |= {"inputs": inputs, "outputs": outputs, "batch_invariant": True, "batch_difference": 0.0}
    return {**line, "chain": {"fp32": MEASURED}, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "int8"}, "built in fp32 only"),
        ({"batch_invariant": False}, "changes nothing"),
        ({"normalized_input": False}, "unit vectors"),
        ({"inputs": conditional()["inputs"][:1]}, "has the inputs image_embeds"),
        ({"inputs": conditional()["inputs"][::-1]}, "has the inputs image_embeds"),
        ({"outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}]}, "free axes"),
        ({"head": "colours"}, "another graph has none"),
    ],
)
def test_a_conditional_head_says_what_it_takes_or_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert GraphSpec.model_validate_json(json.dumps(conditional())).role == "conditional_head"
    with pytest.raises(ValidationError, match=reason):
        GraphSpec.model_validate_json(json.dumps(conditional(**changes)))


def test_heads_and_adapters_run_on_the_cpu() -> None:
    assert on_cpu(SessionSettings(device="cuda", intra_threads=3)) == SessionSettings(device="cpu", intra_threads=3)
    assert ADAPTERS == ("image_adapter", "text_adapter")


@given(
    labels=st.lists(st.text(max_size=3), max_size=4),
    temperature=st.one_of(st.floats(), st.integers(-2, 2)),
    activation=st.sampled_from(["softmax", "sigmoid", "none", "", None]),
    name=st.text(alphabet="aB0._-/ ", max_size=5),
)
def test_a_head_is_read_as_it_was_written_or_refused(
    labels: list[str], temperature: float, activation: str | None, name: str
) -> None:
    fields = {"name": name, "labels": labels, "input_fingerprint": OTHER}
    fields |= {"activation": activation, "temperature": temperature}
    sound = (
        0 < len(set(labels)) == len(labels)
        and all(labels)
        and np.isfinite(temperature)
        and temperature > 0
        and (activation == "sigmoid" or (activation == "softmax" and len(labels) > 1))
        and name[:1] in ("a", "0")
        and name.isascii()
        and not set(name) & set("B/ ")
    )
    try:
        head = HeadSpec.model_validate_json(json.dumps(fields))
    except ValidationError:
        assert not sound
    else:
        assert sound
        assert HeadSpec.model_validate_json(head.model_dump_json()) == head
