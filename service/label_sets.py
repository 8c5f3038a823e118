"""Label sets: labels and templates stored by name, encoded once in the background, kept over restarts."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from clipworks.schemas import LabelSetDetail, LabelSetInfo, LabelSetRequest
from model_store.errors import ClipworksError
from model_store.manifest import HeadSpec
from model_store.towers import Head
from service.faults import Conflict, NotReady, TooManyItems, UnknownName
from service.registry import Registry
from service.running import RunningModel
from service.scoring import ClassMatrix
from service.timing import Deadline, Timings
from service.zero_shot import Prompts, encode_classes, expand, resolve_templates

log = logging.getLogger("clipworks.label_sets")
_CHUNK_LABELS = 16


@dataclass
class _LabelSet:
    name: str
    request: LabelSetRequest
    reference: str
    fingerprint: str | None
    templates: tuple[str, ...]
    names: tuple[str, ...]
    prompts: Prompts
    vectors: np.ndarray | None = None
    encoded: int = 0
    failed: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def texts(self) -> int:
        return sum(len(group) for group in self.prompts)

    def info(self) -> LabelSetInfo:
        return LabelSetInfo(
            name=self.name,
            model=self.reference,
            labels=len(self.names),
            texts=self.texts,
            encoded=self.encoded,
            ready=self.vectors is not None,
            failed=self.failed,
        )


class LabelSets:
    """The label sets of one server; `folder` None keeps them in memory only.

    A set belongs to the model version it was put for: its vectors are never compared with another model's.
    The class heads of loaded models are label sets too; those can be neither replaced nor deleted.
    """

    def __init__(self, folder: Path | None, registry: Registry, *, max_texts: int, max_sets: int = 1000) -> None:
        self._folder = folder
        self._registry = registry
        self._max_texts = max_texts
        self._max_sets = max_sets
        self._sets: dict[str, _LabelSet] = {}

    async def start(self) -> None:
        """Read stored sets; those whose vectors are missing or of another encoder are encoded again."""
        if self._folder is None or not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.json")):
            try:
                self._restore(path)
            except (ClipworksError, ValidationError, ValueError, OSError, KeyError) as error:
                log.error("label set %s cannot be restored: %s", path.name, error)

    async def stop(self) -> None:
        tasks = [s.task for s in self._sets.values() if s.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def put(self, name: str, request: LabelSetRequest) -> LabelSetInfo:
        """Store a set and begin to encode it behind interactive texts; the same content again changes nothing.

        Raises:
            Conflict: a class head has this name.
            TooManyItems: too many texts, or too many sets.
            ArtifactNotFound, NotReady: the model.
        """
        self._refuse_head(name)
        model = self._registry.resolve(request.model)
        fresh = self._build(name, request, model)
        if fresh.texts > self._max_texts:
            raise TooManyItems(f"the set has {fresh.texts} texts, the limit is {self._max_texts}")
        old = self._sets.get(name)
        if (
            old
            and not old.failed
            and (old.prompts, old.names, old.reference, old.fingerprint)
            == (
                fresh.prompts,
                fresh.names,
                fresh.reference,
                fresh.fingerprint,
            )
        ):
            return old.info()
        if old is None and len(self._sets) >= self._max_sets:
            raise TooManyItems(f"there are {len(self._sets)} label sets, the limit is {self._max_sets}")
        if old and old.task:
            old.task.cancel()
        self._sets[name] = fresh
        self._write(f"{name}.json", json.dumps(self._record(fresh)).encode())
        self._begin(fresh, model)
        return fresh.info()

    def get(self, name: str) -> LabelSetDetail:
        """A stored set, or the class head of this name.

        Raises:
            UnknownName: neither.
            Conflict: several models have such a head.
        """
        if name not in self._sets and (owner := self._head_owner(name)):
            head = owner.heads[name].spec
            return LabelSetDetail(**_head_info(owner, head).model_dump(), label_names=list(head.labels), templates=[])
        found = self._find(name)
        return LabelSetDetail(
            **found.info().model_dump(), label_names=list(found.names), templates=list(found.templates)
        )

    def list(self) -> list[LabelSetInfo]:
        """Stored sets, then the class heads of every loaded model, by name and model."""
        heads = [_head_info(model, head.spec) for model in self._registry.running() for head in model.heads.values()]
        stored = [self._sets[name].info() for name in sorted(self._sets)]
        return [*stored, *sorted(heads, key=lambda info: (info.name, info.model))]

    def delete(self, name: str) -> None:
        """Remove a stored set.

        Raises:
            UnknownName: no such set.
            Conflict: it is a class head.
        """
        if name not in self._sets:
            self._refuse_head(name)
        found = self._find(name)
        if found.task:
            found.task.cancel()
        del self._sets[name]
        if self._folder:
            (self._folder / f"{name}.json").unlink(missing_ok=True)
            (self._folder / f"{name}.npy").unlink(missing_ok=True)

    def classes(self, name: str, model: RunningModel) -> ClassMatrix | Head:
        """The class head of `model` with this name, or the encoded classes of a stored set.

        Raises:
            UnknownName: no such set.
            Conflict: it belongs to another model, or to another encoder of the same name.
            NotReady: it is still being encoded, or that failed.
        """
        if name in model.heads:
            return model.heads[name]
        if name not in self._sets and (owner := self._head_owner(name)):
            raise Conflict(
                f"label set {name} is a class head of {owner.reference}, the request is for {model.reference}"
            )
        found = self._find(name)
        if (found.reference, found.fingerprint) != (model.reference, model.fingerprint.text):
            raise Conflict(
                f"label set {name} belongs to {found.reference} (text encoder {str(found.fingerprint)[:12]}), "
                f"the request is for {model.reference} (text encoder {str(model.fingerprint.text)[:12]})"
            )
        if found.vectors is None:
            why = f"failed: {found.failed}" if found.failed else f"{found.encoded} of {found.texts} texts are encoded"
            raise NotReady(f"label set {name} is not ready: {why}")
        return ClassMatrix(found.names, found.vectors)

    def model_of(self, name: str) -> str:
        """The model reference a set or head belongs to; requests that name no model mean this one.

        Raises:
            UnknownName: no such set.
            Conflict: several models have such a head.
        """
        if name not in self._sets and (owner := self._head_owner(name)):
            return owner.reference
        return self._find(name).reference

    def _head_owner(self, name: str) -> RunningModel | None:
        """The loaded model whose head this is: the default model before others, of one name the highest version.

        Raises:
            Conflict: models of several names have such a head, and none of them is the default.
        """
        owners = [model for model in self._registry.running() if name in model.heads]
        if not owners:
            return None
        if default := next((model for model in owners if self._registry.is_default(model)), None):
            return default
        if len({model.name for model in owners}) > 1:
            known = ", ".join(sorted(model.reference for model in owners))
            raise Conflict(f"label set {name} is a class head of {known}: name the model")
        return max(owners, key=lambda model: model.version)

    def _refuse_head(self, name: str) -> None:
        owners = sorted(model.reference for model in self._registry.running() if name in model.heads)
        if owners:
            raise Conflict(f"label set {name} is a class head of {', '.join(owners)}: it cannot be replaced or deleted")

    def _find(self, name: str) -> _LabelSet:
        if name not in self._sets:
            raise UnknownName(f"no label set {name!r}")
        return self._sets[name]

    @staticmethod
    def _build(name: str, request: LabelSetRequest, model: RunningModel) -> _LabelSet:
        templates = resolve_templates(model, request.templates)
        names, prompts = expand(request.labels, templates)
        return _LabelSet(name, request, model.reference, model.fingerprint.text, templates, names, prompts)

    def _begin(self, label_set: _LabelSet, model: RunningModel) -> None:
        label_set.task = asyncio.get_running_loop().create_task(
            self._encode(label_set, model), name=f"label set {label_set.name}"
        )

    async def _encode(self, label_set: _LabelSet, model: RunningModel) -> None:
        parts: list[np.ndarray] = []
        try:
            for start in range(0, len(label_set.prompts), _CHUNK_LABELS):
                chunk = label_set.prompts[start : start + _CHUNK_LABELS]
                vectors = await encode_classes(model, chunk, deadline=Deadline(), timings=Timings(), background=True)
                parts.append(vectors)
                label_set.encoded += sum(len(group) for group in chunk)
        except ClipworksError as error:
            label_set.failed = str(error)
            log.error("label set %s: %s", label_set.name, error)
            return
        label_set.vectors = np.concatenate(parts)
        buffer = BytesIO()
        np.save(buffer, label_set.vectors, allow_pickle=False)
        self._write(f"{label_set.name}.npy", buffer.getvalue())

    def _restore(self, path: Path) -> None:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        request = LabelSetRequest.model_validate(record["request"])
        model = self._registry.resolve(record["model"])
        label_set = self._build(path.stem, request, model)
        self._sets[path.stem] = label_set
        vectors_path = path.with_suffix(".npy")
        if record["fingerprint"] == label_set.fingerprint and vectors_path.is_file():
            vectors = np.load(vectors_path, allow_pickle=False)
            if vectors.shape == (len(label_set.names), model.dim) and np.isfinite(vectors).all():
                label_set.vectors, label_set.encoded = vectors.astype(np.float32), label_set.texts
                return
        self._begin(label_set, model)

    @staticmethod
    def _record(label_set: _LabelSet) -> dict[str, Any]:
        return {
            "request": label_set.request.model_dump(mode="json"),
            "model": label_set.reference,
            "fingerprint": label_set.fingerprint,
        }

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file so that a crash leaves the old or the new one, never a part."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{name}.new"
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._folder / name)


def _head_info(model: RunningModel, head: HeadSpec) -> LabelSetInfo:
    return LabelSetInfo(
        name=head.name, model=model.reference, labels=len(head.labels), texts=0, encoded=0, ready=True, built_in=True
    )
