"""Golden cases: inputs with the arrays, ids and vectors that they must give, by which an artifact is proven."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from model_store.errors import GoldenError, InputError
from model_store.fidelity import measure
from model_store.golden_images import GoldenImage, golden_images
from model_store.manifest import (
    ENCODERS,
    Closed,
    DenseSpec,
    Fidelity,
    HeadSpec,
    ImageSpec,
    Precision,
    RelativePath,
    Role,
    SpaceProof,
)
from model_store.modality.image import decode, prepare, prepare_dense
from model_store.modality.text import Tokenizer
from model_store.store import Artifact

Encode = Callable[[NDArray[Any]], NDArray[np.float32]]
EncodeDense = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
DENSE_PICTURES = ("rgb_png_331x227", "exif_rotated_jpeg")  # one wide, one tall
CASES_FILE = "goldens/cases.json"
ARRAYS_FILE = "goldens/arrays.npz"
CONDITIONAL_IDS = "conditional_ids"
RERANK_IDS, RERANK_MASK, RERANK_POSITIONS = "rerank_ids", "rerank_mask", "rerank_positions."
GOLDEN_TEXTS: tuple[str, ...] = (
    "a photo of a cat",
    "a red shoe",
    "Two dogs, one ball &amp; 3 birds",
    "  ÜBER-große   Straße\n",
    "日本語のテキスト",
    "it's 12:30 — don't panic! 🙂",
    "",
    "a very long sentence about nothing in particular that goes on and on " * 6,
)
# Reference vectors come from torch on the exporting machine. Other CPUs and providers round differently, never by more
# than this; a wrong colour order, crop or token is far outside.
_FP32_COSINE_MIN = 0.99999
_FP32_CENTRED_L2_MAX = 1e-3
# Positions are not normalised: where nothing is they are short, and rounding turns short vectors further.
_DENSE_COSINE_MIN = 0.99


class Tolerance(Closed):
    """Bounds on model_store.fidelity figures."""

    cosine_min: float
    centred_relative_l2_max: float


class ImageCase(Closed):
    id: str
    file: RelativePath
    levels: int = Field(ge=0, le=8)
    raises: str | None


class TextCase(Closed):
    text: str
    ids: tuple[int, ...]


class GoldenCases(Closed):
    """`goldens/cases.json`; `arrays.npz` holds `prepared` uint8 [N, H, W, 3], `image_embeds`, `text_embeds`.

    `dense` are pictures prepared whole: arrays `dense_pixels.<id>` uint8 [1, H, W, 3], `dense_pooled.<id>` [1, D], and
    `dense_embeds.<id>` [rows / 2, columns / 2, D], which keeps every second cell of every second row.

    A derivation has cases for what it brings itself. `dense_adapter.<id>` is behind `dense_embeds`; `image_adapter`,
    `text_adapter` and `head.<name>` are outputs for the golden inputs of the artifact that owns the encoder before
    them; their tolerances go by the encoder's precision. `conditional_head` are logits [N, C] for the same pictures and
    `conditional_ids`, int64 [C, L]. `rerank_ids` and `rerank_mask`, int64 [C, L], are texts of a reranker,
    `token_encoder` [N, W] the states of those tokens that count, `rerank_positions.<id>` [rows, columns, D] positions
    of a picture, and `reranker.<id>` [C] its logits with the texts, each met within `match_tolerance`. `heads` and
    `space_proofs` repeat the manifest, so that they cannot be edited there alone.
    """

    format: Literal[1]
    images: tuple[ImageCase, ...]
    texts: tuple[TextCase, ...]
    dense: tuple[ImageCase, ...] = ()
    tolerances: dict[Role, dict[Precision, Tolerance]]
    head_tolerances: dict[str, dict[Precision, Tolerance]] = Field(
        default_factory=dict[str, dict[Precision, Tolerance]]
    )
    heads: tuple[HeadSpec, ...] = ()
    space_proofs: tuple[SpaceProof, ...] = ()
    match_tolerance: float | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)


@dataclass(frozen=True, kw_only=True)
class DerivationGoldens:
    """What a derivation adds to goldens: reference outputs by `output_key`, and what its manifest declares.

    Beside the logits of a conditional head stand its CONDITIONAL_IDS, beside those of a reranker its texts and
    positions.
    """

    outputs: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    head_tolerances: Mapping[str, Mapping[Precision, Tolerance]] = field(
        default_factory=dict[str, Mapping[Precision, Tolerance]]
    )
    heads: tuple[HeadSpec, ...] = ()
    space_proofs: tuple[SpaceProof, ...] = ()
    match_tolerance: float | None = None


def output_key(role: Role, head: str | None = None) -> str:
    """Where `arrays.npz` keeps the reference of an encoder, an adapter or a head."""
    if role in ENCODERS:
        return "image_embeds" if role == "image_encoder" else "text_embeds"
    return f"head.{head}" if head else role


def tolerance_for(precision: Precision, fidelity: Fidelity | None) -> Tolerance:
    """Bounds for later runs: fixed for fp32, twice the measured error for the others."""
    if precision == "fp32" or fidelity is None:
        return Tolerance(cosine_min=_FP32_COSINE_MIN, centred_relative_l2_max=_FP32_CENTRED_L2_MAX)
    return Tolerance(
        cosine_min=1 - 2 * (1 - min(fidelity.cosine_min, 1.0)) - 1e-4,
        centred_relative_l2_max=2 * fidelity.centred_relative_l2 + _FP32_CENTRED_L2_MAX,
    )


def dense_tolerance() -> Tolerance:
    """Bounds for the positions of an fp32 dense graph."""
    return Tolerance(cosine_min=_DENSE_COSINE_MIN, centred_relative_l2_max=_FP32_CENTRED_L2_MAX)


def dense_goldens(spec: DenseSpec) -> dict[str, NDArray[np.uint8]]:
    """The dense golden pictures by id, prepared whole: uint8 [1, H, W, 3]."""
    pictures = {case.id: case.data for case in golden_images()}
    return {name: prepare_dense(decode(pictures[name]), spec)[None] for name in DENSE_PICTURES}


def thinned(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the goldens keep of positions [1, rows, columns, D]: a quarter of the cells shows every mistake."""
    return positions[0, ::2, ::2]


