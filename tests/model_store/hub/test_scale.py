"""Trained scales: read from safetensors by ranges, against safetensors' own writer; from originals; from the record."""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import RepositoryError, RepositoryNotFound
from model_store.hub.folder import FolderRepository
from model_store.hub.scale import header_length, parse_header, read_header, scale_in, trained_scale
from tests.model_store.hub.ask import ask
from tests.model_store.hub.local_hub import local_hub

Header = dict[str, object]


def scalar(dtype: str, begin: int, end: int, shape: tuple[int, ...] = ()) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_file(tensors: dict[str, Header], data: bytes) -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return struct.pack("<Q", len(header)) + header + data


def repository_of(folder: Path, files: dict[str, bytes], *, name: str = "acme/model") -> FolderRepository:
    root = folder / name
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return FolderRepository(root)


def logarithm(scale: float) -> bytes:
    return struct.pack("<f", math.log(scale))


def clip_of(scale: float, *, prefix: str = "") -> bytes:
    weights = bytes(range(256)) * 4
    tensors = {
        f"{prefix}visual.proj": scalar("F32", 0, 1024, (16, 16)),
        f"{prefix}logit_scale": scalar("F32", 1024, 1028),
    }
    return safetensors_file(tensors, weights + logarithm(scale))


@pytest.mark.torch
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["<f4", "<f2", "<f8", "<i8", "|u1"]), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    )
)
def test_headers_of_safetensors_own_writer(entries: dict[str, tuple[str, list[int]]]) -> None:
    from safetensors.numpy import load, save

    generator = np.random.default_rng(0)
    arrays = {name: generator.integers(0, 100, size=shape).astype(dtype) for name, (dtype, shape) in entries.items()}
    data = save(arrays)
    length = header_length(data, len(data))
    found = parse_header(data[8 : 8 + length], data_start=8 + length, size=len(data))
    assert found.keys() == load(data).keys()
    for name, tensor in found.items():
        assert tensor.shape == arrays[name].shape
        assert data[tensor.start : tensor.end] == arrays[name].tobytes()


