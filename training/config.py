"""Settings of a run: TOML -> frozen models that refuse unknown keys; they stop at the builders."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from evaluation.robustness.kinds import Kind
from evaluation.scenes.mixing import Topic
from training.aligned_config import AlignedConfig
from training.aligned_sources import described
from training.config_table import ConfigTable
from training.data.families import split_by_family
from training.data.rows import Row, Split, SplitRule
from training.run_config import OptimConfig, RunConfig, WiseFt
from training.shards_config import WebdatasetData
from training.slim_config import SlimShape

SplitBy = Literal["number", "name", "family"]
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class SplitConfig(ConfigTable):
    """Which rows validate and which are held out, by remainders modulo `modulo` of each picture's group.

    by: "number" is the last number in a file's name (a product id); "name" a hash of the path, for any names; "family"
    a hash of the family of products that a row is of, see training.data.families.
    """

    by: SplitBy = Field(default="number", exclude_if=lambda value: value == "number")
    modulo: int = Field(ge=1)
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def rule(self) -> SplitRule:
        return SplitRule(modulo=self.modulo, validation=self.validation, test=self.test)

    def of(self, rows: Sequence[Row]) -> list[Split | None]:
        """The split of each row; None: in none."""
        rule = self.rule()
        return split_by_family(rows, rule) if self.by == "family" else [rule.of(row.group) for row in rows]


class TableData(ConfigTable):
    """Captioned image files. `folder` is given at the command line (`--set data.folder=...`): no recipe knows a
    machine's paths. `negative_column` names captions that are plainly false for their image, for who wants them.
    """

    kind: Literal["table"] = "table"
    folder: Path
    table: str = "captions.csv"
    image_column: str = "image"
    caption_column: str = "caption"
    negative_column: str | None = None
    label_columns: tuple[str, ...] = ()
    cache_px: int = Field(ge=8, description="side of the decoded pictures that crops are taken from")
    split: SplitConfig


class FolderData(ConfigTable):
    """Pictures in one sub-folder for each class: the label column "class"; a caption is the name of the class.

    Folders train/, val/ and test/ around the classes are the splits. Without them a fifth of each class is held out and
    a fifth validates, by a hash of the names.
    """

    kind: Literal["folder"]
    folder: Path
    cache_px: int = Field(default=64, ge=8, description="as of a table; a stored model as base keeps its own size")


class PicturesData(ConfigTable):
    """Pictures without captions, below `folder`: for methods that learn from what a teacher sees in them."""

    kind: Literal["pictures"]
    folder: Path
    cache_px: int = Field(default=64, ge=8, description="as of a table; a stored model as base keeps its own size")
    split: SplitConfig = SplitConfig(by="name", modulo=10, validation=(2,), test=(1,))

    @model_validator(mode="after")
    def _has_no_families(self) -> PicturesData:
        if self.split.by == "family":
            raise ValueError("families are read from titles, and pictures have none: split by name or number")
        return self


class ScenePart(ConfigTable):
    """One kind of scene and what is said about it; lengths as in evaluation.scenes.config.SceneConfig."""

    scenes: int = Field(ge=1, description="how many different scenes of this kind")
    share: float = Field(gt=0, description="how often a batch takes this kind, relative to the other kinds")
    count: tuple[int, int] = (1, 4)
    size: tuple[float, float] = (0.17, 0.30)
    textures: tuple[str, ...] = ("plain",)
    differ_in: tuple[Literal["shape", "colour"], ...] = ()
    decided_pair: bool = False
    decided_place: bool = False
    mix: dict[Topic, float] = Field(min_length=1, description="weight of each topic of captions")
    words: Literal["train", "varied"] = Field(
        default="train", description="varied: more sentences of the same words, for affirmations and negations"
    )


class SceneData(ConfigTable):
    """Drawn scenes: nothing is read from disk, the same seed draws the same pictures and captions.

    `held_out` of the (shape, colour) pairs never occur, neither drawn nor named; `split_seed` says which.
    """

    kind: Literal["scenes"]
    parts: tuple[ScenePart, ...] = Field(min_length=1)
    cache_px: int = Field(ge=48, le=448, description="side of the drawn pictures")
    seed: int = Field(default=0, ge=0)
    held_out: float = Field(default=0.25, gt=0, le=0.5)
    split_seed: int = Field(default=0, ge=0, exclude_if=lambda value: value == 0)


class MixedData(ConfigTable):
    """A table and drawn scenes; `scene_share` of the steps are batches of scenes. `[augment]` is for the table."""

    kind: Literal["mixed"]
    table: TableData
    scenes: SceneData
    scene_share: float = Field(gt=0, lt=1)

    @property
    def cache_px(self) -> int:
        return self.table.cache_px


class DataPart(ConfigTable):
    """One of several kinds of data; `share` is how often it is drawn, relative to the other parts."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    share: float = Field(gt=0)
    data: Annotated[
        Annotated[TableData, Tag("table")]
        | Annotated[PicturesData, Tag("pictures")]
        | Annotated[SceneData, Tag("scenes")],
        Discriminator(lambda v: _data_kind(v)),
    ]
    report: Literal["retrieval", "fashion"] = Field(default="retrieval", description="of a table")


