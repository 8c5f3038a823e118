"""One picture and several captions of which one is true: the form of SugarCrepe and of ARO."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evaluation.encoder import Encoder
from evaluation.metrics import normalize
from evaluation.probe_results import ProbeResult, RunKey
from evaluation.probes.priors import TEXT_PRIORS, best_of
from evaluation.probes.questions import credit
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.standard.asking import Asking, Tell, digest, joined, run_key
from evaluation.standard.marks import macro_row
from evaluation.standard.photographs import Photograph, clusters_of


@dataclass(frozen=True, slots=True)
class Choice:
    """The first option is true; `group` is its type, relation or pair of attributes.

    Raises:
        ValueError: two options are one text: no model could choose.
    """

    photograph: Photograph
    options: tuple[str, ...]
    group: str

    def __post_init__(self) -> None:
        if len({option.casefold() for option in self.options}) != len(self.options):
            raise ValueError(f"{self.photograph.name}: two options are one text: {self.options}")


@dataclass(frozen=True)
class Choices:
    """groups: what a group is called; least: how many choices a group needs for a row and a part in the mean."""

    name: str
    choices: tuple[Choice, ...]
    groups: str
    least: int = 1
    notes: tuple[str, ...] = ()
    seed: int = 0
    kind: str = "caption-pairs"

    def key(self, encoder: Encoder) -> RunKey:
        return run_key(self, encoder, asked=self._asked(), seed=self.seed)

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Rows: every group, all choices, and the mean over groups. A tie is wrong; the blind control shares it.

        Blind is the same encoder that sees the mean of all pictures, prior the best simple rule about the wording: what
        they score, the wording alone gives away.
        """
        photographs = [choice.photograph for choice in self.choices]
        options = [option for choice in self.choices for option in choice.options]
        asking = Asking(encoder, self.kind, pictures=len(set(photographs)), texts=len(set(options)), progress=progress)
        images = asking.image_vectors(photographs).astype(np.float64)
        texts = asking.text_vectors(options).astype(np.float64)
        sizes = np.array([len(choice.options) for choice in self.choices])
        distinct = {photograph: at for at, photograph in enumerate(photographs)}
        mean = normalize(images[list(distinct.values())].mean(axis=0)).astype(np.float64)
        seen = self._outcomes(np.einsum("nd,nd->n", np.repeat(images, sizes, axis=0), texts), sizes, ties_wrong=True)
        blind = self._outcomes(texts @ mean, sizes, ties_wrong=False)
        liked = {
            name: np.array([rule(option) for option in options], dtype=np.float64) for name, rule in TEXT_PRIORS.items()
        }
        ruled = {name: self._outcomes(scores, sizes, ties_wrong=False) for name, scores in liked.items()}
        return joined(
            self.key(encoder),
            asking,
            self._rows(seen),
            asked=self._asked(),
            blind=self._rows(blind),
            priors=best_of({name: self._rows(outcomes) for name, outcomes in ruled.items()}),
            notes=self.notes,
        )

    def _outcomes(self, scores: F64, sizes: np.ndarray, *, ties_wrong: bool) -> F64:
        ends = [0, *np.cumsum(sizes).tolist()]
        return np.array([credit(scores[low:high], 0, ties_wrong=ties_wrong) for low, high in pairwise(ends)])

    def _rows(self, outcomes: F64) -> list[ProbeRow]:
        names, at, counts = np.unique([c.group for c in self.choices], return_inverse=True, return_counts=True)
        clusters = np.array(clusters_of(choice.photograph for choice in self.choices), dtype=np.int64)
        chance = 1 / np.array([len(choice.options) for choice in self.choices])
        kept = np.flatnonzero(counts >= self.least)
        rows = [
            mean_row(str(names[group]), outcomes[at == group], clusters[at == group], chance=chance[at == group].mean())
            for group in kept
            if len(names) > 1
        ]
        rows.append(mean_row("all", outcomes, clusters, chance=float(chance.mean())))
        if len(names) > 1 and len(kept):
            inside = np.isin(at, kept)
            least = f" with at least {self.least}" if self.least > 1 else ""
            rows.append(
                macro_row(
                    f"mean over {self.groups}{least}",
                    outcomes[inside],
                    at[inside],
                    clusters[inside].tolist(),
                    chance=float(np.mean([chance[at == group].mean() for group in kept])),
                )
            )
        return rows

    def _asked(self) -> str:
        return digest(f"{c.photograph.identity} {c.group} {c.options}" for c in self.choices)
