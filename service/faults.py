"""Errors of a running server (not of inputs or artifacts); service/http/errors.py maps all of them to HTTP.

ClipworksError
|-- ServiceFault
    |-- ServiceOverloaded   the queue cannot take these items now; try again
    |-- DeadlinePassed      the request's deadline passed before its work was done
    |-- ServiceNotReady     no model answers yet, or no longer
    |-- Draining            the server is stopping
    |-- NotLoaded           the model exists, but is not loaded
    |-- RunFailed           the model failed on this item
    |-- NoDirection         the model knows nothing of an item or of labels, and the request wants no such answer
    |-- TooManyItems        more items or texts than one request may bring
    |-- UnknownName         no label set or collection of this name
    |-- StateConflict       the name is taken by something else
    |-- LabelSetFailed      the label set has no vectors and will get none by itself
    |-- ThumbnailNotFound   there is no small picture of this item, for whatever reason
    |-- CollectionsOff      this server has no collections, or they cannot be opened
"""

from __future__ import annotations

from collections.abc import Callable

from model_store.errors import ClipworksError


class ServiceFault(ClipworksError):
    code = "service_fault"


class ServiceOverloaded(ServiceFault):
    """`still_s` says how long a request of one item would have to wait by then, or None if it would be let in.

    It is given the number of such requests that are on their way and will be let in before it.
    """

    code = "overloaded"

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, still_s: Callable[[int], float | None] | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.still_s = still_s


class DeadlinePassed(ServiceFault):
    code = "deadline_exceeded"


class ServiceNotReady(ServiceFault):
    code = "not_ready"


class Draining(ServiceFault):
    code = "draining"


class NotLoaded(ServiceFault):
    code = "model_not_loaded"


class RunFailed(ServiceFault):
    code = "run_failed"


class NoDirection(ServiceFault):
    code = "no_direction"


class TooManyItems(ServiceFault):
    code = "too_many_items"


class UnknownName(ServiceFault):
    code = "not_found"


class StateConflict(ServiceFault):
    code = "conflict"


class LabelSetFailed(ServiceFault):
    code = "label_set_failed"


class ThumbnailNotFound(ServiceFault):
    code = "thumbnail_not_found"


class CollectionsOff(ServiceFault):
    code = "collections_unavailable"
