"""Tables and pictures of the study, from what `lab.py` judged: `python benchmarks/lab_report.py`.

Writes the blocks of docs/lab.md, docs/pictures/lab/*.png and benchmarks/lab/*.json (the numbers themselves).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from lab import RUNS, LabRun, runs
from lab_bounds import bounds
from lab_figures import draw_curves, draw_learning
from lab_probe import probed
from lab_tables import Cell, groups, number, table, wise_ft_table
from marked import ROOT, markdown_table, replace_blocks
from safetensors.torch import load_file

from evaluation.scenes_report import scenes_report
from training.checkpoint import WEIGHTS_FILE, load_model
from training.config import SceneData
from training.data.scenes import scene_splits
from training.data.source import JUDGED
from training.encoder import TorchEncoder
from training.wise_ft import interpolate, wise_ft_curve

PAGE, PICTURES, NUMBERS = ROOT / "docs" / "lab.md", ROOT / "docs" / "pictures" / "lab", ROOT / "benchmarks" / "lab"
ALPHAS = tuple(round(step / 10, 1) for step in range(11))
KINDS = ("affirmative", "negative", "hybrid")
BINDING: dict[str, Cell] = {
    "binding": ("binding", "colours swapped"),
    "things exchanged": ("relation", "things exchanged"),
    "opposite relation": ("relation", "opposite relation"),
}
RELATION: dict[str, Cell] = {
    **BINDING,
    "four relations": ("relation", "four relations"),
    **{name: ("relation", f"four relations, {name}") for name in ("pair", "set")},
    "four places": ("place", "four places"),
}
NEGATION: dict[str, Cell] = {
    **{
        f"{kind}, {words}": ("negation", f"four options, {kind}, {words} words")
        for words in ("train", "recombined")
        for kind in KINDS
    },
    **{f"{words} words": ("negation", f"four options, {words} words") for words in ("train", "recombined", "unseen")},
    "is or is no": ("negation", "is or is no"),
}
FINE_TUNES = {"negclip": "binding/colours swapped", "negation-reader": "negation/four options, recombined words"}


def curve_of(one: LabRun, *, gained: str, neutral: str = "single", most_lost: float = 0.01) -> dict[str, Any]:
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
            encoder, pairs=scene_splits(data).validation.pairs, seed=seed, probes=(gained.split("/")[0],)
        )

    curve = wise_ft_curve(
        {alpha: judged(alpha, JUDGED["validation"]) for alpha in ALPHAS},
        cure=gained,
        neutral=neutral,
        most_lost=most_lost,
    )
    chosen = curve["chosen"]["alpha"]
    curve["held out"] = {str(alpha): judged(alpha, JUDGED["test"]) for alpha in dict.fromkeys((0.0, chosen, 1.0))}
    return curve


def main() -> int:
    torch.set_num_threads(1)
    every = {one.name: one for one in runs()}
    judged = [one for one in runs() if (one.folder / "test.json").exists()]
    grid = [one for one in judged if one.name.startswith("grid/")]
    bases = [one for one in judged if one.base is None and one not in grid]
    tunes = [one for one in judged if one.base is not None]
    negated = [one for one in tunes if one.name.split("/")[0] in ("negclip", "negation", "negation-reader")]
    curves = {
        done[0].name: curve_of(done[0], gained=cell)
        for tuning, cell in FINE_TUNES.items()
        if (done := [one for one in tunes if one.name.startswith(f"{tuning}/")])
    }
    probe = probed(every["b0"])
    bound = bounds("b0", like="negation/seed0")
    blocks = {
        "lab-bases": table(groups(bases), RELATION),
        "lab-grid": table(groups(grid), RELATION),
        "lab-cures-binding": table(groups([every["b0"], *tunes]), BINDING),
        "lab-cures-negation": table(groups([*bases, *negated]), NEGATION),
        "lab-composed": table(groups([*bases, *grid, *tunes]), BINDING, composed=True),
        "lab-wise-ft": wise_ft_table(curves),
        "lab-probe": _right(probe),
        "lab-bounds": _right(bound),
    }
    firsts = [group.runs[0] for group in groups(grid)]
    draw_curves(curves, PICTURES / "wise-ft.png")
    opposite = "relation/opposite relation"
    draw_learning([*bases, *firsts], PICTURES / "relation.png", opposite, label="opposite relation", chance=0.5)
    tuned = [group.runs[0] for group in groups(tunes)]
    draw_learning(tuned, PICTURES / "binding.png", "binding/colours swapped", label="binding", chance=0.5)
    _write_numbers(judged, {"wise_ft": curves, "probe": probe, "bounds": bound})
    for name, text in blocks.items():
        print(f"== {name}\n{text}\n")
    PAGE.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    return 0


def _right(found: dict[str, dict[str, float]]) -> str:
    rows = [[name, f"{each['n']:,}", number(each["accuracy"])] for name, each in found.items()]
    return markdown_table(["questions", "n", "right"], rows)


def _write_numbers(judged: Sequence[LabRun], curves: dict[str, Any]) -> None:
    """Scores without examples, figures and outcomes: a record, not a report."""
    NUMBERS.mkdir(exist_ok=True)
    (NUMBERS / "curves.json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    kept = ("name", "n", "score", "low", "high", "chance", "blind", "bag", "truth")
    for one in judged:
        stored = json.loads((one.folder / "test.json").read_text(encoding="utf-8"))
        bare = {
            name: {each["key"]["probe"]: [{key: row[key] for key in kept} for row in each["rows"]] for each in value}
            if isinstance(value, list)
            else value
            for name, value in stored.items()
        }
        (NUMBERS / f"{one.name.replace('/', '-')}.json").write_text(json.dumps(bare) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
