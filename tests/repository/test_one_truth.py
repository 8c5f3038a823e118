"""What two rooms must both know, and may not import from each other: they agree."""

from typing import get_args

from clipworks import schemas
from model_store import templates
from service.retrieval import records


def test_the_wire_and_the_store_know_the_same_kinds() -> None:
    assert get_args(schemas.IndexKind) == get_args(records.IndexKind)
    assert get_args(schemas.FieldType) == get_args(records.FieldType)


def test_the_wire_names_the_templates_that_there_are() -> None:
    assert get_args(schemas.NamedTemplates) == templates.NAMES
