"""Suites of probes: which are run, what they cost, and the run itself, which keeps each result once it is there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.encoder import DenseEncoder, Encoder
from evaluation.probe_results import Control, ProbeResult, RunKey, read_result, result_rows, write_result
from evaluation.probes import (
    adverse,
    binding,
    corruption,
    count,
    few_shot,
    image_to_image,
    localisation,
    mention_bias,
    multi_label,
    negation,
    order,
    place,
    quads,
    relation,
    replace_add,
    size_bias,
    spurious,
)
from evaluation.probes.figures import figures
from evaluation.probes.localisation import LocalisationProbe
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import FULL, QUICK, Pool, PoolSize
from evaluation.probes.priors import best_priors
from evaluation.probes.questions import Probe
from evaluation.probes.readers import NO_GRID, BagReader, BlindReader, EncoderReader, NotApplicable, TruthReader
from evaluation.probes.rows import ProbeRow
from evaluation.probes.showing import examples
from evaluation.scenes.config import Pair, all_pairs
from evaluation.scenes.rendering import LARGEST_PX, SMALLEST_PX
from evaluation.scenes.scene import SceneError

QUICK_PICTURES, QUICK_TEXTS = 500, 2000
UNKNOWN_PX = 224
_TIMED_PICTURES, _TIMED_TEXTS = 8, 32
# Asked first: they rank all their pictures, so these are sent in one shuffled batch and not some with an earlier probe.
_GALLERIES = ("multi-label", "image-to-image")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Some probes over one pool. correlated: the colour each shape had in 95 % of a model's training, if known."""

    name: str
    probes: tuple[str, ...]
    size: PoolSize
    seed: int = 0
    pairs: tuple[Pair, ...] = all_pairs()
    correlated: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Distinct pictures and texts to encode. seconds: extrapolated from a few of them, None if not timed."""

    pictures: int
    texts: int
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """`done` of `total` inputs are encoded, and `probe` is being asked."""

    probe: str
    done: int
    total: int


Tell = Callable[[Step], None]


@dataclass(frozen=True)
class _Unasked:
    """A probe that this pool or this encoder cannot be asked, and why."""

    reason: str


def probe_names() -> tuple[str, ...]:
    return tuple(_builders(None))


def suite_names() -> tuple[str, ...]:
    """What `suite` takes."""
    return ("quick", "full", *probe_names())


def suite(
    name: str,
    *,
    seed: int = 0,
    pairs: tuple[Pair, ...] = all_pairs(),
    correlated: Mapping[str, str] | None = None,
) -> Suite:
    """`quick` (at most 500 pictures and 2,000 texts for all probes together), `full` (eight times as many pictures),
    or one probe's name at its full size.

    Raises:
        ValueError: no such suite.
    """
    names = probe_names()
    if name not in suite_names():
        raise ValueError(f"no suite {name!r}: expected one of {', '.join(suite_names())}")
    chosen = (name,) if name in names else names
    size = QUICK if name == "quick" else FULL
    return Suite(name=name, probes=chosen, size=size, seed=seed, pairs=pairs, correlated=correlated)


def cost(chosen: Suite, encoder: Encoder | None = None) -> Cost:
    """What a run encodes, counted; with an encoder also how long that takes, timed on a few inputs."""
    built = _build(chosen, dense=encoder is None or isinstance(encoder, DenseEncoder))
    pictures, texts = _inputs([probe for probe in built.values() if not isinstance(probe, _Unasked)])
    if encoder is None or not pictures or not texts:
        return Cost(pictures=len(pictures), texts=len(texts))
    reader = EncoderReader(encoder, size_px=picture_px(encoder))
    reader.image_vectors(pictures[:1])  # the first call pays for what is set up once
    start = time.perf_counter()
    reader.image_vectors(pictures[1 : 1 + _TIMED_PICTURES])
    middle = time.perf_counter()
    encoder.encode_texts(texts[:_TIMED_TEXTS])
    end = time.perf_counter()
    timed = min(_TIMED_PICTURES, max(1, len(pictures) - 1)), min(_TIMED_TEXTS, len(texts))
    seconds = len(pictures) * (middle - start) / timed[0] + len(texts) * (end - middle) / timed[1]
    return Cost(pictures=len(pictures), texts=len(texts), seconds=seconds)


def picture_px(encoder: Encoder) -> int:
    """The side that pictures are drawn at: the encoder's own within what can be drawn, 224 if unknown."""
    return min(max(encoder.image_px or UNKNOWN_PX, SMALLEST_PX), LARGEST_PX)


