"""Examples -> the head that was fitted to them and what is to be said of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.faults import LabelSetFailed
from service.teaching.examples import F32, ExampleVectors
from service.teaching.head import TaughtHead, teach
from service.teaching.report import TeachingReport, report_of, untaught


def fit_examples(
    names: Sequence[str], examples: ExampleVectors, texts: F32 | None, *, scale: float
) -> tuple[TaughtHead | None, TeachingReport]:
    """texts: unit vectors of the labels' texts [C, D], None where the model takes no texts. scale: its logit scale.

    The head is None where nothing can be fitted and the texts decide alone, which the report says.

    Raises:
        LabelSetFailed: that, and there are no texts.
    """
    index = {name.strip(): at for at, name in enumerate(names)}
    truth = np.array([index[label] for label in examples.labels], dtype=np.int64)
    try:
        head, judged = teach(names, examples.vectors, truth, texts=texts, scale=scale)
    except ValueError as error:
        if texts is None:
            raise LabelSetFailed(f"nothing can be learned: {error}") from None
        return None, untaught(names, truth, str(error))
    return head, report_of(names, truth, judged)
