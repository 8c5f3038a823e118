"""The plots of a report: their data, and their form as PNG files or as SVG inside a page."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.probe_results import ProbeResult, ResultRow
from evaluation.probes.figures import ChoiceCounts, Figures
from evaluation.report import plots
from evaluation.report.markup import Markup
from evaluation.report.overlays import sheet
from evaluation.report.plots import Palette, rows_of, spoken
from evaluation.report.topics import TOPICS
from evaluation.report.verdicts import findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Stand-ins that no plot uses otherwise: the page's variables take their places.
_MARKED = Palette(ink="#010101", faint="#020202", paper="#030303", blue="#040404", orange="#050505")
_INTERVAL = "Disc and pale line: score and 95 % interval. Upright bar: chance. Circle: the same model without pictures."
_BARS = "Bars with 95 % intervals; the dash across is chance."


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot. inches: width and height. words: what it shows, for those who do not see it."""

    name: str
    title: str
    caption: str
    words: str
    inches: tuple[float, float]
    draw: Callable[[Axes, Palette], None]
    wide: bool = False


def figures_of(results: Sequence[ProbeResult]) -> list[Figure]:
    """The plots that these results have data for."""
    held = {result.key.probe: result.figures for result in results if result.figures is not None}
    found = [_size(results), _mention(results), _negation(results), _adverse(results), _corruption(results)]
    found += [_calibration(held.get("few-shot")), _naming(held.get("few-shot")), _counting(held.get("count"))]
    return [each for each in found if each is not None]


def overview(results: Sequence[ProbeResult]) -> Figure | None:
    """The main rows of all probes in one plot."""
    rows = {finding.sentence: finding.row for finding in findings(results) if finding.row.unit == "share"}
    if not rows:
        return None
    return Figure(
        name="overview",
        title="What the model can do",
        caption=_INTERVAL,
        words=spoken(rows),
        inches=(7.2, 0.9 + 0.27 * len(rows)),
        draw=partial(_lines, rows=list(rows.values()), names=list(rows)),
    )


def write_figures(results: Sequence[ProbeResult], folder: Path) -> list[Path]:
    """Write each plot that these results have data for as `<folder>/<name>.png`, white, 160 dots per inch; and the
    pictures that went best and worst as `<folder>/<probe>-best.png` and `<folder>/<probe>-worst.png`.

    Raises:
        ValueError: no results, results of several encoders, or two of one probe.
    """
    check_one_run(results)
    folder.mkdir(parents=True, exist_ok=True)
    summary = overview(results)
    written_paths: list[Path] = []
    for figure in (*([summary] if summary else []), *figures_of(results)):
        path = folder / f"{figure.name}.png"
        canvas = _canvas(figure, Palette(), titled=True)
        canvas.savefig(path, dpi=160, metadata={"Software": None})
        written_paths.append(path)
    for result in results:
        for kind in ("best", "worst"):
            shown = [each for each in result.overlays if each.kind == kind]
            if shown:
                path = folder / f"{result.key.probe}-{kind}.png"
                drawn = sheet(shown)
                drawn.quantize(palette=drawn.quantize(256)).save(path, optimize=True)  # so that it is dithered
                written_paths.append(path)
    return written_paths


def check_one_run(results: Sequence[ProbeResult]) -> None:
    """Raises:
    ValueError: no results, results of several encoders, or two of one probe.
    """
    if not results:
        raise ValueError("no results to report")
    found = sorted({(result.encoder, result.key.fingerprint, result.key.space) for result in results})
    if len(found) > 1:
        raise ValueError(f"a report is about one encoder, got results of {len(found)}: {found}")
    asked = Counter((result.key.probe, "" if result.key.probe in TOPICS else result.key.suite) for result in results)
    twice = [" ".join(name).strip() for name, count in asked.items() if count > 1]
    if twice:
        raise ValueError(f"a report holds each probe once, got several results of {', '.join(twice)}")


