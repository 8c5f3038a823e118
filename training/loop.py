"""The training loop: one function that reads top to bottom and knows no method."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from model_store.identity import spec_digest
from model_store.modality.text import Tokenizer
from training import methods
from training.checkpoint import (
    INFO_FILE,
    git_sha,
    load_state,
    optimizer_state,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from training.config import OptimConfig, TrainConfig, load_config
from training.data.augment import CaptionAugment, ImageAugment
from training.data.batches import Batches
from training.data.reader import data_digest, load_pixels, read_table
from training.data.vocabulary import tokenizer_of
from training.judge import judge
from training.log import RunLog, flatten
from training.towers import image_spec as spec_of

STREAM = 2**32
TOOLS = ("torch", "timm", "open_clip_torch", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the checkpoint lies and what validation said at its last step."""

    folder: Path
    step: int
    metrics: dict[str, Any]


def train(
    config_path: Path, overrides: Sequence[str] = (), *, resume: bool = False, console: Console | None = None
) -> TrainResult:
    """Train a recipe: the door of `clipworks train CONFIG [--set key=value] [--resume]`.

    Raises:
        ValueError: the recipe, the data or the checkpoint to resume is wrong; the message says where.
    """
    return run(load_config(config_path, overrides), resume=resume, console=console)


# Longer than 60 lines on purpose: the whole story of a run stands in one place, in the order in which it happens.
def run(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> TrainResult:
    """Train `config` to its last step and return the checkpoint; with `resume`, go on from the one in `run.folder`.

    On a CPU with the same thread count a resumed run is bit-equal to an uninterrupted one: batches and dropout depend
    on (seed, step) only, and the checkpoint holds every other state.
    """
    folder, optim = config.run.folder, config.optim
    device = config.run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    bf16 = config.run.precision == "bf16" or (config.run.precision == "auto" and device == "cuda")

    # Data: rows, splits, tokenizer, and every training picture decoded once.
    rows = read_table(
        config.data.folder / config.data.table,
        image_column=config.data.image_column,
        caption_column=config.data.caption_column,
        label_columns=config.data.label_columns,
    )
    rule = config.data.split.rule()
    train_rows = [row for row in rows if rule.of(row.group) == "train"]
    validation_rows = [row for row in rows if rule.of(row.group) == "validation"]
    text_spec, tokenizer_bytes = tokenizer_of(config.model)
    tokenizer = Tokenizer(text_spec, tokenizer_bytes)

    cache_spec, image_spec = spec_of(config.model, size_px=config.data.cache_px), spec_of(config.model)
    pixels = load_pixels(config.data.folder, train_rows, cache_spec)
    validation_pixels = load_pixels(config.data.folder, validation_rows, image_spec)
    batches = Batches(
        rows=train_rows,
        pixels=pixels,
        image_augment=ImageAugment(
            size_px=image_spec.height_px,
            scale=config.augment.crop_scale,
            aspect=config.augment.crop_aspect,
            shift_px=config.augment.shift_px,
            flip=config.augment.flip,
        ),
        caption_augment=CaptionAugment(
            templates=config.augment.templates,
            template_share=config.augment.template_share,
            word_drop=config.augment.word_drop,
            tail=config.augment.tail,
        ),
        tokenize=lambda texts: tokenizer.pad([tokenizer.encode(text) for text in texts]),
        batch_size=optim.batch_size,
        seed=config.seed,
    )

    # Method: it builds the modules; their weights depend on the seed alone.
    torch.manual_seed(config.seed)
    method = methods.create(config.method, config.method_options)
    if method.needs.level != "rows":
        raise ValueError(f"method {config.method} needs {method.needs.level}, this loop feeds rows")
    method.setup(
        methods.Context(
            model=config.model,
            tokenizer=tokenizer,
            rows=train_rows,
            pixels=pixels,
            texts=[*(row.caption for row in train_rows), *(t.format("") for t in config.augment.templates)],
            batch_size=optim.batch_size,
            device=device,
        )
    )
    modules = method.modules()
    for module, use in modules.values():
        module.requires_grad_(use != "frozen").train(use != "frozen").to(memory_format=torch.channels_last)
    live = {name: tensor for name, tensor in _named_state(modules) if modules[name.split(".", 1)[0]][1] != "frozen"}
    average = {name: tensor.clone() for name, tensor in live.items()}

    # Optimizer: AdamW without decay on vectors and scalars (norms, biases, the temperature).
    groups, names = _optimizer_groups(method.param_groups(), weight_decay=optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=optim.rate, betas=optim.betas, eps=optim.epsilon)

    # Resume: everything that a step changes comes back; batches and dropout depend on (seed, step) only.
    start = 0
    if resume:
        before = read_checkpoint(folder)
        _refuse_other_run(before.config, config)
        state = load_state(folder)
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[f"live/{name}"])
                average[name].copy_(state[f"average/{name}"])
        restore_optimizer(optimizer, names, _below("optimizer/", state))
        start = before.step
    elif (folder / INFO_FILE).exists():
        raise ValueError(f"{folder} holds a run already: resume it or choose another run.folder")
    facts = {
        "config": config.model_dump(mode="json"),
        "image_spec": image_spec.model_dump(mode="json"),
        "text_spec": text_spec.model_dump(mode="json"),
        "image_spec_digest": spec_digest(image_spec),
        "text_spec_digest": spec_digest(text_spec),
        "data_digest": data_digest(train_rows, pixels),
        "git_sha": git_sha(Path(__file__).parent),
        "graphs": method.artifact().graphs,
        "templates": list(method.artifact().templates),
        "tools": {name: importlib.metadata.version(name) for name in TOOLS},
    }
    metrics: dict[str, Any] = {}
    trainable = [parameter for group in groups for parameter in group["params"]]

    with RunLog(folder, start=start, total=optim.steps, console=console) as log:
        for step in range(start, optim.steps):
            began_s = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, optim) * group["rate_share"]
            torch.manual_seed(config.seed * STREAM + step)  # dropout's stream of this step
            batch = {name: tensor.to(device) for name, tensor in batches(step).items()}

            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                losses = method.step(batch, step / optim.steps)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                raise ValueError(f"loss is {loss.item()} at step {step}: lower optim.rate or look at the data")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trainable, optim.clip_norm)
            optimizer.step()

            # Average: young averages follow fast, or the first hundreds of steps would stay in them.
            decay = min(optim.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, tensor in live.items():
                    if tensor.is_floating_point():
                        average[name].lerp_(tensor, 1 - decay)
                    else:
                        average[name].copy_(tensor)

            done = step + 1
            if done % config.run.log_steps == 0 or done == optim.steps:
                numbers = {name: value.item() for name, value in losses.items()}
                numbers |= {"loss": loss.item(), "grad_norm": norm.item(), "rate": rate_at(step, optim)}
                log.write("train", done, {**numbers, "pairs_per_s": optim.batch_size / (time.perf_counter() - began_s)})
            log.advance(done, loss.item() if done % config.run.log_steps == 0 else None)
            if done % config.run.validate_steps == 0 or done == optim.steps:
                with _weights(live, average):
                    metrics = judge(
                        method,
                        tokenizer,
                        rows=validation_rows,
                        pixels=validation_pixels,
                        training_titles=frozenset(row.caption.casefold() for row in train_rows),
                        report=config.run.report,
                        device=device,
                    )
                log.write("validation", done, flatten(metrics))
            if done % config.run.checkpoint_steps == 0 or done == optim.steps:
                save_checkpoint(
                    folder,
                    {**facts, "step": done, "metrics": {"validation": metrics}},
                    weights={name: average[name] for name in live if modules[name.split(".", 1)[0]][1] == "export"},
                    state={
                        **{f"live/{name}": tensor for name, tensor in live.items()},
                        **{f"average/{name}": tensor for name, tensor in average.items()},
                        **{f"optimizer/{k}": v for k, v in optimizer_state(optimizer, names).items()},
                    },
                    tokenizer=tokenizer_bytes,
                )
    return TrainResult(folder=folder, step=optim.steps, metrics=metrics)


def rate_at(step: int, optim: OptimConfig) -> float:
    """Learning rate of a 0-based step: linear warm-up, then half a cosine down to `final_rate_share` of the peak."""
    if step < optim.warmup_steps:
        return optim.rate * (step + 1) / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    floor = optim.rate * optim.final_rate_share
    return floor + (optim.rate - floor) * (1 + math.cos(math.pi * share)) / 2


def _named_state(modules: dict[str, tuple[nn.Module, methods.ModuleUse]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors themselves (not copies) of every module, buffers included, as `<module>.<path>`."""
    for prefix, (module, _) in modules.items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            yield f"{prefix}.{name}", tensor


def _optimizer_groups(
    groups: Sequence[methods.ParamGroup], *, weight_decay: float
) -> tuple[list[dict[str, Any]], dict[nn.Parameter, str]]:
    """torch's parameter groups: matrices with decay, the rest without; and every parameter's name."""
    made: list[dict[str, Any]] = []
    names: dict[nn.Parameter, str] = {}
    for group in groups:
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        names |= {parameter: name for name, parameter in group.parameters.items()}
        for is_matrix in (True, False):
            chosen = [p for p in group.parameters.values() if (p.ndim >= 2) == is_matrix]
            made.append(
                {
                    "params": chosen,
                    "weight_decay": decay if is_matrix else 0.0,
                    "rate_share": group.rate_share,
                    "maximize": group.maximize,
                }
            )
    return [group for group in made if group["params"]], names


@contextmanager
def _weights(live: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[None]:
    """Run a block with `other` in place of the live weights, and put the live ones back whatever happens."""
    kept = {name: tensor.detach().clone() for name, tensor in live.items()}
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(other[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(kept[name])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _refuse_other_run(before: TrainConfig, now: TrainConfig) -> None:
    """A run resumes under its own recipe; only where it runs and where its data lie may have changed."""
    free = {"run": True, "data": {"folder"}}
    old, new = before.model_dump(exclude=free), now.model_dump(exclude=free)
    changed = sorted(key for key in new if old[key] != new[key])
    if changed:
        raise ValueError(f"cannot resume: {', '.join(changed)} differ from the checkpoint's recipe")
