"""The source of shards that are streamed: of training nothing is held, of validation a bounded number of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from evaluation.standard.shards import BadSample, ShardSample, streamed_samples
from model_store.errors import InputError
from model_store.manifest import ImageSpec
from model_store.modality.image import decode, prepare
from training import distributed
from training.data.augment import CaptionAugment, ImageAugment
from training.data.batches import BatchPlan, Tokenize
from training.data.meaning_code import MeaningCode
from training.data.protocol import StepBatches
from training.data.reader import load_pixels, read_table
from training.data.rows import Drawn, LabelledRow, Row, Split
from training.data.sample_stream import StreamPlan
from training.data.shard_urls import open_shard, shard_urls
from training.data.stream_batches import SampleRows, StreamBatches
from training.encoder import TorchEncoder
from training.judge import table_report
from training.progress import Track, untracked
from training.shards_config import Shards, ValidationTable, WebdatasetData

_SAMPLED_TEXTS = 10_000
_REHEARSED = 16


class WebdatasetSource:
    """Shards of `data` as a run's source; methods that want every picture at once are told so.

    Raises:
        ValueError: a shard of this machine, or what a glob should find, is not there.
    """

    def __init__(
        self,
        data: WebdatasetData,
        *,
        image_augment: ImageAugment,
        caption_augment: CaptionAugment,
        seed: int,
        cache_spec: ImageSpec,
        image_spec: ImageSpec,
        track: Track = untracked,
    ) -> None:
        self._data, self._image_augment, self._caption_augment = data, image_augment, caption_augment
        self._seed, self._cache_spec, self._image_spec, self._track = seed, cache_spec, image_spec, track
        self._judged: dict[Split, tuple[list[Row], NDArray[np.uint8]]] = {}

    @property
    def pixels(self) -> NDArray[np.uint8]:
        self._refuse("all pictures at once")

    @property
    def captioned(self) -> bool:
        return True

    def texts(self) -> Sequence[str]:
        """The first captions of the shards, and the bare templates."""
        captions = (sample.caption for sample in _readable(self._shards()))
        return [*islice(captions, _SAMPLED_TEXTS), *(each.format("") for each in self._caption_augment.templates)]

    def pictures(self, split: Split, spec: ImageSpec | None = None) -> NDArray[np.uint8]:
        if split == "train":
            self._refuse("all pictures at once")
        if spec is not None and spec != self._image_spec:
            self._refuse("pictures of another size")
        return self._judging(split)[1]

    def labels(self, name: str, split: Split = "train") -> Sequence[str | None]:
        self._refuse(f"the label {name!r}")

    def labelled(self, name: str, split: Split, *, side_px: int) -> LabelledRow:
        self._refuse(f"the label {name!r}")

    def row_weights(self) -> NDArray[np.float64]:
        self._refuse("a look at every picture beforehand")

    def captions(self, count: int, *, negatives: bool) -> list[tuple[int, Drawn]]:
        self._refuse("all captions at once")

    def batches(self, tokenize: Tokenize, plan: BatchPlan) -> StepBatches:
        if plan.negatives or plan.truth or plan.codes or plan.neighbours is not None or plan.captions != 1:
            self._refuse("false captions, truth, neighbours or several captions of a picture")
        if plan.looks:
            self._refuse("fixed looks at every picture")
        data = self._data
        stream = StreamPlan(
            shards=self._shards(),
            samples=data.samples,
            seed=self._seed,
            buffer=data.buffer,
            bad_share=data.bad_share,
            resampled=data.resampled,
        )
        if plan.second is not None and plan.second.size_px > data.cache_px:
            raise ValueError(
                f"the teacher takes pictures of {plan.second.size_px} px, and data.cache_px keeps {data.cache_px}"
            )
        rows = SampleRows(
            spec=self._cache_spec,
            image_augment=self._image_augment,
            caption_augment=self._caption_augment,
            tokenize=tokenize,
            second=plan.second,
        )
        return StreamBatches(
            stream,
            rows,
            batch_size=plan.batch_size,
            workers=data.workers,
            prefetch=data.prefetch,
            process=distributed.rank(),
            processes=distributed.count(),
        )

    def looks(self, rows: NDArray[np.int64], look: int, *, size_px: int) -> tuple[NDArray[np.uint8], list[str]]:
        self._refuse("fixed looks at every picture")

    def meaning_code(self) -> MeaningCode:
        self._refuse("what captions mean")

    def digest(self) -> str:
        """sha256 over the names of the shards below `folder`; their bytes are read only when they train."""
        folder = self._data.folder.rstrip("/") + "/"
        lines = [name.removeprefix(folder) for name in self._shards()]
        return hashlib.sha256("\n".join([*lines, str(self._data.samples)]).encode()).hexdigest()

    def judge(self, encoder: TorchEncoder, *, split: Literal["validation", "test"]) -> dict[str, Any]:
        """Retrieval among the first `validation_samples` of the split's shards or table."""
        return self._report(encoder, *self._judging(split))

    def rehearse(self, encoder: TorchEncoder) -> None:
        rows, pixels = self._judging("validation")
        self._report(encoder, rows[:_REHEARSED], pixels[:_REHEARSED])

    def _report(self, encoder: TorchEncoder, rows: list[Row], pixels: NDArray[np.uint8]) -> dict[str, Any]:
        return table_report(encoder, rows=rows, pixels=pixels, training=(), report="retrieval")

    def _shards(self) -> tuple[str, ...]:
        return shard_urls(self._data.shards, folder=self._data.folder)

    def _judging(self, split: Split) -> tuple[list[Row], NDArray[np.uint8]]:
        if split not in self._judged:
            named = self._data.validation if split == "validation" else self._data.test
            if named is None:
                raise ValueError("these data have no test split: name data.test")
            most = self._data.validation_samples
            if isinstance(named, ValidationTable):
                self._judged[split] = _of_table(named, self._image_spec, most, self._track)
            else:
                self._judged[split] = _of_shards(named, self._data.folder, self._image_spec, most)
        return self._judged[split]

    def _refuse(self, wanted: str) -> NoReturn:
        raise ValueError(f"this method wants {wanted}: shards that are streamed give pictures with one caption each")


