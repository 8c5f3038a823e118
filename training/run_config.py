"""The tables [optim], [run] and [wise_ft] of a recipe: how steps are taken, where and when things are written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from training.config_table import ConfigTable

Report = Literal["retrieval", "fashion", "scenes"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


class OptimConfig(ConfigTable):
    """AdamW with a linear warm-up and half a cosine. `batch_size` is that of all processes together."""

    batch_size: int = Field(ge=2)
    accumulate: int = Field(
        default=1, ge=1, description="encode a process's rows in so many parts; the loss still sees the whole batch"
    )
    steps: int = Field(ge=1)
    rate: float = Field(gt=0, description="peak learning rate")
    warmup_steps: int = Field(ge=0)
    final_rate_share: float = Field(default=0.0, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = Field(ge=0)
    clip_norm: float = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)


class RunConfig(ConfigTable):
    """Where a run computes and what it writes when. Nothing here changes what is learnt but `precision`, and, with
    batch norms on several processes, `sync_batch_norm`.

    precision: "auto" is bf16 autocast on a GPU and fp32 elsewhere; "bf16" also on CPUs (3x faster with AMX); "fp16"
    scales the loss. keep, mirror: checkpoints. zero_shot_*: classification while training. wandb: a project's name.
    """

    folder: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    threads: int = Field(default=0, ge=0, description="torch CPU threads; 0 leaves torch's choice")
    gradient_checkpointing: bool = Field(default=False, description="less memory for a second forward pass")
    sync_batch_norm: bool = Field(default=True, description="several processes: batch norms see the rows of all")
    log_steps: int = Field(default=20, ge=1)
    validate_steps: int = Field(default=500, ge=1)
    checkpoint_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=1, ge=1, description="how many checkpoints stay, the newest among them")
    mirror: str | None = Field(default=None, description="a folder or fsspec address that checkpoints are copied to")
    report: Report = "retrieval"
    zero_shot_steps: int = Field(default=0, ge=0, description="0: no classification while training")
    zero_shot_folder: Path | None = Field(default=None, description="pictures in one sub-folder for each class")
    zero_shot_label: str | None = Field(default=None, description="or a label column of the validation rows")
    wandb: str | None = Field(default=None, description="project of Weights & Biases (extra `wandb`)")
    features: Path | None = Field(default=None, description="where cached features lie; by default beside the run")
    store: Path | None = Field(default=None, description="where the artifact of a base lies, beside the shipped ones")

    @model_validator(mode="after")
    def _one_zero_shot_set(self) -> RunConfig:
        named = [each for each in (self.zero_shot_folder, self.zero_shot_label) if each is not None]
        if len(named) != (1 if self.zero_shot_steps else 0):
            raise ValueError(
                "zero_shot_steps goes with one of zero_shot_folder and zero_shot_label, and they go with it"
            )
        return self


class WiseFt(ConfigTable):
    """Interpolation between the base and what was trained (Wortsman et al., 2022, WiSE-FT), after the last step.

    Of the `alphas` the one is taken that gains most on `cure` and loses at most `most_lost` on `neutral`; both are
    paths of validation numbers, such as "relation/opposite relation"; higher is better. Where a method has numbers of
    its own (few shots: "adapted/class_mean"), those of the data's judge ("all/t2i_r@10/value") may be named too.
    """

    cure: str
    neutral: str | None = Field(default=None, description="what must not be lost; none: nothing else is asked")
    most_lost: float = Field(default=0.01, ge=0)
    alphas: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(11))
