"""`clipworks models import` and `pull`, and what every command shares that makes an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipworks.cli import connect, model_facts, output
from clipworks.cli.failures import UsageError
from clipworks.cli.model_stores import StoreFolder, open_store, writable_store

if TYPE_CHECKING:
    from model_store.manifest import Precision
    from model_store.store import Artifact

Dense = Literal["maskclip", "sclip", "naclip", "none"]
DENSE_HELP = "What replaces a ViT's last attention where pictures are localised; none: no dense role."


def import_model(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH",
            help="An open_clip architecture; a name such as openai/clip-vit-base-patch32 or ViT-B/32; a folder of "
            "open_clip or of transformers' save_pretrained; or hf-hub:ORG/REPO.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the artifact; importing again makes its next version.")],
    pretrained: Annotated[
        str | None, typer.Option(help="An open_clip tag (downloaded), or a .safetensors, .pt, .pth or .bin file.")
    ] = None,
    activation: Annotated[
        Literal["gelu", "quickgelu"] | None,
        typer.Option(help="For a file of an architecture that exists in both forms; weights do not tell."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(exists=True, help="Tokenizer file or folder, where it is not CLIP's own.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Which to build, of fp32,fp16,int8.")] = "fp32,fp16,int8",
    dense: Annotated[Dense, typer.Option(help=DENSE_HELP)] = "naclip",
    licence: Annotated[str, typer.Option(help="Licence of the weights; kept in the artifact.")] = "not stated",
    store: StoreFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Turn a model of open_clip, or a CLIP or SigLIP of transformers, into an artifact (needs the train extra)."""
    from training.importing import importer

    target = writable_store(store)
    with output.steps(name) as step:
        artifact = importer.import_model(
            arch,
            pretrained=pretrained,
            name=name,
            store=target,
            activation=activation,
            tokenizer=tokenizer,
            precisions=precisions_of(precision),
            dense=dense,
            licence=licence,
            progress=step,
        )
    print_published(artifact, as_json)


def pull(
    repository: Annotated[
        str | None, typer.Argument(metavar="REPO[@REVISION]", help="A model repository of the hub, ORG/NAME.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--from", exists=True, file_okay=False, help="A folder with the same files instead.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; also behind an @.")] = None,
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="REPO", help="Repository or folder of the other tower, where they are apart."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the artifact; by default the repository's.")] = None,
    precision: Annotated[
        str, typer.Option(help="Which to build, of fp32,fp16,int8; int8 is calibrated and measured here.")
    ] = "fp32",
    pairs: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="CSV with columns image,caption, for a model that knows nothing of everyday photographs: these must "
            "find each other instead of the shipped ones.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the download.")] = False,
    store: StoreFolder = None,
    as_json: connect.AsJson = False,
) -> None:
    """Turn an ONNX export of CLIP, from the hub or a folder, into an artifact (needs the hub extra, no torch)."""
    from clipworks.cli.pull import default_store, open_source, pull_model
    from model_store.hub.checks import read_pairs
    from model_store.hub.references import model_name

    if (repository is None) == (folder is None):
        raise UsageError("name a repository, ORG/NAME, or a folder with --from")
    source = open_source(repository, folder, revision)
    artifact = pull_model(
        source,
        other=open_source(other, None, None) if other else None,
        name=name or model_name(source.name),
        store=open_store(store or default_store()),
        precisions=precisions_of(precision),
        ask=not yes,
        pairs=read_pairs(pairs) if pairs else None,
    )
    if not as_json:
        output.print_facts(model_facts.of_pulled(artifact))
    print_published(artifact, as_json)


def precisions_of(text: str) -> tuple[Precision, ...]:
    """fp32 is always among them: the others are measured against it. Raises UsageError for an unknown one."""
    from model_store.manifest import PRECISIONS

    wanted = {"fp32", *(part.strip() for part in text.split(",") if part.strip())}
    if unknown := sorted(wanted - set(PRECISIONS)):
        raise UsageError(f"--precision {text}: unknown {', '.join(unknown)}; known are {', '.join(PRECISIONS)}")
    return tuple(each for each in PRECISIONS if each in wanted)


def print_published(artifact: Artifact, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {"model": artifact.reference, "folder": str(artifact.folder), **model_facts.summary(artifact)}
        )
        return
    for skipped in artifact.manifest.skipped:
        output.say(f"not built: {skipped.role} {skipped.precision}: {skipped.reason}")
    output.say(f"published {artifact.reference} ({', '.join(model_facts.precisions(artifact))}) in {artifact.folder}")
    root = artifact.folder.parent.parent
    output.say(f"serve it: clipworks serve --store {root} --model {artifact.manifest.name}")
