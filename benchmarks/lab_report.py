"""Tables and pictures of the study, from what `lab.py` judged: `python benchmarks/lab_report.py`.

Writes the blocks of docs/lab.md, docs/pictures/lab/*.png and benchmarks/lab/*.json (the numbers themselves).
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lab import RUNS, SIZE, LabRun, read_judged, runs
from marked import ROOT, markdown_table, replace_blocks
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from evaluation.probe_results import ProbeResult, ResultRow
from evaluation.probes.binding import build as binding_questions
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool
from evaluation.scenes.meaning import Listing
from evaluation.scenes_report import scenes_report
from training.checkpoint import WEIGHTS_FILE, load_model, read_checkpoint
from training.config import SceneData
from training.data.scenes import draw_scenes, scene_splits
from training.data.source import JUDGED
from training.encoder import TorchEncoder, open_checkpoint
from training.wise_ft import interpolate, wise_ft_curve

PAGE, PICTURES, NUMBERS = ROOT / "docs" / "lab.md", ROOT / "docs" / "pictures" / "lab", ROOT / "benchmarks" / "lab"
ALPHAS = tuple(round(step / 10, 1) for step in range(11))
BINDING, EXCHANGED, OPPOSITE = (
    ("binding", "colours swapped"),
    ("relation", "things exchanged"),
    ("relation", "opposite relation"),
)
FOUR, PAIR, SET = (("relation", f"four relations{part}") for part in ("", ", pair", ", set"))
PLACE = ("place", "four places")
NEGATION = [("negation", f"four options, {kind}") for kind in ("affirmative", "negative", "hybrid")]
WORDS = [("negation", f"four options, {words} words") for words in ("train", "recombined", "unseen")]
ISNO = ("negation", "is or is no")
Cell = tuple[str, str]


def found_row(results: Sequence[ProbeResult], cell: Cell) -> ResultRow | None:
    for result in results:
        if result.key.probe == cell[0]:
            return next((row for row in result.rows if row.name == cell[1]), None)
    return None


def written(row: ResultRow | None) -> str:
    """ ".512 [.49, .53]"."""
    if row is None or row.score is None:
        return "n/a"
    short = [f"{value:.3f}".removeprefix("0") if value is not None else "" for value in (row.score, row.low, row.high)]
    return f"{short[0]} [{short[1]}, {short[2]}]"


def spent(one: LabRun) -> str:
    """Steps, pairs and core-minutes of a run; a resumed run does not know its first part's time."""
    facts = json.loads((one.folder / "finished.json").read_text(encoding="utf-8"))
    batch = read_checkpoint(one.folder).config.optim.batch_size
    minutes = "resumed" if facts["resumed"] else f"{facts['cpu_s'] / 60:.0f}"
    return f"{facts['step']:,} | {facts['step'] * batch // 1000:,}k | {minutes}"


def table(chosen: Sequence[LabRun], cells: Mapping[str, Cell], *, composed: bool = False) -> str:
    """One line a run: steps, pairs, core-minutes, naming, then the cells with their intervals."""
    lines: list[list[str]] = []
    first: list[ProbeResult] = []
    for one in chosen:
        judged = read_judged(one)
        if judged is None:
            continue
        raw, known, held = judged
        results = held if composed else known
        first = first or results
        single = raw["single, held-out pairs" if composed else "single"]
        costs = [] if composed else spent(one).split(" | ")
        scores = [written(found_row(results, cell)) for cell in cells.values()]
        lines.append([f"`{one.name}`", *costs, f"{single:.3f}".removeprefix("0"), *scores])
    chances = [found_row(first, cell) for cell in cells.values()]
    counts = [f"{row.n:,}" if row else "" for row in chances]
    chance = [f"{row.chance:.3f}".removeprefix("0") if row and row.chance is not None else "" for row in chances]
    bags = [written_number(row.bag) if row else "" for row in chances]
    blank = [] if composed else [""] * 3
    lines += [["n", *blank, "2,000", *counts], ["chance", *blank, "", *chance], ["bag of words", *blank, "", *bags]]
    costs = [] if composed else ["steps", "pairs", "core-min"]
    return markdown_table(["run", *costs, "single", *cells], lines)


