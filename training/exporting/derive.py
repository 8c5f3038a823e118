"""A derivation: what a method made on top of a base artifact -> graphs, proof, goldens -> published with `base` set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from model_store.artifact import Artifact
from model_store.derivation import TOWERS
from model_store.errors import ArtifactNotFound, ExportRefused
from model_store.golden import (
    CONDITIONAL_IDS,
    DerivationGoldens,
    Goldens,
    dense_goldens,
    output_key,
    write_goldens,
)
from model_store.identity import adapted_fingerprint, fingerprint, space_of
from model_store.manifest import (
    ADAPTERS,
    ENCODERS,
    BaseReference,
    Fingerprint,
    GraphSpec,
    HeadSpec,
    ImageSpec,
    Manifest,
    Precision,
    Presence,
    Provenance,
    Role,
    SkippedVariant,
    SpaceProof,
    TextSpec,
    TowerName,
)
from model_store.modality.text import Tokenizer
from model_store.precisions.calibration import Calibration, calibration_for
from model_store.precisions.measure import MeasuredRows
from model_store.precisions.variants import ALL_PRECISIONS, Progress, build_tower, fp32_first, tolerances_of
from model_store.probe import one_child
from model_store.store import Store, file_entries
from training.aligned_config import Storage
from training.exporting.conditional import ConditionalSource, build_conditional, conditional_texts
from training.exporting.dense_build import add_dense, dense_reference, dense_spec_of
from training.exporting.derive_dense import build_dense_adapter
from training.exporting.derived_graphs import (
    AdapterSource,
    Built,
    HeadSource,
    Way,
    build_adapter,
    build_head,
    through_base_adapter,
    way_of_base,
    way_of_tower,
)
from training.exporting.export import image_tower, recipe_of, text_tower, weight_arrays, write_notice
from training.exporting.reference import torch_vectors
from training.exporting.reranking import BuiltReranker, RerankSource, build_reranker
from training.exporting.storage import keep_compact
from training.models.dense import DenseSource


@dataclass(frozen=True, kw_only=True)
class DerivationSource:
    """What a method brings; everything that is None or empty is the base's.

    image, text: encoders as in ExportSource, with the base's text spec and tokeniser; another one is another base.
        Their weights, as the fingerprint covers them, may be given apart. image_spec: of a new image encoder, where
        pictures reach it otherwise than they reach the base's.
    dense: a new image encoder read position by position; without it a new image encoder has no dense role.
    dense_adapter: AdapterSource of positions [N, D] -> [N, D'], behind the base's dense encoder. Positions and pooled
        vectors must end in one space, so it comes with an image_adapter unless it keeps their size and meaning; an
        image_adapter without it hides the base's dense role. Say `normalized_input=False` where length matters.
    heads: classifiers on the image vectors by name; each becomes a label set of the model.
    conditional: judges any labels in place of the text vectors, which stay as they are for everything else.
    reranker: orders candidates again; it reads positions of the base's dense encoder, so both towers stay the base's.
    proofs: one or more for every changed tower that keeps the base's space. Without proofs a changed tower makes the
        artifact a space of its own. `fingerprint` is filled in here.
    storage: how the weights of new encoders lie in files, as of ExportSource.
    structure: what shapes the answer and is not in the weights, as one string.
    """

    base: Artifact
    structure: str
    provenance: Provenance
    image: nn.Module | None = None
    image_spec: ImageSpec | None = None
    text: nn.Module | None = None
    image_weights: Mapping[str, Tensor] | None = None
    text_weights: Mapping[str, Tensor] | None = None
    image_adapter: AdapterSource | None = None
    text_adapter: AdapterSource | None = None
    dense: DenseSource | str | None = None
    dense_adapter: AdapterSource | None = None
    heads: Mapping[str, HeadSource] = field(default_factory=dict[str, HeadSource])
    conditional: ConditionalSource | None = None
    reranker: RerankSource | None = None
    proofs: tuple[SpaceProof, ...] = ()
    templates: tuple[str, ...] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    activation: Literal["softmax", "sigmoid"] | None = None
    presence: Presence | None = None
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    storage: Storage | None = None


@dataclass
class _Staged:
    """What lies in the staging folder so far."""

    folder: Path
    graphs: list[GraphSpec] = field(default_factory=list[GraphSpec])
    skipped: list[SkippedVariant] = field(default_factory=list[SkippedVariant])
    adapters: dict[Role, Built] = field(default_factory=dict[Role, Built])
    heads: dict[str, Built] = field(default_factory=dict[str, Built])
    conditional: Built | None = None
    reranker: BuiltReranker | None = None
    dims: set[int] = field(default_factory=set[int])
    dense_outputs: dict[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])

    def keep(self, built: Built) -> Built:
        self.graphs.append(built.graph)
        self.skipped.extend(built.skipped)
        return built


@dataclass(frozen=True)
class _Inputs:
    """The base's input rules and the rows everything is measured on."""

    image_spec: ImageSpec
    text_spec: TextSpec
    tokenizer: Tokenizer
    tokenizer_bytes: bytes
    calibration: Calibration


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One tower of the derivation: what it brings of its own, and the name it has with that."""

    tower: TowerName
    role: Role
    adapter_role: Role
    module: nn.Module | None
    adapter: AdapterSource | None
    fingerprint: str | None
    changed: bool


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the manifest and the goldens both say."""

    sides: tuple[_Side, _Side]
    encoders: Fingerprint
    heads: tuple[HeadSpec, ...]
    proofs: tuple[SpaceProof, ...]

    @property
    def changed(self) -> list[TowerName]:
        return [side.tower for side in self.sides if side.changed]


@one_child()
def export_derivation(
    source: DerivationSource,
    *,
    name: str,
    store: Store,
    precisions: Iterable[Precision] = ALL_PRECISIONS,
    pictures: Sequence[bytes] = (),
    texts: Sequence[str] = (),
    notice: str = "",
    progress: Progress | None = None,
) -> Artifact:
    """Export, prove and publish what `source` brings as the next version of `name`, with its base beside it.

    New encoders are built at each of `precisions`; adapters and heads in fp32, and measured behind every precision of
    the encoder before them. A precision with which they miss their floor is not served (`manifest.skipped`).

    Raises:
        ExportRefused: nothing new is brought, the base is not in `store`, the proofs are not about the changed towers,
            or a graph is not the torch module.
        ManifestError: a proof does not reach its bound.
    """
    say = progress or (lambda message: None)
    base = _base_in(store, source)
    inputs = _inputs(source, base, pictures, texts)
    plan = _plan(source, base, inputs)
    with store.staging() as folder:
        staged = _Staged(folder)
        wanted = fp32_first(precisions)
        for side in plan.sides:
            way = _build_side(side, base, inputs, wanted, staged, say)
            if side.tower == "image":
                _build_dense(source, base, inputs, staged, say)
                _build_heads(source, plan, way, staged, say)
                _build_conditional(source, inputs, way, staged, say)
        _build_reranker(source, base, inputs, staged, say)
        if len(staged.dims) > 1:
            raise ExportRefused(f"image and text vectors have different sizes: {sorted(staged.dims)}")
        if source.storage is not None:
            staged.graphs = keep_compact(staged.graphs, folder, source.storage, feeds=_feeds(source, inputs))
        say("goldens")
        _write_goldens(source, inputs, plan, staged)
        write_notice(folder, notice)
        manifest = _manifest(source, base, plan, name, store.next_version(name), staged)
        say("publish")
        return store.publish(folder, manifest)


def _base_in(store: Store, source: DerivationSource) -> Artifact:
    adapters = source.image_adapter or source.text_adapter or source.dense_adapter
    if not (source.image or source.text or adapters or source.heads or source.conditional or source.reranker):
        raise ExportRefused("a derivation brings at least one encoder, adapter, head or reranker of its own")
    if source.reranker and (source.image or source.text or source.image_adapter or source.dense_adapter):
        raise ExportRefused("a reranker reads the base's positions and tokens, but the derivation changes a tower")
    try:
        base = store.open(source.base.reference)
    except ArtifactNotFound as error:
        raise ExportRefused(f"the base must lie in the same store: {error}") from error
    if base.manifest.fingerprint != source.base.manifest.fingerprint:
        raise ExportRefused(f"the store's {base.reference} is another model than the base that was trained on")
    return base


def _inputs(source: DerivationSource, base: Artifact, pictures: Sequence[bytes], texts: Sequence[str]) -> _Inputs:
    owner = base
    while owner.manifest.text is None and owner.base is not None:
        owner = owner.base
    if base.image_spec is None or owner.manifest.text is None:
        raise ExportRefused(f"{base.reference} needs an image and a text encoder to be derived from")
    if source.image_spec is not None and source.image is None:
        raise ExportRefused("an image spec of its own belongs to an image encoder of its own")
    tokenizer, image_spec = base.tokenizer(), source.image_spec or base.image_spec
    return _Inputs(
        image_spec=image_spec,
        text_spec=owner.manifest.text,
        tokenizer=tokenizer,
        tokenizer_bytes=owner.read(owner.manifest.text.tokenizer_file),
        calibration=calibration_for(image_spec, tokenizer, pictures=pictures, texts=texts),
    )


def _plan(source: DerivationSource, base: Artifact, inputs: _Inputs) -> _Plan:
    recipe, above = recipe_of(source.structure), base.manifest.fingerprint

    def side(tower: TowerName) -> _Side:
        if tower == "image":
            module, adapter, weights = source.image, source.image_adapter, source.image_weights
            name, spec, tokenizer = above.image, inputs.image_spec, None
        else:
            module, adapter, weights = source.text, source.text_adapter, source.text_weights
            name, spec, tokenizer = above.text, inputs.text_spec, inputs.tokenizer_bytes
        before = name
        if module is not None:
            name = fingerprint(weight_arrays(weights or module.state_dict()), spec, recipe, tokenizer)
        if adapter is not None:
            state = weight_arrays(adapter.module.state_dict())
            name = adapted_fingerprint(name, state, normalized=adapter.normalized_input, recipe=recipe)
        position = TOWERS.index(tower)
        return _Side(
            tower=tower,
            role=ENCODERS[position],
            adapter_role=ADAPTERS[position],
            module=module,
            adapter=adapter,
            fingerprint=name,
            changed=name != before,
        )

    image, text = side("image"), side("text")
    names = {each.tower: each.fingerprint for each in (image, text) if each.changed}
    proved = {proof.tower for proof in source.proofs}
    if proved and proved != set(names):
        raise ExportRefused(f"the changed towers are {sorted(names)}, the space proofs are about {sorted(proved)}")
    try:
        heads = tuple(
            HeadSpec(
                name=name,
                labels=head.labels,
                input_fingerprint=image.fingerprint or "",
                activation=head.activation,
                temperature=head.temperature,
            )
            for name, head in source.heads.items()
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ExportRefused(
            f"head: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        ) from error
    return _Plan(
        sides=(image, text),
        encoders=Fingerprint(image=image.fingerprint, text=text.fingerprint),
        heads=heads,
        proofs=tuple(proof.model_copy(update={"fingerprint": names[proof.tower]}) for proof in source.proofs),
    )


def _build_side(
    side: _Side, base: Artifact, inputs: _Inputs, wanted: list[Precision], staged: _Staged, say: Progress
) -> Callable[[], Way]:
    """Build encoder and adapter; the answer gives their vectors, which costs runs where all is the base's."""

    def inherited() -> Way:
        say(f"{side.role} of {base.reference}")
        return way_of_base(base, side.role, _rows_of_base(base, inputs, side.role))

    if side.module is None and side.adapter is None:
        staged.dims.add(base.manifest.dim)
        return lambda: through_base_adapter(inherited(), base, side.role)
    way = inherited() if side.module is None else _build_encoder(side.module, side.role, inputs, wanted, staged, say)
    if side.adapter is not None:
        say(side.adapter_role)
        built = staged.keep(build_adapter(side.adapter, side.adapter_role, way, staged.folder))
        staged.adapters[side.adapter_role] = built
        way = built.way
    staged.dims.add(way.dim)
    return lambda: way


def _build_heads(source: DerivationSource, plan: _Plan, way: Callable[[], Way], staged: _Staged, say: Progress) -> None:
    if not plan.heads:
        return
    before = way()
    for spec in plan.heads:
        say(f"class_head {spec.name}")
        staged.heads[spec.name] = staged.keep(build_head(source.heads[spec.name], spec, before, staged.folder))


def _build_conditional(
    source: DerivationSource, inputs: _Inputs, way: Callable[[], Way], staged: _Staged, say: Progress
) -> None:
    if source.conditional is not None:
        say("conditional_head")
        built = build_conditional(source.conditional, way(), conditional_texts(inputs.tokenizer), staged.folder)
        staged.conditional = staged.keep(built)


def _build_reranker(source: DerivationSource, base: Artifact, inputs: _Inputs, staged: _Staged, say: Progress) -> None:
    if source.reranker is None:
        return
    say("reranker")
    staged.reranker = build_reranker(source.reranker, base, inputs.tokenizer, staged.folder)
    staged.graphs += staged.reranker.graphs


def _build_dense(source: DerivationSource, base: Artifact, inputs: _Inputs, staged: _Staged, say: Progress) -> None:
    """The dense graph of a new image encoder, or an adapter behind the base's."""
    if source.dense is not None and source.image is None:
        raise ExportRefused("a dense encoder of its own belongs to an image encoder of its own")
    if source.image is not None:
        staged.graphs, missed = add_dense(
            source.dense, source.image, staged.graphs, inputs.calibration.pixels, staged.folder, say
        )
        staged.skipped += missed
    if source.dense_adapter is not None:
        if source.image is not None:
            raise ExportRefused("a dense adapter follows the base's dense encoder, but the image encoder is a new one")
        say("dense_adapter")
        built, staged.dense_outputs = build_dense_adapter(source.dense_adapter, base, staged.folder)
        staged.adapters["dense_adapter"] = staged.keep(built)
        staged.dims.add(built.way.dim)


def _build_encoder(
    module: nn.Module, role: Role, inputs: _Inputs, wanted: list[Precision], staged: _Staged, say: Progress
) -> Way:
    if role == "image_encoder":
        tower = image_tower(module, inputs.image_spec, inputs.calibration)
        goldens = len(tower.rows.padded) - len(inputs.calibration.pixels)
    else:
        tower = text_tower(module, inputs.text_spec, inputs.tokenizer, inputs.calibration)
        goldens = len(tower.rows.padded) - len(inputs.calibration.rows)
    graphs, skipped = build_tower(tower, wanted, staged.folder, say)
    staged.graphs += graphs
    staged.skipped += skipped
    return way_of_tower(tower, goldens, graphs, staged.folder)


def _feeds(source: DerivationSource, inputs: _Inputs) -> dict[Role, NDArray[Any]]:
    """Some input for every new encoder."""
    tokens = inputs.tokenizer.pad(inputs.calibration.rows[:2])
    feeds: dict[Role, NDArray[Any]] = {"image_encoder": inputs.calibration.pixels[:2], "text_encoder": tokens}
    if isinstance(source.dense, DenseSource):
        feeds["dense_encoder"] = next(iter(dense_goldens(source.dense.spec).values()))
    return feeds


def _rows_of_base(base: Artifact, inputs: _Inputs, role: Role) -> MeasuredRows:
    owner = base.owner(role)
    if owner is None:
        raise ExportRefused(f"{base.reference} has no {role}")
    goldens = Goldens(owner)
    if role == "image_encoder":
        return MeasuredRows(padded=np.concatenate([goldens.inputs(role), inputs.calibration.pixels]))
    rows = [*(case.ids for case in goldens.cases.texts), *inputs.calibration.rows]
    lengths = tuple(len(row) for row in rows) if inputs.text_spec.dynamic_length else None
    return MeasuredRows(padded=inputs.tokenizer.pad(rows, inputs.text_spec.context_length), lengths=lengths)


def _manifest(
    source: DerivationSource, base: Artifact, plan: _Plan, name: str, version: int, staged: _Staged
) -> Manifest:
    above, changed = base.manifest, plan.changed
    (dim,) = staged.dims
    return Manifest(
        format=1,
        name=name,
        version=version,
        kind="derivation",
        base=BaseReference(name=above.name, version=above.version, fingerprint=above.fingerprint),
        dim=dim,
        dimensions=() if changed else above.dimensions,
        image=source.image_spec,
        text=None,
        dense=dense_spec_of(source.dense, staged.graphs),
        graphs=tuple(staged.graphs),
        heads=plan.heads,
        skipped=tuple(staged.skipped),
        logit_scale=above.logit_scale if source.logit_scale is None else source.logit_scale,
        logit_bias=above.logit_bias if source.logit_bias is None else source.logit_bias,
        activation=source.activation or above.activation,
        templates=source.templates or above.templates,
        presence=source.presence or (None if changed else above.presence),
        search=None if changed else above.search,
        fingerprint=plan.encoders,
        space=above.space if len({p.tower for p in plan.proofs}) == len(changed) else space_of(plan.encoders),
        space_proofs=plan.proofs,
        files=file_entries(staged.folder),
        metrics=dict(source.metrics) | _agreements(staged),
        provenance=source.provenance,
    )


def _agreements(staged: _Staged) -> dict[str, float]:
    """Share of the measured pictures on which a head behind a smaller encoder names the same class first."""
    return {
        f"head.{name}.{precision}.top1_agreement": float(
            (logits.argmax(axis=1) == built.way.reference.argmax(axis=1)).mean()
        )
        for name, built in staged.heads.items()
        for precision, logits in built.way.measured.items()
        if precision != "fp32" and logits.shape[1] > 1
    }


def _write_goldens(source: DerivationSource, inputs: _Inputs, plan: _Plan, staged: _Staged) -> None:
    image, text = source.image, source.text
    tolerances = tolerances_of(graph for graph in staged.graphs if graph.role in (*ENCODERS, "dense_encoder"))
    tolerances |= {role: built.tolerances for role, built in staged.adapters.items()}
    outputs: dict[str, NDArray[Any]] = {
        output_key(role): built.outputs for role, built in staged.adapters.items() if role in ADAPTERS
    }
    outputs |= staged.dense_outputs
    outputs |= {output_key("class_head", name): built.outputs for name, built in staged.heads.items()}
    if staged.conditional is not None:
        tolerances["conditional_head"] = staged.conditional.tolerances
        outputs[output_key("conditional_head")] = staged.conditional.outputs
        outputs[CONDITIONAL_IDS] = conditional_texts(inputs.tokenizer).padded
    if staged.reranker is not None:
        tolerances["token_encoder"] = {"fp32": staged.reranker.token_tolerance}
        outputs |= staged.reranker.outputs
    write_goldens(
        staged.folder,
        image=(inputs.image_spec, lambda rows: torch_vectors(image, MeasuredRows(padded=rows))) if image else None,
        text=(inputs.tokenizer, lambda rows: torch_vectors(text, MeasuredRows(padded=rows))) if text else None,
        dense=dense_reference(source.dense, staged.graphs),
        tolerances=tolerances,
        derived=DerivationGoldens(
            outputs=outputs,
            head_tolerances={name: built.tolerances for name, built in staged.heads.items()},
            heads=plan.heads,
            space_proofs=plan.proofs,
            match_tolerance=staged.reranker.match_tolerance if staged.reranker else None,
        ),
    )
