"""Models of collections: which one may add rows or query, loaded when it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from model_store.errors import ArtifactNotFound, SpaceMismatch
from service.engine.registry import Registry
from service.engine.reranking import positions_source
from service.engine.running import RunningModel
from service.faults import DeadlinePassed, NotLoaded, StateConflict
from service.retrieval import CollectionSpec
from service.retrieval.errors import InvalidQuery
from service.timing import Deadline

_LOAD_AGAIN_S = 0.1


class PinnedModels:
    """Loads the models of collections; requests that want the same one wait for one load. Belongs to an event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._loading: dict[str, asyncio.Task[RunningModel]] = {}

    async def for_queries(self, spec: CollectionSpec, named: RunningModel | None, deadline: Deadline) -> RunningModel:
        """The named model, or else the pinned one, which is the only one where two vectors of an item are kept.

        Raises:
            SpaceMismatch: its vectors may not be compared with the collection's; names both spaces.
        """
        model = named or await self.pinned(spec, deadline)
        if spec.views is not None and model.reference != spec.model:
            raise SpaceMismatch(f"the collection keeps the two views of {spec.model}, which no other model makes")
        if spec.views is None:
            _require_space(spec, model)
        return model

    async def for_rows(
        self, spec: CollectionSpec, named: RunningModel | None, modalities: Iterable[str], deadline: Deadline
    ) -> RunningModel:
        """As `for_queries`; its encoders of these modalities must be those that the collection takes rows of.

        Raises:
            SpaceMismatch: they are not; names both fingerprints.
        """
        model = await self.for_queries(spec, named, deadline)
        prints = {"image": model.fingerprint.image, "text": model.fingerprint.text}
        for modality in modalities:
            if (fingerprint := prints[modality]) is not None:
                spec.require_fingerprint(modality, fingerprint, of=f"a row of model {model.reference}")
        return model

    async def pinned(self, spec: CollectionSpec, deadline: Deadline) -> RunningModel:
        """The very version that the collection is bound to; it stays loaded.

        Raises:
            StateConflict: the store has it no longer.
            ArtifactError: it cannot be served.
            DeadlinePassed: loading goes on, a later request will find it.
        """
        remedy = "it can still be searched by vector and by id, or by a model of its space"
        return await self._loaded(spec.model, deadline, remedy)

    async def positions_for(self, spec: CollectionSpec, deadline: Deadline) -> RunningModel | None:
        """The very version that makes the position vectors of a collection, None where it keeps none. Raises as
        `pinned`."""
        if spec.rerank is None:
            return None
        remedy = "pictures cannot be added; texts, vectors and searches without it can"
        return await self._loaded(spec.rerank.model, deadline, remedy)

    async def reranker(self, spec: CollectionSpec, named: RunningModel | None, deadline: Deadline) -> RunningModel:
        """The model that reads a collection's position vectors: the named one, or else the one that made them.

        Raises:
            InvalidQuery: the collection keeps none; says what to do.
            StateConflict: the named model reads others; names both. Also as `pinned`.
        """
        if spec.rerank is None:
            raise InvalidQuery(
                "this collection keeps no position vectors of its pictures, which a reranker reads: make another with "
                '"rerank": "MODEL" and add the pictures to it, or send the pictures themselves to /rerank'
            )
        model = named or await self.positions_for(spec, deadline)
        if model is None or positions_source(model.artifact) != spec.rerank.source:
            name = model.reference if model else "the model"
            raise StateConflict(
                f"{name} reads other position vectors than this collection keeps, which are those of "
                f"{spec.rerank.model}: name that one"
            )
        return model

    async def _loaded(self, reference: str, deadline: Deadline, remedy: str) -> RunningModel:
        try:
            return self._registry.resolve(reference)
        except NotLoaded:
            pass
        except ArtifactNotFound:
            message = f"the collection is bound to {reference}, which is not in the store any more; {remedy}"
            raise StateConflict(message) from None
        task = self._loading.get(reference)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load(reference), name=f"load {reference}")
            self._loading[reference] = task
            task.add_done_callback(lambda done: self._ended(reference, done))
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await asyncio.shield(task)
        except TimeoutError:
            raise DeadlinePassed(f"{reference} is being loaded, which took longer than the request has") from None

    def stop(self) -> None:
        for task in self._loading.values():
            task.cancel()

    async def _load(self, reference: str) -> RunningModel:
        while True:
            try:
                return await self._registry.load(reference)
            except StateConflict:  # another model is being loaded
                await asyncio.sleep(_LOAD_AGAIN_S)

    def _ended(self, reference: str, task: asyncio.Task[RunningModel]) -> None:
        self._loading.pop(reference, None)
        if not task.cancelled():
            task.exception()  # whoever still waits gets it too; without this a load that nobody awaits complains


def _require_space(spec: CollectionSpec, model: RunningModel) -> None:
    spec.require_space(model.space, of=f"model {model.reference}")
    if model.dim != spec.dim:
        raise SpaceMismatch(f"model {model.reference} makes {model.dim} numbers, the collection holds {spec.dim}")


def require_equal_model(name: str, there: CollectionSpec, wanted: CollectionSpec) -> None:
    """A collection that exists must be bound to the model of the request.

    Raises:
        SpaceMismatch, StateConflict: it is not; names both.
    """
    there.require_space(wanted.space, of=f"model {wanted.model}")
    for modality in sorted(there.fingerprints.keys() | wanted.fingerprints.keys()):
        there.require_fingerprint(modality, str(wanted.fingerprints.get(modality)), of=f"model {wanted.model}")
    if there.model != wanted.model:
        raise StateConflict(f"collection {name} is bound to {there.model}, the request is for {wanted.model}")
