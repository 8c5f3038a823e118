"""The measured case of docs/bias.md: scenes whose shape goes with a colour in 95 % of training, and what cures it.

    python benchmarks/bias.py --run               draws the scenes, trains and judges what is missing; writes the record
    python benchmarks/bias.py --write-docs        the tables of docs/bias.md from the record

Everything lies in .runs/bias. A replication has scenes, captions and weights of its own. Pictures of validation and of
the held-out part have every shape in every colour equally often; every knob is set on validation (`CHOICES`), and the
held-out part is asked once for each line of the table.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.marked import ROOT
from evaluation.bias.groups_file import read_groups
from evaluation.bias.metrics import ndkl, ranking
from evaluation.bias.task import Bias
from evaluation.encoder import Encoder, Shown, Vectors, png
from evaluation.metrics import mean_estimate, normalize
from evaluation.probe_results import ResultRow
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.dice import Dice
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from training.debias.closed_forms import F64, applied, calibrated, differences, group_differences, removal
from training.loop import train
from training.opening import open_checkpoint

F32 = NDArray[np.float32]
RUNS, RECORD = ROOT / ".runs" / "bias", ROOT / "benchmarks" / "lab" / "bias.json"
ALIGNED = {"circle": "red", "square": "blue", "triangle": "green", "star": "yellow"}
SHAPES, COLOURS = tuple(ALIGNED), tuple(ALIGNED.values())
SHARE, TRAINED, SIDE_PX = 0.95, 3000, 48
EACH = {"validation": 20, "test": 50}  # pictures of every shape in every colour
QUERIES = tuple(f"a {shape}" for shape in SHAPES)
PROMPTS = tuple(f"a {colour} shape" for colour in COLOURS)
PAIRS = tuple((f"a {ALIGNED[s]} {s}", f"a {c} {s}") for s in SHAPES for c in COLOURS if c != ALIGNED[s])
WEIGHTS = {"calibration": (1.0, 10.0, 100.0, 1000.0), "decorrelation": (10.0, 100.0)}
MOST_LOST = 0.01  # of the shapes' accuracy on validation; of what loses no more, the lowest NDKL is chosen
REPLICATIONS = 3
RECIPE = """
name = "spurious"
method = "base"
[data]
cache_px = 32
label_columns = ["shape", "colour"]
split = {modulo = 100, test = [1], validation = [0]}
[augment]
crop_scale = [1.0, 1.0]
word_drop = 0.0
template_share = 0.0
[model]
kind = "small"
embed_dim = 64
image = {trunk = "clipworks_conv_t", size_px = 32, pool = "mean"}
text = {merges = 2000, context_length = 16, width = 64, layers = 1, heads = 2, pool = "eos"}
[optim]
batch_size = 64
steps = 600
rate = 3e-3
warmup_steps = 50
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.99
[run]
device = "cpu"
threads = 1
precision = "bf16"
validate_steps = 600
checkpoint_steps = 600
report = "retrieval"
"""


class Seen:
    """An encoder, asked for labels as its neutral captions are, with a matrix behind its texts and perhaps one behind
    its pictures, in float64. Vectors are kept: every candidate asks for those of the same pictures."""

    templates: tuple[str, ...] = ("a {}",)

    def __init__(self, inner: Encoder) -> None:
        self.name, self.space, self.fingerprint, self.image_px = inner.name, inner.space, inner.fingerprint, SIDE_PX
        self._inner, self._texts, self._pictures = inner, None, None
        self._known: dict[Shown, F32] = {}

    def projected(self, texts: F64, pictures: F64 | None = None) -> Seen:
        made = copy.copy(self)
        made._texts, made._pictures = texts, pictures
        return made

    def encode_images(self, images: Sequence[Shown]) -> Vectors:
        new = [image for image in images if image not in self._known]
        if new:
            self._known.update(zip(new, self._inner.encode_images(new), strict=True))
        vectors = np.stack([self._known[image] for image in images])
        return vectors if self._pictures is None else applied(self._pictures, vectors).astype(np.float32)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        vectors = self._inner.encode_texts(texts)
        return vectors if self._texts is None else applied(self._texts, vectors).astype(np.float32)


def write_pictures(replication: int) -> Path:
    """Training's table with its pictures, and two balanced folders with a groups.csv each; what is there stays."""
    folder = RUNS / f"r{replication}"
    if (folder / "done").exists():
        return folder
    rows: list[tuple[str, str, str, str]] = []
    dice = Dice("bias/captions", replication)
    for number in range(TRAINED):
        shape = dice.pick(SHAPES)
        others = [colour for colour in COLOURS if colour != ALIGNED[shape]]
        colour = ALIGNED[shape] if dice.uniform(0, 1) < SHARE else dice.pick(others)
        said = dice.uniform(0, 1)
        caption = f"a {colour} {shape}" if said < 0.5 else f"a {shape}" if said < 0.8 else f"a {colour} shape"
        write_scene(folder / "train" / f"{number}.png", shape, colour, f"bias/train/{replication}", number)
        rows.append((f"{number}.png", caption, shape, colour))
    write_table(folder / "train" / "captions.csv", ("image", "caption", "shape", "colour"), rows)
    write_table(folder / "train" / "balanced.csv", ("image", "caption", "shape", "colour"), balanced(rows))
    trained = [(image, colour, shape) for image, _, shape, colour in rows]
    write_table(folder / "train" / "groups.csv", ("path", "group", "label"), trained)
    for part, each in EACH.items():
        cells = [(s, c, n) for s in SHAPES for c in COLOURS for n in range(each)]
        for at, (shape, colour, _) in enumerate(cells):
            write_scene(folder / part / f"{at}.png", shape, colour, f"bias/{part}/{replication}", at)
        judged = [(f"{at}.png", colour, shape) for at, (shape, colour, _) in enumerate(cells)]
        write_table(folder / part / "groups.csv", ("path", "group", "label"), judged)
    (folder / "done").touch()
    return folder


