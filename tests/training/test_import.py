"""`models import` through its public doors: what is published is open_clip's model, guesses are refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from model_store.errors import ExportRefused
from model_store.graph import open_graph
from model_store.modality.image import prepare
from model_store.precisions.calibration import CALIBRATION_TEXTS
from model_store.store import Store
from training.importing.importer import image_spec_of, import_model
from training.importing.openclip_weights import check_weights_file, find_weights, load_model
from training.tiny import tiny_config, write_tiny_source

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights, and two architectures registered with open_clip that differ in quick_gelu only."""
    folder = tmp_path_factory.mktemp("twins")
    source = write_tiny_source(folder / "source")
    configs = folder / "configs"
    configs.mkdir()
    plain = {key: value for key, value in tiny_config().items() if key != "quick_gelu"}
    (configs / "clipworks-tiny.json").write_text(json.dumps(plain))
    (configs / "clipworks-tiny-quickgelu.json").write_text(json.dumps({**plain, "quick_gelu": True}))
    open_clip.add_model_config(configs)
    return source


def weights_of(folder: Path) -> str:
    return str(folder / "open_clip_model.safetensors")


def test_a_file_of_a_two_form_architecture_needs_its_activation(twins: Path) -> None:
    with pytest.raises(ExportRefused, match="--activation gelu or --activation quickgelu"):
        find_weights("clipworks-tiny", weights_of(twins))
    assert find_weights("clipworks-tiny", weights_of(twins), activation="gelu").declared
    declared = find_weights("clipworks-tiny", weights_of(twins), activation="quickgelu")
    assert (declared.architecture, declared.config["quick_gelu"]) == ("clipworks-tiny-quickgelu", True)
    with pytest.raises(ExportRefused, match="import clipworks-tiny instead"):
        find_weights("clipworks-tiny-quickgelu", weights_of(twins), activation="gelu")


