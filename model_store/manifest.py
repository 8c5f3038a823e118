"""The manifest: closed data that says what an artifact is and how its inputs are made.

Every model is frozen and refuses unknown keys: a reader that does not understand a field must not
guess a vector. A role or field enters with its first producer, its golden cases and its consumer, not before. Nothing
here touches a file or a session.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"

Role = Literal[
    "image_encoder",
    "text_encoder",
    "dense_encoder",
    "dense_adapter",
    "image_adapter",
    "text_adapter",
    "class_head",
    "conditional_head",
    "token_encoder",
    "reranker",
]
ROLES: tuple[Role, ...] = get_args(Role)
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TowerName = Literal["image", "text"]
ENCODERS: tuple[Role, ...] = ("image_encoder", "text_encoder")
ADAPTERS: tuple[Role, ...] = ("image_adapter", "text_adapter")
ADAPTERS_AND_HEADS: tuple[Role, ...] = (
    *ADAPTERS,
    "dense_adapter",
    "class_head",
    "conditional_head",
    "reranker",
)  # graphs that take an encoder's vectors
RERANKING: tuple[Role, ...] = ("token_encoder", "reranker")  # the two come together, from one artifact
# What a role is fitted on: an artifact that brings one of these itself does not inherit the role from its base.
# One more rule stands in Artifact: an own image_adapter without an own dense_adapter hides the base's dense roles.
FITTED_ON: Mapping[Role, tuple[Role, ...]] = MappingProxyType(
    {
        "image_adapter": ("image_encoder",),
        "text_adapter": ("text_encoder",),
        "dense_encoder": ("image_encoder",),
        "dense_adapter": ("image_encoder", "dense_encoder", "image_adapter"),
        "class_head": ("image_encoder", "image_adapter"),
        # It reads labels in place of the text encoder, so another one would otherwise never be asked.
        "conditional_head": ("image_encoder", "image_adapter", "text_encoder", "text_adapter"),
        # States of the base's own tokens, and positions as the base's dense_encoder and its adapter give them.
        "token_encoder": ("image_encoder", "dense_encoder", "dense_adapter", "image_adapter", "text_encoder"),
        "reranker": ("image_encoder", "dense_encoder", "dense_adapter", "image_adapter", "text_encoder"),
    }
)

Sha256 = Annotated[str, Field(pattern=SHA256_PATTERN)]
RelativePath = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
Channels = tuple[float, float, float]


class Closed(BaseModel):
    """Base of all manifest parts: immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageSpec(Closed):
    """How encoded bytes become the uint8 [height_px, width_px, 3] array that the graph takes.

    `mean` and `std` are a record (fractions of 1.0): the normalisation itself is the graph's first layer.
    The literals are rules, not choices: a later rule gets a new value, and older code refuses it.
    """

    height_px: int = Field(ge=8, le=4096)
    width_px: int = Field(ge=8, le=4096)
    resize_mode: Literal["shortest", "longest", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    fill: int = Field(default=0, ge=0, le=255, description="padding level of resize_mode 'longest'")
    mean: Channels
    std: Channels
    channels: Literal["RGB"] = "RGB"
    crop_rounding: Literal["half_even"] = "half_even"
    exif: Literal["transpose"] = "transpose"
    alpha: Literal["over_white"] = "over_white"
    sixteen_bit: Literal["scale"] = "scale"
    jpeg_draft: Literal["off"] = "off"


class DenseSpec(Closed):
    """How a whole picture, never cropped, becomes pixels for the dense_encoder, and what its positions are.

    stride_px: side of one cell in prepared pixels; sides are multiples of it.
    sizes: "free" keeps the aspect ratio (short side near `short_px`, long side at most `max_long_px`); "fixed" squashes
        every picture to height_px x width_px, for heads with a weight of its own for each place.
    attention: what stands in place of the last block's attention of a ViT ("none": no ViT).
    pooling: how the pooled vector follows from the positions. "mean", "flat": it is their mean (flat: each place has
        its own projection). "attention": a weighted sum of the same values. "token": a token of its own.
    mean, std: a record, as in ImageSpec: the normalisation is the graph's first layer.
    """

    stride_px: int = Field(ge=1, le=1024)
    short_px: int = Field(ge=8, le=4096)
    max_long_px: int = Field(ge=8, le=4096)
    sizes: Literal["free", "fixed"]
    height_px: int | None = Field(default=None, ge=8, le=4096)
    width_px: int | None = Field(default=None, ge=8, le=4096)
    attention: Literal["none", "maskclip", "sclip", "naclip"] = "none"
    pooling: Literal["mean", "flat", "attention", "token"]
    interpolation: Literal["bicubic", "bilinear"]
    mean: Channels
    std: Channels

    @model_validator(mode="after")
    def _sizes_fit(self) -> DenseSpec:
        sides = (self.height_px, self.width_px)
        if (self.sizes == "fixed") != (None not in sides) or (self.sizes == "free" and sides != (None, None)):
            raise ValueError("height_px and width_px are given for fixed sizes, and only for them")
        if self.short_px > self.max_long_px:
            raise ValueError(f"short_px {self.short_px} is more than max_long_px {self.max_long_px}")
        given = [self.short_px, self.max_long_px] if self.sizes == "free" else [side for side in sides if side]
        if wrong := [px for px in given if px % self.stride_px]:
            raise ValueError(f"sides {wrong} are no multiples of stride_px {self.stride_px}")
        return self


class TextSpec(Closed):
    """How a string becomes int64 token ids.

    `clip_bpe`: `tokenizer_file` holds CLIP's merges (plain text, one pair a line, the version line first).
    `tokenizers_json`: a `tokenizer.json` of the `tokenizers` library, used with its own special tokens.
    `clean`: what is done to a text before; "none" leaves all of it to the tokenizer.
    `dynamic_length`: the encoder is causal or masks padding, so rows may be cut at the longest real length of a batch.
    """

    kind: Literal["clip_bpe", "tokenizers_json"]
    tokenizer_file: RelativePath
    clean: Literal["lower", "whitespace", "canonicalize", "none"]
    context_length: int = Field(ge=4, le=4096)
    vocab_size: int = Field(ge=4)
    pad_id: int = Field(ge=0)
    start_id: int | None
    end_id: int | None
    truncation: Literal["keep_end", "tokenizer"]
    dynamic_length: bool

    @model_validator(mode="after")
    def _ids_belong_to_kind(self) -> TextSpec:
        if self.kind == "clip_bpe" and (self.start_id is None or self.end_id is None or self.truncation != "keep_end"):
            raise ValueError("clip_bpe needs start_id, end_id and truncation keep_end")
        return self


class TensorSpec(Closed):
    """A named tensor; a string in `shape` is a free axis."""

    name: str
    dtype: Literal["uint8", "int64", "float32"]
    shape: tuple[int | str, ...]


class Fidelity(Closed):
    """How a graph's vectors compare with the torch fp32 model's, over `images` or texts it was measured on.

    Centred: the reference set's mean is subtracted from both sides first, because vectors of a narrow cone
    all look alike. `relative_l2` is ||a - b|| / ||b|| of the centred sets.
    """

    n: int = Field(ge=1)
    cosine_min: float
    cosine_mean: float
    centred_cosine_min: float
    centred_cosine_mean: float
    centred_relative_l2: float


class GraphSpec(Closed):
    """One ONNX file that plays `role` at `precision`.

    `batch_invariant`: a row's answer does not depend on its batch mates (`batch_difference`, measured at export, is
    within the rounding of its precision). Others are run one row at a time by the server.
    """

    role: Role
    precision: Precision
    file: RelativePath
    external_files: tuple[RelativePath, ...] = ()
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_invariant: bool
    batch_difference: float = Field(ge=0, description="max abs difference of a unit vector alone and in a batch")
    fidelity: Fidelity | None = None
    normalized_input: bool = Field(default=False, description="the host L2-normalises this graph's vector input")
    normalized_output: bool = Field(default=False, description="a foreign graph that gives unit vectors already")
    head: str | None = Field(default=None, pattern=NAME_PATTERN, description="which head of the manifest this graph is")
    chain: dict[Precision, Fidelity] = Field(
        default_factory=dict[Precision, Fidelity],
        description="adapters and heads: the whole way by the encoder's precision; others are not served",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, data: object) -> object:
        return _without_retired(data, "labels", None)

    @model_validator(mode="after")
    def _fits_its_role(self) -> GraphSpec:
        if (self.role == "class_head") != (self.head is not None):
            raise ValueError("a class_head graph names its head, another graph has none")
        if self.role not in ADAPTERS_AND_HEADS:
            if self.chain:
                raise ValueError(f"{self.role} takes no encoder's vectors, so it has no chain")
            if self.role == "dense_encoder":
                self._check_dense()
            if self.role == "token_encoder":
                self._check_tokens()
            return self
        if self.precision != "fp32":
            raise ValueError(f"{self.role} is built in fp32 only, not {self.precision}")
        if self.role == "conditional_head":
            self._check_conditional()
            return self
        if self.role == "reranker":
            self._check_reranker()
            return self
        for name, tensors in (("input", self.inputs), ("output", self.outputs)):
            if len(tensors) != 1 or tensors[0].dtype != "float32" or len(tensors[0].shape) != 2:
                raise ValueError(f"{self.role} has one {name}, float32 [batch, size]")
            if not isinstance(tensors[0].shape[0], str) or not isinstance(tensors[0].shape[1], int):
                raise ValueError(f"{self.role}: its {name} has a free batch axis and a fixed size")
        return self

    def _check_dense(self) -> None:
        pixels = [(t.name, t.dtype, len(t.shape)) for t in self.inputs]
        if pixels != [("pixels", "uint8", 4)]:
            raise ValueError("dense_encoder has one input, pixels: uint8 [batch, height, width, 3]")
        outputs = [(t.name, t.dtype, len(t.shape)) for t in self.outputs]
        if outputs != [("dense_embeds", "float32", 4), ("image_embeds", "float32", 2)]:
            raise ValueError(
                "dense_encoder has the outputs dense_embeds, float32 [batch, rows, columns, size], and image_embeds, "
                "float32 [batch, size], in one run"
            )
        if self.outputs[0].shape[-1] != self.outputs[1].shape[-1]:
            raise ValueError("dense_encoder: positions and pooled vector have different sizes")

    def _check_conditional(self) -> None:
        inputs = [(t.name, t.dtype, len(t.shape)) for t in self.inputs]
        outputs = [(t.name, t.dtype, len(t.shape)) for t in self.outputs]
        if inputs != [("image_embeds", "float32", 2), ("ids", "int64", 2)] or outputs != [("logits", "float32", 2)]:
            raise ValueError(
                "conditional_head has the inputs image_embeds, float32 [batch, size], and ids, int64 [labels, length], "
                "and the output logits, float32 [batch, labels]"
            )
        (batch, size), (labels, length) = (each.shape for each in self.inputs)
        free = isinstance(batch, str) and isinstance(labels, str) and isinstance(length, str)
        if not free or not isinstance(size, int) or self.outputs[0].shape != (batch, labels):
            raise ValueError("conditional_head: batch, labels and length are free axes, the size of a vector is fixed")
        if not (self.normalized_input and self.batch_invariant):
            raise ValueError("conditional_head takes unit vectors, and company of a picture or a label changes nothing")

    def _check_tokens(self) -> None:
        inputs = [(t.name, t.dtype, len(t.shape)) for t in self.inputs]
        outputs = [(t.name, t.dtype, len(t.shape)) for t in self.outputs]
        if inputs != [("ids", "int64", 2)] or outputs != [("text_tokens", "float32", 3)]:
            raise ValueError(
                "token_encoder has the input ids, int64 [batch, length], and the output text_tokens, float32 "
                "[batch, length, width]"
            )
        free, width = self.outputs[0].shape[:2], self.outputs[0].shape[2]
        if self.inputs[0].shape != free or not all(isinstance(axis, str) for axis in free) or isinstance(width, str):
            raise ValueError("token_encoder: batch and length are free axes, the width of a token is fixed")
        if self.precision != "fp32" or not self.batch_invariant:
            raise ValueError("token_encoder is built in fp32 only, and company of a text changes nothing")

    def _check_reranker(self) -> None:
        inputs = [(t.name, t.dtype, len(t.shape)) for t in self.inputs]
        outputs = [(t.name, t.dtype, len(t.shape)) for t in self.outputs]
        wanted = [("dense_embeds", "float32", 4), ("text_tokens", "float32", 3), ("text_mask", "int64", 2)]
        if inputs != wanted or outputs != [("match", "float32", 1)]:
            raise ValueError(
                "reranker has the inputs dense_embeds, float32 [batch, rows, columns, size], text_tokens, float32 "
                "[batch, length, width], and text_mask, int64 [batch, length], and the output match, float32 [batch]"
            )
        (batch, rows, columns, size), (_, length, width), mask = (each.shape for each in self.inputs)
        if not all(isinstance(axis, str) for axis in (batch, rows, columns, length)) or mask != (batch, length):
            raise ValueError("reranker: batch, rows, columns and length are free axes")
        if isinstance(size, str) or isinstance(width, str):
            raise ValueError("reranker: the sizes of a position and of a token are fixed")
        if self.normalized_input or not self.batch_invariant:
            raise ValueError("reranker takes positions as they are, and company of a pair changes nothing")

    @property
    def size(self) -> int | None:
        """Components of one row of the first output; None when they are not fixed."""
        last = self.outputs[0].shape[-1] if self.outputs and self.outputs[0].shape else None
        return last if isinstance(last, int) else None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file, *self.external_files)


