"""What all bodies of the wire share: their base, inputs, errors. Import them from clipworks.schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MODEL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?$"
MAX_WHOLE = 1_000_000
MAX_FIELDS = 64  # of one object; no body of the wire has half as many
IMAGE_FORMAT = "base64-image"  # JSON schema `format` of image fields; tests generate real pictures for it

ImageText = Annotated[str, Field(json_schema_extra={"format": IMAGE_FORMAT})]
ModelName = Annotated[str, StringConstraints(pattern=MODEL_PATTERN)]
OnError = Literal["fail", "item"]
EncodingFormat = Literal["float", "base64"]


class Wire(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        """Every unknown field is an error of its own: an object of a million of them is refused as a whole."""
        if isinstance(value, dict) and len(cast(dict[Any, Any], value)) > MAX_FIELDS:
            raise ValueError(f"an object of more than {MAX_FIELDS} fields; this one takes {len(cls.model_fields)}")
        return cast(Any, value)


class TextInput(Wire):
    text: str


class ImageInput(Wire):
    image: ImageText = Field(description="base64 of an encoded image, or a data: URI with base64")


class ImageUrlInput(Wire):
    image_url: str = Field(description="http(s) address; refused unless its host is allow-listed", max_length=2048)


Input = str | TextInput | ImageInput | ImageUrlInput
ImageOnly = ImageInput | ImageUrlInput


class EncoderFingerprint(Wire):
    image: str | None
    text: str | None


class ErrorDetail(Wire):
    message: str
    type: str
    code: str
    param: str | None = None


class ErrorResponse(Wire):
    """Body of every answer that is not 2xx."""

    error: ErrorDetail


class ItemError(Wire):
    """Stands where an item's answer would, when `on_error` is "item"."""

    index: int
    error: ErrorDetail