class SeveralData(ConfigTable):
    """Several tables, folders of pictures and kinds of scenes; a batch is of one part. The first part stands for the
    run in its headline. With pictures without captions among them, there are none.
    """

    kind: Literal["several"]
    parts: tuple[DataPart, ...] = Field(min_length=2)

    @property
    def cache_px(self) -> int:
        return self.parts[0].data.cache_px

    @model_validator(mode="after")
    def _fits_together(self) -> SeveralData:
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names):
            raise ValueError("a part's name occurs twice")
        if len({part.data.cache_px for part in self.parts}) > 1:
            raise ValueError("all parts have the same cache_px")
        return self


def _data_kind(value: Any) -> str:
    """Recipes written before scenes name no kind: theirs is a table."""
    return value.get("kind", "table") if isinstance(value, dict) else getattr(value, "kind", "table")


DataConfig = Annotated[
    Annotated[TableData, Tag("table")]
    | Annotated[FolderData, Tag("folder")]
    | Annotated[PicturesData, Tag("pictures")]
    | Annotated[SceneData, Tag("scenes")]
    | Annotated[MixedData, Tag("mixed")]
    | Annotated[SeveralData, Tag("several")]
    | Annotated[WebdatasetData, Tag("webdataset")],
    Discriminator(_data_kind),
]


class CorruptionConfig(ConfigTable):
    """Corruptions of training pictures (docs/robustness.md). By default none of the fifteen that judge: they are then
    told apart from what was trained on. Kinds that change colours belie captions that name them.
    """

    share: float = Field(default=0.5, gt=0, le=1, description="of the pictures")
    kinds: tuple[Kind, ...] = Field(default=("speckle_noise", "gaussian_blur"), min_length=1)
    severities: tuple[int, int] = (1, 3)

    @model_validator(mode="after")
    def _is_a_range(self) -> CorruptionConfig:
        first, last = self.severities
        if not 1 <= first <= last <= 5:
            raise ValueError(f"severities {first} to {last}: expected a range inside 1 to 5")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("a kind of corruption occurs twice")
        return self


class AugmentConfig(ConfigTable):
    """corruption: of tables and of drawn scenes; the other settings are of tables alone."""

    crop_scale: tuple[float, float] = (0.7, 1.0)
    crop_aspect: float = Field(default=1.0, ge=1)
    shift_px: int = Field(default=0, ge=0)
    flip: float = Field(default=0.5, ge=0, le=1)
    word_drop: float = Field(default=0.15, ge=0, lt=1)
    tail: float = Field(default=0.0, ge=0, le=1)
    template_share: float = Field(default=0.5, ge=0, le=1)
    templates: tuple[str, ...] = ()
    # A run without it keeps the name of its cached features.
    corruption: CorruptionConfig | None = Field(default=None, exclude_if=lambda value: value is None)


class ImageTowerConfig(ConfigTable):
    trunk: str = Field(description="name of a timm model with `forward_features` -> [B, C, h, w]")
    size_px: int = Field(ge=16)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    pool: Literal["mean", "flat", "attention"] = Field(
        default="mean",
        # The dump is part of every fingerprint: models from before this setting keep theirs.
        exclude_if=lambda value: value == "mean",
        description="mean forgets where; flat and attention (with position embeddings) keep it",
    )
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD


