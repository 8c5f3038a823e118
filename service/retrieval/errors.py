"""Exceptions of the store, as part of the project's one error tree.

ClipworksError
|-- InputError
|   |-- InvalidItem          one item of an upsert: id, vector or metadata
|   |-- InvalidFilter        a filter that is not of the language, or is too deep or too large
|   |-- InvalidQuery         a query vector, top_k, offset or cursor that cannot be answered
|   |-- InvalidCollection    a name or a specification that cannot be one
|-- RetrievalError           base of what is not one field's fault
|   |-- CollectionNotFound   no such collection
|   |-- ItemNotFound         no such id in the collection
|   |-- CollectionConflict   the name is taken by a collection with another specification
|   |-- FolderInUse          another process owns the data folder; its address is in the message
|   |-- AliasNotFound        no such alias
|   |-- StoreClosed          the store is closing or closed
|   |-- Interrupted          its time is over, nobody waits, or the store closes; nothing was changed
|   |-- ScanNeeded           a filter must look at many rows first: `Collection.scan`
|   |-- StorageFull          the disk is full; nothing of the request was applied
|   |-- StorageFailed        reading or writing failed; nothing of the request was applied
|   |   |-- StatementRefused SQLite does not take a statement, as of a filter with too many parts
|   |-- TooManyCollections   the store takes no more collections
|   |-- StoreCorrupt         a file is not what was written; its name is in the message
"""

from __future__ import annotations

from model_store.errors import ClipworksError, InputError


class InvalidItem(InputError):
    """`index` is the item's place in the request."""

    code = "invalid_item"

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class InvalidFilter(InputError):
    """`path` is the place inside the filter, such as `filter.$and[1].year`."""

    code = "invalid_filter"

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class InvalidQuery(InputError):
    code = "invalid_query"


class InvalidCollection(InputError):
    code = "invalid_collection"


class RetrievalError(ClipworksError):
    code = "retrieval_error"


class CollectionNotFound(RetrievalError):
    code = "collection_not_found"


class ItemNotFound(RetrievalError):
    code = "item_not_found"


class CollectionConflict(RetrievalError):
    code = "collection_conflict"


class FolderInUse(RetrievalError):
    """`address` is what the holder wrote into the lock file; None if it wrote none."""

    code = "folder_in_use"

    def __init__(self, message: str, *, address: str | None, pid: int | None) -> None:
        super().__init__(message)
        self.address = address
        self.pid = pid


class AliasNotFound(RetrievalError):
    code = "alias_not_found"


class StoreClosed(RetrievalError):
    code = "store_closed"


class Interrupted(RetrievalError):
    code = "deadline_exceeded"


class ScanNeeded(RetrievalError):
    """Never leaves the service: who asked for a search without a scan asks for the scan, and again."""

    code = "scan_needed"


class StorageFull(RetrievalError):
    code = "storage_full"


class StorageFailed(RetrievalError):
    code = "storage_failed"


class StatementRefused(StorageFailed):
    code = "statement_refused"


class TooManyCollections(RetrievalError):
    code = "too_many_collections"


class StoreCorrupt(RetrievalError):
    code = "store_corrupt"