@given(st.binary(max_size=40), st.integers(0, 100))
def test_any_bytes_are_a_header_or_refused(data: bytes, more: int) -> None:
    size = len(data) + more
    try:
        length = header_length(data, size)
        found = parse_header(data[8 : 8 + length], data_start=8 + length, size=size)
    except ValueError:
        return
    assert all(8 <= tensor.start <= tensor.end <= size for tensor in found.values())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_header_or_refused(content: object) -> None:
    try:
        found = parse_header(json.dumps({"logit_scale": content}).encode(), data_start=100, size=200)
    except ValueError:
        return
    assert all(100 <= tensor.start <= tensor.end <= 200 for tensor in found.values())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it has 0 bytes"),
        (b"\x02\0\0\0", "it has 4 bytes"),
        (struct.pack("<Q", 1 << 63) + b"{}", "its header would have 9223372036854775808 bytes, of 10 in all"),
        (struct.pack("<q", -2) + b"{}", "its header would have 18446744073709551614 bytes"),
        (struct.pack("<Q", 3) + b"{}", "its header would have 3 bytes, of 10 in all"),
        (struct.pack("<Q", 2) + b"{]", "is no safetensors file: "),
        (struct.pack("<Q", 2) + b"[]", "its header is no object"),
        (struct.pack("<Q", 20_000) + b"[" * 20_000, "nested too deeply|is no safetensors file"),
        (safetensors_file({"a": scalar("F32", 0, 4)}, b"123"), "'a' lies at 0 to 4, outside of the file"),
        (safetensors_file({"a": scalar("F32", -4, 0)}, b"1234"), "'a' lies at -4 to 0, outside of the file"),
        (safetensors_file({"a": scalar("F32", 4, 0)}, b"1234"), "'a' lies at 4 to 0, outside of the file"),
        (safetensors_file({"a": {"dtype": "F32", "shape": []}}, b""), "the entry 'a' of its header is not one"),
        (safetensors_file({"a": {**scalar("F32", 0, 0), "shape": [1.5]}}, b""), "the entry 'a' of its header"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    repository = repository_of(tmp_path, {"model.safetensors": data})
    with pytest.raises(RepositoryError, match=reason):
        read_header(repository, "model.safetensors")


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_the_scale_stands_in_the_weights(tmp_path: Path, prefix: str) -> None:
    repository = repository_of(tmp_path, {"open_clip_model.safetensors": clip_of(43.5, prefix=prefix)})
    found = scale_in(repository)
    assert found
    assert found.scale == pytest.approx(43.5)
    assert found.bias is None
    assert found.source == "model/open_clip_model.safetensors"


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("F64", struct.pack("<d", 4.7215)),
        ("F32", struct.pack("<f", 4.7215)),
        ("F16", struct.pack("<e", 4.7215)),
        ("BF16", struct.pack("<f", 4.7215)[2:]),
    ],
)
def test_numbers_of_every_precision(tmp_path: Path, dtype: str, stored: bytes) -> None:
    width = len(stored)
    tensors = {"logit_scale": scalar(dtype, 0, width, (1,)), "logit_bias": scalar(dtype, width, 2 * width, (1,))}
    repository = repository_of(tmp_path, {"model.safetensors": safetensors_file(tensors, stored * 2)})
    found = scale_in(repository)
    assert found
    assert found.scale
    assert math.log(found.scale) == pytest.approx(4.7215, rel=0.01 if dtype == "BF16" else 1e-3)
    assert found.bias == pytest.approx(math.log(found.scale))


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        (scalar("F32", 0, 8, (2,)), b"\0" * 8),
        (scalar("I32", 0, 4), b"\0" * 4),
        (scalar("F32", 0, 2), b"\0" * 4),
        (scalar("F32", 0, 4), struct.pack("<f", math.inf)),
        (scalar("F32", 0, 4), struct.pack("<f", math.nan)),
        (scalar("F32", 0, 4), struct.pack("<f", 1e9)),
    ],
)
def test_what_is_no_scale_is_refused(tmp_path: Path, entry: Header, data: bytes) -> None:
    repository = repository_of(tmp_path, {"model.safetensors": safetensors_file({"logit_scale": entry}, data)})
    with pytest.raises(RepositoryError, match="no scale or bias|no logarithm of a scale"):
        scale_in(repository)


def test_two_models_in_a_file_have_no_scale(tmp_path: Path) -> None:
    tensors = {"a.logit_scale": scalar("F32", 0, 4), "b.logit_scale": scalar("F32", 0, 4)}
    repository = repository_of(tmp_path, {"model.safetensors": safetensors_file(tensors, logarithm(10))})
    assert scale_in(repository) is None


def test_weights_in_several_files_say_where_it_is(tmp_path: Path) -> None:
    index = {"weight_map": {"visual.proj": "model-1.safetensors", "logit_scale": "model-2.safetensors"}}
    files = {"model.safetensors.index.json": json.dumps(index).encode(), "model-2.safetensors": clip_of(20.0)}
    found = scale_in(repository_of(tmp_path, files))
    assert found
    assert found.scale == pytest.approx(20)
    with pytest.raises(RepositoryError, match="is no index of weights"):
        scale_in(repository_of(tmp_path, {"model.safetensors.index.json": b"[]"}, name="acme/broken"))


def opening(folder: Path, asked: list[str]) -> Callable[[str], FolderRepository]:
    def open_it(name: str) -> FolderRepository:
        asked.append(name)
        if not (folder / name).is_dir():
            raise RepositoryNotFound(f"there is no repository {name}")
        return FolderRepository(folder / name)

    return open_it


def test_an_export_leads_to_its_original(tmp_path: Path) -> None:
    weights = {"open_clip_model.safetensors": clip_of(99.5)}
    repository_of(tmp_path, weights, name="laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    export = repository_of(tmp_path, {"visual/model.onnx": b"x"}, name="immich-app/ViT-B-32__laion2b-s34b-b79k")
    asked: list[str] = []
    found = trained_scale(export, open_repository=opening(tmp_path, asked))
    assert asked == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]
    assert found.scale == pytest.approx(99.5)
    assert found.source == "CLIP-ViT-B-32-laion2B-s34B-b79K/open_clip_model.safetensors"


