"""`clipworks models`: list, show, verify and remove artifacts of a store; model_making has what makes them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipworks.cli import connect, model_facts, model_making, output
from clipworks.cli.failures import FAILED_ITEMS, RefusedError, UsageError
from clipworks.cli.model_stores import StoreFolder, open_store, writable_store
from clipworks.cli.model_users import users_of
from clipworks.client import Client
from clipworks.schemas import ModelDetail, ModelSummary

if TYPE_CHECKING:
    from model_store.manifest import Precision
    from model_store.store import Artifact

app = typer.Typer(
    help="List, show, verify, import and remove model artifacts.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ServerUrl = Annotated[str | None, typer.Option("--url", help="Ask this server instead of reading a store.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="NAME or NAME@VERSION.")]


@app.command("list")
def list_models(
    store: StoreFolder = None, url: ServerUrl = None, api_key: connect.ApiKey = None, as_json: connect.AsJson = False
) -> None:
    """All models: the one shipped with the package, and those of the store."""
    if url:
        with _client(url, api_key) as client:
            _print_summaries(client.models(), as_json)
        return
    opened = open_store(store)
    artifacts = opened.list()
    if as_json:
        output.print_json([model_facts.summary(artifact) for artifact in artifacts])
    else:
        rows = [
            [
                artifact.reference,
                str(artifact.manifest.dim),
                ", ".join(model_facts.precisions(artifact)),
                model_facts.megabytes(artifact),
                artifact.manifest.provenance.architecture,
                "store" if artifact.writable else "shipped",
            ]
            for artifact in artifacts
        ]
        if rows or not output.is_terminal():
            output.print_table(["model", "dim", "precisions", "MB", "architecture", "where"], rows)
        else:
            output.say(
                "no models; import one: clipworks models import ViT-B-32 --pretrained TAG --name NAME --store DIR"
            )
    for problem in opened.problems():
        output.say(f"cannot be opened: {problem}")


@app.command()
def show(
    name: Name,
    store: StoreFolder = None,
    url: ServerUrl = None,
    api_key: connect.ApiKey = None,
    as_json: connect.AsJson = False,
) -> None:
    """Everything an artifact says about itself: specs, precisions with measured fidelity, provenance, limits."""
    if url:
        with _client(url, api_key) as client:
            detail = client.model(name)
        if as_json:
            output.print_json(detail.model_dump())
        else:
            output.print_facts(_flat(detail))
        return
    artifact = open_store(store).open(name)
    if as_json:
        output.print_json(artifact.manifest.model_dump(mode="json"))
        return
    output.print_facts(model_facts.description(artifact))
    rows = [
        [
            f"{spec.role} {spec.head}" if spec.head else spec.role,
            spec.precision,
            "yes" if spec.batch_invariant else f"no ({spec.batch_difference:.1e})",
            f"{spec.fidelity.cosine_min:.6f}" if spec.fidelity else "",
            f"{spec.fidelity.centred_cosine_min:.6f}" if spec.fidelity else "",
        ]
        for spec in artifact.manifest.graphs
    ]
    sys.stdout.write("\n")
    output.print_table(["role", "precision", "batch-invariant", "min cosine", "min cosine, centred"], rows)
    for skipped in artifact.manifest.skipped:
        output.say(f"not built: {skipped.role} {skipped.precision}: {skipped.reason}")


@app.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="NAME or NAME@VERSION; all models when left out.")
    ] = None,
    store: StoreFolder = None,
    goldens: Annotated[
        bool, typer.Option(help="Also run the golden cases of every precision this machine can run.")
    ] = True,
    as_json: connect.AsJson = False,
) -> None:
    """Check every file against its digest, and that the graphs still give the vectors they were published with."""
    opened = open_store(store)
    artifacts = [opened.open(name)] if name else opened.list()
    results: list[dict[str, str]] = []
    for artifact in artifacts:
        results += verify_one(artifact, goldens)
    if name is None:
        results += [{"model": "", "check": "manifest", "result": problem} for problem in opened.problems()]
    failed = [each for each in results if each["result"] not in ("ok", model_facts.UNSEALED)]
    if as_json:
        output.print_json({"ok": not failed, "checks": results})
    else:
        output.print_table(["model", "check", "result"], [list(each.values()) for each in results])
    if failed:
        raise typer.Exit(FAILED_ITEMS)


app.command("import")(model_making.import_model)
app.command()(model_making.pull)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME@VERSION.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also when collections or label sets need it.")] = False,
    store: StoreFolder = None,
    data: Annotated[
        Path | None,
        typer.Option(envvar="CLIPWORKS_DATA", help="Folder of the collections that may need it.", show_default=False),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="CLIPWORKS_API_KEY", help="Key of a server that has --data open.", show_default=False),
    ] = None,
) -> None:
    """Delete one version from the store, unless a collection or label set of the data folder is bound to it."""
    model, _, version = name.partition("@")
    if not version:
        raise UsageError(f"{name}: write the version too, such as {model}@1; a removed model is gone")
    target = writable_store(store)
    artifact = target.open(name)
    if not force and (users := users_of(artifact.reference, data=data, api_key=api_key)):
        raise RefusedError(
            f"{artifact.reference} is in use by {', '.join(users[:8])}{', ...' if users[8:] else ''}: nothing "
            "could be searched, added or classified with them; delete those first, or remove it with --force"
        )
    if not yes:
        output.confirm(f"delete {artifact.folder}?")
    target.remove(model, artifact.manifest.version)
    output.say(f"removed {name}")


def _client(url: str, api_key: str | None) -> Client:
    try:
        return Client(url, api_key=api_key)
    except ValueError as error:
        raise UsageError(str(error)) from error


def verify_one(artifact: Artifact, goldens: bool) -> list[dict[str, str]]:
    """One line for each check; a failed one carries its reason in place of "ok"."""
    from model_store.errors import ArtifactError

    def tried(check: str, run: Callable[[], None]) -> dict[str, str]:
        try:
            run()
        except ArtifactError as error:
            return {"model": artifact.reference, "check": check, "result": str(error)}
        return {"model": artifact.reference, "check": check, "result": "ok"}

    seal = "ok" if artifact.sealed else model_facts.UNSEALED  # a wrong one is not opened at all
    lines = [{"model": artifact.reference, "check": "seal", "result": seal}, tried("files", artifact.verify)]
    base = artifact.base
    while base is not None:
        lines.append(tried(f"files of {base.reference}", base.verify))
        base = base.base
    if goldens and all(line["result"] in ("ok", model_facts.UNSEALED) for line in lines):
        for precision in model_facts.precisions(artifact):
            if precision != "fp16":
                lines.append(tried(f"goldens {precision}", partial(_open, artifact, precision)))
    return lines


def _open(artifact: Artifact, precision: Precision) -> None:
    """Open it as the server does: in a child process first, then against its golden cases."""
    from service.engine.dense import open_dense
    from service.engine.opening import EngineSettings
    from service.engine.running import open_model
    from service.settings import available_cores

    settings = EngineSettings(
        device="cpu",
        precision=precision,
        intra_threads=available_cores(),
        spinning=False,
        max_batch_images=8,
        max_batch_texts=8,
        max_queue_items=8,
        probe_first=True,
    )
    open_model(artifact, settings)
    if artifact.dense_spec is not None:
        open_dense(artifact, settings)


def _flat(detail: ModelDetail) -> list[tuple[str, str]]:
    return [
        (field, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for field, value in detail.model_dump().items()
    ]


def _print_summaries(summaries: Sequence[ModelSummary], as_json: bool) -> None:
    if as_json:
        output.print_json([each.model_dump() for each in summaries])
        return
    rows = [
        [
            f"{each.name}@{each.version}",
            str(each.dim),
            ", ".join(sorted(set(each.precision.values()))),
            "loaded" if each.loaded else "",
            ", ".join(each.providers.active),
        ]
        for each in summaries
    ]
    output.print_table(["model", "dim", "precision", "state", "runs on"], rows)