def prepared_goldens(spec: ImageSpec) -> NDArray[np.uint8]:
    """The golden pictures that decode, prepared: uint8 [N, H, W, 3]."""
    return np.stack([prepare(decode(case.data), spec) for case in golden_images() if case.raises is None])


def write_goldens(
    folder: Path,
    *,
    image: tuple[ImageSpec, Encode] | None,
    text: tuple[Tokenizer, Encode] | None,
    dense: tuple[DenseSpec, EncodeDense] | None = None,
    tolerances: Mapping[Role, Mapping[Precision, Tolerance]],
    derived: DerivationGoldens | None = None,
) -> None:
    """Write `goldens/` into a staged artifact; the encoders are the torch fp32 reference.

    An image encoder takes uint8 [N, H, W, 3], a text encoder int64 [N, L]; both return un-normalised float [N, D]. A
    dense encoder gives (positions [1, rows, columns, D], pooled [1, D]) of uint8 [1, H, W, 3].
    """
    behind = derived or DerivationGoldens()
    arrays: dict[str, NDArray[Any]] = dict(behind.outputs)
    images: list[ImageCase] = []
    texts: list[TextCase] = []
    (folder / "goldens").mkdir(parents=True, exist_ok=True)
    if image:
        spec, encode_image = image
        arrays["prepared"] = prepared_goldens(spec)
        arrays["image_embeds"] = np.asarray(encode_image(arrays["prepared"]), dtype=np.float32)
        images = [_write_picture(folder, case) for case in golden_images()]
    whole: tuple[ImageCase, ...] = ()
    if dense:
        whole, dense_arrays = write_dense_pictures(folder, *dense)
        arrays |= dense_arrays
    if text:
        tokenizer, encode_text = text
        rows = [tokenizer.encode(t) for t in GOLDEN_TEXTS]
        texts = [TextCase(text=t, ids=tuple(row)) for t, row in zip(GOLDEN_TEXTS, rows, strict=True)]
        arrays["text_embeds"] = np.asarray(
            encode_text(tokenizer.pad(rows, tokenizer.spec.context_length)), dtype=np.float32
        )
    cases = GoldenCases(
        format=1,
        images=tuple(images),
        texts=tuple(texts),
        dense=whole,
        tolerances={role: dict(by_precision) for role, by_precision in tolerances.items()},
        head_tolerances={name: dict(by_precision) for name, by_precision in behind.head_tolerances.items()},
        heads=behind.heads,
        space_proofs=behind.space_proofs,
        match_tolerance=behind.match_tolerance,
    )
    (folder / CASES_FILE).write_text(cases.model_dump_json(indent=1) + "\n", encoding="utf-8")
    with (folder / ARRAYS_FILE).open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def _write_picture(folder: Path, case: GoldenImage) -> ImageCase:
    file = f"goldens/{case.id}.bin"
    (folder / file).write_bytes(case.data)
    return ImageCase(id=case.id, file=file, levels=case.levels, raises=case.raises)


