"""Opens the graphs of a model: settings, precision, a trial in a child process, golden cases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TypeVar

from model_store.artifact import Artifact
from model_store.errors import ArtifactError, GraphHangs
from model_store.graph import Arrays, example_feeds
from model_store.manifest import GraphSpec, Precision, Role
from model_store.probe import DEFAULT_TIMEOUT_S, probe_all
from model_store.session import Device, SessionSettings
from model_store.towers import on_cpu
from service.timing import Deadline

Owned = tuple[Artifact, GraphSpec]
_T = TypeVar("_T")
_UNWIND_S = 2.0  # a child process that is late has its end and its message first


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How models are run; see service.settings for the defaults and what each means to a user.

    stopping: set when the server stops; what is being opened then is given up.
    """

    device: Device
    precision: Precision | None
    intra_threads: int
    spinning: bool
    max_batch_images: int
    max_batch_texts: int
    max_queue_items: int
    probe_first: bool
    max_wait_s: float = 2.0
    load_timeout_s: float = DEFAULT_TIMEOUT_S
    max_batch_pixels: int = 4_000_000
    prepack: bool = True
    dense_prepack: bool = False
    probe_log: Path | None = None
    arena: bool = True
    memory_limit_bytes: int = 0
    stopping: Event = field(default_factory=Event, compare=False, repr=False)

    @property
    def session(self) -> SessionSettings:
        """Of every session that runs on `device`."""
        return SessionSettings(
            device=self.device,
            intra_threads=self.intra_threads,
            spinning=self.spinning,
            arena=self.arena,
            memory_limit_bytes=self.memory_limit_bytes,
            prepack=self.prepack,
        )


def choose_precision(artifact: Artifact, role: Role, wanted: Precision | None, device: Device) -> Precision:
    """The precision to serve: what was asked for if it was built, else fp32; "auto" is fp16 on CUDA, fp32 on CPU.

    A precision that an adapter or a head behind the encoder was not measured with counts as not built.
    """
    automatic: Precision = "fp16" if device == "cuda" else "fp32"
    return artifact.served_precision(role, wanted or automatic)


def probe_graphs(
    encoders: Sequence[Owned],
    followers: Sequence[Owned],
    options: SessionSettings,
    *,
    deadline: Deadline,
    stopping: Event,
    feeds: Arrays | None = None,
) -> None:
    """Open and run graphs in a child process; what follows an encoder runs on the CPU. `feeds` are the encoders'.

    Raises:
        GraphError: one does not load, crashes or is not done at `deadline`.
    """
    for graphs, settings, given in ((encoders, options, feeds), (followers, on_cpu(options), None)):
        if graphs:
            runs = [(owner.path(spec.file), spec, given or example_feeds(spec)) for owner, spec in graphs]
            remaining_s = deadline.remaining_s()
            timeout_s = DEFAULT_TIMEOUT_S if remaining_s is None else remaining_s
            try:
                probe_all(runs, settings=settings, timeout_s=timeout_s, abandoned=stopping)
            except GraphHangs as error:
                raise GraphHangs(f"{error} (CLIPWORKS_LOAD_TIMEOUT_S): it hangs, or is too large for that") from error


async def opened_in_time(
    artifact: Artifact, settings: EngineSettings, open_it: Callable[[Artifact, EngineSettings], _T]
) -> _T:
    """What `open_it` gives, called in a thread; one that does not come back is left behind.

    Raises:
        ArtifactError: it was not done within load_timeout_s, and whatever `open_it` raises.
    """
    try:
        async with asyncio.timeout(settings.load_timeout_s + _UNWIND_S):
            return await asyncio.to_thread(open_it, artifact, settings)
    except TimeoutError:
        limit = f"{settings.load_timeout_s:g} s (CLIPWORKS_LOAD_TIMEOUT_S)"
        raise ArtifactError(f"{artifact.reference} was not opened and proven within {limit}") from None
