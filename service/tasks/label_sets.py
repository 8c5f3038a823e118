"""Label sets: labels and templates stored by name, encoded once in the background, kept over restarts."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from clipworks.schemas import LabelSetDetail, LabelSetInfo, LabelSetRequest
from model_store.errors import ArtifactNotFound, ClipworksError
from model_store.manifest import HeadSpec
from model_store.store import Artifact
from model_store.towers import OpenedHead
from service.engine.registry import Registry
from service.engine.running import RunningModel
from service.faults import LabelSetFailed, NoDirection, ServiceNotReady, StateConflict, TooManyItems, UnknownName
from service.retrieval.errors import RetrievalError
from service.tasks.label_set_files import Damaged, LabelSetFiles, StoredSet
from service.tasks.prompts import Limits, Prompts
from service.tasks.scoring import ClassMatrix
from service.tasks.zero_shot import Classes, encode_classes, resolve_templates, unknown_labels, weak_labels
from service.threads import in_thread

log = logging.getLogger("clipworks.label_sets")
_RETRY_S = 1.0
_CHUNK_LABELS = 16
_T = TypeVar("_T")


@dataclass
class _LabelSet:
    """One set; `stored` is None for a file that cannot be read, which `failed` explains."""

    name: str
    stored: StoredSet | None
    prompts: Prompts
    vectors: np.ndarray | None = None
    weak: frozenset[int] = frozenset()
    encoded: int = 0
    failed: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def model(self) -> str:
        return self.stored.model if self.stored else ""

    def info(self) -> LabelSetInfo:
        return LabelSetInfo(
            name=self.name,
            model=self.model,
            labels=len(self.prompts.labels),
            texts=self.prompts.texts,
            encoded=self.encoded,
            ready=self.vectors is not None,
            failed=self.failed,
            warnings=[unknown_labels(self.weak_names)] if self.weak else [],
        )

    @property
    def weak_names(self) -> list[str]:
        return [self.prompts.names[index] for index in sorted(self.weak)]

    def same(self, other: _LabelSet) -> bool:
        """Would both have the same vectors under the same labels?"""
        mine, its = self.stored, other.stored
        if mine is None or its is None or (mine.model, mine.fingerprint) != (its.model, its.fingerprint):
            return False
        if mine.request.on_unknown != its.request.on_unknown:
            return False
        return self.prompts.digest == other.prompts.digest


class LabelSets:
    """The label sets of one server; `folder` None keeps them in memory only.

    A set belongs to the model version it was put for: its vectors are never compared with another model's.
    The class heads of loaded models are label sets too; those can be neither replaced nor deleted.
    """

    def __init__(self, folder: Path | None, registry: Registry, *, limits: Limits, max_sets: int = 1000) -> None:
        self._files = LabelSetFiles(folder) if folder else None
        self._registry = registry
        self.limits = limits
        self._max_sets = max_sets
        self.is_restored = False
        self._sets: dict[str, _LabelSet] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Read stored sets; those whose vectors are missing, damaged or of another encoder are encoded again.

        For that the model is needed, and waited for; a set with its vectors is ready whether its model is loaded or
        not. A set whose model is not in the store is failed until that model is loaded. A file that cannot be read is
        a failed set of its name, and stops nothing.
        """
        if self._files is not None:
            await self._restore_all(self._files)
        self.is_restored = True

    async def _restore_all(self, files: LabelSetFiles) -> None:
        for name in await asyncio.to_thread(files.names):
            async with self._changing:
                if name not in self._sets:  # else it was put meanwhile
                    label_set = self._sets[name] = _LabelSet(name, None, Prompts((), ()))
                    await self._try_to_restore(files, label_set)

    async def stop(self) -> None:
        tasks = [s.task for s in self._sets.values() if s.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def put(self, name: str, request: LabelSetRequest) -> LabelSetInfo:
        """Store a set and begin to encode it behind interactive texts; the same content again changes nothing.

        Raises:
            StateConflict: a class head has this name.
            TooManyItems: too many texts or characters, or too many sets.
            InvalidText: a text is too long.
            ArtifactNotFound, ServiceNotReady: the model.
            StorageFull, StorageFailed: it was not stored; what had this name is as it was.
        """
        self._refuse_head(name)
        model = self._registry.resolve(request.model)
        prompts = Prompts.of(request.labels, resolve_templates(model.manifest, request.templates))
        self.limits.check(prompts)
        fresh = _LabelSet(name, StoredSet(request, model.reference, model.fingerprint.text), prompts)
        await asyncio.to_thread(lambda: prompts.digest)  # up to a body's bytes
        async with self._changing:
            old = self._sets.get(name)
            if old and not old.failed and old.same(fresh):
                return old.info()
            if old is None and len(self._sets) >= self._max_sets:
                raise TooManyItems(
                    f"there are {len(self._sets)} label sets, the limit is {self._max_sets} (CLIPWORKS_MAX_LABEL_SETS)"
                )
            await self._save(fresh)
            if old and old.task:
                old.task.cancel()
            self._sets[name] = fresh
            self._begin(fresh)
        return fresh.info()

    def get(self, name: str) -> LabelSetDetail:
        """A stored set, or the class head of this name.

        Raises:
            UnknownName: neither.
            StateConflict: several models have such a head.
        """
        if name not in self._sets and (owner := self._head_owner(name)):
            head = owner.heads[name].spec
            return LabelSetDetail(**_head_info(owner, head).model_dump(), label_names=list(head.labels), templates=[])
        found = self._find(name)
        return LabelSetDetail(
            **found.info().model_dump(), label_names=list(found.prompts.names), templates=list(found.prompts.templates)
        )

    def list(self) -> list[LabelSetInfo]:
        """Stored sets, then the class heads of every loaded model, by name and model."""
        heads = [_head_info(model, head.spec) for model in self._registry.running() for head in model.heads.values()]
        stored = [self._sets[name].info() for name in sorted(self._sets)]
        return [*stored, *sorted(heads, key=lambda info: (info.name, info.model))]

    async def delete(self, name: str) -> None:
        """Remove a stored set.

        Raises:
            UnknownName: no such set.
            StateConflict: it is a class head.
            StorageFailed: its files are still there.
        """
        if name not in self._sets:
            self._refuse_head(name)
        async with self._changing:
            found = self._find(name)
            if self._files:
                files = self._files
                await in_thread(lambda: files.delete(name))
            if found.task:
                found.task.cancel()
            del self._sets[name]

    def classes(self, name: str, model: RunningModel) -> ClassMatrix | OpenedHead:
        """The class head of `model` with this name, or the encoded classes of a stored set.

        Raises:
            UnknownName: no such set.
            StateConflict: it belongs to another model, or to another encoder of the same name.
            ServiceNotReady: it is still being encoded.
            LabelSetFailed: that failed, or its file is damaged.
        """
        if name in model.heads:
            return model.heads[name]
        if name not in self._sets and (owner := self._head_owner(name)):
            raise StateConflict(
                f"label set {name} is a class head of {owner.reference}, the request is for {model.reference}"
            )
        found = self._find_sound(name)
        fingerprint = found.stored.fingerprint if found.stored else None
        if (found.model, fingerprint) != (model.reference, model.fingerprint.text):
            raise StateConflict(
                f"label set {name} belongs to {found.model} (text encoder {str(fingerprint)[:12]}), "
                f"the request is for {model.reference} (text encoder {str(model.fingerprint.text)[:12]})"
            )
        if found.vectors is None:
            raise ServiceNotReady(
                f"label set {name} is not ready: {found.encoded} of {found.prompts.texts} texts are encoded"
            )
        return ClassMatrix(found.prompts.names, found.vectors, found.weak)

    def model_of(self, name: str) -> str:
        """The model reference a set or head belongs to; requests that name no model mean this one.

        Raises:
            UnknownName: no such set.
            StateConflict: several models have such a head.
            LabelSetFailed: it has no vectors, and will get none.
        """
        if name not in self._sets and (owner := self._head_owner(name)):
            return owner.reference
        return self._find_sound(name).model

    def _head_owner(self, name: str) -> RunningModel | None:
        """The loaded model whose head this is: the default model before others, of one name the highest version.

        Raises:
            StateConflict: models of several names have such a head, and none of them is the default.
        """
        owners = [model for model in self._registry.running() if name in model.heads]
        if not owners:
            return None
        if default := next((model for model in owners if self._registry.is_default(model)), None):
            return default
        if len({model.name for model in owners}) > 1:
            known = ", ".join(sorted(model.reference for model in owners))
            raise StateConflict(f"label set {name} is a class head of {known}: name the model")
        return max(owners, key=lambda model: model.version)

    def _refuse_head(self, name: str) -> None:
        owners = sorted(model.reference for model in self._registry.running() if name in model.heads)
        if owners:
            raise StateConflict(
                f"label set {name} is a class head of {', '.join(owners)}: it cannot be replaced or deleted"
            )

    def _find(self, name: str) -> _LabelSet:
        if name not in self._sets:
            raise UnknownName(f"no label set {name!r}; GET /label-sets lists them (clipworks label-sets list)")
        return self._sets[name]

    def _find_sound(self, name: str) -> _LabelSet:
        found = self._find(name)
        if found.failed:
            raise LabelSetFailed(f"label set {name} failed: {found.failed}; put it again or delete it")
        return found

    def _begin(self, label_set: _LabelSet) -> None:
        label_set.task = asyncio.create_task(self._encode(label_set), name=f"label set {label_set.name}")

    async def _encode(self, label_set: _LabelSet) -> None:
        """Ends with vectors or with the reason why there are none, whatever goes wrong."""
        parts: list[np.ndarray] = []
        weak: set[int] = set()
        try:
            for at, part in enumerate(label_set.prompts.parts(_CHUNK_LABELS)):
                classes = await self._encoded(part, label_set)
                parts.append(classes.vectors)
                weak |= {at * _CHUNK_LABELS + index for index in classes.weak}
                label_set.encoded += part.texts
            vectors = await asyncio.to_thread(np.concatenate, parts)
            label_set.weak = frozenset(weak)
            if weak and label_set.stored and label_set.stored.request.on_unknown == "error":
                raise NoDirection(unknown_labels(label_set.weak_names))
        except ClipworksError as error:
            label_set.failed = str(error)
            log.error("label set %s: %s", label_set.name, error)
            return
        except Exception as error:
            label_set.failed = f"internal error: {type(error).__name__}"
            log.exception("label set %s", label_set.name)
            return
        label_set.vectors = vectors
        async with self._changing:
            if self._sets.get(label_set.name) is label_set:
                await self._save_vectors(label_set, vectors)

    async def _encoded(self, part: Prompts, label_set: _LabelSet) -> Classes:
        """A model that is restarted or not loaded is waited for.

        Raises:
            StateConflict: the model that was loaded has another text encoder.
        """
        while True:
            model = await self._registry.until_loaded(label_set.model)
            if label_set.stored and model.fingerprint.text != label_set.stored.fingerprint:
                raise StateConflict(f"the text encoder of {model.reference} is another one now")
            try:
                return await encode_classes(model, part)
            except ServiceNotReady as error:
                log.info("label sets wait for %s: %s", model.reference, error)
                await asyncio.sleep(_RETRY_S)

    async def _save(self, label_set: _LabelSet) -> None:
        """Raises StorageFull, StorageFailed."""
        files, stored = self._files, label_set.stored
        if files and stored:
            await in_thread(lambda: files.write(label_set.name, stored))

    async def _save_vectors(self, label_set: _LabelSet, vectors: np.ndarray) -> None:
        """A set whose vectors cannot be written is encoded again after the next start."""
        files, stored = self._files, label_set.stored
        if files is None or stored is None:
            return
        try:
            await in_thread(lambda: files.write_vectors(label_set.name, stored, vectors))
        except RetrievalError as error:
            log.warning("label set %s will be encoded again after a restart: %s", label_set.name, error)

    async def _try_to_restore(self, files: LabelSetFiles, label_set: _LabelSet) -> None:
        """Ends with a set that is ready, one that is encoded, or the reason why it is neither."""
        name = label_set.name
        try:
            await self._restore(files, label_set)
        except Exception as error:
            expected = isinstance(error, (ClipworksError, Damaged, OSError))
            log.error("label set %s cannot be restored: %s", name, error, exc_info=not expected)
            reason = str(error) if isinstance(error, (ClipworksError, Damaged)) else "its file cannot be read"
            label_set.failed = f"not restored: {reason}"
            if isinstance(error, ArtifactNotFound):
                label_set.task = asyncio.create_task(self._restore_later(files, label_set), name=f"label set {name}")

    async def _restore_later(self, files: LabelSetFiles, label_set: _LabelSet) -> None:
        await self._registry.until_loaded(label_set.model)
        async with self._changing:  # a set that was replaced or deleted meanwhile has had this task cancelled
            label_set.failed = None
            await self._try_to_restore(files, label_set)

    async def _restore(self, files: LabelSetFiles, label_set: _LabelSet) -> None:
        """Raises Damaged, OSError, ClipworksError."""
        name = label_set.name
        try:
            stored = label_set.stored = await asyncio.to_thread(files.read, name)
        except FileNotFoundError:
            log.warning("label set %s is gone since its folder was listed", name)
            del self._sets[name]
            return
        label_set.prompts = Prompts(tuple(stored.request.labels), ())
        artifact = await asyncio.to_thread(self._artifact, stored.model)
        manifest = artifact.manifest
        prompts = Prompts.of(stored.request.labels, resolve_templates(manifest, stored.request.templates))
        self.limits.check(prompts)
        current = StoredSet(stored.request, artifact.reference, manifest.fingerprint.text)
        label_set.stored, label_set.prompts = current, prompts
        label_set.vectors = await asyncio.to_thread(files.vectors, name, current, (len(prompts.labels), manifest.dim))
        if (vectors := label_set.vectors) is not None:
            label_set.encoded = prompts.texts
            label_set.weak = await asyncio.to_thread(lambda: weak_labels(artifact.tokenizer(), prompts.labels, vectors))
            return
        await self._save(label_set)  # of an older format, or for another text encoder
        self._begin(label_set)

    def _artifact(self, reference: str) -> Artifact:
        """The artifact of a model, loaded or not. Raises ArtifactError."""
        loaded = next((model for model in self._registry.running() if model.reference == reference), None)
        return loaded.artifact if loaded else self._registry.store.open(reference)


def _head_info(model: RunningModel, head: HeadSpec) -> LabelSetInfo:
    return LabelSetInfo(
        name=head.name, model=model.reference, labels=len(head.labels), texts=0, encoded=0, ready=True, built_in=True
    )
