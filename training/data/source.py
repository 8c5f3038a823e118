"""Data sources of a run: a table of captioned images or drawn scenes, to train on and to be judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.fashion import article_type
from evaluation.scenes.rendering import render
from evaluation.scenes.scene import Scene, Thing
from evaluation.scenes_report import scenes_report, single_scenes
from model_store.manifest import ImageSpec
from training.config import (
    AugmentConfig,
    CorruptionConfig,
    DataPart,
    FolderData,
    MixedData,
    PicturesData,
    SceneData,
    SeveralData,
    TableData,
    TrainConfig,
)
from training.data.augment import CaptionAugment, CorruptionAugment, ImageAugment
from training.data.batches import Batches, BatchPlan, SceneBatches, TableRows, Tokenize
from training.data.meaning_code import MeaningCode
from training.data.mixed import MixedSource
from training.data.protocol import Source, StepBatches
from training.data.reader import data_digest, load_pixels
from training.data.rows import Drawn, LabelledRow, Row, Split
from training.data.scenes import SceneRows, draw_scenes, labelled_scenes, scene_splits, several_scenes
from training.data.several import SeveralSource
from training.data.tables import Table
from training.data.webdataset import WebdatasetSource
from training.encoder import TorchEncoder
from training.judge import table_report
from training.progress import Track, untracked
from training.run_config import Report
from training.shards_config import WebdatasetData

ARTICLE_TYPE, COLOUR = "article_type", "baseColour"
SEVERAL = 512
JUDGED = {"validation": 1_000, "test": 2_000}  # seeds of the judged scenes: no scene of one is in the other


def open_source(
    config: TrainConfig, *, cache_spec: ImageSpec, image_spec: ImageSpec, track: Track = untracked
) -> Source:
    """Read or draw the data of a recipe.

    Raises:
        ValueError: the data are not there, or are not what the recipe says.
    """
    data = config.data
    if isinstance(data, MixedData):
        return MixedSource(
            _table_source(data.table, config, cache_spec=cache_spec, image_spec=image_spec, track=track),
            _scene_source(data.scenes, config, image_spec=image_spec),
            scene_share=data.scene_share,
        )
    if isinstance(data, SeveralData):
        return SeveralSource(
            names=tuple(part.name for part in data.parts),
            parts=tuple(_part_source(part, config, cache_spec, image_spec, track) for part in data.parts),
            shares=tuple(part.share for part in data.parts),
        )
    if isinstance(data, SceneData):
        if config.run.report != "scenes":
            raise ValueError(f"run.report is {config.run.report!r}: scenes are judged by 'scenes'")
        return _scene_source(data, config, image_spec=image_spec)
    if isinstance(data, WebdatasetData):
        return _webdataset_source(data, config, cache_spec=cache_spec, image_spec=image_spec, track=track)
    return _table_source(data, config, cache_spec=cache_spec, image_spec=image_spec, track=track)


def _webdataset_source(
    data: WebdatasetData, config: TrainConfig, *, cache_spec: ImageSpec, image_spec: ImageSpec, track: Track
) -> WebdatasetSource:
    if config.run.report != "retrieval":
        raise ValueError(f"run.report is {config.run.report!r}: shards are judged by 'retrieval'")
    return WebdatasetSource(
        data,
        image_augment=image_augment(config.augment, size_px=image_spec.height_px),
        caption_augment=caption_augment(config.augment),
        seed=config.seed,
        cache_spec=cache_spec,
        image_spec=image_spec,
        track=track,
    )


def image_augment(augment: AugmentConfig, *, size_px: int) -> ImageAugment:
    return ImageAugment(
        size_px=size_px,
        scale=augment.crop_scale,
        aspect=augment.crop_aspect,
        shift_px=augment.shift_px,
        flip=augment.flip,
        corruption=corruption_augment(augment.corruption),
    )


def corruption_augment(config: CorruptionConfig | None) -> CorruptionAugment | None:
    if config is None:
        return None
    return CorruptionAugment(share=config.share, kinds=config.kinds, severities=config.severities)


def caption_augment(augment: AugmentConfig) -> CaptionAugment:
    return CaptionAugment(
        templates=augment.templates,
        template_share=augment.template_share,
        word_drop=augment.word_drop,
        tail=augment.tail,
    )


def _part_source(
    part: DataPart, config: TrainConfig, cache_spec: ImageSpec, image_spec: ImageSpec, track: Track
) -> Source:
    if isinstance(part.data, SceneData):
        return _scene_source(part.data, config, image_spec=image_spec)
    reported = config.model_copy(update={"run": config.run.model_copy(update={"report": part.report})})
    return _table_source(part.data, reported, cache_spec=cache_spec, image_spec=image_spec, track=track)


def _scene_source(data: SceneData, config: TrainConfig, *, image_spec: ImageSpec) -> SceneSource:
    if data.cache_px != image_spec.height_px:
        raise ValueError(f"scenes are drawn at {data.cache_px} px, the model takes {image_spec.height_px}")
    rows = draw_scenes(data, seed=config.seed, corruption=corruption_augment(config.augment.corruption))
    return SceneSource(rows, data=data)


def _table_source(
    data: TableData | FolderData | PicturesData,
    config: TrainConfig,
    *,
    cache_spec: ImageSpec,
    image_spec: ImageSpec,
    track: Track,
) -> TableSource:
    if isinstance(data, TableData):
        table = Table.of_file(data)
    else:
        table = Table.of_folder(data) if isinstance(data, FolderData) else Table.of_pictures(data)
    return TableSource(
        table,
        augment=config.augment,
        report=config.run.report,
        seed=config.seed,
        cache_spec=cache_spec,
        image_spec=image_spec,
        track=track,
    )


class TableSource:
    """A table of captioned image files, decoded once.

    Raises:
        ValueError: at once, for whatever a later step would fail on: an empty split, a report whose label is not there,
            images that cannot be read.
    """

    def __init__(
        self,
        table: Table,
        *,
        augment: AugmentConfig,
        report: Report,
        seed: int,
        cache_spec: ImageSpec,
        image_spec: ImageSpec,
        track: Track = untracked,
    ) -> None:
        if report == "scenes":
            raise ValueError("run.report is 'scenes': a table is judged by 'retrieval' or 'fashion'")
        if report == "fashion" and COLOUR not in table.label_columns:
            raise ValueError(
                f"run.report is 'fashion', which reads the label column {COLOUR!r}: name it in data.label_columns, "
                "or set run.report to 'retrieval'"
            )
        self._table, self._augment, self._report, self._seed = table, augment, report, seed
        self._image_spec, self._cache_spec = image_spec, cache_spec
        self._track = track
        self.rows = self._of("train")
        self._refuse_empty_splits()
        self._pixels = load_pixels(table.folder, self.rows, cache_spec, track=track)
        self._prepared: dict[Split, NDArray[np.uint8]] = {}

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return self._pixels

    @property
    def captioned(self) -> bool:
        return self._table.captioned

    def texts(self) -> Sequence[str]:
        """Captions, their hard negatives and the bare templates."""
        negatives = [row.negative for row in self.rows if row.negative is not None]
        return [*(row.caption for row in self.rows), *negatives, *(t.format("") for t in self._augment.templates)]

    def pictures(self, split: Split, spec: ImageSpec | None = None) -> NDArray[np.uint8]:
        if spec is not None and spec != self._image_spec:
            return load_pixels(self._table.folder, self._of(split), spec, track=self._track)
        if split == "train" and self._cache_spec == self._image_spec:
            return self._pixels
        if split not in self._prepared:
            self._prepared[split] = load_pixels(
                self._table.folder, self._of(split), self._image_spec, track=self._track
            )
        return self._prepared[split]

    def labels(self, name: str, split: Split = "train") -> Sequence[str | None]:
        """A label column; for product photographs also "article_type", read from the title's last words."""
        rows = self._of(split)
        if name in self._table.label_columns:
            return [row.labels[name].strip() or None for row in rows]
        if name == ARTICLE_TYPE and self._report == "fashion":
            return [article_type(row.caption) for row in rows]
        known = [*self._table.label_columns, *([ARTICLE_TYPE] if self._report == "fashion" else [])]
        raise ValueError(
            f"no label {name!r}: this table has {', '.join(known) or 'none (data.label_columns is empty)'}"
        )

    def labelled(self, name: str, split: Split, *, side_px: int) -> LabelledRow:
        """A cell may hold several values, with semicolons between."""
        shown = {
            of: [{part.strip() for part in (value or "").split(";")} - {""} for value in self.labels(name, of)]
            for of in ("train", split)
        }
        names = tuple(sorted(set[str]().union(*shown["train"])))
        spec = self._image_spec.model_copy(update={"height_px": side_px, "width_px": side_px})
        return LabelledRow(
            pixels=load_pixels(self._table.folder, self._of(split), spec, track=self._track),
            names=names,
            present=np.array([[each in some for each in names] for some in shown[split]], dtype=np.bool_),
        )

    def unseen(self, split: Split) -> NDArray[np.bool_]:
        """Which rows of a split have a caption that no training row has, up to case: bool [n]."""
        seen = {row.caption.casefold() for row in self.rows}
        return np.array([row.caption.casefold() not in seen for row in self._of(split)], dtype=np.bool_)

    def row_weights(self) -> NDArray[np.float64]:
        return np.ones(len(self.rows))

    def captions(self, count: int, *, negatives: bool) -> list[tuple[int, Drawn]]:
        """One a row: a table has no other. Augmentation is left out."""
        self._refuse_uncaptioned()
        if negatives and not self._table.has_negatives:
            raise ValueError("this method wants false captions: name data.negative_column")
        return [(at, Drawn(row.caption, row.negative if negatives else None)) for at, row in enumerate(self.rows)]

    def batches(self, tokenize: Tokenize, plan: BatchPlan) -> StepBatches:
        if plan.codes:
            self.meaning_code()
        if plan.truth:
            raise ValueError("excuse_true wants to know which captions are true of which pictures: a table does not")
        if plan.captions != 1:
            raise ValueError(f"{plan.captions} captions a picture: a table has one")
        if plan.negatives and not self._table.has_negatives:
            raise ValueError("this method wants false captions: name data.negative_column")
        if len(self.rows) < plan.batch_size:
            raise ValueError(f"{len(self.rows)} training rows do not fill a batch: set optim.batch_size below that")
        if plan.second is not None:
            self._refuse_blown_up(plan.second.size_px)
        return Batches(self._augmented, tokenize, plan)

    def looks(self, rows: NDArray[np.int64], look: int, *, size_px: int) -> tuple[NDArray[np.uint8], list[str]]:
        self._refuse_blown_up(size_px)
        seen = [self._augmented.look(row, look) for row in rows.tolist()]
        return self._augmented.shown(rows, [view for view, _ in seen], size_px=size_px), [text for _, text in seen]

    def meaning_code(self) -> MeaningCode:
        raise ValueError("this method wants to know what captions mean, as drawn scenes do: a table does not")

    def digest(self) -> str:
        return data_digest(self.rows, self.pixels)

    def judge(self, encoder: TorchEncoder, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        self._refuse_uncaptioned()
        return table_report(
            encoder,
            rows=self._of(split),
            pixels=self.pictures(split),
            training=self.rows,
            report="fashion" if self._report == "fashion" else "retrieval",
        )

    def rehearse(self, encoder: TorchEncoder) -> None:
        self.judge(encoder, split="validation")

    @property
    def _augmented(self) -> TableRows:
        return TableRows(
            rows=self.rows,
            pixels=self.pixels,
            image_augment=image_augment(self._augment, size_px=self._image_spec.height_px),
            caption_augment=caption_augment(self._augment),
            seed=self._seed,
            captioned=self.captioned,
        )

    def _of(self, split: Split) -> list[Row]:
        return self._table.rows[split]

    def _refuse_uncaptioned(self) -> None:
        if not self.captioned:
            raise ValueError("these pictures have no captions, by which a model is judged and pairs are trained")

    def _refuse_blown_up(self, size_px: int) -> None:
        if size_px > (kept := self.pixels.shape[1]):
            raise ValueError(
                f"the teacher takes pictures of {size_px} px, and data.cache_px keeps {kept}: set it to {size_px}"
            )

    def _refuse_empty_splits(self) -> None:
        counts = {split: len(rows) for split, rows in self._table.rows.items()}
        if not counts["train"] or not counts["validation"]:
            raise ValueError(
                f"{sum(counts.values())} rows, {counts['train']} of them for training and {counts['validation']} for "
                f"validation: {self._table.splitting}"
            )


@dataclass(frozen=True)
class SceneSource:
    """Drawn scenes; judged on scenes of other streams, out of the training pairs."""

    rows: SceneRows
    data: SceneData

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return self.rows.pixels

    @property
    def captioned(self) -> bool:
        return True

    def texts(self) -> Sequence[str]:
        return self.rows.texts()

    def pictures(self, split: Split, spec: ImageSpec | None = None) -> NDArray[np.uint8]:
        side_px = self.data.cache_px if spec is None else spec.height_px
        if split == "train":
            return self.rows.shown(np.arange(len(self.rows.pixels)), size_px=side_px)
        return np.stack([render(scene, side_px).image for scene in self._scenes(split)])

    def labels(self, name: str, split: Split = "train") -> Sequence[str | None]:
        """ "shape", "colour" or "pair" (both words) of scenes of one thing; the other scenes have none."""
        if name not in ("shape", "colour", "pair"):
            raise ValueError(f"no label {name!r}: scenes of one thing have shape, colour and pair")
        return [_word(scene.things[0], name) if len(scene.things) == 1 else None for scene in self._scenes(split)]

    def labelled(self, name: str, split: Split, *, side_px: int) -> LabelledRow:
        """Of training's scenes; of validation and test, one to four things each, of training's pairs."""
        pairs = scene_splits(self.data).validation.pairs
        scenes = (
            self.rows.scenes if split == "train" else several_scenes(pairs=pairs, seed=JUDGED[split], count=SEVERAL)
        )
        return labelled_scenes(scenes, name, pairs=pairs, side_px=side_px)

    def row_weights(self) -> NDArray[np.float64]:
        return np.ones(len(self.rows.pixels))

    def captions(self, count: int, *, negatives: bool) -> list[tuple[int, Drawn]]:
        rows = range(len(self.rows.scenes))
        return [(row, self.rows.draw(row, number, negative=negatives)) for row in rows for number in range(count)]

    def batches(self, tokenize: Tokenize, plan: BatchPlan) -> StepBatches:
        if plan.batch_size % plan.captions:
            raise ValueError(f"a batch of {plan.batch_size} cannot hold {plan.captions} captions of each picture")
        return SceneBatches(self.rows, tokenize, plan)

    def looks(self, rows: NDArray[np.int64], look: int, *, size_px: int) -> tuple[NDArray[np.uint8], list[str]]:
        texts = [self.rows.draw(row, look, negative=False).text for row in rows.tolist()]
        return self.rows.seen(rows, [look] * len(rows), size_px=size_px), texts

    def meaning_code(self) -> MeaningCode:
        return self.rows.code

    def digest(self) -> str:
        return self.rows.digest()

    def judge(self, encoder: TorchEncoder, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        return scenes_report(encoder, pairs=scene_splits(self.data).validation.pairs, seed=JUDGED[split])

    def rehearse(self, encoder: TorchEncoder) -> None:
        """Drawn data hold no surprise, and judging them takes a while."""

    def _scenes(self, split: Split) -> Sequence[Scene]:
        if split == "train":
            return self.rows.scenes
        return single_scenes(pairs=scene_splits(self.data).validation.pairs, seed=JUDGED[split])


def _word(thing: Thing, name: str) -> str:
    return {"shape": thing.shape, "colour": thing.colour, "pair": f"{thing.colour} {thing.shape}"}[name]
