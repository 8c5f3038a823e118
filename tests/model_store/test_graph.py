"""Graphs against their manifest entries, goldens against damage, and the child process that goes first."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from model_store.errors import GoldenError, GraphError, IntegrityError, ProviderError
from model_store.fidelity import measure
from model_store.golden import Goldens
from model_store.graph import Graph, compute_nodes_by_provider, example_feeds, open_graph
from model_store.manifest import GraphSpec
from model_store.modality import image as image_module
from model_store.probe import ProbeLog, one_child, probe
from model_store.session import SessionSettings
from model_store.store import Artifact, Store, file_entries


def image_graph(artifact: Artifact) -> tuple[Artifact, GraphSpec]:
    found = artifact.graph_spec("image_encoder", "fp32")
    assert found is not None
    return found


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("role", ["image_encoder", "text_encoder"])
def test_goldens_hold(tiny: Artifact, role: str, precision: str) -> None:
    found = tiny.graph_spec(role, precision)  # type: ignore[arg-type]
    assert found is not None
    measured = Goldens(tiny).check_vectors(role, precision, open_graph(*found))  # type: ignore[arg-type]
    assert measured.n >= 8


def test_pixels_and_tokens_hold(tiny: Artifact) -> None:
    goldens = Goldens(tiny)
    goldens.check_pixels()
    goldens.check_tokens(tiny.tokenizer())


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda x: x[..., ::-1], id="bgr"),
        pytest.param(lambda x: np.roll(x, 1, axis=2), id="one pixel"),
        pytest.param(lambda x: x[:, :, ::-1], id="mirrored"),
        pytest.param(lambda x: (x // 2).astype(np.uint8), id="darker"),
    ],
)
def test_a_wrong_picture_does_not_pass_the_goldens(tiny: Artifact, wrong) -> None:  # type: ignore[no-untyped-def]
    graph = open_graph(*image_graph(tiny))
    with pytest.raises(GoldenError, match="not the exported model"):
        Goldens(tiny).check_vectors("image_encoder", "fp32", lambda x: graph(np.ascontiguousarray(wrong(x))))


def test_a_wrong_crop_does_not_pass_the_goldens(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def floor_resize(size: tuple[int, int], spec: object) -> tuple[int, int]:
        return (48, size[1] * 48 // size[0] + 1) if size[0] <= size[1] else (size[0] * 48 // size[1] + 1, 48)

    monkeypatch.setattr(image_module, "_resized_size", floor_resize)
    with pytest.raises(GoldenError, match="levels"):
        Goldens(tiny).check_pixels()


def republish(store: Store, tiny: Artifact, cases: dict[str, object]) -> Artifact:
    """The tiny artifact with edited golden cases and a manifest that vouches for them."""
    path = tiny.folder / "goldens" / "cases.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | cases))
    manifest = tiny.manifest.model_copy(update={"files": file_entries(tiny.folder)})
    (tiny.folder / "manifest.json").write_text(manifest.model_dump_json())
    return store.open("tiny")


def test_missing_goldens_are_a_failure_not_a_skip(store: Store, tiny: Artifact) -> None:
    goldens = Goldens(republish(store, tiny, {"images": [], "texts": [], "tolerances": {}}))
    with pytest.raises(GoldenError, match="missing"):
        goldens.check_pixels()
    with pytest.raises(GoldenError, match="missing"):
        goldens.check_tokens(tiny.tokenizer())
    with pytest.raises(GoldenError, match="no golden vectors"):
        goldens.check_vectors("image_encoder", "fp32", open_graph(*image_graph(tiny)))


def test_an_untruthful_graph_entry_is_refused(tiny: Artifact) -> None:
    owner, spec = image_graph(tiny)
    path = owner.path(spec.file)
    wrong_name = spec.model_copy(update={"inputs": (spec.inputs[0].model_copy(update={"name": "image"}),)})
    wrong_dim = spec.model_copy(update={"outputs": (spec.outputs[0].model_copy(update={"shape": ("batch", 31)}),)})
    for changed in (wrong_name, wrong_dim):
        with pytest.raises(GraphError):
            Graph.open(path, changed)


def test_a_wrong_feed_is_a_graph_error(tiny: Artifact) -> None:
    graph = open_graph(*image_graph(tiny))
    with pytest.raises(GraphError):
        graph.run({"pixels": np.zeros((1, 47, 48, 3), np.uint8)})


def test_cuda_that_is_not_there_is_said(tiny: Artifact) -> None:
    owner, spec = image_graph(tiny)
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ProviderError, match="CUDAExecutionProvider"):
        open_graph(owner, spec, SessionSettings(device="cuda"))


def test_profiled_nodes_run_on_the_cpu(tiny: Artifact) -> None:
    owner, spec = image_graph(tiny)
    counts = compute_nodes_by_provider(owner.path(spec.file), spec, SessionSettings(), example_feeds(spec))
    assert set(counts) == {"CPUExecutionProvider"}
    assert counts["CPUExecutionProvider"] >= 5


def test_a_file_replaced_after_its_check_is_not_loaded(tiny: Artifact) -> None:
    owner, spec = image_graph(tiny)
    owner.path(spec.file).write_bytes(b"\x08\x01")
    with pytest.raises(IntegrityError):
        open_graph(owner, spec)


def test_probe_gives_the_outputs_of_a_child_process(tiny: Artifact) -> None:
    owner, spec = image_graph(tiny)
    feeds = {"pixels": Goldens(tiny).inputs("image_encoder")}
    outputs = probe(owner.path(spec.file), spec, feeds=feeds)
    np.testing.assert_array_equal(outputs["image_embeds"], open_graph(owner, spec)(feeds["pixels"]))


def test_probe_refuses_rubbish_and_a_graph_that_does_not_end(tiny: Artifact, tmp_path: Path) -> None:
    _, spec = image_graph(tiny)
    rubbish = tmp_path / "rubbish.onnx"
    rubbish.write_bytes(b"\x00" * 100)
    with pytest.raises(GraphError, match="does not load"):
        probe(rubbish, spec)
    with pytest.raises(GraphError, match="no answer within"):
        probe(tiny.path(spec.file), spec, timeout_s=0.01)


def probing() -> list[int]:
    """The children of this process that probe."""
    children = psutil.Process().children()
    return [each.pid for each in children if each.is_running() and "model_store.probe_child" in each.cmdline()]


def test_graphs_of_a_block_share_a_child_and_one_that_ends_it_is_refused_alone(tiny: Artifact, tmp_path: Path) -> None:
    owner, spec = image_graph(tiny)
    path, rubbish = owner.path(spec.file), tmp_path / "rubbish.onnx"
    rubbish.write_bytes(b"\x00" * 100)
    killed = list[int]()

    def kill_the_next() -> None:
        while not (found := probing()):
            pass
        killed.extend(found)
        os.kill(found[0], 9)

    with one_child():
        expected = probe(path, spec)["image_embeds"]
        (first,) = probing()
        with pytest.raises(GraphError, match="does not load"):
            probe(rubbish, spec)
        np.testing.assert_array_equal(probe(path, spec)["image_embeds"], expected)
        assert probing() == [first]
        with pytest.raises(GraphError, match="no answer within"):
            probe(path, spec, timeout_s=0.0)
        assert probing() == []
        killer = threading.Thread(target=kill_the_next)
        killer.start()
        with pytest.raises(GraphError, match=f"{spec.file}: the process died of signal 9"):
            probe(path, spec)
        killer.join()
        np.testing.assert_array_equal(probe(path, spec)["image_embeds"], expected)
        (last,) = probing()
        assert last not in (first, *killed)
    assert probing() == []


def test_the_probe_runs_nothing_from_the_folder_the_caller_stands_in(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, spec = image_graph(tiny)
    for name in ("numpy.py", "onnxruntime.py", "model_store.py"):
        (tmp_path / name).write_text("raise SystemExit('ran a stranger')")
    monkeypatch.chdir(tmp_path)
    outputs = probe(owner.path(spec.file), spec, feeds={"pixels": Goldens(tiny).inputs("image_encoder")})
    assert len(outputs["image_embeds"]) > 0


def test_the_probe_log_knows_the_same_facts_only(tmp_path: Path) -> None:
    log = ProbeLog(tmp_path / ".probed")
    key = log.key("build", SessionSettings())
    assert not log.knows(key)
    log.remember(key)
    assert ProbeLog(tmp_path / ".probed").knows(key)
    assert not log.knows(log.key("other build", SessionSettings()))
    assert not log.knows(log.key("build", SessionSettings(full_optimization=False)))
    nowhere = ProbeLog(None)
    nowhere.remember(key)
    assert not nowhere.knows(key)


def test_fidelity_by_hand() -> None:
    reference = np.array([[3.0, 4.0], [4.0, 3.0]])
    exact = measure(reference, reference)
    assert (exact.cosine_min, exact.centred_cosine_min, exact.centred_relative_l2) == pytest.approx((1, 1, 0))
    swapped = measure(reference[::-1], reference)
    assert swapped.cosine_min == pytest.approx(24 / 25)
    assert swapped.centred_cosine_min == pytest.approx(-1)
    assert swapped.centred_relative_l2 == pytest.approx(2)


def test_a_zero_row_on_both_sides_is_reproduced_and_on_one_side_is_not() -> None:
    reference = np.array([[0.0, 0.0], [4.0, 3.0]])
    assert measure(reference, reference).cosine_min == pytest.approx(1)
    assert measure(np.array([[1.0, 0.0], [4.0, 3.0]]), reference).cosine_min == pytest.approx(0)
