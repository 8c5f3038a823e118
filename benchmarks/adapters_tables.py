"""Tables of docs/adapters.md, from the records of the study."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.adapters import CONDITIONAL, FOUND, HEADS, STEPPED, ZERO_SHOT, harmonic
from benchmarks.adapters_judge import elsewhere
from benchmarks.adapters_tasks import SHOTS, TASKS
from benchmarks.lab_runs import RECORDS, ROOT
from benchmarks.marked import markdown_table, replace_blocks
from evaluation.significance import Difference, Means, paired_means
from training.few_shot import CONTROLS

PAGE = ROOT / "docs" / "adapters.md"
KEPT = RECORDS / "adapters.json"
METHODS = (*CONTROLS, *HEADS, *STEPPED)
MOST = max(SHOTS)
CONDITIONS = {"head": "its own", "given_mean": "the mean of all", "given_another": "another one"}
_DIGITS = 5
Record = Mapping[str, Any]
Group = Sequence[Record]  # the seeds of one line
Groups = Mapping[tuple[str, str, str], Group]  # by task, method and shots


def write() -> Groups:
    """Keep what was run here as records, then fill the page's blocks; the records that there are now."""
    records = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for path in sorted(FOUND.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "run" in found:
            records[found["run"]] = _rounded({key: value for key, value in found.items() if key != "run"})
    lines = [f"{json.dumps(name)}: {json.dumps(records[name])}" for name in sorted(records)]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    found = grouped(records)
    PAGE.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks(found)), encoding="utf-8")
    print(f"written: {PAGE}")
    return found


def grouped(records: Mapping[str, Record]) -> Groups:
    found: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for name in sorted(records):
        task, method, shots, _ = name.split("/")
        found[task, method, shots].append(records[name])
    return found


def blocks(found: Groups) -> dict[str, str]:
    out: dict[str, str] = {}
    for task in TASKS:
        if (task, ZERO_SHOT, "0") in found:
            out[f"adapters-{task}"] = base_to_new(found, task)
            out[f"adapters-{task}-shots"] = by_shots(found, task)
    out["adapters-wise-ft"] = kept_gain(found)
    out["adapters-wordings"] = wordings(found)
    out["adapters-claims"] = claims(found)
    out["adapters-conditions"] = conditions(found)
    out["adapters-cost"] = costs(found)
    return out


def base_to_new(found: Groups, task: str) -> str:
    """At 16 shots: base, new, their harmonic mean, and everything that nobody trained for."""
    zero = found[task, ZERO_SHOT, "0"][0]["test"]
    base, new = zero["base"]["value"], zero["new"]["value"]
    floor = f"majority {_share(zero['base']['majority'])} and {_share(zero['new']['majority'])}, chance "
    floor += f"{_share(zero['base']['chance'])} and {_share(zero['new']['chance'])}"
    head = ["", "base", "to zero-shot", "to `gda`", "class mean", "new", "to zero-shot", "harmonic mean", "elsewhere"]
    lines = [
        [ZERO_SHOT, _share(base), "", "", _share(zero["base"]["class_mean"]), _share(new), "",
         _share(harmonic(base, new)), _share(elsewhere(zero))]
    ]  # fmt: skip
    gda = found.get((task, "gda", str(MOST)))
    for method in METHODS:
        group = found.get((task, method, str(MOST)))
        if group is None:
            continue
        tests = [record["test"] for record in group]
        changed = method in STEPPED
        lines.append(
            [
                f"`{method}`",
                _seeds([test["base"]["value"] for test in tests]),
                _difference(difference(group, zero, "base")),
                _difference(_between(gda, group, "base")) if gda and changed else "",
                _seeds([test["base"]["class_mean"] for test in tests], spread=False),
                _seeds([test["new"]["value"] for test in tests]) if changed else "",
                _difference(difference(group, zero, "new")) if changed else "",
                _seeds([harmonic(test["base"]["value"], test["new"]["value"]) for test in tests], spread=False)
                if changed
                else "",
                _seeds([elsewhere(test) for test in tests], spread=False) if changed else "",
            ]
        )
    of = f"{zero['base']['n']} held-out pictures of base classes, {zero['new']['n']} of new ones; {floor}."
    others = [f"{name} {_share(each['value'])}" for name, each in zero.items() if name not in ("base", "new")]
    return f"{of} Elsewhere, zero-shot: {', '.join(others)}.\n\n{markdown_table(head, lines)}"


def by_shots(found: Groups, task: str) -> str:
    """Accuracy on base classes, a mean over seeds."""
    lines = [
        [f"`{method}`", *(_mean_of(found.get((task, method, str(shots))), "base") for shots in SHOTS)]
        for method in METHODS
        if any((task, method, str(shots)) in found for shots in SHOTS)
    ]
    return markdown_table(["base classes", *(f"{shots} shots" for shots in SHOTS)], lines)


def kept_gain(found: Groups) -> str:
    """What is left of a gain at the alpha that validation chose, and what that costs elsewhere."""
    lines: list[list[str]] = []
    for task, method, group in _of_most(found):
        if method not in STEPPED:
            continue
        zero = found[task, ZERO_SHOT, "0"][0]["test"]["base"]["value"]
        ends = [points_of(record) for record in group]
        gain = statistics.mean(end[-1]["base"] for end, _ in ends) - zero
        kept = statistics.mean(chosen["base"] for _, chosen in ends) - zero
        lost = [statistics.mean(end[0]["elsewhere"] - point["elsewhere"] for end, point in pairs) for pairs in
                ([(end, end[-1]) for end, _ in ends], ends)]  # fmt: skip
        alphas = ", ".join(f"{record['wise_ft']['chosen']:g}" for record in group)
        share = f"{100 * kept / gain:.0f} %" if gain > 0.005 else "no gain"
        lines.append([task, f"`{method}`", _signed(gain), _signed(-lost[0]), alphas, _signed(kept), share,
                      _signed(-lost[1])])  # fmt: skip
    head = ["", "", "gain", "elsewhere", "alpha of each seed", "gain there", "kept", "elsewhere there"]
    return markdown_table(head, lines)


