"""`clipworks models`: list, show, verify, import and remove artifacts of a store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipworks.cli import connect, output
from clipworks.cli.failures import FAILED_ITEMS, RefusedError, UsageError
from clipworks.cli.model_users import users_of
from clipworks.client import Client
from clipworks.schemas import ModelDetail, ModelSummary

if TYPE_CHECKING:
    from model_store.manifest import HeadSpec, Manifest, Precision, Provenance, Role, SpaceProof
    from model_store.store import Artifact, Store

app = typer.Typer(
    help="List, show, verify, import and remove model artifacts.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
StoreFolder = Annotated[Path | None, typer.Option(envvar="CLIPWORKS_STORE", help="Folder of model artifacts.")]
ServerUrl = Annotated[str | None, typer.Option("--url", help="Ask this server instead of reading a store.")]
Dense = Literal["maskclip", "sclip", "naclip", "none"]
DENSE_HELP = "What replaces a ViT's last attention where pictures are localised; none: no dense role."
_LABELS_SHOWN = 8
_UNSEALED = "none: made before manifests had a digest; import or export it again to have one"
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
    opened = _store(store)
    artifacts = opened.list()
    if as_json:
        output.print_json([_facts(artifact) for artifact in artifacts])
    else:
        rows = [
            [
                artifact.reference,
                str(artifact.manifest.dim),
                ", ".join(_precisions(artifact)),
                _megabytes(artifact),
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
    artifact = _store(store).open(name)
    if as_json:
        output.print_json(artifact.manifest.model_dump(mode="json"))
        return
    output.print_facts(_described(artifact))
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
    opened = _store(store)
    artifacts = [opened.open(name)] if name else opened.list()
    results: list[dict[str, str]] = []
    for artifact in artifacts:
        results += _verified(artifact, goldens)
    if name is None:
        results += [{"model": "", "check": "manifest", "result": problem} for problem in opened.problems()]
    failed = [each for each in results if each["result"] not in ("ok", _UNSEALED)]
    if as_json:
        output.print_json({"ok": not failed, "checks": results})
    else:
        output.print_table(["model", "check", "result"], [list(each.values()) for each in results])
    if failed:
        raise typer.Exit(FAILED_ITEMS)


@app.command("import")
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


@app.command()
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
    """Turn an ONNX export of a CLIP model, from the hub or a folder, into an artifact (needs the hub extra, no "
    "torch)."""
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
        store=_store(store or default_store()),
        precisions=precisions_of(precision),
        ask=not yes,
        pairs=read_pairs(pairs) if pairs else None,
    )
    if not as_json:
        output.print_facts(_pulled(artifact))
    print_published(artifact, as_json)


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


def writable_store(folder: Path | None) -> Store:
    """Raises UsageError when no folder was given."""
    if folder is None:
        raise UsageError("where to? give --store FOLDER or set CLIPWORKS_STORE")
    return _store(folder)


def precisions_of(text: str) -> tuple[Precision, ...]:
    """fp32 is always among them: the others are measured against it. Raises UsageError for an unknown one."""
    from model_store.manifest import PRECISIONS

    wanted = {"fp32", *(part.strip() for part in text.split(",") if part.strip())}
    if unknown := sorted(wanted - set(PRECISIONS)):
        raise UsageError(f"--precision {text}: unknown {', '.join(unknown)}; known are {', '.join(PRECISIONS)}")
    return tuple(each for each in PRECISIONS if each in wanted)


def print_published(artifact: Artifact, as_json: bool) -> None:
    if as_json:
        output.print_json({"model": artifact.reference, "folder": str(artifact.folder), **_facts(artifact)})
        return
    for skipped in artifact.manifest.skipped:
        output.say(f"not built: {skipped.role} {skipped.precision}: {skipped.reason}")
    output.say(f"published {artifact.reference} ({', '.join(_precisions(artifact))}) in {artifact.folder}")
    root = artifact.folder.parent.parent
    output.say(f"serve it: clipworks serve --store {root} --model {artifact.manifest.name}")


def _store(folder: Path | None) -> Store:
    from model_store.store import Store

    return Store(folder)


def _client(url: str, api_key: str | None) -> Client:
    try:
        return Client(url, api_key=api_key)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _verified(artifact: Artifact, goldens: bool) -> list[dict[str, str]]:
    """One line for each check; a failed one carries its reason in place of "ok"."""
    from model_store.errors import ArtifactError

    def tried(check: str, run: Callable[[], None]) -> dict[str, str]:
        try:
            run()
        except ArtifactError as error:
            return {"model": artifact.reference, "check": check, "result": str(error)}
        return {"model": artifact.reference, "check": check, "result": "ok"}

    seal = "ok" if artifact.sealed else _UNSEALED  # a wrong one is not opened at all
    lines = [{"model": artifact.reference, "check": "seal", "result": seal}, tried("files", artifact.verify)]
    base = artifact.base
    while base is not None:
        lines.append(tried(f"files of {base.reference}", base.verify))
        base = base.base
    if goldens and all(line["result"] in ("ok", _UNSEALED) for line in lines):
        for precision in _precisions(artifact):
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