def _readable(shards: Sequence[str]) -> Iterator[ShardSample]:
    """Samples of all shards in order, but for the bad ones.

    Raises:
        ValueError: a shard does not open.
    """
    for shard in shards:
        try:
            with open_shard(shard) as file:
                for sample in streamed_samples(file, shard.rpartition("/")[2]):
                    if not isinstance(sample, BadSample):
                        yield sample
        except Exception as error:  # a remote file system raises what its own library raises
            raise ValueError(f"{shard}: {type(error).__name__}: {error}") from error


def _of_shards(shards: Shards, folder: str, spec: ImageSpec, most: int) -> tuple[list[Row], NDArray[np.uint8]]:
    """The first samples that decode."""
    rows: list[Row] = []
    pixels: list[NDArray[np.uint8]] = []
    for sample in _readable(shard_urls(shards, folder=folder)):
        try:
            pixels.append(prepare(decode(sample.data), spec))
        except InputError:
            continue
        rows.append(Row(image=sample.name, caption=sample.caption, group=len(rows)))
        if len(rows) == most:
            break
    if not rows:
        raise ValueError("the shards of data.validation or data.test hold no sample that can be used")
    return rows, np.stack(pixels)


def _of_table(table: ValidationTable, spec: ImageSpec, most: int, track: Track) -> tuple[list[Row], NDArray[np.uint8]]:
    rows = read_table(
        Path(table.folder) / table.table,
        image_column=table.image_column,
        caption_column=table.caption_column,
        group=lambda _: 0,
    )[:most]
    if not rows:
        raise ValueError(f"{table.folder}/{table.table} has no rows")
    return rows, load_pixels(table.folder, rows, spec, track=track)