class TextTowerConfig(ConfigTable):
    merges: int = Field(ge=1, description="how many of CLIP's merges the vocabulary keeps")
    context_length: int = Field(ge=4)
    width: int
    layers: int = Field(ge=0)
    heads: int = Field(ge=1)
    pool: Literal["eos", "eos+bag", "bag"] = "eos"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    embedding_std: float = 0.02
    bag_projection: bool = Field(default=True, description="false: token vectors are the embedding")


class SmallConfig(ConfigTable):
    kind: Literal["small"]
    embed_dim: int
    logit_bias: bool = False
    image: ImageTowerConfig
    text: TextTowerConfig
    slim: SlimShape | None = Field(default=None, exclude_if=lambda value: value is None)


class OpenClipConfig(ConfigTable):
    """pretrained: weights to start from, a tag of open_clip, a file, or `artifact:NAME[@VERSION]`, a stored artifact.

    activation: of a file, which does not show it. store: where the artifact lies. They are what a run begins with; a
    checkpoint holds its own weights and asks for them no more. slim: of a model smaller than its architecture.
    """

    kind: Literal["open_clip"]
    architecture: str
    pretrained: str | None = Field(default=None, exclude_if=lambda value: value is None)
    activation: Literal["gelu", "quickgelu"] | None = Field(default=None, exclude_if=lambda value: value is None)
    store: Path | None = Field(default=None, exclude_if=lambda value: value is None)
    slim: SlimShape | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _whole_or_slim(self) -> OpenClipConfig:
        if self.slim is not None and self.pretrained is not None:
            raise ValueError("pretrained weights are of the whole architecture: leave pretrained or slim out")
        return self

    def structure(self) -> str:
        """What shapes the answer and is not in the weights; what they started from is left out."""
        return self.model_dump_json(exclude={"pretrained", "activation", "store"})


class StoredModel(ConfigTable):
    """A published artifact as a frozen base: methods that work on its vectors need no checkpoint of it."""

    kind: Literal["artifact"]
    reference: str = Field(description="name or name@version")
    store: Path | None = Field(default=None, description="folder of artifacts; the shipped ones are always there")


ModelConfig = Annotated[SmallConfig | OpenClipConfig | AlignedConfig | StoredModel, Field(discriminator="kind")]
ARTIFACT = "artifact:"


class TrainConfig(ConfigTable):
    """One recipe. `method_options` is checked by the method that it is for.

    base: the folder of the checkpoint that training starts from, or `artifact:NAME[@VERSION]`, a stored model that
    stays frozen; its model is taken when the recipe names none.
    """

    name: str
    seed: int = Field(ge=0)
    method: str
    method_options: dict[str, Any] = Field(default_factory=dict)
    base: str | None = None
    wise_ft: WiseFt | None = None
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig
    optim: OptimConfig
    run: RunConfig

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if isinstance(self.data, SceneData) and self.augment != AugmentConfig(corruption=self.augment.corruption):
            raise ValueError("scenes are drawn, not augmented: leave [augment] out, but for [augment.corruption]")
        if (self.base or "").startswith(ARTIFACT) != isinstance(self.model, StoredModel):
            raise ValueError(f"a base {ARTIFACT}NAME brings its model: leave [model] out, and name no such model alone")
        if self.wise_ft is not None and self.base is None:
            raise ValueError("wise_ft interpolates with a base: name one")
        return self


def with_data_folder(config: TrainConfig, folder: Path | None) -> TrainConfig:
    """The recipe with its table where it lies now; drawn scenes lie nowhere, and several tables where they say."""
    data = config.data
    if folder is None or isinstance(data, SceneData | SeveralData):
        return config
    if isinstance(data, WebdatasetData):
        return config.model_copy(update={"data": data.model_copy(update={"folder": str(folder)})})
    if isinstance(data, MixedData):
        table = data.table.model_copy(update={"folder": folder})
        return config.model_copy(update={"data": data.model_copy(update={"table": table})})
    return config.model_copy(update={"data": data.model_copy(update={"folder": folder})})


