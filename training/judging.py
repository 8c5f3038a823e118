"""Judges a model while it trains: validation, zero-shot classification, and the choice between it and its base.

Every process judges: each encodes its share of the rows, all get all vectors, and all work out the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evaluation.standard.classify import ZeroShotTask
from evaluation.standard.image_folder import ImageFolder, read_image_folder
from evaluation.zero_shot import class_matrix, zero_shot
from model_store.manifest import ImageSpec
from model_store.modality.text import Tokenizer
from training import method as methods
from training.data.protocol import Source
from training.encoder import TorchEncoder
from training.log import flatten
from training.run_config import RunConfig, WiseFt
from training.wise_ft import wise_ft_curve


class Judge:
    """The method called `name` as it is at the moment, in fp32; modules are in train mode again afterwards.

    Raises:
        ValueError: the set for zero-shot classification is not there.
    """

    def __init__(
        self,
        name: str,
        method: methods.Method,
        source: Source,
        *,
        image_spec: ImageSpec,
        tokenizer: Tokenizer,
        device: str,
        run: RunConfig,
    ) -> None:
        self._name, self._method, self._source = name, method, source
        self._image_spec, self._tokenizer, self._device = image_spec, tokenizer, device
        self._classes = _classes(run.zero_shot_folder, run.zero_shot_label, source)

    def rehearse(self) -> None:
        """Find out before the first step whether the data can be judged at all.

        Raises:
            ValueError: they cannot.
        """
        if self._method.validated() is None:
            with self._encoder() as encoder:
                self._source.rehearse(encoder)

    def validated(self) -> dict[str, Any]:
        """Validation numbers, nested."""
        if (own := self._method.validated()) is not None:
            return own
        with self._encoder() as encoder:
            return self._source.judge(encoder, split="validation")

    def classified(self) -> dict[str, Any]:
        """Zero-shot accuracy with the model's own templates, nested."""
        with self._encoder() as encoder:
            return self._classes(encoder)

    def interpolated(
        self,
        config: WiseFt,
        *,
        start: dict[str, Tensor],
        end: dict[str, Tensor],
        placed: Callable[[dict[str, Tensor]], AbstractContextManager[None]],
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The validation curve over alpha, and the weights of the chosen one. placed: a block with other weights."""
        measured: dict[float, dict[str, Any]] = {}
        for alpha in config.alphas:
            with placed(self._method.between(start, end, alpha)):
                measured[alpha] = self._asked(config)
        curve = wise_ft_curve(measured, cure=config.cure, neutral=config.neutral, most_lost=config.most_lost)
        return curve, self._method.between(start, end, curve["chosen"]["alpha"])

    def _asked(self, config: WiseFt) -> dict[str, Any]:
        """Validation numbers; beside a method's own also those of the data's judge, where one of them is named."""
        numbers = self.validated()
        if all(path is None or path in flatten(numbers) for path in (config.cure, config.neutral)):
            return numbers
        with self._encoder() as encoder:
            return {**self._source.judge(encoder, split="validation"), **numbers}

    @contextmanager
    def _encoder(self) -> Iterator[TorchEncoder]:
        encode_image, encode_text = methods.judging_functions(self._name, self._method)
        moved = [module for module, use in self._method.modules().values() if use != "frozen"]
        for module in moved:
            module.eval()
        try:
            yield TorchEncoder(
                encode_image,
                encode_text,
                image_spec=self._image_spec,
                tokenizer=self._tokenizer,
                name="in training",
                fingerprint="in training",
                templates=self._method.artifact().templates,
                device=self._device,
                divided=True,
            )
        finally:
            for module in moved:
                module.train()


def _classes(folder: Path | None, label: str | None, source: Source) -> Callable[[TorchEncoder], dict[str, Any]]:
    if folder is not None:
        found = read_image_folder(folder)
        return lambda encoder: _of_folder(encoder, found)
    if label is not None:
        source.labels(label, "validation")  # what is wrong with it is said now
        return lambda encoder: _of_label(encoder, label, source)
    return lambda encoder: {}


def _of_folder(encoder: TorchEncoder, folder: ImageFolder) -> dict[str, Any]:
    """As `clipworks eval` measures it, in the model's own wording."""
    rows = ZeroShotTask("zero-shot", folder, wordings=("own",)).measure(encoder).rows
    return {row.name.removesuffix(", own templates"): row.score for row in rows if row.score is not None}


def _of_label(encoder: TorchEncoder, label: str, source: Source) -> dict[str, Any]:
    """Over the validation rows that have a value, among all values that occur there and in training."""
    values = source.labels(label, "validation")
    named = [at for at, value in enumerate(values) if value is not None]
    names = sorted({value for value in (*values, *source.labels(label)) if value is not None})
    truth = np.array([names.index(values[at] or "") for at in named])
    images = encoder.encode_prepared(source.pictures("validation")[named])
    classes = class_matrix(encoder.encode_texts, names, encoder.templates or ("{}",))
    return {**asdict(zero_shot(images, truth, classes)), "classes": len(names)}
