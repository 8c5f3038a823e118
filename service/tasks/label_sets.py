"""Label sets: labels and templates stored by name, encoded once in the background, kept over restarts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipworks.schemas import KnownExample, LabelSetDetail, LabelSetInfo, LabelSetRequest
from model_store.errors import ArtifactNotFound, ClipworksError
from model_store.manifest import HeadSpec
from model_store.store import Artifact
from model_store.towers import OpenedHead
from service.engine.registry import Registry
from service.engine.running import RunningModel
from service.faults import LabelSetFailed, ServiceNotReady, StateConflict, TooManyItems, UnknownName
from service.retrieval.errors import RetrievalError
from service.tasks.kept_label_set import KeptLabelSet
from service.tasks.label_set_files import Damaged, LabelSetFiles
from service.tasks.label_set_making import make_ready
from service.tasks.prompts import Limits, Prompts
from service.tasks.scoring import ClassMatrix
from service.tasks.stored_set import StoredSet
from service.tasks.taught_sets import check_amount, each_once, grown, require_model, taught_with, without
from service.tasks.weighed_sets import check_prompts, check_weighable, weighed_with
from service.tasks.zero_shot import resolve_templates, weak_labels
from service.teaching.examples import ExampleVectors, NewExample
from service.teaching.head import TaughtHead
from service.threads import in_thread

log = logging.getLogger("clipworks.label_sets")


class LabelSets:
    """The label sets of one server; `folder` None keeps them in memory only.

    A set belongs to the model version it was put for: its vectors are never compared with another model's.
    The class heads of loaded models are label sets too; those can be neither replaced nor deleted.
    """

    def __init__(
        self,
        folder: Path | None,
        registry: Registry,
        *,
        limits: Limits,
        max_sets: int = 1000,
        max_examples: int = 10_000,
    ) -> None:
        self._files = LabelSetFiles(folder) if folder else None
        self._registry = registry
        self.limits = limits
        self._max_sets = max_sets
        self._max_examples = max_examples
        self.is_restored = False
        self._sets: dict[str, KeptLabelSet] = {}
        self._changing = asyncio.Lock()
        self._fitting = asyncio.Lock()

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
        await asyncio.to_thread(files.discard_orphans)
        for name in await asyncio.to_thread(files.names):
            async with self._changing:
                if name not in self._sets:  # else it was put meanwhile
                    label_set = self._sets[name] = KeptLabelSet(name, None, Prompts((), ()))
                    await self._try_to_restore(files, label_set)

    async def stop(self) -> None:
        tasks = [s.task for s in self._sets.values() if s.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def put(
        self,
        name: str,
        request: LabelSetRequest,
        new: Sequence[NewExample] = (),
        *,
        pictures: ExampleVectors | None = None,
        all_or_nothing: bool = False,
    ) -> tuple[LabelSetInfo, list[str | ClipworksError]]:
        """Store a set and begin to encode it behind interactive texts; the same content again changes nothing.

        pictures: those that `request.weigh_templates` means.
        new: what it is taught with, in place of `request.examples`; the answer has an id or an error for each. Their
        labels are the set's too, whether their pictures could be read or not.

        Raises:
            StateConflict: a class head has this name.
            TooManyItems: too many texts or characters, too many sets, too many examples, or pictures.
            InvalidText: a text is too long.
            NotWeighable: there is nothing to weigh.
            ArtifactNotFound, ServiceNotReady: the model.
            ExampleRefused: with all_or_nothing, one of them is not taken.
            StorageFull, StorageFailed: it was not stored; what had this name is as it was.
        """
        self._refuse_head(name)
        model = self._registry.resolve(request.model)
        examples, outcomes = await in_thread(lambda: grown(None, new, dim=model.dim, all_or_nothing=all_or_nothing))
        labels = each_once([*(request.labels or ()), *(each.label for each in new)])
        is_taught = request.examples is not None
        request = request.model_copy(update={"labels": labels, "examples": None})
        async with self._changing:
            old = self._sets.get(name)
            version = old.version + 1 if old else 1
            taught = taught_with(model, examples, version=version) if is_taught else None
            weighed = None if pictures is None else weighed_with(model, pictures)
            stored = StoredSet(request, model.reference, model.fingerprint.text, taught, weighed)
            fresh = self._prepared(name, stored, model, examples if is_taught else None)
            if weighed is not None:
                check_weighable(fresh.prompts.labels, fresh.prompts.templates, weighed.pictures)
                fresh.pictures = pictures
            await asyncio.to_thread(lambda: fresh.prompts.digest)  # up to a body's bytes
            if old and not old.failed and old.same(fresh):
                return old.info(), outcomes
            if old is None and len(self._sets) >= self._max_sets:
                raise TooManyItems(
                    f"there are {len(self._sets)} label sets, the limit is {self._max_sets} (CLIPWORKS_MAX_LABEL_SETS)"
                )
            await self._replace(old, fresh)
        return fresh.info(), outcomes

    async def add_examples(
        self, name: str, new: Sequence[NewExample], model: RunningModel, *, all_or_nothing: bool = False
    ) -> tuple[LabelSetInfo, list[str | ClipworksError]]:
        """Teach a stored set with more; labels that it does not have are added. `model` made the vectors.

        Until they are fitted /classify goes on with what there was, and it does if they cannot be. The answer has an id
        or an error for each example.

        Raises:
            UnknownName, LabelSetFailed: no such set, or none that can be read.
            StateConflict: it is a class head, or belongs to another model.
            As `put`.
        """
        self._refuse_head(name)
        async with self._changing:
            old = self._find_teachable(name)
            require_model(old, model)
            before = old.examples
            examples, outcomes = await in_thread(
                lambda: grown(before, new, dim=model.dim, all_or_nothing=all_or_nothing)
            )
            if examples is not before:
                await self._change(old, examples, model)
            return self._sets[name].info(), outcomes

    async def remove_examples(self, name: str, *, ids: Collection[str], labels: Collection[str]) -> LabelSetInfo:
        """Unteach a stored set; what is not there is no error. The labels themselves stay.

        Raises:
            UnknownName, LabelSetFailed: no such set, or none that can be read.
            StateConflict: it is a class head, or its model has another encoder now.
            ServiceNotReady: its model is not loaded.
        """
        self._refuse_head(name)
        async with self._changing:
            old = self._find_teachable(name)
            if (examples := old.examples) is None:
                return old.info()
            left = await in_thread(lambda: without(examples, ids, labels))
            if len(left) == len(examples):
                return old.info()
            model = self._registry.resolve(old.model)
            require_model(old, model)
            await self._change(old, left, model)
            return self._sets[name].info()

    def examples(self, name: str) -> list[KnownExample]:
        """What a stored set was taught with, in the order in which it came. Raises UnknownName, LabelSetFailed."""
        found = self._find_teachable(name)
        if found.examples is None:
            return []
        names = found.prompts.names
        predicted = found.report.predicted.tolist() if found.report is not None else [-1] * len(found.examples)
        return [
            KnownExample(id=id, label=label, predicted=names[index] if index >= 0 else None)
            for id, label, index in zip(found.examples.ids, found.examples.labels, predicted, strict=True)
        ]

    def get(self, name: str) -> LabelSetDetail:
        """A stored set, or the class head of this name.

        Raises:
            UnknownName: neither.
            StateConflict: several models have such a head.
        """
        if name not in self._sets and (owner := self._head_owner(name)):
            head = owner.heads[name].spec
            return LabelSetDetail(**_head_info(owner, head).model_dump(), label_names=list(head.labels), templates=[])
        return self._find(name).detail()

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

    def classes(self, name: str, model: RunningModel) -> ClassMatrix | OpenedHead | TaughtHead:
        """The class head of `model` with this name, or the encoded or taught classes of a stored set.

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
        found = self._find(name)
        if found.failed and found.before is None:
            found = self._find_sound(name)
        require_model(found, model)
        classes = found.classes or found.before
        if classes is None:
            raise ServiceNotReady(
                f"label set {name} is not ready: {found.encoded} of {found.prompts.texts} texts are encoded"
            )
        return classes

    def request_of(self, name: str) -> LabelSetRequest:
        """The labels and templates that a stored set was put with. Raises UnknownName, LabelSetFailed."""
        stored = self._find(name).stored
        if stored is None:
            raise LabelSetFailed(f"label set {name} cannot be read")
        return stored.request

    def model_of(self, name: str) -> str:
        """The model reference a set or head belongs to; requests that name no model mean this one.

        Raises:
            UnknownName: no such set.
            StateConflict: several models have such a head.
            LabelSetFailed: it has no vectors, and will get none.
        """
        if name not in self._sets and (owner := self._head_owner(name)):
            return owner.reference
        found = self._find(name)
        return found.model if found.can_be_taught else self._find_sound(name).model

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

    def _find(self, name: str) -> KeptLabelSet:
        if name not in self._sets:
            raise UnknownName(f"no label set {name!r}; GET /label-sets lists them (clipworks label-sets list)")
        return self._sets[name]

    def _find_sound(self, name: str) -> KeptLabelSet:
        found = self._find(name)
        if found.failed:
            raise LabelSetFailed(f"label set {name} failed: {found.failed}; put it again or delete it")
        return found

    def _find_teachable(self, name: str) -> KeptLabelSet:
        found = self._find(name)
        return found if found.can_be_taught else self._find_sound(name)

    def _begin(self, label_set: KeptLabelSet) -> None:
        label_set.task = asyncio.create_task(self._make_ready(label_set), name=f"label set {label_set.name}")

    def _prepared(
        self, name: str, stored: StoredSet, model: RunningModel, examples: ExampleVectors | None
    ) -> KeptLabelSet:
        """Raises TooManyItems, InvalidText."""
        request = stored.request
        prompts = Prompts.of(request.labels or (), resolve_templates(model.manifest, request.templates))
        self.limits.check(prompts)
        if examples is not None:
            check_amount(len(examples), len(prompts.labels), most=self._max_examples)
        scale = model.manifest.logit_scale or 1.0
        return KeptLabelSet(name, stored, prompts, examples=examples, scale=scale)

    async def _change(self, old: KeptLabelSet, examples: ExampleVectors, model: RunningModel) -> None:
        """Put other examples in the place of a set's; its lock is held. Raises as `put`."""
        stored = old.stored
        if stored is None:
            return
        request = stored.request.model_copy(
            update={"labels": each_once([*(stored.request.labels or ()), *examples.labels])}
        )
        taught = taught_with(model, examples, version=old.version + 1)
        fresh = self._prepared(old.name, replace(stored, request=request, taught=taught), model, examples)
        fresh.before = old.classes or old.before
        fresh.pictures = old.pictures
        if old.vectors is not None and old.same_texts(fresh):
            fresh.vectors, fresh.weak, fresh.encoded = old.vectors, old.weak, old.encoded
        await self._replace(old, fresh)

    async def _replace(self, old: KeptLabelSet | None, fresh: KeptLabelSet) -> None:
        await self._save(fresh)
        if old and old.task:
            old.task.cancel()
        self._sets[fresh.name] = fresh
        self._begin(fresh)

    async def _make_ready(self, label_set: KeptLabelSet) -> None:
        is_encoded = label_set.vectors is not None
        await make_ready(label_set, self._registry, fitting=self._fitting, keep=self._keep_weights)
        if not is_encoded and label_set.vectors is not None and not label_set.failed:
            async with self._changing:
                if self._sets.get(label_set.name) is label_set:
                    await self._save_vectors(label_set, label_set.vectors)

    async def _save(self, label_set: KeptLabelSet) -> None:
        """Raises StorageFull, StorageFailed."""
        files, stored = self._files, label_set.stored
        if files and stored:
            examples, pictures = label_set.examples, label_set.pictures
            await in_thread(lambda: files.write(label_set.name, stored, examples, pictures))

    async def _keep_weights(self, label_set: KeptLabelSet) -> None:
        """A set whose weights cannot be written is weighed again after the next start."""
        async with self._changing:
            if self._sets.get(label_set.name) is not label_set:
                return
            try:
                await self._save(label_set)
            except RetrievalError as error:
                log.warning("label set %s will be weighed again after a restart: %s", label_set.name, error)

    async def _save_vectors(self, label_set: KeptLabelSet, vectors: np.ndarray) -> None:
        """A set whose vectors cannot be written is encoded again after the next start."""
        files, stored = self._files, label_set.stored
        if files is None or stored is None:
            return
        try:
            await in_thread(lambda: files.write_vectors(label_set.name, stored, vectors))
        except RetrievalError as error:
            log.warning("label set %s will be encoded again after a restart: %s", label_set.name, error)

    async def _try_to_restore(self, files: LabelSetFiles, label_set: KeptLabelSet) -> None:
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

    async def _restore_later(self, files: LabelSetFiles, label_set: KeptLabelSet) -> None:
        await self._registry.until_loaded(label_set.model)
        async with self._changing:  # a set that was replaced or deleted meanwhile has had this task cancelled
            label_set.failed = None
            await self._try_to_restore(files, label_set)

    async def _restore(self, files: LabelSetFiles, label_set: KeptLabelSet) -> None:
        """Raises Damaged, OSError, ClipworksError."""
        name = label_set.name
        try:
            stored = label_set.stored = await asyncio.to_thread(files.read, name)
        except FileNotFoundError:
            log.warning("label set %s is gone since its folder was listed", name)
            del self._sets[name]
            return
        await asyncio.to_thread(files.discard_unused, name, stored)
        label_set.prompts = Prompts(tuple(stored.request.labels or ()), ())
        artifact = await asyncio.to_thread(self._artifact, stored.model)
        manifest = artifact.manifest
        prompts = Prompts.of(stored.request.labels or (), resolve_templates(manifest, stored.request.templates))
        self.limits.check(prompts)
        check_prompts(prompts, stored.weighed)
        current = replace(stored, model=artifact.reference, fingerprint=manifest.fingerprint.text)
        if (weighed := stored.weighed) is not None:
            if (weighed.image_fingerprint, stored.fingerprint) != (manifest.fingerprint.image, current.fingerprint):
                raise StateConflict(f"an encoder of {artifact.reference} is another one now: put it again")
            if weighed.weights is None:
                label_set.pictures = await asyncio.to_thread(files.examples, name, weighed)
        if (taught := stored.taught) is not None:
            if taught.image_fingerprint != manifest.fingerprint.image:
                raise StateConflict(f"the image encoder of {artifact.reference} is another one now: teach it again")
            label_set.examples = await asyncio.to_thread(files.examples, name, taught)
        label_set.stored, label_set.prompts, label_set.scale = current, prompts, manifest.logit_scale or 1.0
        label_set.vectors = await asyncio.to_thread(files.vectors, name, current, (len(prompts.labels), manifest.dim))
        if (vectors := label_set.vectors) is None:
            await self._save(label_set)  # of an older format, or for another text encoder
        else:
            label_set.encoded = prompts.texts
            if manifest.text is not None:
                tokenizer = await asyncio.to_thread(artifact.tokenizer)
                label_set.weak = await asyncio.to_thread(lambda: weak_labels(tokenizer, prompts.labels, vectors))
        if vectors is None or label_set.is_taught:
            self._begin(label_set)

    def _artifact(self, reference: str) -> Artifact:
        """The artifact of a model, loaded or not. Raises ArtifactError."""
        loaded = next((model for model in self._registry.running() if model.reference == reference), None)
        return loaded.artifact if loaded else self._registry.store.open(reference)


def _head_info(model: RunningModel, head: HeadSpec) -> LabelSetInfo:
    return LabelSetInfo(
        name=head.name, model=model.reference, labels=len(head.labels), texts=0, encoded=0, ready=True, built_in=True
    )
