"""The HTML file: head, summary, plots, and a section for each probe."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from evaluation.probe_results import ProbeResult
from evaluation.report.cards import cards
from evaluation.report.figures import Figure, check_one_run, figures_of, svg
from evaluation.report.intervals import legend
from evaluation.report.markup import Markup, element
from evaluation.report.overlays import overlays
from evaluation.report.tables import rows_table, summary
from evaluation.report.topics import TOPICS
from evaluation.report.verdicts import Finding, findings
from model_store.files import write_whole

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_OPEN_EXAMPLES = 4


def write_html(results: Sequence[ProbeResult], path: Path, *, title: str, made: datetime.date | None = None) -> None:
    """Write the report whole or not at all. made: the date it bears, today by default.

    Raises:
        ValueError: no results, results of several encoders, or two of one probe.
    """
    check_one_run(results)
    write_whole(path, page(results, title=title, made=made or datetime.date.today()).encode())


def page(results: Sequence[ProbeResult], *, title: str, made: datetime.date) -> str:
    """The whole document."""
    found = findings(results)
    on_scenes = [result for result in results if result.key.probe in TOPICS]
    on_data = [result for result in results if result.key.probe not in TOPICS]
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", None, title),
        element("style", None, Markup(_STYLE.read_text(encoding="utf-8"))),
    )
    parts = [_head(results, title, made)]
    if found:
        parts.append(_summary(results[0].encoder, found))
    figures = figures_of(results)
    parts.append(_contents(results, plots=bool(figures)))
    if figures:
        parts.append(_plots(figures))
    parts.append(_how_to_read())
    if on_scenes:
        parts.append(element("h2", None, "Drawn scenes"))
        parts += [_probe(result, _anchor(results, result)) for result in on_scenes]
    if on_data:
        parts.append(element("h2", None, "Real data"))
        parts += [_data(result, _anchor(results, result)) for result in on_data]
    body = element("body", None, element("main", None, *parts))
    return f"<!doctype html>\n{element('html', {'lang': 'en'}, head, body)}\n"


def _head(results: Sequence[ProbeResult], title: str, made: datetime.date) -> Markup:
    keys = [result.key for result in results]
    facts = {
        "encoder": results[0].encoder,
        "suite": _all(key.suite for key in keys if key.probe in TOPICS),
        "seed": _all(str(key.seed) for key in keys),
        "pictures": _all(f"{key.size_px} px" for key in keys if key.size_px),
        "date": made.isoformat(),
        "clipworks": version("clipworks"),
        "fingerprint": keys[0].fingerprint,
        "space": keys[0].space,
    }
    items = [
        element("div", None, element("dt", None, name), element("dd", None, value))
        for name, value in facts.items()
        if value
    ]
    return element("header", {"class": "top"}, element("h1", None, title), element("dl", {"class": "facts"}, *items))


def _all(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _summary(encoder: str, found: Sequence[Finding]) -> Markup:
    counts = Counter(finding.verdict for finding in found)
    asked = [finding for finding in found if finding.verdict not in ("leans", "even", "unknown")]
    clearly, partly = (str(counts[kind] or "none") for kind in ("yes", "partly"))
    rest = counts["no"] + counts["worse"] + counts["texts alone"]
    lead = f"Of {len(asked)} abilities asked for, {encoder} shows {clearly} clearly and {partly} in part."
    if rest:
        lead += f" With the other {rest} it does no better than guessing, or no better than without the picture."
    if counts["leans"]:
        lead += f" It leans in {counts['leans']} of {counts['leans'] + counts['even']} tests for a bias."
    note = (
        "Each mark is a score on 0 to 100 % with its 95 % interval, the bar is chance. “Can” needs the whole interval "
        "above chance, above the same model without the picture and above every simple rule that sees the texts alone, "
        "and four fifths of the way to a perfect score."
    )
    return element(
        "section",
        {"class": "summary", "aria-labelledby": "summary"},
        element("h2", {"id": "summary"}, "What this model can and cannot do"),
        element("p", {"class": "lead"}, lead),
        summary(found),
        element("p", {"class": "note"}, note),
    )


def _contents(results: Sequence[ProbeResult], *, plots: bool) -> Markup:
    links = [("#plots", "Plots")] if plots else []
    links += [(f"#{_anchor(results, result)}", _name(result)) for result in results]
    items = [element("li", None, element("a", {"href": target}, name)) for target, name in links]
    return element("nav", {"aria-label": "Contents"}, element("ul", None, *items))


def _plots(figures: Sequence[Figure]) -> Markup:
    drawn = [
        element(
            "figure",
            {"class": "wide" if figure.wide else "narrow"},
            element("h3", None, figure.title),
            element(
                "div", {"class": "canvas", "role": "img", "aria-label": f"{figure.title} {figure.words}"}, svg(figure)
            ),
            element("figcaption", None, figure.caption),
        )
        for figure in figures
    ]
    return element(
        "section", None, element("h2", {"id": "plots"}, "Plots"), element("div", {"class": "figures"}, *drawn)
    )


def _how_to_read() -> Markup:
    words = (
        "Scores of drawn scenes compare models and say little about photographs. Options that fit equally well are "
        "a tie, and a tie is wrong, so a model that cannot tell two sentences apart scores below chance. A dash is a "
        "number that does not exist. Prior is the best that any of some simple rules scores without the picture (or "
        "without the text), such as “the shortest sentence without a no”. Examples are drawn by the seed, half of them "
        "right as far as there are any: they show what happens, not how often. The number beside an option is its "
        "cosine."
    )
    return element(
        "section",
        None,
        element("h2", {"id": "reading"}, "How to read the tables"),
        element("p", {"class": "note"}, words),
        legend(),
    )


def _probe(result: ProbeResult, anchor: str) -> Markup:
    topic = TOPICS[result.key.probe]
    parts = [
        element("h3", None, topic.title, " ", element("code", None, result.key.probe)),
        element("p", {"class": "asks"}, topic.asks),
        *_found(result),
    ]
    shown, more = result.examples[:_OPEN_EXAMPLES], result.examples[_OPEN_EXAMPLES:]
    if shown:
        parts += [element("h4", None, "Examples"), cards(shown, result.key.size_px)]
    if more:
        folded = element("summary", None, f"{len(more)} more")
        parts.append(element("details", None, folded, cards(more, result.key.size_px)))
    parts += overlays(result.overlays)
    return element("section", {"class": "probe", "id": anchor}, *parts)


def _data(result: ProbeResult, anchor: str) -> Markup:
    """Its name says which files were asked about."""
    parts = [element("h3", None, result.key.probe), element("p", {"class": "asks"}, result.key.suite), *_found(result)]
    parts += overlays(result.overlays)
    return element("section", {"class": "probe", "id": anchor}, *parts)


def _found(result: ProbeResult) -> list[Markup]:
    """What was asked and the table, or why there is none."""
    if result.not_applicable is not None:
        return [element("p", {"class": "unasked"}, f"Not asked: {result.not_applicable}.")]
    sizes = {"pictures": result.pictures, "texts": result.texts}
    size = element("p", {"class": "asked"}, ", ".join(f"{count:,} {name}" for name, count in sizes.items() if count))
    notes = [element("p", {"class": "asked"}, note) for note in result.notes]
    return [size, *notes, element("div", {"class": "scroll"}, rows_table(result))]


def _anchor(results: Sequence[ProbeResult], result: ProbeResult) -> str:
    """The probe's name; for real data a number, because several may have one name."""
    return result.key.probe if result.key.probe in TOPICS else f"data-{results.index(result)}"


def _name(result: ProbeResult) -> str:
    return TOPICS[result.key.probe].title if result.key.probe in TOPICS else result.key.probe