@pytest.mark.parametrize("arch", ["ViT-B-32", "ViT-B-32-quickgelu", "RN50", "ViT-L-14"])
def test_real_two_form_architectures_are_known(arch: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    with pytest.raises(ExportRefused, match="exists with gelu and with quickgelu"):
        find_weights(arch, str(file))


@pytest.mark.long
def test_the_declared_activation_changes_the_answer_and_the_fingerprint(twins: Path, tmp_path: Path) -> None:
    store = Store(tmp_path, builtin=False)
    vectors, prints = [], []
    for activation in ("gelu", "quickgelu"):
        artifact = import_model(
            "clipworks-tiny",
            pretrained=weights_of(twins),
            activation=activation,
            name=f"tiny-{activation}",
            store=store,
            tokenizer=twins / "merges.txt",
            precisions=["fp32"],
            dense="none",
        )
        assert artifact.manifest.provenance.activation == activation
        assert artifact.manifest.provenance.activation_declared
        prints.append(artifact.manifest.fingerprint)
        found = artifact.graph_spec("text_encoder", "fp32")
        assert found is not None
        vectors.append(open_graph(*found)(artifact.tokenizer()(["a red shoe"])))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    assert prints[0].image != prints[1].image
    assert prints[0].text != prints[1].text


def test_a_tag_of_the_other_activation_is_refused_before_any_download() -> None:
    assert get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    with pytest.raises(ExportRefused, match="'openai' was trained with quickgelu.*import ViT-B-32-quickgelu instead"):
        find_weights("ViT-B-32", "openai")
    with pytest.raises(ExportRefused, match="laion2b_s34b_b79k.*records its activation"):
        find_weights("ViT-B-32", "laion2b_s34b_b79k", activation="gelu")


def test_a_tag_that_cannot_be_downloaded_says_so() -> None:
    with pytest.raises(ExportRefused, match="cannot download ViT-B-32 'laion2b_s34b_b79k'"):
        find_weights("ViT-B-32", "laion2b_s34b_b79k")


class Trap:
    """Unpickling this object writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return Path.write_text, (self.target, "unpickled")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    target = tmp_path / "proof"
    file = tmp_path / "trap.pt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "extra": Trap(target)}, file)
    with pytest.raises(ExportRefused, match="weights_only=True"):
        check_weights_file(file)
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.read_text() == "unpickled", "the trap works, so the refusal above was not luck"


def test_torchscript_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript itself is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))
    with pytest.raises(ExportRefused, match="TorchScript") as refusal:
        check_weights_file(file)
    command = str(refusal.value).split('python -c "')[1].rsplit('"', 1)[0]
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(command, {})
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == {"weight", "bias"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_do_not_fit_are_refused(twins: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"other{suffix}"
    state = safetensors.torch.load_file(weights_of(twins))
    del state["visual.proj"]
    if suffix == ".pt":
        torch.save(state, file)
    else:
        safetensors.torch.save_file(state, file)
    with pytest.raises(ExportRefused, match=r"does not fit clipworks-tiny: .*visual\.proj"):
        load_model(find_weights("clipworks-tiny", str(file), activation="gelu"))


def test_pt_and_safetensors_give_the_same_model(twins: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(weights_of(twins))
    file = tmp_path / "wrapped.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    loaded = load_model(find_weights("clipworks-tiny", str(file), activation="gelu"))
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def wrapped(kind: str, state: dict[str, torch.Tensor]) -> object:
    """The checkpoint that a trainer of this kind leaves."""

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{key}": value for key, value in state.items()}

    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    inside_compiled = {key.replace("visual.", "visual._orig_mod.", 1): value for key, value in state.items()}
    return {
        "model": {"model": state, "optimizer": optimizer, "epoch": 3},
        "model_state_dict": {"model_state_dict": state, "loss": 0.5},
        "data parallel": {"state_dict": under("module."), "optimizer": optimizer},
        "compiled": under("_orig_mod."),
        "compiled and parallel": {"model": under("module._orig_mod.")},
        "compiled inside": {"state_dict": inside_compiled},
        "lightning": {
            "state_dict": {**under("model."), "loss.temperature": torch.zeros(1)},
            "pytorch-lightning_version": "2.5",
            "hyper_parameters": {"rate": 1e-3},
        },
        "a longer prefix": {"state_dict": under("net.clip.")},
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("model", "model_state_dict", "data parallel", "compiled", "compiled and parallel", "compiled inside"),
        *("lightning", "a longer prefix"),
    ],
)
def test_checkpoints_of_other_trainers(twins: Path, tmp_path: Path, kind: str) -> None:
    state = safetensors.torch.load_file(weights_of(twins))
    file = tmp_path / "checkpoint.pt"
    torch.save(wrapped(kind, state), file)
    loaded = load_model(find_weights("clipworks-tiny", str(file), activation="gelu")).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_prefixes_in_safetensors(twins: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(weights_of(twins))
    file = tmp_path / "prefixed.safetensors"
    safetensors.torch.save_file({f"model.{key}": value for key, value in state.items()}, file)
    loaded = load_model(find_weights("clipworks-tiny", str(file), activation="gelu")).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_two_models_in_one_file_are_not_guessed_between(twins: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(weights_of(twins))
    file = tmp_path / "both.pt"
    torch.save({"model": state, "model_ema": {key: value + 1 for key, value in state.items()}}, file)
    with pytest.raises(ExportRefused, match=r"holds 2 models \(model, model_ema\)"):
        load_model(find_weights("clipworks-tiny", str(file), activation="gelu"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_cut_off_files_are_called_so(twins: Path, tmp_path: Path, suffix: str, share: float) -> None:
    state = safetensors.torch.load_file(weights_of(twins))
    file = tmp_path / f"cut{suffix}"
    torch.save(state, file) if suffix == ".pt" else safetensors.torch.save_file(state, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ExportRefused, match=r"cut\..*(is empty|is cut off)"):
        load_model(find_weights("clipworks-tiny", str(file), activation="gelu"))


def test_sides_of_a_picture_may_be_a_list(tmp_path: Path) -> None:
    config = tiny_config()
    config["vision_cfg"] |= {"image_size": [48, 96]}
    torch.manual_seed(0)
    model = open_clip.CLIP(**{**config, "vision_cfg": {**config["vision_cfg"], "image_size": (48, 96)}})
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    spec = image_spec_of(load_model(find_weights(f"local-dir:{tmp_path}", None)))
    assert (spec.height_px, spec.width_px) == (48, 96)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("coca_ViT-B-32", "CoCa"),
        ("roberta-ViT-B-32", "text tower of the transformers library"),
        ("xlm-roberta-base-ViT-B-32", "text tower of the transformers library"),
    ],
)
def test_unsupported_towers_are_refused_with_the_reason(arch: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ExportRefused, match=reason):
        load_model(find_weights(arch, str(file)))


def test_naflex_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    config["vision_cfg"] = {"image_size": 32, "timm_model_name": "naflexvit_base_patch16_siglip"}
    folder = write_tiny_source(tmp_path / "naflex")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ExportRefused, match="NaFlex"):
        load_model(find_weights(f"local-dir:{folder}", None))


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="no architecture 'vit-b-32x'"):
        find_weights("vit-b-32x", "openai")
    with pytest.raises(ExportRefused, match="neither a file nor a tag of RN50; its tags: openai"):
        find_weights("RN50", "nothing")
    with pytest.raises(ExportRefused, match="say which weights"):
        find_weights("RN50", None)


def test_a_siglip_file_gets_siglips_preprocessing(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    preprocess = find_weights("ViT-B-16-SigLIP", str(file)).preprocess
    assert (preprocess["resize_mode"], tuple(preprocess["mean"])) == ("squash", (0.5, 0.5, 0.5))
    assert find_weights("ViT-B-32", str(file), activation="gelu").preprocess["resize_mode"] == "shortest"


def test_the_tokenizer_must_fit_the_embedding_table(twins: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="49408 tokens, the model's table 1014 rows"):
        import_model(
            "clipworks-tiny",
            pretrained=weights_of(twins),
            activation="gelu",
            name="tiny",
            store=Store(tmp_path, builtin=False),
        )


def sentencepiece_like(folder: Path) -> Path:
    """A unigram tokenizer.json as SigLIP's is: lower-cased, end token appended, padded with it."""
    tokenizer = HubTokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CALIBRATION_TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "</s>"}))
    return folder


