"""One typed async function per task: items in, an outcome for each item out. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipworks.schemas import OnUnknown
from model_store.errors import ClipworksError, InputError, RoleNotFound
from model_store.label_vectors import LabelVectors
from model_store.manifest import Presence, Role
from model_store.modality.text import is_quick
from model_store.presence import presence_scores, score_maps
from model_store.towers import Activation, OpenedHead
from service.decoding.pool import DecodePool
from service.decoding.queue import HUGE_PX
from service.decoding.worker import Framed
from service.engine.admission import Ticket
from service.engine.batcher import Batcher
from service.engine.dense import unpacked
from service.engine.running import RunningModel
from service.engine.stacking import PictureWithTexts
from service.engine.vectors import KNOWS_NOTHING, Vector, finish, is_zero
from service.faults import DeadlinePassed, NoDirection, ServiceOverloaded
from service.tasks.label_tokens import LabelTokens
from service.tasks.localize import LocalizeOptions, LocatedLabels, WholePicture, locate
from service.tasks.scoring import (
    ClassMatrix,
    Scored,
    rank,
    rank_conditional,
    rank_logits,
    rank_scores,
    rank_taught,
)
from service.teaching.head import TaughtHead
from service.timing import Budget, Deadline

_AT_ONCE = 10_000  # labels; more take long enough to leave the event loop
_T = TypeVar("_T")


@dataclass(frozen=True)
class TextItem:
    text: str


@dataclass(frozen=True)
class ImageItem:
    data: bytes


@dataclass(frozen=True)
class FailedItem:
    """An input that was already refused on the way in; keeps its place."""

    error: ClipworksError


Input = TextItem | ImageItem | FailedItem


@dataclass(frozen=True)
class EmbedOutcome:
    """`outcomes` in the order of the items: a float32 vector [D], or why there is none.

    weak: indices of items of which the model knows nothing; their vectors are zero, or say no more than another such.
    thumbnails: of images, by index, where they were asked for. unadapted: of items with a vector, by index and finished
    alike, what the model's base makes of them, where that was asked for.
    """

    outcomes: list[Vector | ClipworksError]
    weak: list[int]
    texts: int
    images: int
    tokens: int
    thumbnails: Mapping[int, bytes]
    unadapted: Mapping[int, Vector]


async def embed(
    model: RunningModel,
    items: Sequence[Input],
    *,
    pool: DecodePool,
    normalize: bool,
    dimensions: int | None,
    on_unknown: OnUnknown,
    budget: Budget,
    with_thumbnails: bool = False,
    with_unadapted: bool = False,
) -> EmbedOutcome:
    """Encode texts and images, mixed; with_thumbnails: and make a small picture of each image, decoding it once.

    with_unadapted: also give each item's vector as it is before the model's adapter, of the same run.

    `dimensions` cuts vectors to a prefix the model was trained for, before normalising. With on_unknown "error" an item
    of which the model knows nothing has NoDirection as its outcome.

    Raises:
        InputError: `dimensions` is not a size of this model.
        ServiceOverloaded, ServiceNotReady, DeadlinePassed: for the request as a whole.
    """
    if dimensions is not None and dimensions != model.dim and dimensions not in model.manifest.dimensions:
        sizes = sorted({model.dim, *model.manifest.dimensions})
        raise InputError(f"dimensions {dimensions} is not offered by {model.reference}, it has {sizes}")
    tokens = 0
    weak: list[int] = []
    thumbnails: dict[int, bytes] = {}
    unadapted: dict[int, Vector] = {}
    turn = asyncio.Lock()

    async def one(index: int, item: Input) -> Vector:
        nonlocal tokens
        knows = True
        if isinstance(item, FailedItem):
            raise item.error
        if isinstance(item, TextItem):
            async with tickets["text_encoder"].turn(budget):
                row = await token_row(model, item.text, turn)
                tokens += len(row)
                knows = model.knows(row)
                both = await _submit(model, "text_encoder", row, budget)
        else:
            async with tickets["image_encoder"].turn(budget):
                framed = await _framed(model, item.data, pool, budget, with_thumbnail=with_thumbnails)
                both = await _submit(model, "image_encoder", framed.pixels, budget)
            if with_thumbnails:
                thumbnails[index] = framed.thumbnail
        finished = finish(both[-model.dim :], normalize=normalize, dimensions=dimensions)
        if with_unadapted:
            unadapted[index] = finish(both[: -model.dim] if len(both) > model.dim else both, normalize=normalize)
        if not knows or is_zero(finished):
            if on_unknown == "error":
                raise NoDirection(KNOWS_NOTHING)
            weak.append(index)
        return finished

    images = places_of_images(items, pool)
    texts = sum(isinstance(item, TextItem) for item in items)
    with _admitted(model, {"image_encoder": images, "text_encoder": Places(texts)}, budget) as tickets:
        outcomes = await gather_outcomes([one(index, item) for index, item in enumerate(items)], budget)
    return EmbedOutcome(
        outcomes,
        weak=sorted(weak),
        texts=texts,
        images=images.items,
        tokens=tokens,
        thumbnails=thumbnails,
        unadapted=unadapted,
    )


async def classify(
    model: RunningModel,
    items: Sequence[ImageItem | FailedItem],
    classes: ClassMatrix | OpenedHead | TaughtHead,
    *,
    pool: DecodePool,
    activation: Activation | None,
    top_k: int | None,
    threshold: float | None,
    budget: Budget,
) -> list[list[Scored] | ClipworksError]:
    """Score every image against every class, best first; `activation` None means the model's or the head's own."""

    async def one(item: ImageItem | FailedItem) -> list[Scored]:
        if isinstance(item, FailedItem):
            raise item.error
        async with tickets["image_encoder"].turn(budget):
            vector = await encode_image(model, item.data, pool=pool, budget=budget)
        unit = _direction(vector)
        if isinstance(classes, ClassMatrix):
            matrix = classes

            def ranked() -> list[Scored]:
                return rank(unit, matrix, model.manifest, activation=activation, top_k=top_k, threshold=threshold)

            return ranked() if len(classes.names) <= _AT_ONCE else await pool.run(ranked, "rank", budget)
        if isinstance(classes, TaughtHead):
            taught = classes

            def recognised() -> list[Scored]:
                return rank_taught(unit, taught, activation=activation, top_k=top_k, threshold=threshold)

            return recognised() if len(taught.names) <= _AT_ONCE else await pool.run(recognised, "rank", budget)
        logits = await model.head_batchers[classes.spec.name].submit(vector, budget)
        head = classes

        def judged() -> list[Scored]:
            return rank_logits(logits, head, activation=activation, top_k=top_k, threshold=threshold)

        return judged() if len(logits) <= _AT_ONCE else await pool.run(judged, "rank", budget)

    images = places_of_images(items, pool)
    with _admitted(model, {"image_encoder": images}, budget) as tickets:
        return await gather_outcomes([one(item) for item in items], budget)


async def classify_by_conditional_head(
    model: RunningModel,
    items: Sequence[ImageItem | FailedItem],
    labels: LabelTokens,
    *,
    pool: DecodePool,
    activation: Activation | None,
    top_k: int | None,
    threshold: float | None,
    budget: Budget,
) -> list[list[Scored] | ClipworksError]:
    """Score every image against every label by the model's conditional head, best first.

    An image has one block of texts in the queue at a time, so that others get their turn, and memory stays bounded.
    """

    async def one(item: ImageItem | FailedItem) -> list[Scored]:
        if isinstance(item, FailedItem):
            raise item.error
        async with tickets["image_encoder"].turn(budget):
            vector = await encode_image(model, item.data, pool=pool, budget=budget)
        unit = _direction(vector)
        logits: list[NDArray[np.float32]] = []
        for ids in labels.blocks:
            async with tickets["conditional_head"].turn(budget):
                logits.append(await model.batchers["conditional_head"].submit(PictureWithTexts(unit, ids), budget))
        return rank_conditional(
            np.concatenate(logits), labels, model.manifest, activation=activation, top_k=top_k, threshold=threshold
        )

    images = places_of_images(items, pool)
    places: dict[Role, Places] = {
        "image_encoder": images,
        "conditional_head": Places(images.items * len(labels.blocks)),
    }
    with _admitted(model, places, budget) as tickets:
        return await gather_outcomes([one(item) for item in items], budget)


async def classify_by_presence(
    model: RunningModel,
    items: Sequence[ImageItem | FailedItem],
    classes: ClassMatrix,
    labels: LabelVectors,
    presence: Presence,
    *,
    pool: DecodePool,
    top_k: int | None,
    threshold: float | None,
    budget: Budget,
) -> list[list[Scored] | ClipworksError]:
    """Score every image by the calibrated presence of each class: the scores of /localize, without the places.

    Raises:
        As `localize`. A model without a dense encoder gives the scores of its image encoder's vector; where it has
            one both routes look at the whole picture, as the presence was calibrated.
    """

    async def one(item: ImageItem | FailedItem) -> list[Scored]:
        if isinstance(item, FailedItem):
            raise item.error
        if dense is None:
            async with ticket.turn(budget):
                pooled = await encode_image(model, item.data, pool=pool, budget=budget)
            maps = np.zeros((len(classes.names), 1, 1), dtype=np.float32)
        else:
            async with ticket.turn(budget):
                _, positions, pooled = await look(model, dense, item, None, pool=pool, budget=budget)
            maps = await pool.run(lambda: score_maps(positions, labels, presence), "regions", budget)

        def ranked() -> list[Scored]:
            scores = presence_scores(maps, pooled, labels, presence)
            similarities = (classes.vectors @ _direction(pooled)).astype(np.float64)
            return rank_scores(scores, similarities, classes, top_k=top_k, threshold=threshold)

        return ranked() if len(classes.names) <= _AT_ONCE else await pool.run(ranked, "rank", budget)

    images = places_of_images(items, pool)
    dense = await model.dense.batcher(budget) if model.dense_spec is not None else None
    with (dense or model.batchers["image_encoder"]).admit(images.items, budget, are_slow=images.are_slow) as ticket:
        return await gather_outcomes([one(item) for item in items], budget)


async def localize(
    model: RunningModel,
    items: Sequence[ImageItem | FailedItem],
    classes: ClassMatrix,
    labels: LabelVectors,
    presence: Presence,
    *,
    wanted: LocalizeOptions,
    short_px: int | None,
    pool: DecodePool,
    budget: Budget,
) -> list[LocatedLabels | ClipworksError]:
    """Find every label in every image: one pass of the dense encoder and one matrix product for each image.

    Raises:
        ArtifactError: the dense encoder cannot be opened.
        ServiceOverloaded, ServiceNotReady, DeadlinePassed: for the request as a whole.
    """

    async def one(item: ImageItem | FailedItem) -> LocatedLabels:
        if isinstance(item, FailedItem):
            raise item.error
        async with ticket.turn(budget):
            picture, positions, pooled = await look(model, batcher, item, short_px, pool=pool, budget=budget)

            def work() -> LocatedLabels:
                return locate(positions, pooled, picture, classes, labels, presence, wanted=wanted, deadline=budget)

            return await pool.run(work, "regions", budget)

    images = places_of_images(items, pool)
    batcher = await model.dense.batcher(budget)
    with batcher.admit(images.items, budget, are_slow=images.are_slow) as ticket:
        return await gather_outcomes([one(item) for item in items], budget)


async def look(
    model: RunningModel,
    batcher: Batcher,
    item: ImageItem,
    short_px: int | None,
    *,
    pool: DecodePool,
    budget: Budget,
) -> tuple[WholePicture, Vector, Vector]:
    """A whole picture through the dense encoder: (picture, positions [rows, columns, D], pooled vector [D])."""
    spec = model.dense_spec
    if spec is None:
        raise RoleNotFound(f"{model.reference} has no dense_encoder")
    framed = await pool.prepare_dense(item.data, spec, short_px, budget)
    picture = WholePicture(framed.pixels, *framed.size)
    return picture, *unpacked(await batcher.submit(picture.pixels, budget))


async def encode_image(model: RunningModel, data: bytes, *, pool: DecodePool, budget: Budget) -> Vector:
    """Un-normalised vector of one encoded image; places must have been reserved."""
    framed = await _framed(model, data, pool, budget, with_thumbnail=False)
    return (await _submit(model, "image_encoder", framed.pixels, budget))[-model.dim :]


async def _framed(
    model: RunningModel, data: bytes, pool: DecodePool, budget: Budget, *, with_thumbnail: bool
) -> Framed:
    if model.image_spec is None:
        raise RoleNotFound(f"{model.reference} has no image encoder")
    return await pool.prepare_framed(data, model.image_spec, budget, with_thumbnail=with_thumbnail)


async def encode_texts(model: RunningModel, texts: Sequence[str], ticket: Ticket | None) -> NDArray[np.float32]:
    """Unit vectors [n, D] of texts that belong to the server's own work (class prompts); fails as a whole.

    A text of which the model knows nothing has a zero vector.

    ticket: the places of these texts; None for background texts, which take none: they run when nothing else waits.
    No deadline rules them, since other requests may wait for the same texts.
    """
    turn = asyncio.Lock()
    budget = Budget()

    async def encoded(text: str) -> Vector:
        row = await token_row(model, text, turn)
        return finish((await _submit(model, "text_encoder", row, budget, background=ticket is None))[-model.dim :])

    async def one(text: str) -> Vector:
        if ticket is None:
            return await encoded(text)
        async with ticket.turn(budget):
            return await encoded(text)

    outcomes = await gather_outcomes([one(text) for text in texts], budget)
    for outcome in outcomes:
        if isinstance(outcome, ClipworksError):
            raise outcome
    return np.stack([outcome for outcome in outcomes if not isinstance(outcome, ClipworksError)])


async def token_row(model: RunningModel, text: str, turn: asyncio.Lock) -> NDArray[np.int64]:
    """Token ids of one text, off the event loop when that may take a while.

    One thread of a model cleans texts, since all of them would wait for the interpreter; with the `turn` that the texts
    of one request share, requests take turns on it.
    """
    if is_quick(text):
        return model.token_row(text)
    async with turn, model.tokenising:
        return await asyncio.to_thread(model.token_row, text)


def _direction(vector: Vector) -> Vector:
    """The unit vector of a picture. Raises NoDirection: it is zero, and no label is nearer to it than another."""
    if is_zero(vector):
        raise NoDirection("this model knows nothing of this picture: its vector is zero")
    return finish(vector)


async def gather_outcomes(work: Sequence[Awaitable[_T]], deadline: Deadline) -> list[_T | ClipworksError]:
    """Await all; an item's own error takes its place, anything else fails the request.

    An item that is not done at the deadline is cancelled and gets DeadlinePassed; those that are done keep theirs.

    Raises:
        DeadlinePassed: the deadline passed, and no item was done.
        ServiceOverloaded: no item's turn came in time.
    """
    if len(work) == 1:
        return [await _only_outcome(work[0], deadline)]
    tasks = [asyncio.ensure_future(each) for each in work]
    gathered = asyncio.gather(*tasks, return_exceptions=True)
    try:
        await asyncio.wait({gathered}, timeout=deadline.remaining_s())
        done = [task.done() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
    late = DeadlinePassed("the request's deadline passed before this was done")
    outcomes: list[_T | ClipworksError] = []
    for result, in_time in zip(await gathered, done, strict=True):
        if not in_time:
            outcomes.append(late)
        elif isinstance(result, BaseException) and not isinstance(result, ClipworksError):
            raise result
        else:
            outcomes.append(result)
    if outcomes and all(isinstance(each, DeadlinePassed) for each in outcomes):
        raise DeadlinePassed("the request's deadline passed before its work was done")
    if (
        outcomes
        and isinstance(outcomes[0], ServiceOverloaded)
        and all(isinstance(each, ServiceOverloaded) for each in outcomes)
    ):
        raise outcomes[0]
    return outcomes


async def _only_outcome(work: Awaitable[_T], deadline: Deadline) -> _T | ClipworksError:
    """As `gather_outcomes` of one item, without a task of its own."""
    limit = asyncio.timeout(deadline.remaining_s())
    try:
        async with limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlinePassed("the request's deadline passed before its work was done") from None
    except (DeadlinePassed, ServiceOverloaded):
        raise
    except ClipworksError as error:
        return error


class Places(NamedTuple):
    """What a request asks of an encoder: see Admission.admit."""

    items: int
    are_slow: bool = False


def places_of_images(items: Sequence[Input], pool: DecodePool) -> Places:
    """Raises TooManyItems: more pixels together than one request may bring."""
    images = [item.data for item in items if isinstance(item, ImageItem)]
    return Places(len(images), are_slow=pool.check_request(images) > HUGE_PX)


async def _submit(
    model: RunningModel,
    role: Role,
    array: NDArray[np.int64] | NDArray[np.uint8],
    budget: Budget,
    *,
    background: bool = False,
) -> Vector:
    """The encoder's vector, and behind it in the same row that of the adapter where there is one."""
    if role not in model.batchers:
        raise RoleNotFound(f"{model.reference} has no {role}")
    return await model.batchers[role].submit(array, budget, background=background)


@contextmanager
def _admitted(model: RunningModel, places: Mapping[Role, Places], deadline: Deadline) -> Generator[dict[Role, Ticket]]:
    """Hold places for a whole request, all or none.

    Raises:
        RoleNotFound: the model has no such encoder.
        ServiceOverloaded, ServiceNotReady.
    """
    with ExitStack() as stack:
        tickets: dict[Role, Ticket] = {}
        for role, (count, are_slow) in places.items():
            if count:
                if role not in model.batchers:
                    raise RoleNotFound(f"{model.reference} has no {role}")
                admitted = model.batchers[role].admit(count, deadline, are_slow=are_slow)
                tickets[role] = stack.enter_context(admitted)
        yield tickets
