"""The record of benchmarks/composed.py as tables: on the terminal, and between the markers of docs/composed.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.composed_formulas import FORMULAS
from benchmarks.marked import RECORDS, ROOT, markdown_table, replace_blocks

PAGE, KEPT = ROOT / "docs" / "composed.md", RECORDS / "composed.json"
Found = Mapping[str, Any]


def publish(record: Found) -> None:
    """Keep the record, write its tables into the page, and draw its picture."""
    from benchmarks.composed_plot import draw

    draw(record)
    KEPT.write_text(json.dumps(record) + "\n", encoding="utf-8")
    PAGE.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), blocks(record)), encoding="utf-8")


def blocks(record: Found) -> dict[str, str]:
    negatives = record["negatives"]
    return {
        "composed-formulas": markdown_table(["formula", "score", "side"], [[f.name, f.text, f.side] for f in FORMULAS]),
        "composed-sets": _sets(negatives),
        "composed-map": _map(negatives),
        "composed-differences": _differences(negatives),
        "composed-first-ten": _first_ten(negatives),
        "composed-weights": _weights(negatives),
        "composed-unrelated": _unrelated(negatives),
        "composed-pools": _pools(negatives),
        "composed-pictures": _pictures(record["pictures"]),
        "composed-diversity": _diversity(record["diversity"]["heldout"]),
        "composed-folding": _folding(record["folding"]["heldout"]),
        "composed-nothing": _nothing(record["nothing"]),
    }


def _tuned(negatives: Found) -> list[str]:
    return [name for name in negatives["heldout"] if not name.startswith("unrelated")]


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value >= 0 else f"-{-value:.3f}".replace("-0", "-")


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_share(abs(value))}"


def _between(found: Found) -> str:
    return f"{_share(found['value'])} [{_share(found['interval'][0])}, {_share(found['interval'][1])}]"


def _sets(negatives: Found) -> str:
    rows = [
        [name, str(each["questions"]), str(each["groups"]), str(each["pictures"]), f"{each['right_ones']:g}"]
        for name, each in negatives["heldout"].items()
    ]
    return markdown_table(["held-out set", "questions", "positives", "pictures", "right ones (median)"], rows)


def _map(negatives: Found) -> str:
    sets = _tuned(negatives)
    rows: list[list[str]] = []
    for name, seen in negatives["validation"].items():
        found = [negatives["heldout"][each]["formulas"][name] for each in sets]
        values = [each["shared"]["mAP"]["value"] for each in found]
        weight, (low, high) = seen["shared"], seen["tolerance"]
        weights = f"{weight:g} ({low:g} to {high:g})" if len(seen["weights"]) > 1 else ""
        rows.append(
            [name, weights, *(_between(each["shared"]["mAP"]) for each in found), _share(sum(values) / len(values))]
        )
    return markdown_table(["formula", "weight (within .01 on validation)", *sets, "mean"], rows)


def _differences(negatives: Found) -> str:
    sets = _tuned(negatives)
    rows: list[list[str]] = []
    for name in negatives["validation"]:
        if name == "plain":
            continue
        cells: list[str] = []
        for each in sets:
            found = negatives["heldout"][each]["formulas"][name]["shared"]["mAP"]["to_plain"]
            apart = "" if found is None or found["low"] <= 0 <= found["high"] else "**"
            cells.append(
                "" if found is None
                else f"{apart}{_signed(found['value'])}{apart} [{_signed(found['low'])}, {_signed(found['high'])}]"
            )  # fmt: skip
        rows.append([name, *cells])
    return markdown_table(["mAP minus that of plain", *sets], rows)


def _first_ten(negatives: Found) -> str:
    sets = _tuned(negatives)
    rows: list[list[str]] = []
    for name in negatives["validation"]:
        found = [negatives["heldout"][each]["formulas"][name]["shared"] for each in sets]
        pairs = [(each["P@10"]["value"], each["harmful@10"]["value"]) for each in found]
        means = [sum(values) / len(values) for values in zip(*pairs, strict=True)]
        rows.append([name, *(f"{_share(a)}, {_share(b)}" for a, b in [*pairs, (means[0], means[1])])])
    return markdown_table(["P@10, harmful among 10", *sets, "mean"], rows)


def _weights(negatives: Found) -> str:
    """What the one weight costs beside the set's own, and weight 1."""
    sets = _tuned(negatives)
    rows: list[list[str]] = []
    for name, seen in negatives["validation"].items():
        if len(seen["weights"]) == 1:
            continue
        found = [negatives["heldout"][each]["formulas"][name] for each in sets]
        cells = [
            f"{_share(each['own']['mAP']['value'])} ({each['own']['weight']:g}), {_share(each['one']['mAP']['value'])}"
            for each in found
        ]
        lost = [each["own"]["mAP"]["value"] - each["shared"]["mAP"]["value"] for each in found]
        ones = [each["one"]["mAP"]["value"] for each in found]
        rows.append([name, *cells, _signed(max(lost)), _share(sum(ones) / len(ones))])
    head = ["mAP with the set's own weight, with weight 1", *sets, "most lost by one weight for all", "mean at 1"]
    return markdown_table(head, rows)


