"""What each of several processes does in test_distributed: run by torchrun, with a folder, a recipe and overrides."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn import functional

from model_store.manifest import ImageSpec
from model_store.modality.text import Tokenizer
from training import distributed
from training.batch_norms import average_statistics, synchronise
from training.data.vocabulary import clip_merges, clip_text_spec
from training.distillation_losses import (
    PairVectors,
    feature_distance,
    gradient_distance,
    interactive_contrast,
    relation_distance,
)
from training.distributed import Gathering
from training.encoder import TorchEncoder
from training.gradient_exchange import GradientExchange
from training.loop import train
from training.losses import (
    focal_negative_loss,
    info_nce,
    negclip_loss,
    positive_pairs,
    sigmoid_loss,
    usable_negatives,
)

LOSSES = ("info_nce", "sigmoid", "negclip", "own", "focal", "excused", "fd", "icl", "crd", "gd")
GATHERINGS = {
    "whole": Gathering(),
    "local": Gathering(local_loss=True),
    "apart": Gathering(with_gradient=False),
}
CAPTION_ID = torch.tensor([0, 1, 1, 2, 0, 3, 4, 1])
NEGATIVE_ID = torch.tensor([5, 6, 0, 7, 8, 3, 2, 9])
HAS_NEGATIVE = torch.tensor([True, True, True, False, True, True, True, True])


class Towers(nn.Module):
    """Two linear towers with a temperature and a bias: small, and every gradient is dense."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(7, 5), nn.Linear(6, 5)
        self.scale, self.bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-2.0))


def loss_and_gradients(loss: str, gathering: Gathering) -> dict[str, torch.Tensor]:
    """The loss of a batch of eight and every parameter's gradient, as the loop would see them in this process."""
    towers, stream = Towers(), torch.Generator().manual_seed(1)
    batch = distributed.part_of(
        {
            "image": torch.randn(8, 7, generator=stream),
            "text": torch.randn(8, 6, generator=stream),
            "negative": torch.randn(8, 6, generator=stream),
            "caption_id": CAPTION_ID,
            "negative_id": NEGATIVE_ID,
            "has_negative": HAS_NEGATIVE,
            "excused": torch.rand(8, 16, generator=stream) < 0.3,
            "teacher_image": functional.normalize(torch.randn(8, 5, generator=stream), dim=-1),
            "teacher_text": functional.normalize(torch.randn(8, 5, generator=stream), dim=-1),
        }
    )
    image, text, negative = (
        gathering.vectors(functional.normalize(vectors, dim=-1))
        for vectors in (towers.image(batch["image"]), towers.text(batch["text"]), towers.text(batch["negative"]))
    )
    ids, negative_id, has = (gathering.facts(batch[name]) for name in ("caption_id", "negative_id", "has_negative"))
    rows, scale, positives = gathering.rows(len(batch["image"])), towers.scale.exp(), positive_pairs(ids)
    usable = usable_negatives(ids, negative_id, has, own_only=loss == "own")
    if loss == "info_nce":
        value = info_nce(image, text, scale, positives, rows=rows)
    elif loss == "sigmoid":
        value = sigmoid_loss(image, text, scale, towers.bias, positives, rows=rows)
    elif loss in ("fd", "icl", "crd", "gd"):
        teacher = PairVectors(*(gathering.facts(batch[f"teacher_{tower}"]) for tower in ("image", "text")))
        student, colder = PairVectors(image, text), scale.detach() * 3
        # The bias takes part, so that every loss has a gradient of all parameters.
        value = (towers.bias + 3) * {
            "fd": lambda: feature_distance(student, teacher, rows=rows) * scale,
            "icl": lambda: interactive_contrast(student, teacher, scale, positives=positives, rows=rows),
            "crd": lambda: relation_distance(student, teacher, scale, colder, rows=rows),
            "gd": lambda: gradient_distance(student, teacher, scale, colder, positives=positives, rows=rows),
        }[loss]()
    elif loss == "focal":
        value = focal_negative_loss(image, text, negative, scale, has_negative=has, rows=rows)
    else:
        excused = gathering.facts(batch["excused"]) if loss == "excused" else None
        value = negclip_loss(
            image, text, negative, scale, positives=positives, usable=usable, excused=excused, rows=rows
        )
    # Small buckets: some leave during backward, and some wait for the end.
    exchange = GradientExchange(list(towers.parameters()), bucket_bytes=64)
    exchange.start()
    value.backward()
    exchange.finish()
    found = {name: p.grad for name, p in towers.named_parameters() if p.grad is not None}
    return {"loss": distributed.mean(value.detach()), **found}


