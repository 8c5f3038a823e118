"""Labelled pictures as a task of the command line: judged once, with controls, kept with the pictures that say most."""

from __future__ import annotations

from dataclasses import dataclass, field

from evaluation.dense.judging import judge
from evaluation.dense.overlays import overlay_of
from evaluation.dense.scene_set import PICTURES, SIZE_PX, PairChoice, chosen_pairs, draw_scenes
from evaluation.dense.truth import LabelledPictures
from evaluation.encoder import DenseEncoder, Encoder
from evaluation.locating import Looking
from evaluation.probe_results import ProbeResult, RunKey, result_rows
from evaluation.probes.readers import NO_GRID
from evaluation.suites import Step, Tell

SUITE = "localize"


@dataclass(frozen=True)
class Localisation:
    """name: of the set, as it was asked for. size_px: the side of drawn pictures, 0 for photographs."""

    name: str
    pictures: LabelledPictures
    kind: str
    size_px: int = 0
    seed: int = 0
    looking: Looking = field(default_factory=Looking)

    def key(self, encoder: Encoder) -> RunKey:
        drawn = self.name if self.size_px else f"{self.name} (data {self.pictures.asked[:16]})"
        return RunKey(
            probe=self.kind,
            fingerprint=encoder.fingerprint,
            space=encoder.space,
            suite=drawn,
            seed=self.seed,
            size_px=self.size_px,
            settings=str(self.looking),
        )

    def measure(self, encoder: Encoder, *, progress: Tell | None = None) -> ProbeResult:
        """Raises:
        ValueError: a picture or its labels cannot be used, or answers that are none.
        """
        key = self.key(encoder)
        if not isinstance(encoder, DenseEncoder):
            return ProbeResult(key=key, encoder=encoder.name, pictures=0, texts=0, rows=(), not_applicable=NO_GRID)
        done, total = 0, len(self.pictures)

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(Step(probe=self.kind, done=done, total=total))

        tell(0)
        judged = judge(encoder, self.pictures, looking=self.looking, tell=tell)
        return ProbeResult(
            key=key,
            encoder=encoder.name,
            pictures=total,
            texts=len(self.pictures.labels),
            rows=result_rows(judged.rows, {"blind": judged.blind, "truth": judged.bound}),
            notes=(*([f"asked with {self.looking}"] if str(self.looking) else []), *self.pictures.notes),
            questions=self.pictures.asked,
            overlays=tuple(overlay_of(each) for each in judged.shown),
        )


def scenes_task(
    *, seed: int = 0, pairs: PairChoice = "all", pictures: int = PICTURES, looking: Looking | None = None
) -> Localisation:
    """Drawn scenes; every pair that they are drawn from is a label."""
    name = SUITE if pairs == "all" else f"{SUITE}, {pairs} pairs"
    drawn = draw_scenes(seed=seed, pairs=chosen_pairs(pairs), pictures=pictures)
    return Localisation(name, drawn, kind=SUITE, size_px=SIZE_PX, seed=seed, looking=looking or Looking())