def written_number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def binding_probe(base: LabRun) -> dict[str, float]:
    """How much of the answer the image embedding holds: logistic regressions of which pairs are there, trained on the
    training scenes, asked the binding questions of the held-out seed by the sum of their log odds for each caption."""
    info = read_checkpoint(base.folder)
    if not isinstance(info.config.data, SceneData):
        raise ValueError("the base was not trained on scenes")
    encoder, pairs = open_checkpoint(base.folder), scene_splits(info.config.data).train.pairs
    rows = draw_scenes(info.config.data, seed=0)
    two = [at for at, scene in enumerate(rows.scenes) if len(scene.things) == 2][:12_000]
    vectors = encoder.encode_prepared(rows.pixels[two])
    present = np.array(
        [[pair in {(t.shape, t.colour) for t in rows.scenes[at].things} for pair in pairs] for at in two]
    )
    odds = [LogisticRegression(C=100.0, max_iter=500).fit(vectors, column) for column in present.T]
    quiz = binding_questions(Pool(SIZE, seed=JUDGED["test"], pairs=pairs))
    pictures = list(dict.fromkeys(asked.picture for asked in quiz.questions))
    images = encoder.encode_images([picture.draw(info.config.data.cache_px) for picture in pictures])
    log_odds = np.stack([one.decision_function(images) for one in odds], axis=1)
    where = {picture: at for at, picture in enumerate(pictures)}

    def score(picture: Picture, meaning: object) -> float:
        if not isinstance(meaning, Listing):
            raise ValueError(f"binding asks about listings, got {meaning}")
        return sum(log_odds[where[picture], pairs.index((w.shape or "", w.colour or ""))] for w in meaning.whats)

    right: list[bool] = []
    for asked in quiz.questions:
        scores = [score(asked.picture, option.meaning) for option in asked.options]
        right.append(scores[asked.answer] > max(s for at, s in enumerate(scores) if at != asked.answer))
    return {"accuracy": float(np.mean(right)), "n": len(right)}


def curve_of(one: LabRun, *, cure: str, neutral: str = "single", most_lost: float = 0.01) -> dict[str, Any]:
    """WiSE-FT between the run's base and the run: judged on validation, the chosen alpha also on the held-out seed."""
    if one.base is None:
        raise ValueError(f"{one.name} has no base")
    start, end = (load_file(folder / WEIGHTS_FILE) for folder in (RUNS / one.base, one.folder))
    loaded = load_model(one.folder)
    data = loaded.info.config.data
    if not isinstance(data, SceneData):
        raise ValueError(f"{one.name} was not trained on scenes")
    encoder = TorchEncoder(
        loaded.model.encode_image,
        loaded.model.encode_text,
        image_spec=loaded.info.image_spec,
        tokenizer=loaded.tokenizer,
        name=one.name,
        fingerprint=one.name,
    )

    def judged(alpha: float, seed: int) -> dict[str, Any]:
        state = interpolate(start, end, alpha)
        loaded.model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
        return scenes_report(
            encoder, pairs=scene_splits(data).validation.pairs, seed=seed, probes=(cure.split("/")[0],)
        )

    curve = wise_ft_curve(
        {alpha: judged(alpha, JUDGED["validation"]) for alpha in ALPHAS},
        cure=cure,
        neutral=neutral,
        most_lost=most_lost,
    )
    chosen = curve["chosen"]["alpha"]
    curve["held out"] = {str(alpha): judged(alpha, JUDGED["test"]) for alpha in dict.fromkeys((0.0, chosen, 1.0))}
    return curve