def wordings(found: Groups) -> str:
    """Accuracy over single wordings, and over means of several."""
    lines: list[list[str]] = []
    for task in TASKS:
        for method in (ZERO_SHOT, *STEPPED):
            group = found.get((task, method, "0" if method == ZERO_SHOT else str(MOST)), ())
            said = [record["templates"] for record in group if "templates" in record]
            for name in ("base", "new") if said else ():
                single = {
                    key: statistics.mean(each[name]["single"][key] for each in said)
                    for key in ("mean", "sd", "lowest", "highest")
                }
                lines.append(
                    [
                        task if name == "base" else "",
                        f"`{method}`" if method in STEPPED else method,
                        name,
                        f"{_share(single['lowest'])} to {_share(single['highest'])}",
                        f"{100 * single['sd']:.1f}",
                        _share(single["mean"]),
                        *(_share(statistics.mean(each[name][count] for each in said)) for count in ("1", "7", "80")),
                    ]
                )
    return markdown_table(["", "", "classes", "80 single wordings", "sd", "mean", "its own", "7", "80"], lines)


def claims(found: Groups) -> str:
    """The story of the prompt methods, with the numbers that speak for or against it."""
    told = (
        ("coop", None, "base", "CoOp gains on base classes"),
        ("coop", None, "new", "and loses on new ones"),
        ("cocoop", "coop", "new", "CoCoOp is better than CoOp on new classes"),
        ("maple", "coop", "new", "MaPLe is better than CoOp on new classes"),
        ("promptsrc", "coop", "new", "PromptSRC is better than CoOp on new classes"),
        ("promptsrc", "maple", "new", "and than MaPLe"),
    )
    tasks = [task for task in TASKS if (task, ZERO_SHOT, "0") in found]
    lines: list[list[str]] = []
    for method, other, name, claim in told:
        cells = [claim]
        for task in tasks:
            group = found.get((task, method, str(MOST)))
            against = found.get((task, other, str(MOST)) if other else (task, ZERO_SHOT, "0"))
            if group is None or against is None:
                cells.append("")
                continue
            cells.append(_difference(_between(against, group, name)))
        lines.append(cells)
    return markdown_table(["claim", *tasks], lines)


def conditions(found: Groups) -> str:
    """Whose picture decides about the contexts of a conditional head."""
    lines: list[list[str]] = []
    for task in TASKS:
        told = [each["conditions"] for each in found.get((task, CONDITIONAL, str(MOST)), ()) if "conditions" in each]
        for name in ("base", "new") if told else ():
            means = (statistics.mean(each[name][kind] for each in told) for kind in CONDITIONS)
            lines.append([task, name, *(_share(mean) for mean in means)])
    return markdown_table(["", "classes", *CONDITIONS.values()], lines)


def costs(found: Groups) -> str:
    """Of 16 shots: numbers that move, seconds of one core, memory beside the base's, pictures seen."""
    lines = [
        [
            task,
            f"`{method}`",
            f"{group[0]['parameters']:,}",
            f"{statistics.mean(record['cpu_s'] for record in group):.1f}",
            f"{max(record['memory_mib'] for record in group):.0f}" if "memory_mib" in group[0] else "",
            str(group[0].get("steps", "")),
            f"{group[0]['rate']:g}" if "rate" in group[0] else "",
        ]
        for task, method, group in _of_most(found)
    ]
    return markdown_table(["", "", "numbers", "core-s", "MiB more at the peak", "steps", "rate"], lines)


def difference(group: Group, zero: Record, name: str) -> Difference | None:
    """To zero-shot, paired over pictures; each picture counts with its share of right answers among the seeds."""
    return _compared(_right(zero[name]), _mean_right(group, name))


def _between(before: Group, after: Group, name: str) -> Difference | None:
    return _compared(_mean_right(before, name), _mean_right(after, name))


def _compared(before: NDArray[np.float64], after: NDArray[np.float64]) -> Difference | None:
    ones = np.ones_like(before)
    return paired_means(Means(sums=before, sizes=ones), Means(sums=after, sizes=ones))


def _mean_right(group: Group, name: str) -> NDArray[np.float64]:
    return np.mean([_right(record["test"][name]) for record in group], axis=0)


def _right(numbers: Record) -> NDArray[np.float64]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(numbers["right"]), dtype=np.uint8))[: numbers["n"]].astype(
        np.float64
    )


def points_of(record: Record) -> tuple[list[Record], Record]:
    """The curve of alphas on held-out pictures, and its point at the one that validation chose."""
    curve = record["wise_ft"]["curve"]
    chosen = next(point for point in curve if point["alpha"] == record["wise_ft"]["chosen"])
    return [point["test"] for point in curve], chosen["test"]


def _of_most(found: Groups) -> Iterator[tuple[str, str, Group]]:
    for task in TASKS:
        for method in METHODS:
            if (group := found.get((task, method, str(MOST)))) is not None:
                yield task, method, group


def _mean_of(group: Group | None, name: str) -> str:
    return "" if group is None else _share(statistics.mean(record["test"][name]["value"] for record in group))


def _seeds(values: Sequence[float], *, spread: bool = True) -> str:
    mean = _share(statistics.mean(values))
    return f"{mean} ({_share(min(values))} to {_share(max(values))})" if spread and len(values) > 1 else mean


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{_signed(found.value)} [{_signed(found.low)}, {_signed(found.high)}]"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
