"""The command that makes the shipped model's checkpoint: its ridge, its pictures, its splits, and the whole of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model_store.manifest import ImageSpec
from training.checkpoint import load_model
from training.config import OptimConfig, SplitConfig
from training.models.aligned import AlignedDualEncoder
from training.shipped.everyday.__main__ import RECIPE, main
from training.shipped.everyday.photograph_head import Examples, Scaling, class_pictures, fit_ridge
from training.shipped.everyday.pictures import (
    CROPS,
    REDUCED_CROPS,
    boxed,
    crops,
    read_photographs,
    read_shop,
    reduced,
    reduced_crops,
)
from training.shipped.everyday.product_head import Products, ShownPictures, Told, TrainingSet, train_product_head

pytestmark = pytest.mark.torch
F32 = np.float32


def test_the_ridge_is_the_weighted_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    sets = [
        Examples(rng.normal(size=(n, 6)).astype(F32), rng.normal(size=(n, 3)).astype(F32), weight)
        for n, weight in ((40, 0.5), (5, 3.0))
    ]
    found = fit_ridge(sets, strength=2.0)
    rows = np.concatenate([np.sqrt(each.weight) * each.features for each in sets] + [np.sqrt(2.0) * np.eye(6)])
    wanted = np.concatenate([np.sqrt(each.weight) * each.vectors for each in sets] + [np.zeros((6, 3))])
    np.testing.assert_allclose(found, np.linalg.lstsq(rows, wanted, rcond=None)[0], atol=1e-5)


def test_a_map_of_scaled_features_is_one_of_the_features() -> None:
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(50, 6)) * [1, 5, 0.1, 3, 2, 0] + 4).astype(F32)
    scaling = Scaling.of(rows)
    weight, bias = rng.normal(size=(3, 6)).astype(F32), rng.normal(size=3).astype(F32)
    folded, moved = scaling.folded(weight, bias)
    np.testing.assert_allclose(rows @ folded.T + moved, scaling(rows) @ weight.T + bias, atol=1e-4)
    pictures = class_pictures(rng.normal(size=(7, 6)).astype(F32), scaling, length=2.5)
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 2.5, rtol=1e-5)


def test_products_of_other_splits_are_not_seen(everyday_data: Path) -> None:
    shop = read_shop(everyday_data / "shop", SplitConfig(modulo=10, test=(1,), validation=(2,)))
    assert len(shop) == 48
    assert {int(each.path.stem) % 10 for each in shop} == {0, 3, 4, 5, 6, 7, 8, 9}
    assert [each.kind for each in shop[:3]] == ["shirt", "watch", None]
    assert {each.colour for each in shop} == {"red", "blue"}


def tiny_spec() -> ImageSpec:
    return ImageSpec(
        height_px=32,
        width_px=32,
        resize_mode="shortest",
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_pictures_of_photographs(everyday_data: Path) -> None:
    photographs, things = read_photographs(everyday_data / "coco")
    assert [each.path.name for each in photographs] == ["7.png", "3.png"]
    assert photographs[1].captions == ("caption 0", "caption 2", "caption 4")
    # No crowd, nothing smaller than 40 x 40 pixels.
    assert [(each.photograph, each.name) for each in things] == [(0, "cat"), (1, "tall tree")]
    spec = tiny_spec()
    made = {
        "crops": list(crops(photographs, 32)),
        "reduced crops": list(reduced_crops(photographs, 32)),
        "boxes": list(boxed(photographs, things, 32)),
        "reduced": list(reduced(photographs, spec)),
    }
    sizes = {name: len(pictures) for name, pictures in made.items()}
    assert sizes == {"crops": 2 * CROPS, "reduced crops": 2 * REDUCED_CROPS, "boxes": 2, "reduced": 2}
    assert {each.shape for each in made["crops"] + made["boxes"]} == {(32, 32, 3)}
    assert np.array_equal(made["crops"], list(crops(photographs, 32)))
    assert not np.array_equal(made["crops"][0], made["crops"][1])
    # The square around the tall tree is wider than the photograph.
    with Image.open(photographs[1].path) as image:
        expected = image.convert("RGB").crop((0, 1, 50, 89)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(made["boxes"][1], np.asarray(expected))


def test_the_gate_opens_for_products_alone() -> None:
    """Products differ from photographs along the first feature; the head learns their titles, the gate who is one."""
    rng = np.random.default_rng(0)

    def units(count: int) -> np.ndarray:
        found = rng.normal(size=(count, 8)).astype(F32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def shown(count: int, first: float) -> ShownPictures:
        features = rng.normal(size=(count, 12)).astype(F32)
        features[:, 0] = first
        return ShownPictures(features, units(count))

    def told(count: int, copies: int = 1) -> Told:
        return Told(shown(count * copies, -2), [units(2) for _ in range(count)], np.arange(count))

    products = shown(400, 2)
    titles = products.features[:, 1:9] / np.linalg.norm(products.features[:, 1:9], axis=1, keepdims=True)
    classes = titles[:, :3].argmax(axis=1)
    corners = np.eye(3, 8, dtype=F32)
    data = TrainingSet(
        products=Products(
            shown=products,
            titles=titles,
            named=list(titles[:, None]),
            colours=classes,
            colour_vectors=corners,
            kinds=np.where(classes == 0, -1, classes),
            kind_vectors=corners,
        ),
        photographs=told(50, copies=4),
        reduced=shown(100, -2),
        things=told(30),
        scenes=told(60),
        classes=told(100),
    )
    optim = OptimConfig(
        batch_size=64, steps=60, rate=5e-2, warmup_steps=2, weight_decay=0.0, clip_norm=10.0, ema_decay=0.0
    )
    lines: list[str] = []
    head = train_product_head(data, optim, high=8.0, drop=0.0, seed=0, say=lines.append)
    with torch.no_grad():
        image, _, opened = head(products)
        _, _, shut = head(data.photographs.shown)
    assert opened.min() > shut.max() + 1
    ranks = (image @ torch.from_numpy(titles).T).argsort(dim=1, descending=True)[:, 0]
    assert (ranks == torch.arange(400)).float().mean() > 0.5
    assert not head.training


@pytest.fixture(scope="module")
def recipe(aligned_model_table: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe with sources of a few kilobytes, and few scenes."""
    text = RECIPE.read_text(encoding="utf-8")
    start, end = text.index("[model]"), text.index("[optim]")
    image = "stages = [1, 2]\nunit = true\ngate = [0.0, 8.0]\n"
    model = aligned_model_table.replace("[model.class_map]", f"{image}[model.class_map]\nlinear = 0.8")
    text = text[:start] + model + text[end:]
    smaller = {"= 256": "= 64", "size_px = 32": "size_px = 64", "steps = 600": "steps = 30"}
    scenes = {f"scenes = {count}": "scenes = 40" for count in (700, 900, 400)}
    for there, here in {**smaller, **scenes}.items():
        assert there in text
        text = text.replace(there, here)
    path = tmp_path_factory.mktemp("recipe") / "model.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_writes_a_checkpoint(everyday_data: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    places = {"--coco": everyday_data / "coco", "--products": everyday_data / "shop", "--recipe": recipe, "--out": run}
    arguments = [str(word) for place in places.items() for word in place]
    assert main(arguments) == 0
    loaded = load_model(run)
    assert isinstance(loaded.model, AlignedDualEncoder)
    assert loaded.info.templates == ("{}", "a photo of a {}", "a {}")
    assert set(loaded.info.graphs) == {"image_encoder", "text_encoder", "dense_encoder"}
    # The photograph head is the ridge of what was kept of the pictures, the gate is open for products.
    assert loaded.model.class_map is not None
    assert loaded.model.class_map.linear is not None
    assert loaded.model.class_map.linear.weight.abs().max() > 1e-3
    assert loaded.model.head is not None
    outputs = {}
    for name in ("products", "crops", "scenes"):
        rows = torch.from_numpy(np.load(run / "features" / f"{name}.npy"))
        outputs[name] = loaded.model.head.out(rows)[:, -1]
    assert outputs["products"].mean() > outputs["crops"].mean() + 1
    assert len(outputs["crops"]) == 2 * CROPS
    # A second run reads the features, and ends at the same weights.
    before = (run / "weights.safetensors").read_bytes()
    assert main(arguments) == 0
    assert (run / "weights.safetensors").read_bytes() == before


def test_merged_classes_have_no_captions_of_their_own(
    everyday_data: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace("[model.class_map]", "[model.class_map]\nmerged = 2"), encoding="utf-8")
    places = {"--coco": everyday_data, "--products": everyday_data / "shop", "--recipe": other, "--out": tmp_path}
    assert main([str(word) for place in places.items() for word in place]) == 1
    assert "class_map.merged is not known here" in capsys.readouterr().err


def test_missing_data_are_a_sentence(
    everyday_data: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"--coco": everyday_data, "--products": everyday_data / "shop", "--recipe": recipe, "--out": tmp_path}
    assert main([str(word) for place in places.items() for word in place]) == 1
    assert "captions_train2017.json" in capsys.readouterr().err
