"""`python -m training.few_shot --base BASE --data FOLDER --label baseColour`: class heads beside zero-shot.

BASE is a checkpoint folder, or artifact:NAME: any artifact of a store, whose vectors its ONNX graphs make.
Beside the heads stand two controls: zero-shot with a fitted bias, and zero-shot on centred vectors. Every knob is set
on validation. `--split test` judges on the held-out photographs: for the last run only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import class_mean_accuracy, majority_share, mean_estimate, normalize
from training import method as methods
from training import methods as method_files
from training.bases import load_stored, open_stored
from training.checkpoint import LoadedModel, load_model
from training.config import ARTIFACT, StoredModel, load_config, with_data_folder
from training.data.rows import Split
from training.data.source import TableSource, open_source
from training.features import Features, cached_features, picture_vectors
from training.methods.parts.class_heads import ClassHead
from training.methods.parts.controls import BiasControl, FrequencyControl, MeanControl
from training.methods.parts.few_shot import HeadMethod
from training.methods.parts.linear_heads import truth_of
from training.methods.parts.shots import ShotOptions
from training.options import meant
from training.recipes import find_recipe

CONTROLS: dict[str, Callable[[ShotOptions], HeadMethod]] = {
    "bias": BiasControl,
    "mean": MeanControl,
    "frequencies": FrequencyControl,
}
_OF_FOLDERS = "classes"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Unit vectors [n, D] of the judged pictures that have one of the classes; truth int64 [n]; unseen bool [n]."""

    vectors: NDArray[np.float32]
    truth: NDArray[np.int64]
    unseen: NDArray[np.bool_]
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A base, its data and its vectors: what every run below shares."""

    base: LoadedModel
    source: TableSource
    features: Features
    split: Split
    vectors: NDArray[np.float32]
    """Unit vectors [n, D] of all pictures of `split`."""

    def run(self, method: str, options: dict[str, Any]) -> HeadMethod:
        """A fitted head, or control.

        Raises:
            ValueError: the method makes no class head, or knows no such option.
        """
        if method in CONTROLS:
            made = CONTROLS[method](ShotOptions.parse(options, method=method))
        else:
            made = methods.create(method, options)
        if not isinstance(made, HeadMethod):
            raise ValueError(f"method {method} makes no class head")
        made.setup(
            methods.Context(
                model=self.base.info.config.model,
                tokenizer=self.base.tokenizer,
                source=self.source,
                batch_size=self.base.info.config.optim.batch_size,
                device="cpu",
                seed=0,
                base=self.base,
                features=self.features,
            )
        )
        made.fit(self.features)
        return made

    def judged(self, label: str, classes: Sequence[str]) -> Judged:
        truth = truth_of(self.source.labels(label, self.split), classes)
        known = truth >= 0
        return Judged(
            vectors=self.vectors[known],
            truth=truth[known],
            unseen=self.source.unseen(self.split)[known],
            left_out=int((~known).sum()),
        )


def open_bench(
    base: str,
    data_folder: Path,
    *,
    split: Split,
    cache: Path,
    store: Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
) -> Bench:
    """Open a base, and pictures with labels.

    base: a checkpoint folder, whose recipe says how its table is read, wherever that lies now; or `artifact:NAME`, of
        `store` or shipped. recipe, overrides: what says it for an artifact; by default one folder for each class.

    Raises:
        ValueError: no such base, or the data are not there or no table.
    """
    if base.startswith(ARTIFACT):
        opened = _stored(base, data_folder, store=store, recipe=recipe or _OF_FOLDERS, overrides=overrides)
    elif recipe or overrides or store:
        raise ValueError(f"--recipe, --set and --store are for a base {ARTIFACT}NAME; {base} has a recipe of its own")
    else:
        opened = load_model(Path(base))
    config = with_data_folder(opened.info.config, data_folder)
    image_spec = opened.info.image_spec
    source = open_source(config, cache_spec=image_spec, image_spec=image_spec)
    if not isinstance(source, TableSource):
        raise ValueError(f"{base}: few_shot compares on a table of photographs, its recipe has other data")
    features = cached_features(
        opened, source, level="features", captions=0, negatives=False, folder=cache, device="cpu"
    )
    shown = (
        features.validation if split == "validation" else picture_vectors(opened, source.pictures(split), device="cpu")
    )
    return Bench(base=opened, source=source, features=features, split=split, vectors=normalize(shown))


def _stored(base: str, data_folder: Path, *, store: Path | None, recipe: str, overrides: Sequence[str]) -> LoadedModel:
    """An artifact as the base of a recipe, in place of the recipe's own model."""
    model = StoredModel(kind="artifact", reference=base.removeprefix(ARTIFACT), store=store)
    config = load_config(find_recipe(recipe), [f"data.folder={json.dumps(str(data_folder))}", *overrides])
    return load_stored(config.model_copy(update={"base": base, "model": model}), open_stored(model))


