"""A report of a run: one HTML file to read, keep and print, and its pictures for pages of documentation.

    from evaluation.report import write_figures, write_html

    write_html(results, Path("report.html"), title="everyday-small, quick")
    write_figures(results, Path("docs/pictures"))  # returns the PNG files that it wrote

`results` is what `evaluation.suites.run` returned, or what `read_result` read back from its folder; results on real
data (`evaluation.standard`) may stand among them. All are of one encoder and each probe occurs once, else ValueError.
The file is self-contained: no script, no request, readable from `file://`, in light and dark, on a phone and on paper.
Whatever comes from outside (names, labels, texts) is escaped. matplotlib is needed, and imported only to draw.
"""

from evaluation.report.figures import write_figures
from evaluation.report.page import write_html

__all__ = ["write_figures", "write_html"]