def _precisions(artifact: Artifact) -> list[Precision]:
    """Those in which at least one encoder, own or inherited, can be served."""
    from model_store.manifest import ENCODERS, PRECISIONS

    roles: list[Role] = [role for role in ENCODERS if role in artifact.roles()]
    return [each for each in PRECISIONS if any(artifact.served_precision(role, each) == each for role in roles)]


def _megabytes(artifact: Artifact) -> str:
    return f"{sum(entry.size_bytes for entry in artifact.manifest.files) / 1e6:.1f}"


def _facts(artifact: Artifact) -> dict[str, object]:
    manifest = artifact.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "kind": manifest.kind,
        "base": artifact.base.reference if artifact.base else None,
        "dim": manifest.dim,
        "heads": {name: len(head.labels) for name, head in artifact.heads().items()},
        "roles": list(artifact.roles()),
        "precisions": _precisions(artifact),
        "fingerprint": manifest.fingerprint.model_dump(),
        "space": manifest.space,
        "bytes": sum(entry.size_bytes for entry in manifest.files),
        "shipped": not artifact.writable,
        "sealed": artifact.sealed,
    }


def _described(artifact: Artifact) -> list[tuple[str, str]]:
    manifest, provenance = artifact.manifest, artifact.manifest.provenance
    image, text = artifact.image_spec, artifact.text_spec
    facts = [
        ("model", artifact.reference),
        ("folder", str(artifact.folder)),
        ("size", f"{_megabytes(artifact)} MB"),
        ("seal", "ok" if artifact.sealed else _UNSEALED),
        ("base", artifact.base.reference if artifact.base else ""),
        ("roles", ", ".join(_roles(artifact))),
        ("vectors", f"{manifest.dim} numbers, {_scale(manifest)}"),
        (
            "images",
            f"{image.width_px} x {image.height_px}, {image.resize_mode}, {image.interpolation}" if image else "-",
        ),
        ("texts", f"{text.context_length} tokens of {text.vocab_size}, {text.kind}" if text else "-"),
        ("templates", " | ".join(manifest.templates)),
        ("space", _space(artifact)),
        ("fingerprint image", manifest.fingerprint.image or "-"),
        ("fingerprint text", manifest.fingerprint.text or "-"),
        ("source", provenance.source),
        ("verified", _proven(provenance)),
        ("architecture", f"{provenance.architecture}, {provenance.activation}"),
        ("licence", provenance.licence),
        ("made", provenance.created_utc),
        ("trained on", provenance.training_data),
        ("limits", provenance.limits),
    ]
    facts += [(f"head {name}", _head(head)) for name, head in artifact.heads().items()]
    facts += [(f"proof {proof.tower}", _proof(proof)) for proof in manifest.space_proofs]
    facts += [(f"measured {metric}", f"{value:.4g}") for metric, value in manifest.metrics.items()]
    return [(fact, value) for fact, value in facts if value]


def _pulled(artifact: Artifact) -> list[tuple[str, str]]:
    """What a person should know of a model that somebody else exported."""
    manifest = artifact.manifest
    recall = manifest.metrics.get("wrapped/captions recall@1")
    facts = [
        ("source", manifest.provenance.source),
        ("licence", manifest.provenance.licence),
        ("verified", _proven(manifest.provenance)),
        ("photographs find captions", "" if recall is None else f"{recall:.0%}"),
        ("scores", _scale(manifest)),
    ]
    return [(fact, value) for fact, value in facts if value]


def _proven(provenance: Provenance) -> str:
    if provenance.verified == "torch":
        return "compared with torch"
    return f"wrapped: another project's export ({provenance.layout}), compared with itself, not with its torch model"


def _scale(manifest: Manifest) -> str:
    """Such as: softmax, scale 100.00 (of the weights)."""
    if manifest.logit_scale is None:
        return f"cosines only: {manifest.scale_source}"
    return f"{manifest.activation}, scale {manifest.logit_scale:.2f} (from {manifest.scale_source})"


def _roles(artifact: Artifact) -> list[str]:
    """Each role once, with where it comes from when that is a base."""
    named = [(role, artifact.owner(role)) for role in artifact.roles()]
    return [f"{role} (of {owner.reference})" if owner and owner is not artifact else role for role, owner in named]


def _space(artifact: Artifact) -> str:
    above = artifact.base.manifest.space if artifact.base else None
    if above is None or artifact.base is None:
        return artifact.manifest.space
    same = artifact.manifest.space == above
    return f"{artifact.manifest.space} ({'that' if same else 'not that'} of {artifact.base.reference})"


def _head(head: HeadSpec) -> str:
    """Such as: 3 labels, softmax: red, green, blue."""
    shown = ", ".join(head.labels[:_LABELS_SHOWN]) + (", ..." if len(head.labels) > _LABELS_SHOWN else "")
    return f"{len(head.labels)} labels, {head.activation}, temperature {head.temperature:g}: {shown}"


def _proof(proof: SpaceProof) -> str:
    bound = "" if proof.at_least is None else f", at least {proof.at_least:g} was asked for"
    before = "" if proof.base_value is None else f", the base has {proof.base_value:.4g}"
    return f"{proof.metric} {proof.value:.4g} over {proof.n}{bound}{before}: {proof.statement}"


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