def head_methods() -> tuple[str, ...]:
    """Names of the methods that make class heads: those whose file defines a `HeadMethod`."""
    files = {name: importlib.import_module(f"{method_files.__name__}.{name}") for name in methods.available()}
    return tuple(name for name, file in files.items() if any(_makes_heads(one, file) for one in vars(file).values()))


def _makes_heads(found: object, file: ModuleType) -> bool:
    return isinstance(found, type) and issubclass(found, HeadMethod) and found.__module__ == file.__name__


def few_shot(
    bench: Bench,
    *,
    label: str,
    shots: Sequence[int],
    seeds: int,
    least: int,
    templates: tuple[str, ...] | None,
    heads: Sequence[str],
) -> dict[str, Any]:
    """{"zero_shot": numbers, "runs": [{"method", "shots", "chosen", ...numbers}], ...} of one label.

    heads: methods; the controls are judged with them. chosen: by knob, a value for each seed.

    Accuracies are means over seeds; their interval resamples pictures, each with its share of right answers among the
    seeds. `lowest` and `highest` are single seeds.
    """
    common = {"label": label, "least": least, "templates": templates}
    first = bench.run(next(iter(CONTROLS)), {**common, "shots": 1})
    judged = bench.judged(label, first.classes)
    if not len(judged.truth):
        raise ValueError(f"no picture of {bench.split} has one of the {len(first.classes)} classes of {label!r}")
    runs: list[dict[str, Any]] = []
    for count in shots:
        for method in (*CONTROLS, *heads):
            fitted = [
                bench.run(method, {**common, "shots": count, "shots_seed": seed})
                for seed in range(seeds if count else 1)
            ]
            reports = [one.report() for one in fitted]
            runs.append(
                {
                    "method": method,
                    "shots": count,
                    **_numbers([one.head for one in fitted], judged),
                    "chosen": {knob: [report["tried"][knob] for report in reports] for knob in fitted[0].knobs},
                    "not_converged": sum(len(report["tried"].get("not_converged", [])) for report in reports),
                    "pictures": reports[0]["shots"]["pictures"],
                    "classes_with_fewer": reports[0]["shots"]["classes_with_fewer"],
                }
            )
    return {
        "label": label,
        "split": bench.split,
        "classes": len(first.classes),
        "n": len(judged.truth),
        "without_a_class": judged.left_out,
        "majority": majority_share(judged.truth),
        "chance": 1 / len(first.classes),
        "seeds": seeds,
        "templates": list(first.templates),
        "zero_shot": _numbers([first.zero_shot], judged),
        "runs": runs,
    }


def _numbers(heads: Sequence[ClassHead], judged: Judged) -> dict[str, Any]:
    predicted = [head(judged.vectors).argmax(axis=1) for head in heads]
    right = np.stack([one == judged.truth for one in predicted]).astype(np.float64)
    single = right.mean(axis=1)
    return {
        "accuracy": asdict(mean_estimate(right.mean(axis=0))),
        "lowest": float(single.min()),
        "highest": float(single.max()),
        "class_mean": float(np.mean([class_mean_accuracy(one, judged.truth) for one in predicted])),
        "unseen_title": asdict(mean_estimate(right[:, judged.unseen].mean(axis=0))) if judged.unseen.any() else None,
    }