def balanced(rows: Sequence[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """Rows of rare combinations repeated, until each is as frequent as the most frequent one."""
    cells: dict[tuple[str, str], list[tuple[str, str, str, str]]] = {}
    for row in rows:
        cells.setdefault((row[2], row[3]), []).append(row)
    most = max(map(len, cells.values()))
    return [found[at % len(found)] for found in cells.values() for at in range(most)]


def write_scene(path: Path, shape: str, colour: str, stream: str, number: int) -> None:
    config = SceneConfig(
        count=(1, 1),
        size=(0.4, 0.6),
        turn_deg=10,
        pairs=((shape, colour),),
        textures=("plain",),
        patterns=("plain",),
        tones=("light",),
        stream=stream,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(render(sample(number, config), SIDE_PX).image))


def write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def trained(folder: Path, replication: int, name: str, *overrides: str) -> Seen:
    """The encoder of a run of this name, trained unless it was."""
    run, recipe = folder / "runs" / name, RUNS / "recipe.toml"
    if not (run / "checkpoint.json").exists():
        recipe.write_text(RECIPE, encoding="utf-8")
        own = [f"data.folder={json.dumps(str(folder / 'train'))}", f"run.folder={json.dumps(str(run))}"]
        start = time.process_time()
        train(recipe, [*own, f"seed={replication}", *overrides])
        print(f"r{replication} {name}: {time.process_time() - start:.0f} core-seconds", flush=True)
    return Seen(open_checkpoint(run))


def judge(encoder: Seen, folder: Path) -> dict[str, Any]:
    """Of the held-out pictures: the rows of `clipworks eval --suite bias`, and how many colours and pairs are named."""
    pictures = read_groups(folder / "test" / "groups.csv")
    result = Bias("test", pictures, QUERIES).measure(encoder)
    found: dict[str, Any] = {short(row.name): numbers(row) for row in result.rows if "a " not in row.name}
    images = encoder.encode_images([one.shown() for one in pictures.photographs])
    labels = pictures.labels or ()
    pairs = [f"a {c} {s}" for s in SHAPES for c in COLOURS]
    truth = [f"a {c} {s}" for c, s in zip(pictures.groups, labels, strict=True)]
    found["colours"] = named(images, encoder, list(PROMPTS), [f"a {c} shape" for c in pictures.groups])
    found["pairs"] = named(images, encoder, pairs, truth)
    return found


def glance(encoder: Seen, folder: Path) -> dict[str, float]:
    """What knobs are set by, on validation: NDKL, mean over the queries, and the share of shapes that are named."""
    pictures = read_groups(folder / "validation" / "groups.csv")
    images = encoder.encode_images([one.shown() for one in pictures.photographs])
    colours = np.unique(pictures.groups, return_inverse=True)[1]
    scores = encoder.encode_texts(list(QUERIES)) @ images.T
    hits = [SHAPES[at] == shape for at, shape in zip(scores.argmax(axis=0), pictures.labels or (), strict=True)]
    skews = [ndkl(ranking(each, colours).counts()) for each in scores]
    return {"NDKL": float(np.mean(skews)), "accuracy": float(np.mean(hits))}


def named(images: Vectors, encoder: Seen, texts: list[str], truth: list[str]) -> dict[str, float]:
    best = (images @ normalize(encoder.encode_texts(texts)).T).argmax(axis=1)
    found = mean_estimate(np.array([texts[at] == wanted for at, wanted in zip(best, truth, strict=True)]))
    return {"score": found.value, "low": found.low, "high": found.high, "chance": 1 / len(texts)}


def numbers(row: ResultRow) -> dict[str, float | None]:
    return {"score": row.score, "low": row.low, "high": row.high, "chance": row.chance}


def short(name: str) -> str:
    """The name of a row without what depends on the number of pictures."""
    kept = ("MaxSkew", "NDKL", "accuracy", "mean of", "worst of", "mAP")
    return next(each.removesuffix(" of") for each in kept if each in name)


def projections(encoder: Seen, folder: Path) -> dict[str, tuple[str, Callable[[], Seen]]]:
    """Candidates by name: which line of the table they are for, and how they are made."""
    prompts = encoder.encode_texts(list(PROMPTS))
    pairs = [encoder.encode_texts([pair[side] for pair in PAIRS]) for side in (0, 1)]
    grouped = read_groups(folder / "train" / "groups.csv")
    seen = encoder.encode_images([one.shown() for one in grouped.photographs])
    by_pictures = removal(group_differences(seen, grouped.groups, grouped.labels))
    found: dict[str, tuple[str, Callable[[], Seen]]] = {}
    for name, matrix in (("prompts", removal(prompts)), ("differences", removal(differences(prompts)))):
        found[f"texts, {name}"] = ("texts projected, by prompts", lambda m=matrix: encoder.projected(m))
        for weight in WEIGHTS["calibration"]:
            shaped = calibrated(matrix, *pairs, weight=weight)
            label = f"texts, {name}, weight {weight:g}"
            found[label] = ("texts projected, by prompts, calibrated", lambda m=shaped: encoder.projected(m))
        found[f"both, {name}"] = ("both sides projected, by prompts", lambda m=matrix: encoder.projected(m, m))
    found["texts, pictures"] = ("texts projected, by pictures", lambda: encoder.projected(by_pictures))
    found["both, pictures"] = ("both sides projected, by pictures", lambda: encoder.projected(by_pictures, by_pictures))
    return found


def chosen(candidates: Mapping[str, Mapping[str, float]], plain: Mapping[str, float]) -> str:
    """By validation: the lowest NDKL of those that name shapes at least as well as `plain` less MOST_LOST; of none, the
    one that names shapes best."""
    least = plain["accuracy"] - MOST_LOST
    useful = [name for name, found in candidates.items() if found["accuracy"] >= least]
    if not useful:
        return max(candidates, key=lambda name: candidates[name]["accuracy"])
    return min(useful, key=lambda name: candidates[name]["NDKL"])


def replicate(replication: int, weights: Sequence[float]) -> dict[str, Any]:
    """Every line of the table for one replication: {line: {chosen, validation, test}}.

    weights: of the penalty, each of which is a training; replication 0 tries them all, the others take its choice.
    """
    folder = write_pictures(replication)
    plain = trained(folder, replication, "plain")
    even = trained(folder, replication, "balanced", 'data.table="balanced.csv"')
    base = glance(plain, folder)
    lines: dict[str, dict[str, Callable[[], Seen]]] = {
        "plain": {"": lambda: plain},
        "balanced sampling": {"": lambda: even},
    }
    for name, (line, make) in projections(plain, folder).items():
        lines.setdefault(line, {})[name] = make
    for weight in weights:
        penalty = f'{{group="colour",within="shape",queries={json.dumps(QUERIES)},weight={weight}}}'
        run = trained(folder, replication, f"decorrelation-{weight:g}", f"method_options.decorrelation={penalty}")
        lines.setdefault("decorrelation penalty", {})[f"weight {weight:g}"] = lambda found=run: found
    out: dict[str, Any] = {}
    for line, candidates in lines.items():
        validated = {name: glance(make(), folder) for name, make in candidates.items()}
        best = chosen(validated, base)
        out[line] = {"chosen": best, "validation": validated, "test": judge(candidates[best](), folder)}
        print(replication, line, best, {k: round(v["score"], 3) for k, v in out[line]["test"].items()}, flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    arguments = parser.parse_args()
    if arguments.run:
        record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        for replication in range(arguments.replications):
            if str(replication) not in record:
                first = record.get("0", {}).get("decorrelation penalty")
                weights = (float(first["chosen"].split()[-1]),) if first else WEIGHTS["decorrelation"]
                record[str(replication)] = replicate(replication, weights)
                RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if arguments.write_docs:
        from benchmarks.bias_tables import write

        write(json.loads(RECORD.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
