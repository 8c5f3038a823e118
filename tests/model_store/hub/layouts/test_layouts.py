"""Every written layout is the same model: its graphs, run as their own server would run them, equal torch."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from model_store.golden_images import golden_images
from model_store.modality.image import decode

pytest.importorskip("torch", reason="needs the train extra")
import open_clip  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from open_clip.transform import image_transform_v2  # noqa: E402

from tests.model_store.hub.layouts import immich, pairs, torch_weights, transformers_layouts  # noqa: E402
from tests.model_store.hub.layouts.source_models import SourceModel, tiny_clip, tiny_siglip  # noqa: E402
from tests.model_store.hub.layouts.transformers_models import transformers_model  # noqa: E402

pytestmark = pytest.mark.torch
TEXTS = ["a photo of a dog", "Red CAR, an x-ray!", "two dogs run over the green grass " * 20, "été"]
Array = NDArray[np.float32]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def source(request: pytest.FixtureRequest) -> SourceModel:
    return tiny_siglip() if request.param == "siglip" else tiny_clip(quick_gelu=True)


def pictures() -> list[Image.Image]:
    return [decode(case.data).convert("RGB") for case in golden_images() if case.raises is None]


def pixels_of(source: SourceModel) -> Array:
    transform = image_transform_v2(source.preprocess, is_train=False)
    return torch.stack([transform(image) for image in pictures()]).numpy()


def levels_of(source: SourceModel) -> NDArray[np.uint8]:
    """uint8 [n, H, W, 3] that normalise to `pixels_of`."""
    mean, std = (np.array(values)[:, None, None] for values in (source.preprocess.mean, source.preprocess.std))
    return np.rint((pixels_of(source) * std + mean) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def run(path: Path, inputs: dict[str, NDArray[np.generic]], *, singly: bool = False) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert {given.name for given in session.get_inputs()} == set(inputs)
    if not singly:
        return dict(zip(names, session.run(None, inputs), strict=True))
    count = len(next(iter(inputs.values())))
    rows = [session.run(None, {name: array[i : i + 1] for name, array in inputs.items()}) for i in range(count)]
    return {name: np.concatenate(column) for name, *column in zip(names, *rows, strict=True)}


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def equal(got: Array, expected: Array) -> None:
    """Unit vectors within 1e-4, and after the mean of the set is taken away still those of the same inputs."""
    got, expected = unit(got), unit(expected)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    centred, reference = got - got.mean(0), expected - expected.mean(0)
    assert np.linalg.norm(reference, axis=1).min() > 0.05, "the pictures or texts are too much alike to compare"
    assert (unit(centred) * unit(reference)).sum(1).min() > 1 - 1e-4


def test_transformers_classes_hold_the_same_model(source: SourceModel) -> None:
    model = transformers_model(source)
    with torch.inference_mode():
        image = model.get_image_features(torch.from_numpy(pixels_of(source))).pooler_output.numpy()
        text = model.get_text_features(source.tokenize(TEXTS)).pooler_output.numpy()
    equal(image, source.image_vectors(pictures()))
    equal(text, source.text_vectors(TEXTS))
    assert float(model.logit_scale.exp()) == pytest.approx(source.logit_scale)


def test_the_hub_tokenizer_gives_open_clips_ids(source: SourceModel) -> None:
    for text in ["a photo of a dog", "red car", "two dogs run over the green grass"]:
        row = source.tokenize([text])[0].tolist()
        ids = source.hub_tokenizer(text).input_ids
        assert row[: len(ids)] == ids


def test_immich_v1(tmp_path: Path, source: SourceModel) -> None:
    immich.write_immich_v1(tmp_path, source)
    got = run(tmp_path / "visual" / "model.onnx", {"image": pixels_of(source)}, singly=True)
    equal(got["embedding"], source.image_vectors(pictures()))
    ids = source.tokenize(TEXTS).numpy().astype(np.int32)
    got = run(tmp_path / "textual" / "model.onnx", {"text": ids}, singly=True)
    equal(got["embedding"], source.text_vectors(TEXTS))
    assert shapes_in(tmp_path / "visual" / "model.onnx") == {"image": [1, 3, 32, 32]}
    assert shapes_in(tmp_path / "textual" / "model.onnx") == {"text": [1, source.context_length]}


@pytest.mark.parametrize(
    ("make", "sidecar"),
    [(tiny_clip, "model.safetensors"), pytest.param(tiny_siglip, None, marks=pytest.mark.long)],
)
def test_immich_v2(tmp_path: Path, make: Callable[[], SourceModel], sidecar: str | None) -> None:
    source = make()
    immich.write_immich_v2(tmp_path, source, sidecar=sidecar)
    got = run(tmp_path / "visual" / "model.onnx", {"image": levels_of(source)})
    equal(got["image_embedding"], source.image_vectors(pictures()))
    got = run(tmp_path / "textual" / "model.onnx", {"text": source.tokenize(TEXTS).numpy().astype(np.int32)})
    equal(got["text_embedding"], source.text_vectors(TEXTS))
    assert shapes_in(tmp_path / "visual" / "model.onnx") == {"image": ["batch", 32, 32, 3]}
    assert (tmp_path / "visual" / "model.safetensors").exists() is bool(sidecar)


def test_split(tmp_path: Path, source: SourceModel) -> None:
    transformers_layouts.write_transformersjs_split(tmp_path, source)
    image = run(tmp_path / "onnx" / "vision_model.onnx", {"pixel_values": pixels_of(source)})
    text = run(tmp_path / "onnx" / "text_model.onnx", {"input_ids": source.tokenize(TEXTS).numpy()})
    is_siglip = source.logit_bias is not None
    assert list(image) == (["last_hidden_state", "pooler_output"] if is_siglip else ["image_embeds"])
    equal(image["pooler_output" if is_siglip else "image_embeds"], source.image_vectors(pictures()))
    equal(text["pooler_output" if is_siglip else "text_embeds"], source.text_vectors(TEXTS))


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (transformers_layouts.write_transformersjs_joint, "onnx/model.onnx"),
        (lambda f, s: transformers_layouts.write_transformersjs_joint(f, s, external_data=True), "onnx/model.onnx"),
        (transformers_layouts.write_optimum, "model.onnx"),
    ],
    ids=["joint", "external", "optimum"],
)
def test_joint(tmp_path: Path, source: SourceModel, write: Callable[[Path, SourceModel], None], file: str) -> None:
    write(tmp_path, source)
    ids = source.tokenize(TEXTS[:3]).numpy()
    mask = {} if source.logit_bias is not None else {"attention_mask": np.ones_like(ids)}
    got = run(tmp_path / file, {"input_ids": ids, "pixel_values": pixels_of(source), **mask})
    images, texts = source.image_vectors(pictures()), source.text_vectors(TEXTS[:3])
    equal(got["image_embeds"], images)
    equal(got["text_embeds"], texts)
    logits = source.logit_scale * unit(images) @ unit(texts).T + (source.logit_bias or 0.0)
    np.testing.assert_allclose(got["logits_per_image"], logits, atol=0.02)
    np.testing.assert_allclose(got["logits_per_text"], logits.T, atol=0.02)


def test_the_joint_graph_has_optimums_interface(tmp_path: Path, source: SourceModel) -> None:
    transformers_layouts.write_optimum(tmp_path, source)
    recorded = json.loads(Path(__file__).with_name("optimum_interface.json").read_text(encoding="utf-8"))
    graph = onnx.load(tmp_path / "model.onnx")
    assert interface_of(graph) == recorded["siglip" if source.logit_bias is not None else "clip"]


def interface_of(model: onnx.ModelProto) -> dict[str, object]:
    """Opset, inputs and outputs as (name, type, extents, None where free), and the initialiser that is the scale."""

    def described(values: Sequence[onnx.ValueInfoProto]) -> list[list[object]]:
        tensors = [(value.name, value.type.tensor_type) for value in values]
        return [
            [name, onnx.TensorProto.DataType.Name(kind.elem_type), [axis.dim_value or None for axis in kind.shape.dim]]
            for name, kind in tensors
        ]

    return {
        "opset": model.opset_import[0].version,
        "inputs": described(model.graph.input),
        "outputs": described(model.graph.output),
        "scale": [tensor.name for tensor in model.graph.initializer if tensor.name.endswith("logit_scale")],
    }


def test_external_data_lies_beside_the_graph(tmp_path: Path) -> None:
    transformers_layouts.write_transformersjs_joint(tmp_path, tiny_clip(), external_data=True)
    graph, weights = tmp_path / "onnx" / "model.onnx", tmp_path / "onnx" / "model.onnx_data"
    stored = onnx.load(graph, load_external_data=False).graph.initializer
    assert {entry.value for t in stored for entry in t.external_data if entry.key == "location"} == {weights.name}
    assert weights.stat().st_size > graph.stat().st_size


def test_fastembed_pair(tmp_path: Path) -> None:
    source = tiny_clip()
    pairs.write_fastembed_pair(tmp_path / "vision", tmp_path / "text", source)
    image = run(tmp_path / "vision" / "model.onnx", {"pixel_values": pixels_of(source)})
    ids = source.tokenize(TEXTS).numpy()
    text = run(tmp_path / "text" / "model.onnx", {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    equal(image["image_embeds"], source.image_vectors(pictures()))
    equal(text["text_embeds"], source.text_vectors(TEXTS))


def test_flat_pair(tmp_path: Path, source: SourceModel) -> None:
    pairs.write_flat_pair(tmp_path, source, stem="tiny")
    image = run(tmp_path / "tiny-visual.onnx", {"input": pixels_of(source)})
    text = run(tmp_path / "tiny-textual.onnx", {"input": source.tokenize(TEXTS).numpy()})
    equal(image["output"], source.image_vectors(pictures()))
    equal(text["output"], source.text_vectors(TEXTS))


def test_unprojected_towers_are_not_the_model(tmp_path: Path) -> None:
    source = tiny_clip()
    transformers_layouts.write_optimum_unprojected(tmp_path, source)
    got = run(tmp_path / "onnx" / "vision_model.onnx", {"pixel_values": pixels_of(source)})["pooler_output"]
    with pytest.raises(AssertionError):
        equal(got, source.image_vectors(pictures()))


def shapes_in(path: Path) -> dict[str, list[int | str]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {given.name: list(given.shape) for given in session.get_inputs()}


def test_open_clip_repository(tmp_path: Path, source: SourceModel) -> None:
    torch_weights.write_open_clip(tmp_path, source)
    loaded, transform = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    with torch.inference_mode():
        image = loaded.eval().encode_image(torch.stack([transform(picture) for picture in pictures()])).numpy()
        # Without a tokeniser in its configuration, open_clip takes the whole of CLIP's vocabulary.
        is_siglip = source.logit_bias is not None
        tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path}") if is_siglip else source.tokenize
        text = loaded.encode_text(tokenize(TEXTS)).numpy()
    equal(image, source.image_vectors(pictures()))
    equal(text, source.text_vectors(TEXTS))
    assert float(loaded.logit_scale.detach().exp()) == pytest.approx(source.logit_scale)


def test_save_pretrained(tmp_path: Path, source: SourceModel) -> None:
    torch_weights.write_save_pretrained(tmp_path, source)
    loaded = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        image = loaded.get_image_features(torch.from_numpy(pixels_of(source))).pooler_output.numpy()
        text = loaded.get_text_features(source.tokenize(TEXTS)).pooler_output.numpy()
    equal(image, source.image_vectors(pictures()))
    equal(text, source.text_vectors(TEXTS))
    assert float(loaded.logit_scale.detach().exp()) == pytest.approx(source.logit_scale)