class HeadSpec(Closed):
    """A classifier on the artifact's image vectors, a label set of its own; its graph is the class_head of this name.

    input_fingerprint: the image fingerprint it was fitted on; behind another encoder its numbers mean nothing.
    temperature: logits are divided by it before the activation.
    """

    name: str = Field(pattern=NAME_PATTERN)
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1, description="in column order")
    input_fingerprint: Sha256
    activation: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _labels_differ(self) -> HeadSpec:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label occurs twice")
        if self.activation == "softmax" and len(self.labels) < 2:
            raise ValueError("softmax over one label says 1 for everything; use sigmoid")
        return self


class SkippedVariant(Closed):
    """A precision that was tried and not built, and why, in one sentence with the numbers."""

    role: Role
    precision: Precision
    reason: str


class FileEntry(Closed):
    path: RelativePath
    size_bytes: int = Field(ge=0)
    sha256: Sha256


class Fingerprint(Closed):
    """Identity of each encoder: weights, input spec and graph recipe (see model_store.identity)."""

    image: Sha256 | None
    text: Sha256 | None


class SearchCalibration(Closed):
    """How a search by a text turns cosines into "is it in this picture?" and "is it in any?".

    An index keeps unit vectors, so this is no part of `Presence`, whose scores know how long a vector was. Of a hit x,
    a text q and the mean n of the texts' vectors that name nothing, the evidence is s = q.x - n.x.
    hit_slope, hit_offset: probability that a hit shows what the text says: sigmoid(hit_slope * s + hit_offset).
    match_slope, match_offset: in the same way, probability that any item does, of the greatest s of the first ten hits.
    threshold: below it nothing is a good match.
    Both were fitted where half of the searches ask for what is not there. The formulas are in
    model_store.search_presence.
    """

    neutral_texts: tuple[str, ...] = Field(min_length=1)
    hit_slope: float = Field(gt=0)
    hit_offset: float
    match_slope: float = Field(gt=0)
    match_offset: float
    threshold: float = Field(ge=0, le=1)