def draw_curves(curves: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Cure against what is kept, along alpha."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(curves), figsize=(4.6 * len(curves), 3.4), squeeze=False, layout="constrained"
    )
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        alphas = [point["alpha"] for point in curve["curve"]]
        axis.plot(alphas, [100 * p["cure"] for p in curve["curve"]], "o-", color="#0072b2", label=curve["cure"])
        axis.plot(
            alphas, [100 * p["neutral"] for p in curve["curve"]], "s--", color="#d55e00", label="naming single things"
        )
        axis.axvline(curve["chosen"]["alpha"], color="#888888", linewidth=1, linestyle=":")
        axis.annotate("chosen", (curve["chosen"]["alpha"], 3), rotation=90, fontsize=8, ha="right", color="#555555")
        axis.set(title=name, xlabel="alpha (0: base, 1: tuned)", ylabel="% on validation", ylim=(0, 103))
        axis.legend(fontsize=8, loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_learning(chosen: Sequence[LabRun], path: Path, name: str, *, label: str, chance: float) -> None:
    """A validation number over optimizer steps, one line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for one, style in zip(chosen, ("o-", "s--", "^-.", "v:", "d-"), strict=False):
        log = one.folder / "log.csv"
        if not log.exists():
            continue
        with log.open(newline="", encoding="utf-8") as file:
            points = [
                (int(line["step"]), 100 * float(line["value"]))
                for line in csv.DictReader(file)
                if line["series"] == "validation" and line["name"] == name
            ]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=one.name, markersize=4)
    axis.axhline(100 * chance, color="#888888", linewidth=1)
    axis.set(xlabel="optimizer steps (64 pairs each)", ylabel=f"{label}, % on validation", ylim=(0, 103))
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    torch.set_num_threads(1)
    every = {one.name: one for one in runs()}
    judged = [one for one in runs() if (one.folder / "test.json").exists()]
    NUMBERS.mkdir(exist_ok=True)
    binding = {"binding": BINDING, "things exchanged": EXCHANGED, "opposite relation": OPPOSITE}
    relation = {**binding, "four relations": FOUR, "pair": PAIR, "set": SET, "four places": PLACE}
    negation = {
        **{cell[1].removeprefix("four options, "): cell for cell in (*NEGATION, *WORDS)},
        "is or is no": ISNO,
    }
    bases = [one for one in judged if one.base is None and not one.name.startswith("grid/")]
    grid = [one for one in judged if one.name.startswith("grid/")]
    cures = [one for one in judged if one.base is not None]
    blocks = {
        "lab-bases": table(bases, relation),
        "lab-bases-negation": table(bases, negation),
        "lab-grid": table(grid, relation),
        "lab-cures-binding": table([every["b0"], *cures], binding),
        "lab-cures-negation": table([every["b0"], *(one for one in cures if "neg" in one.name)], negation),
        "lab-composed": table([*bases, *grid, *cures], binding, composed=True),
    }
    curves: dict[str, dict[str, Any]] = {}
    for cure, name in (("negclip", "binding/colours swapped"), ("negation", "negation/four options, train words")):
        done = [one for one in cures if one.name.startswith(f"{cure}/")]
        if done:
            curves[done[0].name] = curve_of(done[0], cure=name)
    if curves:
        draw_curves(curves, PICTURES / "wise-ft.png")
        lines = [
            [f"`{name}`", curve["cure"], str(curve["chosen"]["alpha"])]
            + [
                written_number(value)
                for alpha in ("0.0", str(float(curve["chosen"]["alpha"])), "1.0")
                for value in (_at(curve["held out"][alpha], curve["cure"]), curve["held out"][alpha]["single"])
            ]
            for name, curve in curves.items()
        ]
        blocks["lab-wise-ft"] = markdown_table(
            [
                "run",
                "cure",
                "alpha",
                "cure at 0",
                "single at 0",
                "cure at alpha",
                "single at alpha",
                "cure at 1",
                "single at 1",
            ],
            lines,
        )
    draw_learning(
        [*bases, *grid], PICTURES / "relation.png", "relation/opposite relation", label="opposite relation", chance=0.5
    )
    draw_learning(cures, PICTURES / "binding.png", "binding/colours swapped", label="binding", chance=0.5)
    probe = binding_probe(every["b0"])
    blocks["lab-probe"] = (
        "A probe of the answer on B0's image embedding is right in "
        f"{written_number(probe['accuracy'])} of {probe['n']:,} binding questions."
    )
    (NUMBERS / "curves.json").write_text(
        json.dumps({"wise_ft": curves, "probe": probe}, indent=1) + "\n", encoding="utf-8"
    )
    for one in judged:
        stored = json.loads((one.folder / "test.json").read_text(encoding="utf-8"))
        (NUMBERS / f"{one.name.replace('/', '-')}.json").write_text(json.dumps(_bare(stored)) + "\n", encoding="utf-8")
    for name, text in blocks.items():
        print(f"== {name}\n{text}\n")
    if PAGE.exists():
        PAGE.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    return 0


def _at(numbers: Mapping[str, Any], path: str) -> float:
    found: Any = numbers
    for part in path.split("/"):
        found = found[part]
    return float(found)


def _bare(stored: dict[str, Any]) -> dict[str, Any]:
    """Scores without examples, figures and outcomes: a record, not a report."""
    kept = ("name", "n", "score", "low", "high", "chance", "blind", "bag", "truth")
    return {
        name: {each["key"]["probe"]: [{key: row[key] for key in kept} for row in each["rows"]] for each in value}
        if isinstance(value, list)
        else value
        for name, value in stored.items()
    }


if __name__ == "__main__":
    sys.exit(main())