def write_dense_pictures(
    folder: Path, spec: DenseSpec, encode: EncodeDense
) -> tuple[tuple[ImageCase, ...], dict[str, NDArray[Any]]]:
    """Write the dense golden pictures into `folder`; their cases, and their arrays for `arrays.npz`."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, pixels in dense_goldens(spec).items():
        positions, pooled = encode(pixels)
        arrays |= {f"dense_pixels.{name}": pixels, f"dense_embeds.{name}": thinned(positions)}
        arrays[f"dense_pooled.{name}"] = pooled
    return tuple(_write_picture(folder, case) for case in golden_images() if case.id in DENSE_PICTURES), arrays


class Goldens:
    """An artifact's golden cases, read through its digests.

    Raises:
        GoldenError: there are none, or they cannot be read.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        try:
            self.cases = GoldenCases.model_validate_json(artifact.read(artifact.manifest.goldens))
            with np.load(BytesIO(artifact.read(ARRAYS_FILE)), allow_pickle=False) as stored:
                self.arrays: dict[str, NDArray[Any]] = {key: stored[key] for key in stored.files}
        except (ValidationError, ValueError, json.JSONDecodeError) as error:
            raise GoldenError(f"{artifact.reference}: golden cases cannot be read: {error}") from error

    def check_pixels(self) -> None:
        """Decode and prepare every picture and compare with the stored array."""
        spec = self.artifact.image_spec
        kept = [case for case in self.cases.images if case.raises is None]
        if spec is None or not kept or len(self.arrays.get("prepared", ())) != len(kept):
            raise GoldenError(f"{self.artifact.reference}: golden pictures are missing")
        stored = iter(self.arrays["prepared"])
        for case in self.cases.images:
            data = self.artifact.read(case.file)
            if case.raises is not None:
                self._expect_refusal(case, data)
            else:
                self._compare_pixels(case, prepare(decode(data), spec), next(stored))

    def check_dense_pixels(self) -> None:
        """Prepare every dense picture whole and compare with the stored array."""
        spec, inputs = self.artifact.manifest.dense, self.dense_inputs()
        if spec is None:
            raise GoldenError(f"{self.artifact.reference} has no dense spec")
        for case in self.cases.dense:
            got = prepare_dense(decode(self.artifact.read(case.file)), spec)
            self._compare_pixels(case, got, inputs[case.id][0])

    def dense_inputs(self) -> dict[str, NDArray[np.uint8]]:
        """The stored dense pictures by id, uint8 [1, H, W, 3].

        Raises:
            GoldenError: there are none.
        """
        found = {case.id: self.arrays.get(f"dense_pixels.{case.id}") for case in self.cases.dense}
        kept = {name: pixels for name, pixels in found.items() if pixels is not None}
        if not kept or len(kept) != len(found):
            raise GoldenError(f"{self.artifact.reference}: golden pictures of the dense_encoder are missing")
        return kept

    def check_dense(self, role: Role, precision: Precision, found: Mapping[str, NDArray[np.float32]]) -> Fidelity:
        """Compare positions [1, rows, columns, D] by picture id with the reference of a dense encoder or adapter."""
        key = "dense_embeds" if role == "dense_encoder" else role
        return self._compare_dense(key, role, precision, {name: thinned(each) for name, each in found.items()})

    def check_dense_pooled(self, precision: Precision, found: Mapping[str, NDArray[np.float32]]) -> Fidelity:
        """Compare the pooled vectors [1, D] by picture id."""
        return self._compare_dense("dense_pooled", "dense_encoder", precision, found)

    def check_tokens(self, tokenizer: Tokenizer) -> None:
        """Tokenise every text and compare ids."""
        if not self.cases.texts:
            raise GoldenError(f"{self.artifact.reference}: golden texts are missing")
        for case in self.cases.texts:
            if (got := tuple(tokenizer.encode(case.text))) != case.ids:
                raise GoldenError(
                    f"{self.artifact.reference}: text {case.text[:40]!r} gives ids {got[:12]}, not {case.ids[:12]}"
                )

    def check_declarations(self) -> None:
        """Compare what the manifest says of heads and of its space with what was published."""
        manifest = self.artifact.manifest
        for name, said, published in (
            ("heads", manifest.heads, self.cases.heads),
            ("space_proofs", manifest.space_proofs, self.cases.space_proofs),
        ):
            if said != published:
                raise GoldenError(
                    f"{self.artifact.reference}: {name} of the manifest are not those of its golden cases"
                )

    def check_vectors(self, role: Role, precision: Precision, encode: Encode) -> Fidelity:
        """Encode the stored arrays or ids and compare with the torch fp32 vectors; returns what was measured."""
        return self.check_outputs(role, precision, encode(self.inputs(role)))

    def check_outputs(
        self, role: Role, precision: Precision, vectors: NDArray[np.float32], *, head: str | None = None
    ) -> Fidelity:
        """Compare outputs for the golden inputs with the torch reference; `precision` is that of the encoder."""
        by_precision = self.cases.tolerances.get(role, {}) if head is None else self.cases.head_tolerances.get(head, {})
        tolerance, reference = by_precision.get(precision), self.arrays.get(output_key(role, head))
        role_name = f"{role} {head}" if head else role
        if tolerance is None or reference is None:
            raise GoldenError(f"{self.artifact.reference}: no golden vectors for {role_name} {precision}")
        if vectors.shape != reference.shape:
            raise GoldenError(
                f"{self.artifact.reference}: {role_name} {precision} gives shape {vectors.shape}, not {reference.shape}"
            )
        measured = measure(vectors, reference)
        if not (
            np.isfinite(vectors).all()
            and measured.cosine_min >= tolerance.cosine_min
            and measured.centred_relative_l2 <= tolerance.centred_relative_l2_max
        ):
            raise GoldenError(
                f"{self.artifact.reference}: {role_name} {precision} is not the exported model: "
                + _distance(measured, tolerance)
            )
        return measured

    def check_same_reference(self, key: str, other: Goldens, other_key: str) -> None:
        """Compare stored reference outputs with those of an artifact that claims the same encoder."""
        mine, theirs = self.arrays.get(key), other.arrays.get(other_key)
        if (
            mine is None
            or theirs is None
            or mine.shape != theirs.shape
            or not measure(mine, theirs).centred_relative_l2 <= _FP32_CENTRED_L2_MAX
        ):
            raise GoldenError(
                f"{self.artifact.reference} brings an encoder under the fingerprint of {other.artifact.reference}, "
                "but it is another one: their golden vectors differ"
            )

    def inputs(self, role: Role) -> NDArray[Any]:
        """The stored inputs of an encoder: uint8 [N, H, W, 3], or int64 [N, context_length]."""
        if role == "image_encoder":
            return self.arrays["prepared"]
        spec = self.artifact.text_spec
        if spec is None or role != "text_encoder":
            raise GoldenError(f"{self.artifact.reference}: no stored pictures or texts for {role}")
        ids = np.full((len(self.cases.texts), spec.context_length), spec.pad_id, dtype=np.int64)
        for index, case in enumerate(self.cases.texts):
            ids[index, : len(case.ids)] = case.ids
        return ids

    def conditional_ids(self) -> NDArray[np.int64]:
        """The stored texts of a conditional head, int64 [C, L].

        Raises:
            GoldenError: there are none.
        """
        ids = self.arrays.get(CONDITIONAL_IDS)
        if ids is None:
            raise GoldenError(f"{self.artifact.reference}: golden texts of the conditional_head are missing")
        return ids

    def _compare_dense(
        self, key: str, role: Role, precision: Precision, found: Mapping[str, NDArray[np.float32]]
    ) -> Fidelity:
        where = f"{self.artifact.reference}: {key} in {precision}"
        references = {name: self.arrays.get(f"{key}.{name}") for name in found}
        tolerance = self.cases.tolerances.get(role, {}).get(precision)
        kept = {name: each for name, each in references.items() if each is not None}
        if tolerance is None or not kept or len(kept) != len(found):
            raise GoldenError(f"{where}: no golden vectors")
        if wrong := [(each.shape, kept[name].shape) for name, each in found.items() if each.shape != kept[name].shape]:
            raise GoldenError(f"{where}: shape {wrong[0][0]}, not {wrong[0][1]}")
        vectors, reference = (
            np.concatenate([each[name].reshape(-1, each[name].shape[-1]) for name in sorted(found)])
            for each in (found, kept)
        )
        measured = measure(vectors, reference)
        if not (
            np.isfinite(vectors).all()
            and measured.cosine_min >= tolerance.cosine_min
            and measured.centred_relative_l2 <= tolerance.centred_relative_l2_max
        ):
            raise GoldenError(f"{where} is not the exported model: {_distance(measured, tolerance)}")
        return measured

    def _compare_pixels(self, case: ImageCase, got: NDArray[np.uint8], want: NDArray[np.uint8]) -> None:
        off = int(np.abs(got.astype(np.int16) - want.astype(np.int16)).max()) if got.shape == want.shape else 255
        if off > case.levels:
            raise GoldenError(
                f"{self.artifact.reference}: picture {case.id} differs by {off} levels, allowed {case.levels}"
            )

    def _expect_refusal(self, case: ImageCase, data: bytes) -> None:
        try:
            decode(data)
        except InputError as error:
            if error.code == case.raises:
                return
            raise GoldenError(
                f"{self.artifact.reference}: picture {case.id} gave {error.code}, not {case.raises}"
            ) from error
        raise GoldenError(f"{self.artifact.reference}: picture {case.id} was decoded, it must be refused")


def _distance(measured: Fidelity, tolerance: Tolerance) -> str:
    return (
        f"min cosine {measured.cosine_min:.6f} (needs {tolerance.cosine_min:.6f}), centred relative L2 "
        f"{measured.centred_relative_l2:.2e} (needs {tolerance.centred_relative_l2_max:.2e})"
    )