def divided_by(config: TrainConfig, by: SplitBy | None) -> TrainConfig:
    """The recipe with its table divided by another rule, with the same remainders, to judge what it trained.

    Raises:
        ValueError: its data are no table; or the other rule would hold out rows that were trained on. Only a split by
            family keeps what another one (by number) holds out.
    """
    if by is None:
        return config
    data = config.data
    table = data.table if isinstance(data, MixedData) else data
    if not isinstance(table, TableData):
        raise ValueError(f"data of kind {data.kind!r} are not divided by {by}")
    if by != table.split.by and (table.split.by, by) != ("family", "number"):
        raise ValueError(
            f"trained on a split by {table.split.by}: a split by {by} would hold out rows that it has seen"
        )
    table = table.model_copy(update={"split": table.split.model_copy(update={"by": by})})
    changed = data.model_copy(update={"table": table}) if isinstance(data, MixedData) else table
    return config.model_copy(update={"data": changed})


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML recipe and apply `key.inner=value` overrides (the value is TOML; what is not, is a string).

    Raises:
        ValueError: unreadable TOML, an unknown key, a wrong value; the message names each place.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    for override in overrides:
        _apply(values, override)
    if "base" in values and "model" not in values:
        values["model"] = _model_of(str(values["base"]), store=values.get("run", {}).get("store"))
    config = parse_config(values, where=str(path))
    model = config.model
    if isinstance(model, OpenClipConfig) and (model.pretrained or "").startswith(ARTIFACT):
        return config.model_copy(update={"model": model.model_copy(update={"store": model.store or config.run.store})})
    if isinstance(config.model, AlignedConfig):
        return config.model_copy(update={"model": described(config.model)})
    return config


def _model_of(base: str, *, store: str | None) -> Any:
    """The model of a checkpoint's recipe, or the stored model that is named, as plain data.

    Raises:
        ValueError: there is no checkpoint.
    """
    if base.startswith(ARTIFACT):
        return {"kind": "artifact", "reference": base.removeprefix(ARTIFACT), "store": store}
    try:
        return json.loads((Path(base) / "checkpoint.json").read_text(encoding="utf-8"))["config"]["model"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"base {base} is no checkpoint: {error}") from error


def parse_config(values: dict[str, Any], *, where: str) -> TrainConfig:
    """Validate plain data (a recipe, or the config that a checkpoint stores)."""
    try:
        # Through JSON, so that TOML arrays become tuples as JSON arrays do.
        return TrainConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [f"  {_explained(each['loc'], each['type'], each['msg'])}" for each in error.errors()]
        raise ValueError(f"{where}: {len(lines)} setting(s) refused\n" + "\n".join(lines)) from error


def _explained(place: Sequence[str | int], kind: str, message: str) -> str:
    """One refused setting: as it is written in a recipe, and what it may have been meant for."""
    # The place names the kind of data or model that was found, which is no part of a key.
    keys = [str(part) for part in place]
    if keys[:1] in (["data"], ["model"]) and len(keys) > 2:
        del keys[1]
    key = ".".join(keys)
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    near = difflib.get_close_matches(keys[-1], _fields_beside(keys[:-1]), n=1, cutoff=0.6)
    meant = f"; is {'.'.join([*keys[:-1], near[0]])} meant?" if near else ""
    return f"{key}: there is no such setting{meant}"


def _fields_beside(parents: Sequence[str]) -> list[str]:
    """Names of the settings of one table of a recipe."""
    tables: list[type[BaseModel]] = [TrainConfig]
    for parent in parents:
        found = [table.model_fields[parent].annotation for table in tables if parent in table.model_fields]
        tables = [each for one in found for each in (get_args(one) or (one,)) if isinstance(each, type)]
        tables = [each for each in tables if issubclass(each, BaseModel)]
    return [name for table in tables for name in table.model_fields]


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"override {override!r}: expected key=value, for example optim.steps=100")
    *parents, last = key.strip().split(".")
    table: Any = values
    for parent in parents:
        if isinstance(table, list) and parent.isdigit() and int(parent) < len(table):
            table = table[int(parent)]
        elif isinstance(table, dict):
            table = table.setdefault(parent, {})
        if not isinstance(table, dict | list):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a table")
    if not isinstance(table, dict):
        raise ValueError(f"override {override!r}: {parents[-1]!r} is a list; say which, for example 0")
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = text
