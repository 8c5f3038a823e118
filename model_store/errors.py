"""Errors of artifacts and inputs, and ClipworksError, which every error but those of the client derives from.

ClipworksError                      base; `code` is stable and machine-readable
|-- InputError                      what a caller sent is wrong; safe to show to the caller
|   |-- InvalidImage                the bytes are not a complete image
|   |-- UnsupportedImage            an image, but of a format that is not on the allow-list
|   |-- ImageTooLarge               more bytes, pixels or a longer side than the limit
|   |-- InvalidText                 not encodable text, or longer than the limit
|-- ArtifactError                   a model artifact cannot be used
|   |-- ArtifactNotFound            no such name, or no such version of it
|   |   |-- RoleNotFound            the artifact has no graph for a role, or none of the name or precision asked for
|   |-- ArtifactExists              publishing would overwrite a version
|   |-- ArtifactInUse               other artifacts derive from it
|   |-- ManifestError               unreadable, or an unknown key or value
|   |-- IntegrityError              a file differs from its digest, or is not a plain file inside the artifact
|   |-- GraphError                  a graph does not load, crashes, or does not do what its manifest says
|   |   |-- GraphHangs              it was not opened and run within the time it had
|   |-- GoldenError                 golden cases are missing or not reproduced
|   |-- ProviderError               the execution provider that was asked for is not really used
|   |-- ExportRefused               the exporter will not publish this model, with the reason
|   |   |-- TorchNeeded             it has no graph, but weights that torch can make one of
|   |-- RepositoryError             a repository of a model hub, or a folder like one, cannot be read
|   |   |-- RepositoryNotFound      no such repository, or no such revision or file in it
|   |   |-- RepositoryGated         its files are given only to accounts that accepted its terms
|-- SpaceMismatch                   vectors of two spaces would be compared
|-- ScaleUnknown                    a score that needs the logit scale, of a model that came without one
"""

from __future__ import annotations

import re

# Control characters (U+009B begins an escape sequence too), ends of lines, marks of direction, halves of characters.
_ACTED_ON = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ClipworksError(Exception):
    """Base of the tree; `code` never changes once released."""

    code = "clipworks_error"


class InputError(ClipworksError):
    code = "invalid_input"


class InvalidImage(InputError):
    code = "invalid_image"


class UnsupportedImage(InputError):
    code = "unsupported_image"


class ImageTooLarge(InputError):
    code = "image_too_large"


class InvalidText(InputError):
    code = "invalid_text"


class ArtifactError(ClipworksError):
    """Names of graphs, files and repositories are in its message as their makers chose them: what a terminal would act
    on, or what would begin a line of its own, is escaped.
    """

    code = "artifact_error"

    def __str__(self) -> str:
        return _ACTED_ON.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), super().__str__())


class ArtifactNotFound(ArtifactError):
    code = "model_not_found"


class RoleNotFound(ArtifactNotFound):
    """Its code is that of an artifact that is not there."""


class ArtifactExists(ArtifactError):
    code = "model_exists"


class ArtifactInUse(ArtifactError):
    code = "model_in_use"


class ManifestError(ArtifactError):
    code = "manifest_invalid"


class IntegrityError(ArtifactError):
    code = "artifact_corrupt"


class GraphError(ArtifactError):
    code = "graph_error"


class GraphHangs(GraphError):
    """Its code is that of every graph that cannot be served."""


class GoldenError(ArtifactError):
    code = "golden_mismatch"


class ProviderError(ArtifactError):
    code = "provider_unavailable"


class ExportRefused(ArtifactError):
    code = "export_refused"


class TorchNeeded(ExportRefused):
    """Its code is that of every refused export."""


class RepositoryError(ArtifactError):
    code = "repository_error"


class RepositoryNotFound(RepositoryError):
    code = "repository_not_found"


class RepositoryGated(RepositoryError):
    code = "repository_gated"


class SpaceMismatch(ClipworksError):
    code = "space_mismatch"


class ScaleUnknown(ClipworksError):
    code = "scale_unknown"
