"""Examples as cards: what was shown, what the options were, what the model chose."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from evaluation.probes.examples import Example
from evaluation.probes.pictures import Picture
from evaluation.report.markup import Markup, element, joined

_LARGEST_PX = 144
_SIGNS = {"right": "✓ right", "wrong": "✗ wrong", "tie": "= tie, counted as wrong"}
_LETTERS = "AB"


def cards(examples: Sequence[Example], size_px: int) -> Markup:
    """size_px: the side at which the model saw the pictures; they are drawn so, and shrunk if that is large."""
    return element("div", {"class": "cards"}, *(_card(example, size_px) for example in examples))


def _card(example: Example, size_px: int) -> Markup:
    head = element("header", None, element("strong", None, _SIGNS[example.mark]), element("span", None, example.row))
    queries = [_query(example, at, size_px) for at in range(len(example.queries))]
    parts = [head, element("div", {"class": "queries"}, *queries)]
    if example.options:
        kept, all_of_them = len(example.options), example.candidates
        if kept < all_of_them:
            parts.append(element("p", {"class": "kept"}, f"{kept} of {all_of_them} options, best first:"))
        parts.append(element("ul", {"class": "options"}, *(_option(example, at, size_px) for at in _order(example))))
    return element("article", {"class": f"card {example.mark}"}, *parts)


def _order(example: Example) -> list[int]:
    """As they were asked; by score where only the best were kept."""
    order = list(range(len(example.options)))
    if len(order) < example.candidates:
        order.sort(key=lambda at: -example.scores[0][at])
    return order


def _query(example: Example, at: int, size_px: int) -> Markup:
    card = example.queries[at]
    parts: list[str] = []
    if card.picture is not None:
        shown = _picture(card.picture, size_px)
        if example.grid:
            shown = element("div", {"class": "mapped"}, shown, _heat(example.grid))
        parts.append(shown)
    if card.text is not None:
        parts.append(element("q", None, card.text))
    if len(example.queries) > 1:
        parts.append(element("span", {"class": "letter"}, _LETTERS[at]))
    return element("div", {"class": "query"}, *parts)


def _option(example: Example, at: int, size_px: int) -> Markup:
    card = example.options[at]
    parts: list[str] = []
    if card.picture is not None:
        parts.append(_picture(card.picture, size_px))
    if card.text is not None:
        parts.append(element("span", {"class": "said"}, card.text))
    for query, scores in enumerate(example.scores):
        of = f"{_LETTERS[query]} " if len(example.queries) > 1 else ""
        picked, right = at in example.chosen[query], at in example.right[query]
        choice = "tied" if len(example.chosen[query]) > 1 else "chosen"
        words = [*([choice] if picked else []), *(["right answer"] if right else [])]
        cosine = f"{scores[at]:.4f}".replace("-", "−")
        score = element("span", {"class": "cosine"}, f"{of}{cosine}")
        tag = element("span", {"class": "tag"}, ", ".join(words)) if words else Markup()
        parts.append(element("span", {"class": "score"}, score, " ", tag))
    alone = len(example.queries) == 1  # of two pictures each has its own right caption: words tell, not frames
    marks = (("chosen", at in example.chosen[0]), ("correct", at in example.right[0]))
    kind = " ".join(name for name, here in marks if here and alone)
    return element("li", {"class": kind} if kind else None, *parts)


def _picture(picture: Picture, size_px: int) -> Markup:
    image = Image.fromarray(picture.draw(size_px))
    if size_px > _LARGEST_PX:
        image = image.resize((_LARGEST_PX, _LARGEST_PX), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=88, method=4)
    source = f"data:image/webp;base64,{base64.b64encode(sink.getvalue()).decode()}"
    return element("img", {"src": source, "alt": described(picture), "width": "112", "height": "112"})


def described(picture: Picture) -> str:
    """ "Drawn scene: red circle, 2 blue squares; light background, noise"."""
    counted = Counter(f"{thing.colour} {thing.shape}" for thing in picture.scene.things)
    names = [name if number == 1 else f"{number} of {name}" for name, number in counted.items()]
    spoilt = f", {picture.corruption}" if picture.corruption else ""
    return f"Drawn scene: {', '.join(names)}; {picture.scene.background.tone} background{spoilt}"


def _heat(grid: Sequence[Sequence[float]]) -> Markup:
    """Cells over the picture, stronger where they fit better, and a cross on the best one."""
    values = np.array(grid)
    rows, columns = values.shape
    spread = float(values.max() - values.min()) or 1.0
    cells: list[Markup] = []
    for (row, column), value in np.ndenumerate(values):
        strength = 0.6 * float(value - values.min()) / spread
        box = {"x": str(column), "y": str(row), "width": "1", "height": "1", "fill-opacity": f"{strength:.2f}"}
        cells.append(element("rect", box))
    row, column = (int(index) for index in np.unravel_index(int(values.argmax()), values.shape))
    x, y, arm = column + 0.5, row + 0.5, 0.3
    cross = element("path", {"d": f"M{x - arm} {y}h{2 * arm}M{x} {y - arm}v{2 * arm}"})
    label = f"Fit of each of {rows} by {columns} cells; the best is row {row + 1}, column {column + 1}"
    attributes = {"class": "heat", "viewBox": f"0 0 {columns} {rows}", "role": "img", "aria-label": label}
    return element("svg", attributes, joined(*cells), cross)