class Presence(Closed):
    """How `/localize` and sigmoid `/classify` turn scores into "is it there?", for every artifact alike.

    The formulas are in model_store.presence.
    positive_templates, negative_templates: prompts with one {} each, whose vectors are averaged per label. With
        negative ones a label is compared with its own denial, without them with the other labels and `neutral_texts`.
    neutral_texts: texts that name no label; their vectors are among those that are subtracted.
    similarity: of a position with a text: "projection" of the un-normalised vector on the unit text, or "cosine".
    divide_by: "pooled_norm" divides projections by the length of the picture's pooled vector before `scale`, so that
        one calibration fits every picture; "one" leaves them.
    aggregation: positions to one number: "max", "softmax_sum" (weights are the softmax of the scaled map), or the
        "pooled" vector's own similarity.
    calibration_count, calibration_length: weights of log(labels that were asked for) and of the length of the picture's
        pooled vector: in a longer list each label is less likely, and with divide_by "one" longer vectors are surer.
    Probability = sigmoid(calibration_slope * scale * aggregate + calibration_count * log(labels) + calibration_length *
    length + calibration_offset); present from `threshold` on.
    """

    positive_templates: tuple[str, ...] = Field(min_length=1)
    negative_templates: tuple[str, ...] = ()
    neutral_texts: tuple[str, ...] = ()
    similarity: Literal["projection", "cosine"] = "projection"
    divide_by: Literal["pooled_norm", "one"] = "pooled_norm"
    scale: float = Field(gt=0)
    aggregation: Literal["max", "softmax_sum", "pooled"]
    calibration_slope: float = 1.0
    calibration_count: float = Field(default=0.0, exclude_if=lambda value: value == 0)
    calibration_length: float = Field(default=0.0, exclude_if=lambda value: value == 0)
    calibration_offset: float = 0.0
    threshold: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _templates_have_a_place(self) -> Presence:
        if wrong := [t for t in (*self.positive_templates, *self.negative_templates) if t.count("{}") != 1]:
            raise ValueError(f"each template needs exactly one {{}}: {wrong}")
        return self