def table(report: dict[str, Any]) -> str:
    """Markdown; shares in per cent."""
    lines = [
        f"{report['label']}, {report['split']}: {report['classes']} classes, n = {report['n']} "
        f"({report['without_a_class']} pictures have none of them), majority {100 * report['majority']:.1f}, "
        f"chance {100 * report['chance']:.1f}; seeds: {report['seeds']}",
        "",
        "| head | shots | accuracy (95 % interval) | lowest and highest seed | class mean | unseen titles | knobs |",
        "|---|---|---|---|---|---|---|",
        _line("zero-shot", "0", report["zero_shot"], ""),
    ]
    for run in report["runs"]:
        knobs = "; ".join(f"{knob} {', '.join(map(_short, values))}" for knob, values in run["chosen"].items())
        lines.append(_line(run["method"], str(run["shots"]) if run["shots"] else "all", run, knobs))
    thin = {run["shots"]: run for run in report["runs"] if run["classes_with_fewer"]}
    lines += ["", *(_note(run) for run in thin.values())]
    stopped: Counter[str] = Counter()
    for run in report["runs"]:
        stopped[run["method"]] += run["not_converged"]
    lines += [f"{count} fits of {name} stopped before they converged." for name, count in stopped.items() if count]
    return "\n".join(lines)


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _line(name: str, shots: str, numbers: dict[str, Any], knob: str) -> str:
    seeds = f"{100 * numbers['lowest']:.1f} to {100 * numbers['highest']:.1f}"
    unseen = _interval(numbers["unseen_title"]) if numbers["unseen_title"] else ""
    cells = (name, shots, _interval(numbers["accuracy"]), seeds, f"{100 * numbers['class_mean']:.1f}", unseen, knob)
    return f"| {' | '.join(cells)} |"


def _interval(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def _note(run: dict[str, Any]) -> str:
    fewer = ", ".join(f"{name} {count}" for name, count in run["classes_with_fewer"].items())
    return f"With {run['shots']} shots these classes have fewer pictures and give what they have: {fewer}."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.few_shot", description=__doc__)
    parser.add_argument("--base", required=True, help="checkpoint folder, or artifact:NAME[@VERSION]")
    parser.add_argument("--store", type=Path, help="folder of artifacts; the shipped ones are always there")
    parser.add_argument("--data", type=Path, required=True, help="folder of the pictures; of a checkpoint its table's")
    parser.add_argument("--recipe", help="what says how --data is read, for an artifact; by default classes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeatable")
    parser.add_argument("--label", action="append", required=True, help="a label column, or article_type; repeatable")
    parser.add_argument("--head", action="append", metavar="METHOD", help="repeatable; by default every one there is")
    parser.add_argument("--shots", default="1,2,4,8,16", help="pictures a class, with commas; 0 is all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--least", type=int, default=9, help="leave classes with fewer training pictures out")
    parser.add_argument("--template", action="append", help="prompt of zero-shot; by default the base's own")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--cache", type=Path, default=Path(".runs/features"))
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    try:
        shots = [int(count) for count in options.shots.split(",")]
        if options.seeds < 1 or min(shots) < 0:
            raise ValueError(f"--seeds {options.seeds} must be at least 1, --shots {options.shots} at least 0")
        known = head_methods()
        for name in options.head or ():
            if name not in known:
                raise ValueError(f"no head {name!r}{meant(name, known)}; there are: {', '.join(known)}")
        bench = open_bench(
            options.base,
            options.data,
            split=options.split,
            cache=options.cache,
            store=options.store,
            recipe=options.recipe,
            overrides=options.set,
        )
        templates = tuple(options.template) if options.template else None
        reports = [
            few_shot(
                bench,
                label=label,
                shots=shots,
                seeds=options.seeds,
                least=options.least,
                templates=templates,
                heads=options.head or known,
            )
            for label in options.label
        ]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(table(report) for report in reports))
    if options.out:
        options.out.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
