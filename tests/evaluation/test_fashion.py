"""The article-type rule and the report that the default model is judged by."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.fashion import ARTICLE_TYPES, MIN_PHOTOGRAPHS, article_type, fashion_report


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Nike Men White T-Shirt", "t-shirt"),
        ("Palm Tree Girls Tshirts", "t-shirt"),
        ("Puma Women Black Track Pants", "track pants"),
        ("Lee Blue Casual Shoe", "casual shoes"),
        ("Tantra Shirt Dress", None),
        ("Sweatshirt", "sweatshirt"),
        ("", None),
    ],
)
def test_article_type_reads_the_tail(title: str, kind: str | None) -> None:
    assert article_type(title) == kind


def test_spellings_belong_to_one_kind() -> None:
    spellings = [spelling for group in ARTICLE_TYPES.values() for spelling in group]
    assert len(spellings) == len(set(spellings))


def test_report_counts_unseen_titles_and_frequent_colours() -> None:
    titles = [f"brand{i} red caps" for i in range(MIN_PHOTOGRAPHS)] + ["brand blue belt"]
    colours = ["Red"] * MIN_PHOTOGRAPHS + ["Blue"]
    texts = dict.fromkeys(["red", "blue", *titles, *ARTICLE_TYPES])
    table = dict(zip(texts, np.eye(len(texts)), strict=True))
    images = np.stack([table[title] + 0.5 * table["red"] + 0.6 * table["cap"] for title in titles])
    report = fashion_report(
        images,
        lambda asked: np.stack([table[text] for text in asked]),
        titles,
        colours,
        training_titles=frozenset({titles[0]}),
        kin_in_training=np.arange(len(titles)) < 4,
    )
    assert report["rows_with_unseen_family"] == report["unseen_family"]["t2i_r@1"]["n"] == 6
    assert report["unseen_family"]["type"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert (report["rows"], report["rows_with_unseen_title"]) == (10, 9)
    assert report["all"]["colour"]["classes"] == 1  # one photograph does not make blue a class
    assert report["all"]["colour"]["accuracy"]["n"] == MIN_PHOTOGRAPHS
    assert report["all"]["type"]["accuracy"]["value"] == pytest.approx(0.9)  # the belt is called a cap
    assert report["all"]["type"]["class_mean"] == pytest.approx(0.5)
    assert report["all"]["t2i_r@1"]["value"] == 1.0
    assert report["unseen_title"]["t2i_r@1"]["n"] == 9
    assert report["unseen_title"]["colour"]["accuracy"]["n"] == MIN_PHOTOGRAPHS - 1


@pytest.mark.skipif("CLIPWORKS_TEST_DATA" not in os.environ, reason="CLIPWORKS_TEST_DATA is not set")
def test_rules_find_the_classes_of_the_held_out_products() -> None:
    path = Path(os.environ["CLIPWORKS_TEST_DATA"]) / "fashion-products" / "captions.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(Path(row["image"]).stem) % 10 == 1]
    assert len(rows) == 965
    colours = Counter(row["baseColour"] for row in rows)
    assert sum(count >= MIN_PHOTOGRAPHS for count in colours.values()) == 17
    kinds = Counter(article_type(row["caption"]) for row in rows)
    del kinds[None]
    assert len(kinds) == len(ARTICLE_TYPES) == 29
    assert min(kinds.values()) >= 8
