"""The baseline that a published default must beat: a plain CNN and a bag of words, on the same split and metrics.

    python benchmarks/baseline_bow.py --data FOLDER [--epochs 10] [--out FILE]

No crops, no templates, no averaging, no transformer: eight 3x3 convolutions on 48 px pictures against the mean of
learned word vectors (one per lower-cased word of a training title), InfoNCE with equal titles as positives, flips only.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluation.fashion import fashion_report
from evaluation.metrics import normalize
from training.config import OPENAI_MEAN, OPENAI_STD, load_config
from training.data.families import has_kin
from training.data.reader import load_pixels, read_table
from training.data.rows import caption_ids
from training.losses import info_nce, positive_pairs
from training.models.building import image_spec

SIZE_PX, DIM, BATCH = 48, 192, 128
_WORD = re.compile(r"[a-z0-9]+")
WIDTHS, HALVED = (32, 32, 64, 64, 128, 128, 256, 256), (1, 3, 5)


class WordBag(nn.Module):
    """Titles as word ids, int64 [B, L] with 0 for nothing -> the mean of their word vectors [B, DIM]."""

    def __init__(self, titles: Sequence[str]) -> None:
        super().__init__()
        words = sorted({word for title in titles for word in _WORD.findall(title.lower())})
        self.ids = {word: index for index, word in enumerate(words, start=1)}
        self.vectors = nn.Embedding(len(words) + 1, DIM, padding_idx=0)

    def tokenize(self, titles: Sequence[str]) -> NDArray[np.int64]:
        rows = [[self.ids[word] for word in _WORD.findall(title.lower()) if word in self.ids] for title in titles]
        out = np.zeros((len(rows), max(1, *map(len, rows))), dtype=np.int64)
        for index, row in enumerate(rows):
            out[index, : len(row)] = row
        return out

    def forward(self, ids: Tensor) -> Tensor:
        return self.vectors(ids).sum(dim=1) / (ids > 0).sum(dim=1, keepdim=True).clamp(min=1)


class PlainCnn(nn.Module):
    """uint8 [B, H, W, 3] -> [B, DIM]: eight convolutions, three halvings, mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
            stride = 2 if index in HALVED else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Linear(WIDTHS[-1], DIM)
        self.register_buffer("mean", torch.tensor(OPENAI_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(OPENAI_STD).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.projection(self.layers(x).mean(dim=(2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    recipe = Path(__file__).parents[1] / "training" / "configs" / "fashion.toml"
    config = load_config(recipe, [f"data.folder={json.dumps(str(options.data))}"])
    rows = read_table(options.data / config.data.table, label_columns=config.data.label_columns)
    rule, spec = config.data.split.rule(), image_spec(config.model, size_px=SIZE_PX)
    train_rows = [row for row in rows if rule.of(row.group) == "train"]
    pixels = load_pixels(options.data, train_rows, spec)
    titles = [row.caption for row in train_rows]
    ids = caption_ids(titles)

    cnn, bag = PlainCnn().to(memory_format=torch.channels_last), WordBag(titles)
    scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    optimizer = torch.optim.AdamW([*cnn.parameters(), *bag.parameters(), scale], lr=options.rate, weight_decay=0.01)
    rng, per_epoch = np.random.default_rng(options.seed), len(titles) // BATCH
    for epoch in range(options.epochs):
        order = rng.permutation(len(titles))
        for index in range(per_epoch):
            picks = order[index * BATCH : (index + 1) * BATCH]
            images = np.stack([pixels[i][:, ::-1] if rng.random() < 0.5 else pixels[i] for i in picks])
            optimizer.param_groups[0]["lr"] = options.rate * (1 - (epoch + index / per_epoch) / options.epochs)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.run.precision == "bf16"):
                image = cnn(torch.from_numpy(images))
            image = functional.normalize(image.float(), dim=-1)
            text = functional.normalize(bag(torch.from_numpy(bag.tokenize([titles[i] for i in picks]))), dim=-1)
            loss = info_nce(image, text, scale.exp().clamp(max=100), positive_pairs(torch.from_numpy(ids[picks])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    answer: dict[str, object] = {"epochs": options.epochs, "seed": options.seed}
    for split in ("validation", "test"):
        judged = [row for row in rows if rule.of(row.group) == split]
        with torch.no_grad():
            parts = torch.from_numpy(load_pixels(options.data, judged, spec)).split(BATCH)
            images = torch.cat([cnn.eval()(part).float() for part in parts]).numpy()
        answer[split] = fashion_report(
            normalize(images),
            lambda texts: normalize(bag(torch.from_numpy(bag.tokenize(texts))).detach().numpy()),
            [row.caption for row in judged],
            [row.labels["baseColour"] for row in judged],
            training_titles=frozenset(title.casefold() for title in titles),
            kin_in_training=has_kin(judged, train_rows),
        )
    text = json.dumps(answer, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
