"""The study of search inside one modality: the page says what the record says."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.torch

from benchmarks.intra_modal_tables import PAGE, blocks, read_record, search, summary, verdict  # noqa: E402


def test_the_page_has_the_tables_of_the_record() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, text in blocks(read_record()).items():
        assert f"<!-- bench:{name} -->\n{text}\n<!-- /bench:{name} -->" in page, f"{name}: run --write-docs"


def test_an_interval_that_holds_zero_shows_nothing() -> None:
    assert verdict([0.07, -0.01, 0.15], [0.08, 0.01, 0.15]) == "not shown"
    assert verdict([0.07, 0.01, 0.15], [0.08, 0.01, 0.15]) == "helps"


def row(value: float, *, validation: float, control: float) -> dict[str, object]:
    return {
        "knobs": "8 kept",
        "validation": validation,
        "mAP": [value, value - 0.01, value + 0.01],
        "r@1": [0.5, 0.4, 0.6],
        "r@10": [1.0, 0.9, 1.0],
        "minus raw": [value - 0.4, value - 0.41, value - 0.39],
        "minus control": [value - control, value - control - 0.01, value - control + 0.01],
    }


@pytest.mark.parametrize(("cure", "verdict"), [(0.5, "helps"), (0.44, "not needed")])
def test_a_cure_helps_where_it_is_far_above_every_control(cure: float, verdict: str) -> None:
    """And the cure is the one that validation chose, whatever the held-out split says of another one."""
    rows = {
        "as it is": row(0.4, validation=0, control=0.42),
        "mean": row(0.9, validation=0.3, control=0.42),
        "text pca": row(cure, validation=0.4, control=0.42),
        "random": row(0.42, validation=0.41, control=0.42),
    }
    del rows["as it is"]["validation"]
    judged = {"search": {"things": {"controls": ["random"], "control": "random", "chance": [0.1, 0.05], "rows": rows}}}
    last = summary({"base": judged}).splitlines()[-1]
    assert last.endswith(f"| {verdict} |")
    assert "| text pca, 8 kept |" in last
    assert search(judged).splitlines()[-2].startswith("| things | random (control) | 8 kept | .420 [.410, .430] |")
