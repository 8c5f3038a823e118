"""Squares of one colour with true and false captions, and a checkpoint trained on them: seconds, for every method."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from model_store.modality.text import Tokenizer
from model_store.store import Store
from tests import exporter_once  # noqa: F401
from training import method as methods
from training import methods as folder_of_methods
from training.checkpoint import load_model
from training.config import load_config
from training.data.source import open_source
from training.data.vocabulary import tokenizer_of
from training.loop import train
from training.models.building import image_spec
from training.publish import publish_checkpoint

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (240, 240, 240)}
RECIPE = """
name = "squares"
seed = 3
method = "base"
[data]
folder = "."
cache_px = 16
label_columns = ["colour"]
negative_column = "false_caption"
split = {modulo = 10, test = [1], validation = [2]}
[augment]
crop_scale = [1.0, 1.0]
word_drop = 0.0
template_share = 0.0
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 16}
text = {merges = 200, context_length = 16, width = 16, layers = 1, heads = 2, pool = "eos"}
[optim]
batch_size = 8
steps = 6
rate = 3e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.9
[run]
folder = "unset"
device = "cpu"
precision = "fp32"
threads = 1
log_steps = 1
report = "retrieval"
"""

ALIGNED = """
[model]
kind = "aligned"
[model.image]
trunk = "test_efficientnet"
weights = "TRUNK"
size_px = 32
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[model.class_map]
classes = "CLASSES"
[model.text]
encoder = "ENCODER"
context_length = 16
centre = "classes"
"""
WORDS = "plain shirt photo of red green blue white tree cat ##s ##ing \u00e9t ##\u00e9 \u65e5 a photo . ! ' & ; < >"

Train = Callable[..., Path]
MakeContext = Callable[..., methods.Context]


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 120 squares; every fourth caption has no hard negative."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    names = list(COLOURS)
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "false_caption", "colour"])
        for number in range(120):
            name, other = names[number % 4], names[(number + 1 + number // 4 % 3) % 4]
            pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            false = "" if number // 4 % 4 == 0 else f"plain {other} shirt {number % 3}"
            writer.writerow([f"{number}.png", f"plain {name} shirt {number % 3}", false, name])
    (folder / "squares.toml").write_text(RECIPE.replace('folder = "."', f"folder = {json.dumps(str(folder))}"))
    return folder / "squares.toml"


@pytest.fixture(scope="session")
def square_base(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of six steps of the base method."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(squares, [f"run.folder={json.dumps(str(folder))}"])
    return folder


@pytest.fixture(scope="session")
def vit_squares(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the squares with transformers on both sides."""
    recipe = squares.read_text(encoding="utf-8").replace("clipworks_conv_t", "clipworks_vit_t")
    path = tmp_path_factory.mktemp("vit") / "vit.toml"
    path.write_text(recipe.replace('layers = 1, heads = 2, pool = "eos"', 'layers = 2, heads = 2, pool = "eos+bag"'))
    return path