def answered(encoder: Encoder, chosen: Suite, folder: Path) -> tuple[str, ...]:
    """The probes whose results lie in `folder` and answer the very same question, so that `run` asks them no more."""
    size_px = picture_px(encoder)
    return tuple(name for name in chosen.probes if _stored(folder, _key(encoder, chosen, name, size_px)) is not None)


def run(
    encoder: Encoder,
    chosen: Suite,
    *,
    folder: Path | None = None,
    progress: Tell | None = None,
) -> list[ProbeResult]:
    """Ask every probe of the suite; results in its order.

    folder: each result is written to `<folder>/<probe>.json` as soon as it is there, and results that lie there
    already are used if they answer the very same question (encoder, suite, seed, picture size).

    Raises:
        ValueError: the encoder answers NaN or the wrong number of vectors.
    """
    size_px = picture_px(encoder)
    built = _build(chosen, dense=isinstance(encoder, DenseEncoder))
    stored = {name: _stored(folder, _key(encoder, chosen, name, size_px)) for name in chosen.probes}
    waiting = [probe for name, probe in built.items() if stored[name] is None and not isinstance(probe, _Unasked)]
    count_done = _Progress(_steps(waiting), progress)
    reader = EncoderReader(encoder, size_px=size_px, progress=count_done.add)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, ProbeResult] = {}
    order = sorted(built, key=lambda name: name not in _GALLERIES)
    count_done.begin(order[0])
    texts = dict.fromkeys(text for probe in waiting if probe.reads in ("both", "texts") for text in probe.texts)
    if texts:  # all in one shuffled order: some are a true caption in one probe and stand beside false ones in another
        reader.text_vectors(list(texts))
    for name in order:
        count_done.begin(name)
        result = stored[name]
        if result is None:
            result = _ask(built[name], reader, encoder, _key(encoder, chosen, name, size_px))
            if folder is not None:
                write_result(result, _path(folder, name))
        results[name] = result
    return [results[name] for name in built]


def _ask(probe: Probe | _Unasked, reader: EncoderReader, encoder: Encoder, key: RunKey) -> ProbeResult:
    if isinstance(probe, _Unasked):
        return ProbeResult(key=key, encoder=encoder.name, pictures=0, texts=0, rows=(), not_applicable=probe.reason)
    pictures, texts = len(set(probe.pictures)), len({text.text for text in probe.texts})
    try:
        rows = probe.measure(reader)
        joined = result_rows(rows, _controls(probe, reader), best_priors(probe))
    except NotApplicable as error:
        return ProbeResult(key=key, encoder=encoder.name, pictures=0, texts=0, rows=(), not_applicable=str(error))
    return ProbeResult(
        key=key,
        encoder=encoder.name,
        pictures=pictures,
        texts=texts,
        rows=joined,
        notes=_notes(probe),
        questions=_digest(probe),
        examples=examples(probe, reader, rows, seed=key.seed),
        figures=figures(probe, reader),
    )


def _digest(probe: Probe) -> str:
    """Of everything that the probe shows and says: equal where two encoders were asked the same."""
    found = hashlib.sha256()
    for shown in (*probe.pictures, *probe.texts):
        found.update(repr(shown).encode())
    return found.hexdigest()