class Convolutions(nn.Module):
    """Batch norms behind a convolution, behind one of timm's with its activation, and of vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.act = nn.Conv2d(4, 5, 3), BatchNormAct2d(5)
        self.last = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, momentum=None))
        for norm in (self.norm, self.act):
            nn.init.uniform_(norm.weight, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.act(self.second(self.norm(self.first(x)))).mean(dim=(2, 3)))


def joint_norms() -> dict[str, torch.Tensor]:
    """Outputs, gradients and statistics after two batches of ten; with two processes, four rows and six."""
    model, stream = Convolutions(), torch.Generator().manual_seed(3)
    synchronise([model], device="cpu")
    exchange = GradientExchange(list(model.parameters()))
    rows = slice(None) if distributed.count() == 1 else [slice(0, 4), slice(4, 10)][distributed.rank()]
    for _ in range(2):
        pictures, factors = torch.randn(10, 3, 8, 8, generator=stream), torch.randn(10, 3, generator=stream)
        out = model(pictures[rows])
        exchange.start()
        # A sum over the rows of all, as the mean over processes of what each of them has.
        (out * factors[rows]).tanh().sum().mul(distributed.count()).backward()
        exchange.finish()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**found, **dict(model.named_buffers()), "input": model(pictures[rows]).detach()}


def shared_vectors() -> dict[str, torch.Tensor]:
    """Vectors of 300 pictures and of seven texts, and how many of them this process worked out."""
    torch.manual_seed(4)
    tower, embedding = nn.Linear(8 * 8 * 3, 5), nn.Embedding(800, 5)
    spec, data = clip_text_spec(200, context_length=16), clip_merges(200)
    worked: dict[str, list[int]] = {"pictures": [], "texts": []}

    def encode_image(pixels: torch.Tensor) -> torch.Tensor:
        worked["pictures"].append(len(pixels))
        return tower(pixels.flatten(1).float() / 255)

    def encode_text(ids: torch.Tensor) -> torch.Tensor:
        worked["texts"].append(len(ids))
        return (embedding(ids) * (ids > 0)[..., None]).sum(dim=1)  # padding says nothing

    encoder = TorchEncoder(
        encode_image,
        encode_text,
        image_spec=ImageSpec(
            height_px=8,
            width_px=8,
            resize_mode="shortest",
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        tokenizer=Tokenizer(spec, data),
        name="shared",
        fingerprint="shared",
        divided=True,
    )
    pixels = np.random.default_rng(0).integers(0, 256, size=(300, 8, 8, 3), dtype=np.uint8)
    found = {
        "prepared": encoder.encode_prepared(pixels),
        "images": encoder.encode_images([pixels[at] for at in range(3)]),
        "texts": encoder.encode_texts(["a", "red circle", "b", "blue", "a", "square", "no red circle"]),
    }
    counts = {f"own {name}": torch.tensor(sum(rows)) for name, rows in worked.items()}
    return {**{name: torch.from_numpy(each) for name, each in found.items()}, **counts}


def compare_losses(folder: Path) -> None:
    if distributed.count() != 2:
        raise ValueError(f"expected two processes, got {distributed.count()}")
    found = {
        f"{loss}/{kind}/{name}": tensor
        for loss in LOSSES
        for kind, gathering in GATHERINGS.items()
        for name, tensor in loss_and_gradients(loss, gathering).items()
    }
    norm = nn.BatchNorm1d(2)
    norm(torch.full((4, 2), float(distributed.rank())) + torch.arange(4.0)[:, None])
    average_statistics([norm])
    found |= {"norm/running_mean": norm.running_mean, "norm/running_var": norm.running_var}
    found |= {f"joint/{name}": tensor for name, tensor in joint_norms().items()}
    found |= {f"vectors/{name}": tensor for name, tensor in shared_vectors().items()}
    save_file(found, folder / f"{distributed.rank()}.safetensors")
    try:
        distributed.part_of({"image": torch.zeros(7)})
    except ValueError as error:
        (folder / f"{distributed.rank()}.txt").write_text(str(error))


def train_together(folder: Path, recipe: Path, overrides: list[str]) -> None:
    result = train(recipe, overrides)
    told = {"step": result.step, "metrics": result.metrics}
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(told, sort_keys=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, recipe, *overrides = sys.argv[1:]
    with distributed.joined("cpu"):
        compare_losses(Path(where))
        train_together(Path(where), Path(recipe), overrides)
        parts = [*overrides, "optim.accumulate=2", f"run.folder={json.dumps(f'{where}/parts')}"]
        train(Path(recipe), parts)
