"""From a repository to an artifact: which files are the model, what of them must be downloaded, and what they "
"become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_store.hub.graphs import ForeignGraph
from model_store.hub.layouts import Layout, find_layout, needed_weights, open_graphs
from model_store.hub.originals import original_of
from model_store.hub.publishing import ForeignModel
from model_store.hub.repository import DownloadProgress, Repository
from model_store.hub.scale import ScaleFound, trained_scale
from model_store.hub.settings import read_settings_files

_LOOKED_AT_BYTES = 64_000_000  # a graph of this size is downloaded to be asked where its weights lie


@dataclass(frozen=True, kw_only=True)
class _Half:
    """One repository of a model: all of it, or one tower of a pair."""

    repository: Repository
    layout: Layout

    @property
    def first_files(self) -> tuple[str, ...]:
        return (*self.layout.settings, *self.layout.graphs)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a pull will do. `bytes` are those of the files it needs, downloaded already or not."""

    halves: tuple[_Half, ...]
    bytes: int
    files: int


def plan_pull(repository: Repository, *, other: Repository | None = None) -> Plan:
    """Choose the files of a model. other: the repository of the second tower, where towers are published apart.

    Nothing large is downloaded; a graph is that keeps its weights outside, to learn where they are.

    Raises:
        ExportRefused: no graph that can be wrapped; TorchNeeded where there are weights for torch.
        RepositoryError, RepositoryNotFound, RepositoryGated: it cannot be read.
    """
    halves = tuple(
        _Half(repository=each, layout=find_layout(each.files())) for each in (repository, other) if each is not None
    )
    size = count = 0
    for half in halves:
        listed = half.repository.files()
        needed = [*half.first_files, *_expected_weights(half)]
        size += sum(listed[path].size_bytes for path in needed)
        count += len(needed)
    return Plan(halves=halves, bytes=size, files=count)


def download(
    plan: Plan,
    progress: DownloadProgress | None = None,
    *,
    find_scale: Callable[[Repository], ScaleFound] = trained_scale,
) -> ForeignModel:
    """Download what is missing and read it. find_scale: where the scale is looked for when no graph holds it.

    Raises:
        ExportRefused: a graph or a settings file cannot be used.
        RepositoryError, IntegrityError: it cannot be downloaded, or not as the hub states it.
    """
    graphs: list[ForeignGraph] = []
    settings: list[Path] = []
    for half in plan.halves:
        folder = half.repository.fetch(half.first_files, progress)
        read = {path: ForeignGraph.read(folder / path) for path in half.layout.graphs}
        if weights := needed_weights(half.layout, read):
            half.repository.fetch(weights, progress)
        for graph in read.values():
            graph.check_weights()
        graphs += read.values()
        settings += [folder / path for path in sorted(half.layout.settings, key=lambda path: path.count("/"))]
    first = plan.halves[0].repository
    original = original_of(first.name, first.base_models)
    opened = open_graphs(graphs)
    opened.both(first.name)
    return ForeignModel(
        opened=opened,
        settings=read_settings_files(settings),
        repository=" and ".join(half.repository.name for half in plan.halves),
        revision=first.revision,
        licence=first.licence,
        quick_gelu=original.quick_gelu if original else None,
        find_scale=lambda: find_scale(first),
    )


def _expected_weights(half: _Half) -> tuple[str, ...]:
    """Files of weights beside the graphs: those a small graph names, those called like a large one."""
    listed = half.repository.files()
    if not half.layout.weights:
        return ()
    if all(listed[path].size_bytes <= _LOOKED_AT_BYTES for path in half.layout.graphs):
        folder = half.repository.fetch(half.layout.graphs)
        opened = {path: ForeignGraph.read(folder / path) for path in half.layout.graphs}
        return needed_weights(half.layout, opened)
    return tuple(path for path in half.layout.weights if path.startswith(half.layout.graphs))
