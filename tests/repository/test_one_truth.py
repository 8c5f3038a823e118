"""What two rooms must both know, and may not import from each other: they agree."""

from typing import get_args

from clipworks import schemas
from clipworks.cli.model_making import Dense
from clipworks.wire import collections
from model_store import manifest, templates, towers
from service.retrieval import records


def test_the_wire_and_the_store_know_the_same_kinds() -> None:
    assert get_args(schemas.IndexKind) == get_args(records.IndexKind)
    assert get_args(schemas.FieldType) == get_args(records.FieldType)
    assert get_args(schemas.BuiltKind) == get_args(records.BuiltKind)
    assert get_args(collections.LossKind) == get_args(records.LossKind)


def test_the_wire_names_the_templates_that_there_are() -> None:
    assert get_args(schemas.NamedTemplates) == templates.NAMES


def test_the_wire_names_the_activations_that_there_are() -> None:
    assert get_args(schemas.Activation) == get_args(towers.Activation)


def test_label_sets_are_named_as_models_are() -> None:
    """A name means either in the same place of a request."""
    assert schemas.LABEL_SET_PATTERN == manifest.NAME_PATTERN


def test_the_command_line_offers_the_attentions_of_the_manifest() -> None:
    of_manifest = get_args(manifest.DenseSpec.model_fields["attention"].annotation)
    assert set(get_args(Dense)) == set(of_manifest)