@pytest.fixture(scope="session")
def vit_base(vit_squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of forty steps of it."""
    folder = tmp_path_factory.mktemp("vit_runs") / "base"
    train(vit_squares, [f"run.folder={json.dumps(str(folder))}", "optim.steps=40"])
    return folder


@pytest.fixture(scope="session")
def prompt_squares(vit_squares: Path) -> Path:
    """The recipe of the squares with a ViT so small that its graphs are written in seconds, read place by place."""
    slim = "slim = {image = {width = 16, head_width = 8, heads = [2, 2, 2], mlp = [32, 32, 32]}}"
    recipe = vit_squares.read_text(encoding="utf-8").replace("size_px = 16}", 'size_px = 16, pool = "flat"}')
    path = vit_squares.with_name("prompts.toml")
    path.write_text(recipe.replace("embed_dim = 16", f"embed_dim = 16\n{slim}"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prompt_base(prompt_squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one step of it: it has not learnt to name."""
    folder = tmp_path_factory.mktemp("prompt_runs") / "base"
    train(prompt_squares, [f"run.folder={json.dumps(str(folder))}", "optim.steps=1"])
    return folder


@pytest.fixture(scope="session")
def prompt_store(prompt_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with its artifact, "base"."""
    found = Store(tmp_path_factory.mktemp("prompt_store"), builtin=False)
    publish_checkpoint(prompt_base, "base", found, precisions=("fp32",), dense="none")
    return found


@pytest.fixture
def train_squares(squares: Path, tmp_path: Path) -> Train:
    """Train the squares with overrides into a new folder, which is returned."""

    def call(*overrides: str, base: Path | None = None, name: str = "run", recipe: Path = squares) -> Path:
        folder = tmp_path / name
        start = [] if base is None else [f"base={json.dumps(str(base))}"]
        train(recipe, [f"run.folder={json.dumps(str(folder))}", *start, *overrides])
        return folder

    return call


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The override that makes a recipe's model a small ViT of open_clip's, whose rows know nothing of each other."""
    folder = tmp_path_factory.mktemp("tiny_vit")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (folder / "clipworks-tiny-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return 'model={kind = "open_clip", architecture = "clipworks-tiny-vit"}'


@pytest.fixture
def make_context(squares: Path) -> MakeContext:
    """What the loop gives a method's setup, for the squares with overrides."""

    def call(*overrides: str, base: Path | None = None, recipe: Path = squares) -> methods.Context:
        config = load_config(recipe, overrides)
        spec, data = tokenizer_of(config.model)
        size = image_spec(config.model)
        return methods.Context(
            model=config.model,
            tokenizer=Tokenizer(spec, data),
            source=open_source(config, cache_spec=size, image_spec=size),
            batch_size=config.optim.batch_size,
            device="cpu",
            seed=config.seed,
            base=None if base is None else load_model(base),
        )

    return call


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a module into a folder on the package's path; nothing of it stays after the test."""
    folder = tmp_path / "more_methods"
    folder.mkdir()
    monkeypatch.setattr(folder_of_methods, "__path__", [*folder_of_methods.__path__, str(folder)])

    def add(name: str, source: str) -> Path:
        path = folder / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        # Set first, so that the import's own entry is taken back with it.
        monkeypatch.setitem(sys.modules, f"{folder_of_methods.__name__}.{name}", sys)
        monkeypatch.delitem(sys.modules, f"{folder_of_methods.__name__}.{name}")
        return path

    return add


@pytest.fixture(scope="session")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded BERT of three layers as transformers writes it, with a WordPiece vocabulary; it knows nothing."""
    folder = tmp_path_factory.mktemp("sentence_encoder")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[unused]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    tokens += [word for word in dict.fromkeys(WORDS.split()) if word not in tokens]
    tokenizer = HubTokenizer(models.WordPiece({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(folder / "tokenizer.json"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
        config = BertConfig(
            vocab_size=len(tokens), **shape, max_position_embeddings=24, initializer_range=0.2, layer_norm_eps=1e-6
        )
        model = BertModel(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    )
    return folder


@pytest.fixture(scope="session")
def trunk_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded trunk of four classes whose batch norms have seen something."""
    path = tmp_path_factory.mktemp("trunk") / "trunk.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        trunk = timm.create_model("test_efficientnet", num_classes=4)
        for name, tensor in trunk.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.2)
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
        torch.nn.init.normal_(trunk.get_classifier().weight, std=1.0)
    save_file({name: tensor.contiguous() for name, tensor in trunk.state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def aligned_model_table(sentence_encoder: Path, trunk_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table `[model]` of an aligned model, to be put into a recipe."""
    classes = tmp_path_factory.mktemp("classes") / "classes.txt"
    classes.write_text("red shirt; plain red\ngreen tree\nblue cat\nwhite\n", encoding="utf-8")
    text = ALIGNED.replace("TRUNK", str(trunk_weights)).replace("CLASSES", str(classes))
    return text.replace("ENCODER", str(sentence_encoder))


@pytest.fixture(scope="session")
def aligned_squares(squares: Path, aligned_model_table: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of the squares with an aligned model."""
    recipe = squares.read_text(encoding="utf-8")
    start, end = recipe.index("[model]"), recipe.index("[optim]")
    recipe = recipe[:start] + aligned_model_table + recipe[end:]
    path = tmp_path_factory.mktemp("aligned") / "aligned.toml"
    path.write_text(recipe.replace("cache_px = 16", "cache_px = 32"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def everyday_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs with boxes, and products of all three splits, for the recipes of the shipped models."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "coco" / "train2017").mkdir(parents=True)
    (folder / "coco" / "annotations").mkdir()
    rng = np.random.default_rng(0)
    images = []
    for number, size in ((7, (64, 48)), (3, (50, 90))):
        pixels = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "coco" / "train2017" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
    captions = [{"id": n, "image_id": n % 2 * 4 + 3, "caption": f"caption {n}"} for n in range(6)]
    boxes = [
        {"id": 1, "image_id": 7, "category_id": 5, "bbox": [4, 2, 50, 44], "iscrowd": 0, "segmentation": []},
        {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 60, 44], "iscrowd": 1, "segmentation": []},
        {"id": 3, "image_id": 3, "category_id": 9, "bbox": [0, 0, 8, 9], "iscrowd": 0, "segmentation": []},
        {"id": 4, "image_id": 3, "category_id": 9, "bbox": [0, 10, 45, 70], "iscrowd": 0, "segmentation": []},
    ]
    categories = [{"id": 5, "name": "cat"}, {"id": 9, "name": "tall tree"}]
    for name, content in (("captions", captions), ("instances", boxes)):
        text = json.dumps({"images": images, "annotations": content, "categories": categories})
        (folder / "coco" / "annotations" / f"{name}_train2017.json").write_text(text)
    (folder / "shop" / "images").mkdir(parents=True)
    with (folder / "shop" / "captions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption", "baseColour"])
        for number in range(1, 61):
            Image.new("RGB", (20, 20), (number, 80, 90)).save(folder / "shop" / "images" / f"{number}.png")
            kind = ("Shirt", "Watch", "Perfume")[number % 3]
            writer.writerow([f"images/{number}.png", f"Brand {number} {kind}", ("Red", "Blue")[number // 10 % 2]])
    return folder
