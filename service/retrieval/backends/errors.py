"""Errors that only a backend outside this process can raise."""

from __future__ import annotations

from model_store.errors import InputError
from service.retrieval.errors import RetrievalError


class NotSupported(InputError):
    """The embedded store can do it, this backend cannot."""

    code = "not_supported"


class BackendUnavailable(RetrievalError):
    """It does not answer; nothing is known to have been applied, so the same request again does no harm."""

    code = "backend_unavailable"
