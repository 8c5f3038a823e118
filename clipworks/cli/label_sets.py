"""`clipworks label-sets`: put, list, show and delete label sets of a server or of a data folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from clipworks.cli import connect, output
from clipworks.cli.failures import UsageError
from clipworks.cli.label_options import Labels, Templates, labels_of, templates_of
from clipworks.cli.label_phrases import PhrasesFile, WordNetFolder, with_phrases
from clipworks.cli.teach import print_report
from clipworks.client import AsyncClient
from clipworks.schemas import LabelSetDetail, LabelSetInfo, WeighedTemplates

T = TypeVar("T")
app = typer.Typer(
    help="Store labels under a name, encoded once; list, show and delete such sets.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the label set.")]


@app.command()
def put(
    name: Name,
    labels: Labels = None,
    templates: Templates = None,
    wordnet: WordNetFolder = None,
    phrases: PhrasesFile = None,
    weigh_by: Annotated[
        str | None,
        typer.Option(metavar="COLLECTION", help="Weigh the templates by these pictures, which need no labels."),
    ] = None,
    weigh_reference: Annotated[
        str | None, typer.Option(metavar="COLLECTION", help="With --weigh-by: pictures of any kind, to compare with.")
    ] = None,
    weigh_how: Annotated[
        Literal["softmax", "select"],
        typer.Option(help="With --weigh-by: weights by score, or equal ones of the clearly better templates."),
    ] = "softmax",
    weigh_limit: Annotated[
        int, typer.Option(min=10, max=4096, help="With --weigh-by: pictures of each collection.")
    ] = 1000,
    model: connect.Model = None,
    wait: Annotated[bool, typer.Option(help="Come back when it is encoded.")] = True,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """Store labels under a name, replacing what it held."""
    if not labels:
        raise UsageError("give --labels cat,dog, or --labels @FILE with one on each line")
    wanted, used = with_phrases(labels_of(labels, None) or [], phrases, wordnet, templates_of(templates))
    if weigh_by is None and weigh_reference is not None:
        raise UsageError("--weigh-reference is of pictures that others are compared with: give --weigh-by too")
    weighing: dict[str, Any] | None = None
    if weigh_by is not None:
        weighing = {"collection": weigh_by, "limit": weigh_limit, "how": weigh_how}
        weighing |= {} if weigh_reference is None else {"reference": weigh_reference}

    async def work(client: AsyncClient) -> LabelSetInfo:
        return await client.put_label_set(
            name, wanted, templates=used, model=model, weigh_templates=weighing, wait=wait
        )

    info = _ask(work, url, api_key, store, data, timeout_s, model=model)
    if as_json:
        output.print_json(info.model_dump())
    else:
        output.say(f"stored {info.name}: {info.labels} labels, {info.texts} texts, for {info.model} ({_state(info)})")


@app.command("list")
def list_label_sets(
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """All label sets, and the class heads of loaded models."""
    is_empty = not url and not connect.has_collections(connect.data_folder(data), must_be=data is not None)
    found = [] if is_empty else _ask(lambda client: client.label_sets(), url, api_key, store, data, timeout_s)
    if as_json:
        output.print_json([info.model_dump() for info in found])
    elif not found and output.is_terminal():
        output.say("no label sets; make one: clipworks label-sets put NAME --labels cat,dog")
    else:
        rows = [[info.name, str(info.labels), str(info.texts), info.model, _state(info)] for info in found]
        output.print_table(["label set", "labels", "texts", "model", "state"], rows)


@app.command()
def show(
    name: Name,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
    as_json: connect.AsJson = False,
) -> None:
    """One label set: its labels, templates, model and state."""

    async def work(client: AsyncClient) -> LabelSetDetail:
        found = await client.label_set(name)
        while found.status == "fitting":  # soon over; a server that has just been started fits what it stored
            await asyncio.sleep(0.1)
            found = await client.label_set(name)
        return found

    found = _ask(work, url, api_key, store, data, timeout_s)
    if as_json:
        output.print_json(found.model_dump())
        return
    facts = [
        ("label set", found.name),
        ("model", found.model),
        ("state", _state(found)),
        ("texts", f"{found.encoded} of {found.texts} encoded"),
        ("examples", f"{found.examples} (version {found.version})" if found.version else ""),
        ("templates", "" if found.weighed else " | ".join(found.templates)),
        ("labels", ", ".join(found.label_names)),
    ]
    output.print_facts([(fact, value) for fact, value in facts if value])
    if found.weighed:
        _print_weights(found.templates, found.weighed)
    if found.per_label:
        print_report(found)


def _print_weights(templates: list[str], weighed: WeighedTemplates) -> None:
    """The templates, heaviest first."""
    by = f"{weighed.pictures} pictures of {weighed.collection}"
    if weighed.weights is None:
        output.say(f"templates are being weighed by {by}")
        return
    beside = f" beside those of {weighed.reference}" if weighed.reference else ""
    output.say(f"templates weighed by {by}{beside} ({weighed.how})")
    rows = sorted(zip(weighed.weights, templates, strict=True), key=lambda row: -row[0])
    output.print_table(["weight", "template"], [[f"{weight:.4f}", template] for weight, template in rows])


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: connect.Url = None,
    api_key: connect.ApiKey = None,
    store: connect.StoreFolder = None,
    data: connect.DataFolder = None,
    timeout_s: connect.TimeoutS = 60.0,
) -> None:
    """Delete a label set."""
    if not yes:
        output.confirm(f"delete label set {name}?")
    _ask(lambda client: client.delete_label_set(name), url, api_key, store, data, timeout_s)
    output.say(f"deleted {name}")


def _state(info: LabelSetInfo) -> str:
    if info.failed:
        return f"failed: {info.failed}"
    if info.built_in:
        return "class head"
    if info.status == "fitting":
        return "fitting"
    return "ready" if info.ready else f"{info.encoded} of {info.texts} encoded"


def _ask(
    work: Callable[[AsyncClient], Awaitable[T]],
    url: str | None,
    api_key: str | None,
    store: Path | None,
    data: Path | None,
    timeout_s: float,
    *,
    model: str | None = None,
) -> T:
    """What `work` gives with a client of the server, or of one in this process on the data folder."""

    async def run() -> T:
        async with connect.collections_client(
            url=url, api_key=api_key, model=model, store=store, data=data, timeout_s=timeout_s, creates=True
        ) as client:
            return await work(client)

    with output.saying_warnings():
        return asyncio.run(run())