class BaseReference(Closed):
    """The artifact that a derivation derives from; its fingerprint is checked when both are opened."""

    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    fingerprint: Fingerprint


class SpaceProof(Closed):
    """Why a derivation whose tower changed may keep its base's space: its vectors against the base's other tower.

    statement: what was compared with what, on which data. value: `metric` of the changed tower, more is better.
    at_least: the bound it had to reach, base_value: the same metric of the base's own tower on the same data.
    fingerprint: of the tower that was measured, so that a proof cannot be carried over to another.
    """

    tower: TowerName
    statement: str = Field(min_length=1)
    n: int = Field(ge=1)
    metric: str = Field(min_length=1)
    value: float
    at_least: float | None = None
    base_value: float | None = None
    fingerprint: Sha256 | None = None


class Distillation(Closed):
    """Whom a model learned from, and by which losses with which weights; `Provenance.source` names the data.

    teacher: NAME@VERSION of an artifact, or the name of a checkpoint's recipe. teacher_digest: fingerprints of the
    artifact's towers, or sha256 of the checkpoint's weights.
    """

    teacher: str
    teacher_digest: str
    terms: dict[str, float]


class Provenance(Closed):
    """Where the weights come from and what made the files.

    verified: "torch": every graph was compared with the torch model it was exported from. "wrapped": another project's
        graph, whose torch model was not there: it was compared with itself as it was found, and with what any such
        model must do (docs/pull.md lists the checks).
    repository, revision, layout: of a wrapped graph: where it was found, at which commit, and which kind of files.
    """

    source: str
    verified: Literal["torch", "wrapped"] = "torch"
    repository: str | None = None
    revision: str | None = None
    layout: str | None = None
    architecture: str
    activation: Literal["gelu", "quickgelu", "other"]
    activation_declared: bool = Field(default=False, description="true: stated by the importer, not by the weights")
    licence: str
    training_data: str = ""
    limits: str = ""
    created_utc: str
    tools: dict[str, str]
    source_sha256: Sha256 | None = None
    recipe: str = Field(description="version of the graph recipe; part of the fingerprint")
    distillation: Distillation | None = None


