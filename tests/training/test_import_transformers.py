"""What transformers' save_pretrained wrote is imported as the same model: vectors, ids, preprocessing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from model_store.errors import ExportRefused
from model_store.golden import GOLDEN_TEXTS
from model_store.graph import open_graph
from model_store.modality.text import Tokenizer, clip_vocabulary
from model_store.precisions.calibration import CALIBRATION_TEXTS
from model_store.store import Artifact, Store
from training.exporting.graphs import ImageGraph
from training.importing.importer import import_model
from training.importing.openclip_weights import find_weights, load_model
from training.importing.tokenizer_import import ImportedTokenizer, check_against_transformers, import_tokenizer
from training.importing.transformers_weights import to_open_clip
from training.tiny import merges_prefix

pytestmark = pytest.mark.torch
SIZE_PX = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
TEXTS = ["a photo of a red shoe", "Two DOGS,  running!", "été à Paris: 25 €", "a" * 300, "x"]
PREPARED = {"size": {"shortest_edge": SIZE_PX}, "crop_size": {"height": SIZE_PX, "width": SIZE_PX}}
SMALL = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 2}


def scattered(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight away from its start, where biases are zeros and norms ones and no mistake would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write_clip(folder: Path, act: str = "quick_gelu", **text: Any) -> Path:
    """A seeded CLIP, its tokenizer of 500 merges and its processor, all written by transformers."""
    vocabulary, merges = clip_vocabulary(merges_prefix(500).decode())
    names = dict(zip(("<start_of_text>", "<end_of_text>"), (BOS, EOS), strict=True))
    vocabulary = {names.get(token, token): index for token, index in vocabulary.items()}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    ends = {"bos_token_id": vocabulary[BOS], "eos_token_id": vocabulary[EOS], "pad_token_id": vocabulary[EOS]}
    shape = {**SMALL, "hidden_act": act}
    config = transformers.CLIPConfig(
        text_config={**shape, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 16, **text},
        vision_config={**shape, "hidden_size": 48, "image_size": SIZE_PX, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scattered(transformers.CLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor(**PREPARED).save_pretrained(folder)
    return folder


def write_siglip(folder: Path, act: str = "gelu_pytorch_tanh", tokenizer_class: str = "SiglipTokenizer") -> Path:
    """A seeded SigLIP; its tokenizer.json is a small unigram model with an end token, as SigLIP's is."""
    hub = HubTokenizer(models.Unigram())
    hub.normalizer = normalizers.Replace(" ", "▁")
    hub.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    hub.decoder = decoders.Metaspace()
    corpus = [text.lower() for text in (*TEXTS, *CALIBRATION_TEXTS, *GOLDEN_TEXTS)]
    hub.train_from_iterator(
        corpus, trainers.UnigramTrainer(vocab_size=200, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    )
    hub.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    folder.mkdir(parents=True, exist_ok=True)
    hub.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": tokenizer_class, "pad_token": "</s>", "eos_token": "</s>", "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    shape = {**SMALL, "hidden_act": act}
    config = transformers.SiglipConfig(
        text_config={
            **shape,
            **{"vocab_size": hub.get_vocab_size(), "max_position_embeddings": 16, "projection_size": 32},
            **{"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
        },
        vision_config={**shape, "image_size": SIZE_PX, "patch_size": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        scattered(transformers.SiglipModel(config)).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": SIZE_PX, "width": SIZE_PX}).save_pretrained(folder)
    return folder


def published(folder: Path, store: Path, arch: str = "") -> Artifact:
    return import_model(
        arch or str(folder), name="imported", store=Store(store, builtin=False), precisions=["fp32"], dense="none"
    )


def tokenizer_of(folder: Path) -> ImportedTokenizer:
    weights = find_weights(str(folder), None)
    shape = weights.config["text_cfg"]
    return import_tokenizer(
        shape,
        file=weights.tokenizer,
        context_length=shape["context_length"],
        table_rows=shape["vocab_size"],
        dynamic_length=False,
    )


def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def token_rows(end_id: int) -> torch.Tensor:
    """Four texts that end at different places."""
    ids = np.random.default_rng(1).integers(3, 100, (4, 16))
    for row, place in enumerate((15, 3, 9, 1)):
        ids[row, place:] = end_id
    return torch.from_numpy(ids)


def theirs(model: Any, ids: torch.Tensor, pixels: np.ndarray, mean: Any, std: Any) -> Any:
    """transformers' own answer, on pixels normalised here."""
    values = ((torch.from_numpy(pixels).float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return model(input_ids=ids, pixel_values=values.contiguous())


def check_equal(vectors: Any, expected: Any, *, scale: float, bias: float) -> None:
    """(texts, pictures) as un-normalised vectors against transformers' embeddings and logits."""
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors]
    for mine, other in zip(unit, (expected.text_embeds, expected.image_embeds), strict=True):
        np.testing.assert_allclose(mine, other.numpy(), atol=1e-5)
        assert np.abs(mine - mine.mean(axis=0)).max() > 0.01
    np.testing.assert_allclose(scale * unit[0] @ unit[1].T + bias, expected.logits_per_text.numpy(), atol=1e-3)


def check_published(artifact: Artifact, model: Any) -> None:
    pixels = pictures()
    ids = artifact.tokenizer()(TEXTS)
    spec = artifact.image_spec
    vectors = []
    for role, batch in (("text_encoder", ids), ("image_encoder", pixels)):
        graph = artifact.graph_spec(role, "fp32")
        assert graph is not None
        vectors.append(open_graph(*graph)(batch))
    expected = theirs(model, torch.from_numpy(ids), pixels, spec.mean, spec.std)
    check_equal(vectors, expected, scale=artifact.manifest.logit_scale, bias=artifact.manifest.logit_bias)


def check_loaded(folder: Path, model: Any) -> None:
    """As `check_published`, before the export."""
    weights = find_weights(str(folder), None)
    found: Any = load_model(weights)
    ids, pixels = token_rows(model.config.text_config.eos_token_id), pictures()
    expected = theirs(model, ids, pixels, weights.preprocess["mean"], weights.preprocess["std"])
    image = ImageGraph(found.visual, weights.preprocess["mean"], weights.preprocess["std"])
    with torch.inference_mode():
        vectors = found.encode_text(ids).numpy(), image(torch.from_numpy(pixels)).numpy()
    bias = 0.0 if found.logit_bias is None else found.logit_bias.item()
    check_equal(vectors, expected, scale=found.logit_scale.exp().item(), bias=bias)


def test_a_clip_is_published_as_the_same_model(tmp_path: Path, clip_folder: Path) -> None:
    artifact = published(clip_folder, tmp_path / "store")
    assert artifact.manifest.provenance.activation == "quickgelu"
    assert (artifact.image_spec.resize_mode, artifact.image_spec.height_px) == ("shortest", SIZE_PX)
    assert artifact.manifest.activation == "softmax"
    check_published(artifact, transformers.CLIPModel.from_pretrained(clip_folder))
    own = transformers.AutoTokenizer.from_pretrained(clip_folder)
    found = own(TEXTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert artifact.tokenizer()(TEXTS).tolist() == found


@pytest.mark.long
def test_a_siglip_is_published_as_the_same_model(tmp_path: Path) -> None:
    folder = write_siglip(tmp_path / "siglip")
    artifact = published(folder, tmp_path / "store", f"local-dir:{folder}")
    assert (artifact.manifest.activation, artifact.image_spec.resize_mode) == ("sigmoid", "squash")
    check_published(artifact, transformers.SiglipModel.from_pretrained(folder))
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="</s>")
    said = "two dogs running"  # what SigLIP's tokenizer, which needs sentencepiece, makes of it before it looks
    expected = plain(said, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert artifact.tokenizer()(["Two DOGS,  running!"])[0].tolist() == expected


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_every_activation_of_a_clip(tmp_path: Path, act: str) -> None:
    folder = write_clip(tmp_path / "clip", act)
    check_loaded(folder, transformers.CLIPModel.from_pretrained(folder))


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh"])
def test_every_activation_of_a_siglip(tmp_path: Path, act: str) -> None:
    folder = write_siglip(tmp_path / "siglip", act)
    check_loaded(folder, transformers.SiglipModel.from_pretrained(folder))


def test_the_wrong_activation_would_show(tmp_path: Path) -> None:
    """quick_gelu and gelu differ by more than the tolerance of the tests above."""
    quick = write_clip(tmp_path / "quick", "quick_gelu")
    plain = write_clip(tmp_path / "plain", "gelu")
    assert (quick / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    ids = torch.ones(1, 16).long()
    vectors = [load_model(find_weights(str(folder), None)).encode_text(ids) for folder in (quick, plain)]
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


def test_texts_are_pooled_at_the_end_token_wherever_its_id_is(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 40}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(find_weights(str(folder), None))
    ids = torch.tensor([[512, 300, 40, 1000, 7, 40, 9, *[3] * 9]])
    with torch.inference_mode():
        theirs: Any = transformers.CLIPModel.from_pretrained(folder)
        expected = theirs(input_ids=ids, pixel_values=torch.zeros(1, 3, SIZE_PX, SIZE_PX)).text_embeds
        found = torch.nn.functional.normalize(model.encode_text(ids), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_file_of_transformers_fits_the_architecture_of_open_clip(tmp_path: Path) -> None:
    """The weights alone, without the configuration beside them."""
    folder = write_clip(tmp_path / "clip", **{"max_position_embeddings": 77, "hidden_size": 32})
    state = safetensors.torch.load_file(folder / "model.safetensors")
    renamed = to_open_clip(state)
    assert renamed.keys() == load_model(find_weights(str(folder), None)).state_dict().keys()
    checkpoint = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    torch.save(checkpoint, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    wrapped = load_model(find_weights(str(folder), None)).state_dict()
    assert all(torch.equal(wrapped[name], tensor) for name, tensor in renamed.items())


def test_vocabulary_and_merges_alone_are_a_tokenizer(tmp_path: Path, clip_folder: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    whole = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = [each if isinstance(each, str) else " ".join(each) for each in whole["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    before = tokenizer_of(folder)
    (folder / "tokenizer.json").unlink()
    after = tokenizer_of(folder)
    ids = [Tokenizer(each.spec, each.data)(TEXTS) for each in (before, after)]
    np.testing.assert_array_equal(*ids)
    check_against_transformers(after, folder)


def test_ids_that_transformers_would_not_give_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    imported = tokenizer_of(folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = whole["model"]["merges"][:100]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ExportRefused, match="differ from .* those of transformers' CLIPTokenizer"):
        check_against_transformers(imported, folder)


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("preprocessor_config.json", {"crop_size": {"height": 24, "width": 24}}, "resizes to .* and crops"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 40}, "crop_size": 40}, "40 px, the model takes 32"),
        ("preprocessor_config.json", {"resample": 0}, "resample 0"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize false"),
        ("preprocessor_config.json", {"do_pad": True}, "do_pad, which is not known"),
        ("config.json", {"model_type": "blip"}, "'blip' of transformers"),
        ("tokenizer_config.json", {"pad_token": "<none>"}, "pad token '<none>' is not in its vocabulary"),
    ],
)  # fmt: skip
def test_what_would_be_guessed_is_refused(
    tmp_path: Path, clip_folder: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | change))
    with pytest.raises(ExportRefused, match=reason):
        published(folder, tmp_path / "store")


def test_missing_parts_are_named(tmp_path: Path, clip_folder: Path) -> None:
    for name, reason in (
        ("preprocessor_config.json", "has no preprocessor_config.json"),
        ("model.safetensors", "has neither model.safetensors nor pytorch_model.bin"),
    ):
        folder = shutil.copytree(clip_folder, tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(ExportRefused, match=reason):
            published(folder, tmp_path / "store")


def test_a_joint_processor_file_is_read(tmp_path: Path, clip_folder: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert find_weights(str(folder), None).preprocess["mean"] == tuple(settings["image_mean"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("vision_model.encoder.layers.0.self_attn.k_proj.weight"),
        lambda state: state.update({"text_model.adapter.weight": torch.zeros(2)}),
        lambda state: state.update({"text_model.encoder.layers.0.gate.weight": torch.zeros(2)}),
    ],
)
def test_other_weights_are_not_taken(clip_folder: Path, spoil: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = safetensors.torch.load_file(clip_folder / "model.safetensors")
    spoil(state)
    with pytest.raises(ExportRefused):
        to_open_clip(state)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("source") / "clip")


def laid_cache(cache: Path, repository: str, folder: Path) -> None:
    """The hub's cache on this disk as its specification has it: a revision's files under its hash."""
    root = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / ("a" * 40))
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)


def test_a_repository_in_the_cache_needs_no_connection(tmp_path: Path, clip_folder: Path) -> None:
    laid_cache(tmp_path / "cache", "some/clip", clip_folder)
    weights = find_weights("hf-hub:some/clip", None, cache_dir=tmp_path / "cache")
    assert (weights.source, weights.architecture) == ("hub repository some/clip", "some/clip")
    assert load_model(weights).encode_text(torch.zeros(1, 16).long()).shape == (1, 24)


def test_offline_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="some/clip cannot be downloaded here, and is not in the local cache"):
        find_weights("hf-hub:some/clip", None, cache_dir=tmp_path)
