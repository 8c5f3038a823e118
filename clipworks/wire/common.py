"""Bases, inputs and errors that all bodies share. Import them from clipworks.schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

MODEL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?$"
MAX_WHOLE = 1_000_000
MAX_FIELDS = 64  # of one object; no body of the wire has half as many
IMAGE_FORMAT = "base64-image"  # JSON schema `format` of image fields; tests generate real pictures for it

ImageText = Annotated[str, Field(json_schema_extra={"format": IMAGE_FORMAT})]
ModelName = Annotated[str, StringConstraints(pattern=MODEL_PATTERN)]
OnError = Literal["fail", "item"]
OnUnknown = Literal["warn", "error"]
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


class ByContent:
    """Annotates a union of bodies that differ in one field: the field that is there says which of them is validated.

    Without it pydantic tries every member on every value, and each of them looks at all that the value holds.

    members: name of the field -> the body that has it.  string: the union holds `str` too.
    """

    NO_FORM = "no_form"

    def __init__(self, members: Mapping[str, type[Wire]], *, string: bool = False) -> None:
        self._members = members
        self._string = string

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {"str": core_schema.str_schema()} if self._string else {}
        for member in self._members.values():
            choices[member.__name__] = handler.generate_schema(member)
        return core_schema.tagged_union_schema(
            choices,
            discriminator=self._member_of,
            custom_error_type=self.NO_FORM,
            custom_error_message=f"should have one of {', '.join(self._members)}",
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        described["anyOf"] = described.pop("oneOf")
        return described

    def _member_of(self, value: Any) -> str | None:
        if isinstance(value, str):
            return "str" if self._string else None
        if isinstance(value, dict):
            found = [name for name in self._members if name in value]
            return self._members[found[0]].__name__ if len(found) == 1 else None
        return type(value).__name__ if isinstance(value, Wire) else None


class TextInput(Wire):
    text: str


class ImageInput(Wire):
    image: ImageText = Field(description="base64 of an encoded image, or a data: URI with base64")


class ImageUrlInput(Wire):
    image_url: str = Field(description="http(s) address; refused unless its host is allow-listed", max_length=2048)


IMAGE_FIELDS: Mapping[str, type[Wire]] = {"image": ImageInput, "image_url": ImageUrlInput}
INPUT_FIELDS: Mapping[str, type[Wire]] = {"text": TextInput, **IMAGE_FIELDS}

OnUnknownField = Annotated[
    OnUnknown,
    Field(
        description="an input or a label of which the model knows nothing: warn: it is answered as weak and named in "
        "`warnings`; error: it is refused (`no_direction`)"
    ),
]
Warnings = Annotated[
    list[str],
    Field(description="what to know of the answer, in sentences; left out when there is nothing to say"),
]
Weak = Annotated[
    bool,
    Field(description="the model knows nothing of it, so its numbers say nothing; left out when it does"),
]

Input = Annotated[str | TextInput | ImageInput | ImageUrlInput, ByContent(INPUT_FIELDS, string=True)]
ImageOnly = Annotated[ImageInput | ImageUrlInput, ByContent(IMAGE_FIELDS)]


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
