"""How the graphs of a model are opened: settings, precision, a child process first, golden cases after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_store.artifact import Artifact
from model_store.graph import Arrays, example_feeds
from model_store.manifest import GraphSpec, Precision, Role
from model_store.probe import probe_all
from model_store.session import Device, SessionSettings
from model_store.towers import on_cpu

Owned = tuple[Artifact, GraphSpec]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How models are run; see service.settings for the defaults and what each means to a user."""

    device: Device
    precision: Precision | None
    intra_threads: int
    spinning: bool
    max_batch_images: int
    max_batch_texts: int
    max_queue_items: int
    probe_first: bool
    max_batch_pixels: int = 4_000_000
    dense_prepack: bool = False
    probe_log: Path | None = None
    arena: bool = True
    memory_limit_bytes: int = 0

    @property
    def session(self) -> SessionSettings:
        """Of every session that runs on `device`."""
        return SessionSettings(
            device=self.device,
            intra_threads=self.intra_threads,
            spinning=self.spinning,
            arena=self.arena,
            memory_limit_bytes=self.memory_limit_bytes,
        )


def choose_precision(artifact: Artifact, role: Role, wanted: Precision | None, device: Device) -> Precision:
    """The precision to serve: what was asked for if it was built, else fp32; "auto" is fp16 on CUDA, fp32 on CPU.

    A precision that an adapter or a head behind the encoder was not measured with counts as not built.
    """
    automatic: Precision = "fp16" if device == "cuda" else "fp32"
    return artifact.served_precision(role, wanted or automatic)


def probe_graphs(
    encoders: Sequence[Owned], followers: Sequence[Owned], options: SessionSettings, *, feeds: Arrays | None = None
) -> None:
    """Open and run graphs in a child process; what follows an encoder runs on the CPU. `feeds` are the encoders'.

    Raises:
        GraphError: one does not load, crashes or does not end.
    """
    for graphs, settings, given in ((encoders, options, feeds), (followers, on_cpu(options), None)):
        if graphs:
            runs = [(owner.path(spec.file), spec, given or example_feeds(spec)) for owner, spec in graphs]
            probe_all(runs, settings=settings)