def _unrelated(negatives: Found) -> str:
    sets = [name for name in negatives["heldout"] if name.startswith("unrelated")]
    rows = [
        [name, *(_between(negatives["heldout"][each]["formulas"][name]["shared"]["mAP"]) for each in sets)]
        for name in negatives["validation"]
    ]
    return markdown_table(["mAP of the positive", *sets], rows)


def _pools(negatives: Found) -> str:
    sets = list(negatives["pools"])
    rows: list[list[str]] = []
    for name in negatives["pools"][sets[0]]:
        for size in negatives["pools"][sets[0]][name]:
            found = [negatives["pools"][each][name][size] for each in sets]
            cells = [f"{_share(each['P@10'])}, {_share(each['harmful@10'])}" for each in found]
            mean = [sum(each[key] for each in found) / len(found) for key in ("P@10", "harmful@10", "mAP")]
            rows.append([name, size, *cells, f"{_share(mean[0])}, {_share(mean[1])}", _share(mean[2])])
    return markdown_table(["P@10, harmful among 10", "candidates", *sets, "mean", "mean mAP"], rows)


def _pictures(found: Found) -> str:
    rows: list[list[str]] = []
    for name, entry in found.items():
        for rule, each in entry["rules"].items():
            to_plain = each["to_plain"]
            apart = f"{_signed(to_plain['value'])} [{_signed(to_plain['low'])}, {_signed(to_plain['high'])}]"
            rows.append(
                [
                    name,
                    rule,
                    "" if rule == "first part alone" else f"{each['weight']:g}",
                    _between(each["mAP"]),
                    "" if rule == "plain" else apart,
                    f"{_share(each['P@10'])}, {_share(each['harmful@10'])}",
                    _share(each["mAP at 1"]),
                ]
            )
    head = ["query", "formula", "weight", "mAP", "minus plain", "P@10, harmful among 10", "mAP at weight 1"]
    return markdown_table(head, rows)


def _diversity(found: Found) -> str:
    rows = [
        [
            scale,
            balance,
            *(_between(each[key]) for key in ("P@10", "cosine inside")),
            f"{each['distinct']['value']:.2f}",
        ]
        for scale, balances in found.items()
        if isinstance(balances, dict)
        for balance, each in balances.items()
    ]
    return markdown_table(["cosines", "lambda", "P@10", "mean cosine inside", "distinct (article, colour)"], rows)


def _folding(found: Found) -> str:
    kinds = list(next(iter(found["products"]["thresholds"].values()))["recall"])
    others = ["any other", "another title", "another article or colour"]
    rows = [
        [data, threshold, *(_share(each["recall"][kind]) for kind in kinds), *(_share(each[other]) for other in others)]
        for data, numbers in found.items()
        for threshold, each in numbers["thresholds"].items()
    ]
    return markdown_table(["data", "cosine", *kinds, *(f"folded: {other}" for other in others)], rows)


def _nothing(found: Found) -> str:
    rows: list[list[str]] = []
    for data, signals in found.items():
        for signal, each in signals.items():
            low, high = each["interval"]
            rows.append(
                [
                    data,
                    signal,
                    f"{each['names'][0]}, {each['names'][1]}",
                    f"{_share(each['auroc'])} [{_share(low)}, {_share(high)}]",
                    _answer(each["fitted"]),
                    _answer(each["common"]),
                    "" if each["shipped"] is None else _answer(each["shipped"]),
                ]
            )
    thresholds = ("threshold of this data", "one for all data", "shipped")
    return markdown_table(["searches", "signal", "with a match, without", "AUROC", *thresholds], rows)


def _answer(found: Found) -> str:
    values = [found[key] for key in ("precision", "recall", "false")]
    numbers = ", ".join("-" if value is None else _share(value) for value in values)
    return f"{found['threshold']:.3f}: {numbers}"
