"""The report: every number is the result's, nothing comes from outside, nothing from outside becomes HTML."""

from __future__ import annotations

import datetime
import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.encoder import Shown
from evaluation.probe_results import ProbeResult, ResultRow, RunKey
from evaluation.probes.figures import ChoiceCounts, Figures
from evaluation.probes.pool import PoolSize
from evaluation.report import write_figures, write_html
from evaluation.report.figures import figures_of, svg
from evaluation.report.markup import Markup, element
from evaluation.report.numbers import written
from evaluation.report.topics import TOPICS
from evaluation.report.verdicts import findings, verdict
from evaluation.suites import Suite, probe_names, run

TINY = PoolSize(compass=2, class_groups=2, squares=1, counts=1, additions=2, spoilt=16)
EVIL = "<script>alert('x')</script> & \"$x^\" <img src=x onerror=y>"
NO_END = {"meta", "img"}


class DiceEncoder:
    """A vector drawn by the digest of the input."""

    name, space, fingerprint = "dice", "dice space", "dice fingerprint"
    image_px: int | None = 48

    def encode_images(self, images: Sequence[Shown]) -> NDArray[np.float32]:
        return self._draw([image if isinstance(image, bytes) else image.tobytes() for image in images])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._draw([text.encode() for text in texts])

    def _draw(self, inputs: Sequence[bytes]) -> NDArray[np.float32]:
        seeds = [list(hashlib.sha256(data).digest()) for data in inputs]
        return np.array([np.random.default_rng(seed).normal(size=64) for seed in seeds], dtype=np.float32)