class Manifest(Closed):
    """One artifact: a base model, or a derivation that inherits the roles it lacks from `base`."""

    format: Literal[1]
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    kind: Literal["base", "derivation"]
    base: BaseReference | None = None
    dim: int = Field(ge=1)
    dimensions: tuple[int, ...] = Field(default=(), description="shorter prefixes that the model was trained for")
    image: ImageSpec | None
    text: TextSpec | None
    dense: DenseSpec | None = None
    graphs: tuple[GraphSpec, ...]
    heads: tuple[HeadSpec, ...] = ()
    skipped: tuple[SkippedVariant, ...] = ()
    logit_scale: float | None = Field(gt=0, description="the factor itself (exp already applied); None: not known")
    logit_bias: float = 0.0
    scale_source: str = Field(default="the weights", description="where scale and bias were read")
    activation: Literal["softmax", "sigmoid", "none"]
    templates: tuple[str, ...] = Field(min_length=1, description="default prompts, each with one {}")
    presence: Presence | None = None
    search: SearchCalibration | None = Field(default=None, exclude_if=lambda value: value is None)
    fingerprint: Fingerprint
    space: Sha256
    space_proofs: tuple[SpaceProof, ...] = ()
    goldens: RelativePath = "goldens/cases.json"
    files: tuple[FileEntry, ...]
    metrics: dict[str, float] = Field(default_factory=dict)
    provenance: Provenance

    @model_validator(mode="before")
    @classmethod
    def _without_arrays(cls, data: object) -> object:
        return _without_retired(data, "arrays", [])

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        if (self.kind == "derivation") != (self.base is not None):
            raise ValueError("a derivation names its base, a base model has none")
        if self.base is not None and (self.base.name, self.base.version) == (self.name, self.version):
            raise ValueError("an artifact cannot be its own base")
        keys = [(g.role, g.precision, g.head) for g in self.graphs]
        if len(set(keys)) != len(keys):
            raise ValueError("two graphs for one (role, precision)")
        if unmeasured := [g.file for g in self.graphs if g.role in ADAPTERS_AND_HEADS and "fp32" not in g.chain]:
            raise ValueError(f"not measured behind the fp32 encoder: {unmeasured}")
        if (owned := [role for role in RERANKING if self.owns((role,))]) and len(owned) < len(RERANKING):
            raise ValueError(f"token_encoder and reranker come together, there is only a {owned[0]}")
        if (self.dense is not None) != any(g.role == "dense_encoder" for g in self.graphs):
            raise ValueError("a dense_encoder graph and the spec of its pictures (dense) come together")
        self._check_heads()
        listed = {f.path for f in self.files}
        if len(listed) != len(self.files):
            raise ValueError("a file is listed twice")
        needed = {path for g in self.graphs for path in g.files} | {self.goldens}
        if self.text is not None:
            needed.add(self.text.tokenizer_file)
        if missing := sorted(needed - listed):
            raise ValueError(f"files used but not listed: {missing}")
        if any(t.count("{}") != 1 for t in self.templates):
            raise ValueError("each template needs exactly one {}")
        if (self.activation == "none") != (self.logit_scale is None):
            raise ValueError("activation none is for a model whose logit_scale is not known, and only for it")
        if self.logit_scale is None and self.dense is not None and self.presence is None:
            raise ValueError("a dense_encoder needs a logit_scale, or a presence with a scale of its own")
        return self

    def _check_heads(self) -> None:
        built = {g.head: g for g in self.graphs if g.head is not None}
        names = [head.name for head in self.heads]
        if len(set(names)) != len(names) or set(names) != set(built):
            raise ValueError(f"heads {sorted(names)} and class_head graphs {sorted(built)} must be the same, once each")
        for head in self.heads:
            if built[head.name].size != len(head.labels):
                raise ValueError(
                    f"head {head.name} has {len(head.labels)} labels, its graph gives {built[head.name].size} logits"
                )
            if head.input_fingerprint != self.fingerprint.image:
                raise ValueError(f"head {head.name} was fitted on another image encoder than this artifact's")

    def graph(self, role: Role, precision: Precision, head: str | None = None) -> GraphSpec | None:
        """This artifact's own graph for (role, precision), a class head's by its name; None: not built."""
        return next((g for g in self.graphs if (g.role, g.precision, g.head) == (role, precision, head)), None)

    def owns(self, roles: tuple[Role, ...]) -> bool:
        """Does this artifact itself, not its base, bring one of these roles?"""
        return any(graph.role in roles for graph in self.graphs)


def _without_retired(data: object, key: str, always: object) -> object:
    """Manifests of the first artifacts hold a key that never had another value than `always`: it says nothing."""
    if not isinstance(data, dict):
        return data
    fields = cast("dict[str, object]", data)
    return {name: value for name, value in fields.items() if name != key or value != always}