def svg(figure: Figure) -> Markup:
    """The plot as an SVG element: text stays text, colours are the page's variables, ids carry the figure's name."""
    import matplotlib as mpl

    sink = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": figure.name}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        _canvas(figure, _MARKED, titled=False).savefig(sink, format="svg", metadata=nothing, transparent=True)
    text = sink.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
    return Markup(re.sub(r"<[^>]+>", lambda found: _in_page(found[0], figure.name), text))


def _in_page(tag: str, name: str) -> str:
    """A tag of matplotlib's SVG as it stands in the page; what is between tags is text and stays as it is."""
    tag = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", tag)
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', tag).replace("url(#", f"url(#{name}-")
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    for field in fields(Palette):
        tag = tag.replace(getattr(_MARKED, field.name), f"var(--{field.name})")
    return re.sub(r' (?:width|height)="[^"]*"', "", tag) if tag.startswith("<svg") else tag


def _canvas(figure: Figure, palette: Palette, *, titled: bool) -> Canvas:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style = {
        "font.size": 9.0,
        "text.parse_math": False,
        "axes.edgecolor": palette.faint,
        "axes.labelcolor": palette.ink,
        "text.color": palette.ink,
        "xtick.color": palette.ink,
        "ytick.color": palette.ink,
        "legend.labelcolor": palette.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    with mpl.rc_context(style):  # pyright: ignore[reportArgumentType]
        canvas = Canvas(figsize=figure.inches, layout="constrained", facecolor=palette.paper)
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot(facecolor="none")
        figure.draw(axes, palette)
        if titled:
            canvas.suptitle(figure.title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return canvas


def _size(results: Sequence[ProbeResult]) -> Figure | None:
    biases = {name: row for name, row in rows_of(results, "size-bias").items() if row.better == "at chance"}
    if not biases:
        return None
    names = ["equal" if "equal" in name else name.rpartition("area ")[2].replace("x", "×") for name in biases]
    return Figure(
        name="size-bias",
        title="Does the larger thing win?",
        caption=f"Share of pictures in which the larger of two things wins, by ratio of their areas. {_BARS}",
        words=spoken(biases),
        inches=(4.4, 2.9),
        draw=partial(_bars, rows=list(biases.values()), names=names),
    )


def _mention(results: Sequence[ProbeResult]) -> Figure | None:
    biases = {name: row for name, row in rows_of(results, "mention-bias").items() if row.better == "at chance"}
    if not biases:
        return None
    names = [re.sub(r"^(\d+) things, (\w+) wins$", r"\2\nof \1", name) for name in biases]
    return Figure(
        name="mention-bias",
        title="Does the first mention win?",
        caption=f"Share of lists in which each mention wins, by the length of the list. {_BARS}",
        words=spoken(biases),
        inches=(4.4, 2.9),
        draw=partial(_bars, rows=list(biases.values()), names=names),
    )


def _negation(results: Sequence[ProbeResult]) -> Figure | None:
    rows = rows_of(results, "negation")
    if not rows:
        return None
    names = [name.replace("four options, ", "").capitalize() for name in rows]
    return Figure(
        name="negation",
        title="Negation by kind of question",
        caption=f"Four options by kind, words and absent thing (chance 25 %), two options (50 %). {_INTERVAL}",
        words=spoken(rows),
        inches=(4.4, 0.7 + 0.27 * len(rows)),
        draw=partial(_lines, rows=list(rows.values()), names=names),
    )


def _adverse(results: Sequence[ProbeResult]) -> Figure | None:
    rows = {name: row for name, row in rows_of(results, "adverse").items() if row.better == "more"}
    if not rows:
        return None
    names = [
        re.sub(r"^area x(\d+), large one (\w+), (\w+) replaced$", r"×\1, large \2, \3 gone", name) for name in rows
    ]
    return Figure(
        name="adverse",
        title="Is a replaced thing noticed?",
        caption="Two named things, one of them replaced: ratio of areas, whether the larger one is mentioned first, "
        f"which mention is replaced. {_INTERVAL}",
        words=spoken(rows),
        inches=(4.4, 0.7 + 0.27 * len(rows)),
        draw=partial(_lines, rows=list(rows.values()), names=names),
    )


def _corruption(results: Sequence[ProbeResult]) -> Figure | None:
    rows = rows_of(results, "corruption")
    if not rows:
        return None
    names = [name.replace(" ", "\n", 1).replace("jpeg", "JPEG") for name in rows]
    return Figure(
        name="corruption",
        title="Naming in spoilt pictures",
        caption=f"Single things named among sixteen. {_BARS}",
        words=spoken(rows),
        inches=(4.4, 2.9),
        draw=partial(_bars, rows=list(rows.values()), names=names),
    )


def _counting(found: Figures | None) -> Figure | None:
    if found is None or found.choices is None:
        return None
    return Figure(
        name="counting",
        title="Predicted against true number",
        caption="Pictures of one to ten equal shapes and the number that fits best. Outlined: right answers.",
        words=_choices_in_words(found.choices),
        inches=(4.4, 3.9),
        draw=partial(_matrix, found=found.choices, block=0, numbers=True),
    )


def _calibration(found: Figures | None) -> Figure | None:
    if found is None or not found.reliability:
        return None
    words = "; ".join(
        f"{'fitted ' if each.fitted else ''}scale {' and '.join(map(str, each.scales))}: "
        f"expected calibration error {100 * each.error:.1f} %"
        for each in found.reliability
    )
    return Figure(
        name="reliability",
        title="Do its probabilities hold?",
        caption="Softmax over sixteen names of scale × cosine. The model's own scale is not known here: discs use a "
        "scale fitted to the pictures of the other eight names, squares the customary 100. Marks grow with their "
        "number of pictures; on the diagonal probabilities are true.",
        words=words,
        inches=(4.4, 3.9),
        draw=partial(_calibrated, found=found),
    )


def _naming(found: Figures | None) -> Figure | None:
    if found is None or found.choices is None:
        return None
    return Figure(
        name="naming",
        title="What is taken for what",
        caption="Pictures of single things named among sixteen, without shots. Each row is shared out over the names; "
        "outlined: right answers.",
        words=_choices_in_words(found.choices),
        inches=(6.6, 6.2),
        draw=partial(_matrix, found=found.choices, block=4, numbers=False),
        wide=True,
    )


def _choices_in_words(found: ChoiceCounts) -> str:
    total = sum(map(sum, found.counts))
    right = sum(line[at] for at, line in enumerate(found.counts))
    ties = sum(line[-1] for line in found.counts)
    mistakes = [
        (line[taken], name, found.labels[taken])
        for true, (name, line) in enumerate(zip(found.labels, found.counts, strict=True))
        for taken in range(len(found.labels))
        if taken != true
    ]
    words = f"{right} of {total} right, {ties} ties"
    count, true, taken = max(mistakes, key=lambda mistake: mistake[0], default=(0, "", ""))
    return f"{words}; the most frequent mistake is {taken} for {true}, {count} times" if count else words


def _lines(axes: Axes, palette: Palette, *, rows: list[ResultRow], names: list[str]) -> None:
    plots.interval_lines(axes, rows, names, palette)


def _bars(axes: Axes, palette: Palette, *, rows: list[ResultRow], names: list[str]) -> None:
    plots.interval_bars(axes, rows, names, palette)


def _matrix(axes: Axes, palette: Palette, *, found: ChoiceCounts, block: int, numbers: bool) -> None:
    plots.choices(axes, found, palette, block=block, numbers=numbers)


def _calibrated(axes: Axes, palette: Palette, *, found: Figures) -> None:
    plots.reliability(axes, found.reliability, palette)