@dataclass
class Node:
    name: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def all(self, name: str) -> list[Node]:
        inner = [child for child in self.children if isinstance(child, Node)]
        return [each for child in inner for each in (*([child] if child.name == name else []), *child.all(name))]

    @property
    def every(self) -> list[Node]:
        inner = [child for child in self.children if isinstance(child, Node)]
        return [each for child in inner for each in (child, *child.every)]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Tree(HTMLParser):
    """Builds nodes; an end tag that closes something else is an error."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), tag
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in NO_END:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(path: Path) -> Node:
    tree = Tree()
    tree.feed(path.read_text(encoding="utf-8"))
    tree.close()
    assert len(tree.open) == 1
    return tree.open[0]


def table_row(**changes: float | str | None) -> ResultRow:
    base = ResultRow(name="a", n=100, unit="share", better="more", score=0.7, low=0.6, high=0.8, chance=0.5,
                     blind=0.5, bag=0.5, truth=1.0)  # fmt: skip
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def results() -> list[ProbeResult]:
    return run(DiceEncoder(), Suite(name="tiny", probes=probe_names(), size=TINY))


@pytest.fixture(scope="module")
def real() -> ProbeResult:
    key = RunKey(probe="zero-shot", fingerprint="dice fingerprint", space="dice space", suite="folder:photos, 7",
                 seed=0, size_px=0)  # fmt: skip
    return ProbeResult(key=key, encoder="dice", pictures=12, texts=3, rows=(table_row(name="top 1"),))


@pytest.fixture(scope="module")
def page(results: list[ProbeResult], real: ProbeResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html([*results, real], path, title="The title", made=datetime.date(2031, 2, 3))
    return path


def test_the_head_says_what_was_judged(page: Path) -> None:
    document = parsed(page)
    facts = {item.all("dt")[0].text: item.all("dd")[0].text for item in document.all("dl")[0].all("div")}
    facts.pop("clipworks")
    assert facts == {
        "encoder": "dice",
        "suite": "tiny",
        "seed": "0",
        "pictures": "48 px",
        "date": "2031-02-03",
        "fingerprint": "dice fingerprint",
        "space": "dice space",
    }
    assert document.all("title")[0].text == document.all("h1")[0].text == "The title"


def test_every_number_in_a_table_is_the_result_s(page: Path, results: list[ProbeResult], real: ProbeResult) -> None:
    sections = {node.attributes.get("id", ""): node for node in parsed(page).all("section")}
    seen = 0
    for index, result in enumerate([*results, real]):
        section = sections[result.key.probe if result.key.probe in TOPICS else f"data-{index}"]
        lines = section.all("tbody")[0].all("tr") if result.rows else []
        assert len(lines) == len(result.rows)
        for line, row in zip(lines, result.rows, strict=True):
            assert line.all("th")[0].text.startswith(row.name)
            cells = {cell.attributes["data-name"]: cell for cell in line.all("td") if "data-name" in cell.attributes}
            expected = {"n": row.n, "score": row.score, "chance": row.chance, "blind": row.blind, "bag": row.bag,
                        "truth": row.truth}  # fmt: skip
            for name, value in expected.items():
                if value is None:
                    assert cells[name].text == "–"
                    continue
                assert float(cells[name].all("data")[0].attributes["value"]) == value
                assert cells[name].text == (f"{value:,}" if name == "n" else written(value, row.unit))
                seen += 1
            ends = cells["95 % interval"].all("span")[0].attributes
            assert (ends["data-low"], ends["data-high"]) == (repr(row.low), repr(row.high))
    assert seen > 300


def test_rounded_numbers() -> None:
    assert [written(value, "share") for value in (0.6251, 0, 1, None)] == [
        "62.5\u00a0%",
        "0.0\u00a0%",
        "100.0\u00a0%",
        "–",
    ]
    assert (written(3.8671, "count"), written(0.64712, "cosine"), written(0.8331, "log ratio")) == (
        "3.87",
        "0.647",
        "0.833",
    )


def test_it_asks_for_nothing_from_outside(page: Path) -> None:
    text, document = page.read_text(encoding="utf-8"), parsed(page)
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert not document.all("script")
    assert not document.all("link")
    assert not document.all("iframe")
    ids = [node.attributes["id"] for node in document.every if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    for node in document.every:
        assert not any(key.startswith("on") for key in node.attributes)
        assert node.attributes.get("src", "data:image/webp;base64,").startswith("data:image/webp;base64,")
        target = node.attributes.get("href") or node.attributes.get("xlink:href")
        assert target is None or target.removeprefix("#") in ids, target
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.strip("'\"").removeprefix("#") in ids, target
    policy = [node.attributes["content"] for node in document.all("meta") if "http-equiv" in node.attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_it_is_small_and_speaks(page: Path) -> None:
    assert page.stat().st_size < 3_000_000
    document = parsed(page)
    assert all(node.attributes["alt"].startswith("Drawn scene: ") for node in document.all("img"))
    drawn = [node for node in document.all("div") if node.attributes.get("class") == "canvas"]
    assert len(drawn) == 8
    assert all(len(node.attributes["aria-label"]) > 60 for node in drawn)
    assert all(
        "aria-label" in node.attributes for node in document.all("svg") if node.attributes.get("class") == "plot"
    )


def test_examples_stand_beside_their_probe(page: Path, results: list[ProbeResult]) -> None:
    sections = {node.attributes.get("id", ""): node for node in parsed(page).all("section")}
    for result in results:
        cards = sections[result.key.probe].all("article")
        assert len(cards) == len(result.examples)
        for card, example in zip(cards, result.examples, strict=True):
            assert card.attributes["class"] == f"card {example.mark}"
            for option in example.options:
                assert (option.text or "") in card.text
            assert len(card.all("img")) == sum(
                each.picture is not None for each in (*example.queries, *example.options)
            )
            tags = [node.text for node in card.all("span") if node.attributes.get("class") == "tag"]
            assert sum("chosen" in tag or "tied" in tag for tag in tags) == sum(map(len, example.chosen))
            assert sum("right answer" in tag for tag in tags) == sum(map(len, example.right))


def test_what_comes_from_outside_stays_text(tmp_path: Path, results: list[ProbeResult], real: ProbeResult) -> None:
    named = {result.key.probe: result for result in results}
    negation, naming = named["negation"], named["few-shot"]
    assert naming.figures is not None
    assert naming.figures.choices is not None
    evil = [
        replace(negation, rows=(replace(negation.rows[0], name=EVIL), *negation.rows[1:]), notes=(EVIL,)),
        replace(naming, figures=Figures(choices=ChoiceCounts(labels=(EVIL,), counts=((1, 0),)))),
        replace(named["localisation"], not_applicable=EVIL),
        replace(real, key=replace(real.key, probe=EVIL, suite=EVIL)),
    ]
    evil = [replace(each, encoder=EVIL, key=replace(each.key, fingerprint=EVIL, space=EVIL)) for each in evil]
    write_html(evil, tmp_path / "evil.html", title=EVIL)
    document = parsed(tmp_path / "evil.html")
    assert not document.all("script")
    assert all(node.attributes["src"].startswith("data:") for node in document.all("img"))
    assert not any("onerror" in node.attributes for node in document.every)
    assert document.text.count(EVIL) >= 10
    assert document.all("h1")[0].text == EVIL


def test_text_is_text_unless_it_is_markup() -> None:
    made = element("p", {"title": '"<'}, "<b>", Markup("<i>x</i>"), element("b", None, "&"))
    assert made == '<p title="&quot;&lt;">&lt;b&gt;<i>x</i><b>&amp;</b></p>'


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (table_row(), "partly"),
        (table_row(score=0.9, low=0.85, high=0.95), "yes"),
        (table_row(score=0.89, low=0.85, high=0.95), "partly"),
        (table_row(low=0.5), "no"),
        (table_row(score=0.5, low=0.4, high=0.6), "no"),
        (table_row(score=0.3, low=0.2, high=0.4), "worse"),
        (table_row(score=0.0, low=0.0, high=0.0), "worse"),
        (table_row(blind=0.6), "texts alone"),
        (table_row(blind=0.59), "partly"),
        (table_row(blind=0.59, prior=0.6), "texts alone"),
        (table_row(better="less", chance=0.2, score=0.5, low=0.3, high=0.7, truth=0), "leans"),
        (table_row(better="less", chance=0.6, score=0.5, low=0.3, high=0.7, truth=0), "even"),
        (table_row(better="less", chance=0.2, score=0.0, low=0.0, high=0.1, truth=0), "even"),
        (table_row(blind=None, score=0.9), "yes"),
        (table_row(truth=0.72), "yes"),
        (table_row(score=None, low=None, high=None), "unknown"),
        (table_row(chance=None), "unknown"),
        (table_row(better="less", unit="count", chance=3.3, score=1.0, low=0.9, high=1.1, blind=3, truth=0), "partly"),
        (table_row(better="less", unit="count", chance=3.3, score=0.3, low=0.2, high=0.4, blind=3, truth=0), "yes"),
        (table_row(better="less", unit="count", chance=3.3, score=4.0, low=3.8, high=4.2, blind=3, truth=0), "worse"),
        (table_row(better="less", chance=0.0), "unknown"),
        (table_row(better="at chance"), "leans"),
        (table_row(better="at chance", score=0.2, low=0.1, high=0.3), "leans"),
        (table_row(better="at chance", low=0.45), "even"),
    ],
)  # fmt: skip
def test_verdicts(row: ResultRow, expected: str) -> None:
    assert verdict(row) == expected


def test_claims_are_about_rows_that_exist(results: list[ProbeResult]) -> None:
    """All but those of places, which this encoder is not asked (test_dense_judging.py names those rows)."""
    found = {(finding.probe, finding.row.name) for finding in findings(results)}
    claimed = {(probe, claim.row) for probe, topic in TOPICS.items() for claim in topic.claims}
    places = {("localisation", "pointing game"), ("localize", "pointing game"), ("localize", "mAP, presence")}
    assert claimed - found == places
    assert set(TOPICS) == {*probe_names(), "localize"}


def test_a_bias_is_told_in_its_direction(results: list[ProbeResult]) -> None:
    (size,) = [result for result in results if result.key.probe == "size-bias"]
    for score, words in ((0.9, "the larger of two"), (0.1, "the smaller of two"), (0.5, "equally often")):
        row = table_row(
            name="larger wins, area x8", better="at chance", score=score, low=score - 0.05, high=score + 0.05
        )
        (finding,) = findings([replace(size, rows=(row,))])
        assert words in finding.sentence


def test_the_summary_counts_its_list(page: Path, results: list[ProbeResult]) -> None:
    (section,) = [node for node in parsed(page).all("section") if node.attributes.get("class") == "summary"]
    assert len(section.all("li")) == len(findings(results))
    verdicts = [finding.verdict for finding in findings(results)]
    lead = next(node.text for node in section.all("p") if node.attributes["class"] == "lead")
    asked = [each for each in verdicts if each not in ("leans", "even", "unknown")]
    assert lead.startswith(f"Of {len(asked)} abilities asked for, dice shows")
    assert f"{verdicts.count('partly') or 'none'} in part." in lead


def test_one_encoder_and_each_probe_once(tmp_path: Path, results: list[ProbeResult], real: ProbeResult) -> None:
    with pytest.raises(ValueError, match="no results"):
        write_html([], tmp_path / "x.html", title="x")
    other = replace(results[1], encoder="another")
    with pytest.raises(ValueError, match="about one encoder, got results of 2.*another"):
        write_html([results[0], other], tmp_path / "x.html", title="x")
    with pytest.raises(ValueError, match="several results of binding"):
        write_figures([results[0], results[0]], tmp_path)
    assert not list(tmp_path.iterdir())
    second = replace(real, key=replace(real.key, suite="folder:paintings"))
    write_html([real, second], tmp_path / "x.html", title="x")
    document = parsed(tmp_path / "x.html")
    assert [node.text for node in document.all("h2")] == ["How to read the tables", "Real data"]


def test_pictures_for_pages(tmp_path: Path, results: list[ProbeResult]) -> None:
    paths = write_figures(results, tmp_path / "pictures")
    names = [
        "overview",
        "size-bias",
        "mention-bias",
        "negation",
        "adverse",
        "corruption",
        "reliability",
        "naming",
        "counting",
    ]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 5
        assert (pixels[0] == 255).all()


def test_plots_take_the_page_s_colours(results: list[ProbeResult]) -> None:
    for figure in figures_of(results):
        text = svg(figure)
        assert "var(--ink)" in text
        assert not re.search(r"#[0-9a-f]{6}\b", text)
        assert "<style" not in text


def test_importing_it_draws_nothing() -> None:
    code = "import evaluation.report, sys; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