def _controls(probe: Probe, reader: EncoderReader) -> dict[Control, Sequence[ProbeRow] | None]:
    """A localisation has the grid's bound for its truth; only a probe of pictures and texts can be asked blind."""
    if isinstance(probe, LocalisationProbe):
        return {"blind": None, "bag": None, "truth": probe.bound(reader)}
    blind = probe.measure(BlindReader(reader, probe.pictures)) if probe.reads == "both" else None
    return {"blind": blind, "bag": probe.measure(BagReader()), "truth": probe.measure(TruthReader())}


def _notes(probe: Probe) -> tuple[str, ...]:
    if isinstance(probe, spurious.Spurious) and probe.aligned is None:
        return ("colours of the training pictures: n/a, the training distribution of this encoder is not known",)
    return ()


def _builders(correlated: Mapping[str, str] | None) -> dict[str, Callable[[Pool], Probe]]:
    return {
        "binding": binding.build,
        "place": place.build,
        "relation": relation.build,
        "order": order.build,
        "replace-add": replace_add.build,
        "quads": quads.build,
        "size-bias": size_bias.build,
        "mention-bias": mention_bias.build,
        "adverse": adverse.build,
        "count": count.build,
        "negation": negation.build,
        "multi-label": multi_label.build,
        "image-to-image": image_to_image.build,
        "few-shot": few_shot.build,
        "spurious": lambda pool: spurious.build(pool, aligned=correlated),
        "corruption": corruption.build,
        "localisation": localisation.build,
    }


def _build(chosen: Suite, *, dense: bool) -> dict[str, Probe | _Unasked]:
    pool = Pool(chosen.size, seed=chosen.seed, pairs=chosen.pairs)
    builders = _builders(chosen.correlated)
    out: dict[str, Probe | _Unasked] = {}
    for name in chosen.probes:
        try:
            probe = builders[name](pool)
            out[name] = _Unasked(NO_GRID) if probe.reads == "dense" and not dense else probe
        except SceneError as error:
            out[name] = _Unasked(f"no scenes for this probe: {error}")
    return out


def _inputs(probes: Sequence[Probe]) -> tuple[list[Picture], list[str]]:
    pictures = dict.fromkeys(picture for probe in probes for picture in probe.pictures)
    texts = dict.fromkeys(text.text for probe in probes for text in probe.texts)
    return list(pictures), list(texts)


def _steps(probes: Sequence[Probe]) -> int:
    """How many inputs are encoded: a picture that is also asked for its grid counts twice."""
    pictures, _ = _inputs([probe for probe in probes if probe.reads != "dense"])
    _, texts = _inputs(probes)
    return len(pictures) + len(texts) + sum(len(probe.pictures) for probe in probes if probe.reads == "dense")


def _key(encoder: Encoder, chosen: Suite, probe: str, size_px: int) -> RunKey:
    where = chosen.name if chosen.pairs == all_pairs() and chosen.correlated is None else _described(chosen)
    return RunKey(
        probe=probe,
        fingerprint=encoder.fingerprint,
        space=encoder.space,
        suite=where,
        seed=chosen.seed,
        size_px=size_px,
    )


def _described(chosen: Suite) -> str:
    """The suite's name with all that was chosen beside it."""
    colours = sorted((chosen.correlated or {}).items())
    return f"{chosen.name}; pairs {sorted(chosen.pairs)}; correlated {colours}"


def _path(folder: Path, probe: str) -> Path:
    return folder / f"{probe}.json"


def _stored(folder: Path | None, key: RunKey) -> ProbeResult | None:
    """A result that answers this very question, or None; a file that cannot be read is asked again."""
    if folder is None:
        return None
    try:
        found = read_result(_path(folder, key.probe))
    except (OSError, ValueError):
        return None
    return found if found.key == key else None


class _Progress:
    """Adds up what is encoded and says so."""

    def __init__(self, total: int, tell: Tell | None) -> None:
        self._total, self._tell = total, tell
        self._done, self._probe = 0, ""

    def begin(self, probe: str) -> None:
        self._probe = probe
        self.add(0)

    def add(self, count: int) -> None:
        self._done += count
        if self._tell is not None:
            self._tell(Step(probe=self._probe, done=self._done, total=self._total))