@pytest.mark.long
@pytest.mark.slow
def test_a_siglip_like_model_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    config = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 400,
            "hf_tokenizer_name": "nowhere/to-be-found",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 32,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    folder = tmp_path / "source"
    folder.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(1)
    model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"}).eval()
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    store = Store(tmp_path / "store", builtin=False)
    with pytest.raises(ExportRefused, match="--tokenizer"):
        import_model(f"local-dir:{folder}", name="siglip", store=store)
    artifact = import_model(
        f"local-dir:{folder}",
        name="siglip",
        store=store,
        tokenizer=sentencepiece_like(tmp_path / "tokenizer"),
        precisions=["fp32"],
    )
    spec = artifact.text_spec
    assert spec is not None
    assert (spec.kind, spec.clean, spec.dynamic_length, spec.pad_id) == ("tokenizers_json", "canonicalize", False, 1)
    assert artifact.manifest.activation == "sigmoid"
    found = artifact.graph_spec("text_encoder", "fp32")
    assert found is not None
    ids = artifact.tokenizer()(["A Red_Shoe!", "two dogs"])
    assert ids.shape == (2, 16)
    assert ids[0, -1] == 1
    with torch.inference_mode():
        expected = model.encode_text(torch.from_numpy(ids)).numpy()
    assert np.abs(open_graph(*found)(ids) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_preprocessing_is_read_from_open_clip(twins: Path) -> None:
    model = load_model(find_weights("clipworks-tiny", weights_of(twins), activation="gelu"))
    spec = image_spec_of(model)
    assert (spec.height_px, spec.width_px, spec.resize_mode, spec.interpolation) == (48, 48, "shortest", "bicubic")
    settings: Any = model.visual.preprocess_cfg
    settings.update(resize_mode="longest", fill_color=7)
    spec = image_spec_of(model)
    assert (spec.resize_mode, spec.fill) == ("longest", 7)
    assert (prepare(Image.new("RGB", (96, 48)), spec)[0, 0] == 7).all()