def test_a_readme_leads_to_the_original(tmp_path: Path) -> None:
    repository_of(tmp_path, {"model.safetensors": clip_of(7.5)}, name="acme/trained")
    card = b"---\nbase_model: acme/trained\n---\n"
    export = repository_of(tmp_path, {"README.md": card, "onnx/model.onnx": b"x"}, name="acme/trained-ONNX")
    assert trained_scale(export, open_repository=opening(tmp_path, [])).scale == pytest.approx(7.5)


def test_without_the_original_the_record_or_the_reason(tmp_path: Path) -> None:
    export = repository_of(tmp_path, {"visual/model.onnx": b"x"}, name="immich-app/ViT-B-32__openai")
    found = trained_scale(export, open_repository=opening(tmp_path, []))
    assert (found.scale, found.bias) == (100.0, None)
    assert found.source.startswith("recorded for ViT-B-32__openai: huggingface/optimum#1466")
    other = repository_of(tmp_path, {"visual/model.onnx": b"x"}, name="immich-app/ViT-B-16-SigLIP__webli")
    missing = trained_scale(other, open_repository=opening(tmp_path, []))
    assert missing.scale is None
    assert missing.source == (
        "ViT-B-16-SigLIP__webli has no safetensors with logit_scale; there is no repository timm/ViT-B-16-SigLIP"
    )


def test_the_numbers_cost_a_few_range_requests(tmp_path: Path) -> None:
    original = "timm/ViT-B-16-SigLIP"
    size = 4_000_000
    tensors = {
        "visual.weight": scalar("F32", 0, size, (1000, 1000)),
        "logit_scale": scalar("F32", size, size + 4),
        "logit_bias": scalar("F32", size + 4, size + 8),
    }
    data = safetensors_file(tensors, b"\1" * size + logarithm(117.25) + struct.pack("<f", -12.75))
    repository_of(tmp_path / "served", {"open_clip_model.safetensors": data}, name=original)
    repository_of(tmp_path / "served", {"visual/model.onnx": b"x"}, name="immich-app/ViT-B-16-SigLIP__webli")
    with local_hub(tmp_path / "served") as hub:
        found = ask(hub.environment(tmp_path / "home"), "immich-app/ViT-B-16-SigLIP__webli", scale=True)
        assert found["scale"]["scale"] == pytest.approx(117.25)
        assert found["scale"]["bias"] == -12.75
        assert found["scale"]["source"] == f"{original}@{hub.commit(original)}/open_clip_model.safetensors"
        ranges = [asked for _, path, _, asked in hub.requests if path.endswith(".safetensors")]
    start = len(data) - 8
    assert ranges == ["bytes=0-99999", f"bytes={start}-{start + 3}", f"bytes={start + 4}-{start + 7}"]


@pytest.mark.torch
def test_the_table_of_originals_is_open_clips() -> None:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained

    table = json.loads(Path("model_store/hub/originals.json").read_text(encoding="utf-8"))
    theirs: dict[str, dict[str, str]] = {}
    for arch, tag in list_pretrained():
        organisation, name, _ = get_pretrained_cfg(arch, tag)["hf_hub"].split("/", 2)
        theirs.setdefault(arch, {})[tag] = f"{organisation}/{name}"
    assert table["repositories"] == theirs
    assert all(arch in theirs and tag in theirs[arch] for arch, tag in table["names"].values())
    assert set(table["scales"]) <= {tag for tags in theirs.values() for tag in tags}


@pytest.mark.torch
def test_the_scale_of_weights_that_the_libraries_wrote(tmp_path: Path) -> None:
    from tests.model_store.hub.layouts.source_models import tiny_clip, tiny_siglip
    from tests.model_store.hub.layouts.torch_weights import write_open_clip, write_save_pretrained

    write_open_clip(tmp_path / "openclip", tiny_clip())
    write_save_pretrained(tmp_path / "transformers", tiny_siglip())
    clip, siglip = (scale_in(FolderRepository(tmp_path / name)) for name in ("openclip", "transformers"))
    assert clip
    assert siglip
    assert (clip.scale, clip.bias) == (pytest.approx(43.5), None)
    assert (siglip.scale, siglip.bias) == (pytest.approx(117.25), pytest.approx(-12.75))
