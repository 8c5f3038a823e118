"""The training loop: one function that reads top to bottom and knows no method."""

from __future__ import annotations

import importlib.metadata
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from model_store.identity import spec_digest
from model_store.manifest import ImageSpec, TextSpec
from model_store.modality.text import Tokenizer
from training import distributed
from training import method as methods
from training.bases import open_base
from training.checkpoint import (
    ARRAY_PREFIX,
    INFO_FILE,
    LoadedModel,
    git_sha,
    load_state,
    note_metrics,
    optimizer_state,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from training.config import OptimConfig, StoredModel, TrainConfig, WiseFt, load_config
from training.data.protocol import Source
from training.data.source import open_source
from training.data.vocabulary import tokenizer_of
from training.encoder import TorchEncoder
from training.features import FeatureBatches, cached_features
from training.interrupts import TrainingStopped, asked_to_stop
from training.log import NoLog, RunLog
from training.models.building import image_spec as spec_of
from training.progress import tracked_on
from training.wise_ft import interpolate, wise_ft_curve

STREAM, PROCESS_STREAM = 2**32, 2**24
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
    """Train a recipe, as `clipworks train CONFIG [--set key=value] [--resume]`.

    Under `torchrun` the processes share every batch; the first one validates and writes.

    Raises:
        ValueError: the recipe, the data or the checkpoint to resume is wrong; the message says where.
        TrainingStopped: Ctrl-C; a checkpoint was saved.
    """
    config = load_config(config_path, overrides)
    if not resume and (config.run.folder / INFO_FILE).exists():
        raise ValueError(
            f"{config.run.folder} holds a run already: go on with --resume, or take another one: --set run.folder=..."
        )
    _refuse_unwritable(config.run.folder)
    with distributed.joined(config.run.device):
        return run(config, resume=resume, console=console)


# Longer than 60 lines on purpose: the whole story of a run stands in one place, in the order in which it happens.
def run(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> TrainResult:
    """Train `config` to its last step and return the checkpoint; with `resume`, go on from the one in `run.folder`.

    On a CPU with the same thread count a resumed run is bit-equal to an uninterrupted one: batches and dropout depend
    on (seed, step) only, and the checkpoint holds every other state.
    """
    folder, optim, first = config.run.folder, config.optim, distributed.rank() == 0
    device = config.run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    bf16 = config.run.precision == "bf16" or (config.run.precision == "auto" and device == "cuda")

    # Data: the source draws or decodes every training picture once; a base brings its tokenizer and its specs.
    base = open_base(config)
    text_spec, tokenizer_bytes, cache_spec, image_spec = _inputs_of(config, base)
    tokenizer = Tokenizer(text_spec, tokenizer_bytes)
    track = tracked_on(console if first else None)
    source = open_source(config, cache_spec=cache_spec, image_spec=image_spec, track=track)

    # Method: it builds the modules; their weights depend on the seed alone.
    torch.manual_seed(config.seed)
    method = methods.create(config.method, config.method_options)
    needs, features = method.needs, None
    if needs.level != "rows":
        if base is None:
            raise ValueError(f"method {config.method} works on a frozen model's features: set base to its checkpoint")
        with distributed.first_alone():
            features = cached_features(
                base,
                source,
                level=needs.level,
                captions=needs.captions,
                negatives=needs.negatives,
                label=needs.labels[0] if needs.level == "dense" and needs.labels else None,
                side_px=needs.dense_px,
                folder=config.run.features or folder.parent / "features",
                device=device,
                track=track,
            )
    method.setup(
        methods.Context(
            model=config.model,
            tokenizer=tokenizer,
            source=source,
            batch_size=optim.batch_size,
            device=device,
            seed=config.seed,
            base=base,
            features=features,
            features_folder=config.run.features or folder.parent / "features",
            track=track,
        )
    )
    modules = method.modules()
    for module, use in modules.values():
        module.to(memory_format=torch.channels_last).train(use != "frozen")
        if use == "frozen":
            module.requires_grad_(False)

    if not isinstance(method, methods.FitMethod):
        methods.check_produced(config.method, method)
    judged = partial(_judged, config.method, method, source, image_spec=image_spec, tokenizer=tokenizer, device=device)
    if first and not isinstance(method, methods.FitMethod):
        judged(rehearsal=True)
    facts = {
        "config": config.model_dump(mode="json"),
        "image_spec": image_spec.model_dump(mode="json"),
        "text_spec": text_spec.model_dump(mode="json"),
        "image_spec_digest": spec_digest(image_spec),
        "text_spec_digest": spec_digest(text_spec),
        "data_digest": source.digest(),
        "git_sha": git_sha(Path(__file__).parent),
        "base_sha256": base.info.weights_sha256 if base is not None else None,
        "tools": {name: importlib.metadata.version(name) for name in TOOLS},
    }
    if isinstance(method, methods.FitMethod):
        if features is None:
            raise ValueError(f"method {config.method} is fitted in closed form, and must ask for features")
        method.fit(features)
        methods.check_produced(config.method, method)
        metrics = method.report()
        info = {**facts, "step": 0, "metrics": {"validation": metrics}, **_produced(method)}
        if first:
            save_checkpoint(folder, info, weights=_shipped(method), state={}, tokenizer=tokenizer_bytes)
        return TrainResult(folder=folder, step=0, metrics=metrics)
    if not isinstance(method, methods.StepMethod):
        raise ValueError(f"method {config.method} has neither steps nor a closed form")
    batches = method.batches(batch_size=optim.batch_size, seed=config.seed)
    if batches is None and features is not None:
        batches = FeatureBatches(features=features, batch_size=optim.batch_size, seed=config.seed)
    elif batches is None:
        batches = source.batches(
            lambda texts: tokenizer.pad([tokenizer.encode(text) for text in texts]),
            batch_size=optim.batch_size,
            negatives=needs.negatives,
            truth="excused" in needs.fields,
            neighbours=method.neighbours,
            captions=needs.captions,
            codes="meaning_code" in needs.fields,
        )
    live = {name: tensor for name, tensor in _named_state(modules) if modules[name.split(".", 1)[0]][1] != "frozen"}
    # What is locked never changes, and may be most of a model.
    moving = {name: t for name, t in live.items() if t.requires_grad or not isinstance(t, nn.Parameter)}
    average = {name: tensor.clone() for name, tensor in live.items()}
    initial = {name: tensor.clone() for name, tensor in live.items()}

    # Optimizer: AdamW without decay on vectors and scalars (norms, biases, the temperature).
    groups, names = _optimizer_groups(method.param_groups(), weight_decay=optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=optim.rate, betas=optim.betas, eps=optim.epsilon)

    # Resume: everything that a step changes comes back; batches and dropout depend on (seed, step) only.
    start = 0
    if resume:
        before = read_checkpoint(folder)
        _refuse_other_run(before.config, config)
        if before.base_sha256 != facts["base_sha256"]:
            raise ValueError(f"cannot resume: base {config.base} has other weights than those the run started from")
        state = load_state(folder)
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[f"live/{name}"])
                average[name].copy_(state[f"average/{name}"])
        restore_optimizer(optimizer, names, _below("optimizer/", state))
        start = before.step
    metrics: dict[str, Any] = {}
    trainable = [parameter for group in groups for parameter in group["params"]]

    def save(done: int, shipped: dict[str, Tensor]) -> None:
        state = {
            **{f"live/{name}": tensor for name, tensor in live.items()},
            **{f"average/{name}": tensor for name, tensor in average.items()},
            **{f"optimizer/{k}": v for k, v in optimizer_state(optimizer, names).items()},
        }
        with _weights(live, shipped):
            weights = {name: tensor.clone() for name, tensor in _shipped(method).items()}
        info = {**facts, "step": done, "metrics": {"validation": metrics}, **_produced(method)}
        save_checkpoint(folder, info, weights=weights, state=state, tokenizer=tokenizer_bytes)

    alone = distributed.count() == 1
    with (
        RunLog(folder, start=start, total=optim.steps, console=console) if first else NoLog() as log,
        asked_to_stop(listen=alone) as asked,
    ):
        for step in range(start, optim.steps):
            began_s = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, optim) * group["rate_share"]
            # Dropout's stream of this step, another one in every process.
            torch.manual_seed(config.seed * STREAM + step + distributed.rank() * PROCESS_STREAM)
            batch = {name: tensor.to(device) for name, tensor in distributed.part_of(needs.of(batches(step))).items()}

            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                losses = method.step(batch, step / optim.steps)
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            loss = distributed.mean(loss.detach())
            if not torch.isfinite(loss):
                raise ValueError(f"loss is {loss.item()} at step {step}: lower optim.rate or look at the data")
            distributed.average_gradients(trainable)
            norm = nn.utils.clip_grad_norm_(trainable, optim.clip_norm)
            optimizer.step()
            distributed.average_statistics([module for module, use in modules.values() if use != "frozen"])

            # Average: young averages follow fast, or the first hundreds of steps would stay in them.
            decay = min(optim.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                for name, tensor in moving.items():
                    if tensor.is_floating_point():
                        average[name].lerp_(tensor, 1 - decay)
                    else:
                        average[name].copy_(tensor)

            done = step + 1
            if done % config.run.log_steps == 0 or done == optim.steps:
                numbers = {name: distributed.mean(value.detach()).item() for name, value in losses.items()}
                numbers |= {"loss": loss.item(), "grad_norm": norm.item(), "rate": rate_at(step, optim)}
                log.write("train", done, {**numbers, "pairs_per_s": optim.batch_size / (time.perf_counter() - began_s)})
            log.advance(done, loss.item() if done % config.run.log_steps == 0 else None)
            # Saved first: whatever goes wrong while judging, the steps are not lost.
            saves = done % config.run.checkpoint_steps == 0 or done == optim.steps or asked.stop
            if first and saves:
                save(done, average)
            if asked.stop and done < optim.steps:
                raise TrainingStopped(folder, done, optim.steps)
            if first and (done % config.run.validate_steps == 0 or done == optim.steps):
                with _weights(live, average):
                    metrics = judged()
                log.validated(done, metrics)
                if saves:
                    note_metrics(folder, metrics)
            if first and config.wise_ft is not None and done == optim.steps:
                curve, chosen = _interpolated(config.wise_ft, start=initial, end=average, live=live, judged=judged)
                facts["wise_ft"], metrics = curve, curve["chosen"]["metrics"]
                save(done, chosen)
    return TrainResult(folder=folder, step=optim.steps, metrics=distributed.from_first(metrics))


def _refuse_unwritable(folder: Path) -> None:
    """What cannot be saved is found before the work, and nothing is left behind for it."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"run.folder {folder}: {there} is no folder that can be written to")


def _inputs_of(config: TrainConfig, base: LoadedModel | None) -> tuple[TextSpec, bytes, ImageSpec, ImageSpec]:
    """Text spec, tokenizer, and how pictures are kept and seen; a base must see the same pixels and tokens."""
    if base is not None and isinstance(config.model, StoredModel):
        return base.info.text_spec, base.tokenizer_bytes, base.info.image_spec, base.info.image_spec
    text_spec, tokenizer_bytes = tokenizer_of(config.model)
    image_spec = spec_of(config.model)
    if base is not None:
        for theirs, ours in ((base.info.image_spec, image_spec), (base.info.text_spec, text_spec)):
            if spec_digest(theirs) != spec_digest(ours):
                kind = type(ours).__name__
                raise ValueError(f"base {config.base} was trained with another {kind} than this recipe's")
    return text_spec, tokenizer_bytes, spec_of(config.model, size_px=config.data.cache_px), image_spec


def _judged(
    name: str,
    method: methods.Method,
    source: Source,
    *,
    image_spec: ImageSpec,
    tokenizer: Tokenizer,
    device: str,
    rehearsal: bool = False,
) -> dict[str, Any]:
    """Validation numbers of the method's current weights, in fp32; modules are in train mode again afterwards.

    rehearsal: only find out before the first step whether the data can be judged at all.
    """
    if (own := method.validated()) is not None:
        return own
    encode_image, encode_text = methods.judging_functions(name, method)
    moved = [module for module, use in method.modules().values() if use != "frozen"]
    for module in moved:
        module.eval()
    try:
        encoder = TorchEncoder(
            encode_image,
            encode_text,
            image_spec=image_spec,
            tokenizer=tokenizer,
            name="in training",
            fingerprint="in training",
            templates=method.artifact().templates,
            device=device,
        )
        if rehearsal:
            source.rehearse(encoder)
            return {}
        return source.judge(encoder, split="validation")
    finally:
        for module in moved:
            module.train()


def _interpolated(
    config: WiseFt,
    *,
    start: dict[str, Tensor],
    end: dict[str, Tensor],
    live: dict[str, Tensor],
    judged: Callable[[], dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The validation curve over alpha, and the weights of the chosen one."""
    measured: dict[float, dict[str, Any]] = {}
    for alpha in config.alphas:
        with _weights(live, interpolate(start, end, alpha)):
            measured[alpha] = judged()
    curve = wise_ft_curve(measured, cure=config.cure, neutral=config.neutral, most_lost=config.most_lost)
    return curve, interpolate(start, end, curve["chosen"]["alpha"])


def _produced(method: methods.Method) -> dict[str, Any]:
    """What the checkpoint says of the method's artifact."""
    produced = method.artifact()
    return {
        "graphs": produced.graphs,
        "templates": list(produced.templates),
        "labels": list(produced.labels),
        "inherited": list(produced.inherited),
        "presence": None if produced.presence is None else produced.presence.model_dump(mode="json"),
    }


def _shipped(method: methods.Method) -> dict[str, Tensor]:
    """Weights and arrays of the method as they are now."""
    arrays = {f"{ARRAY_PREFIX}{name}": torch.from_numpy(array) for name, array in method.artifact().arrays.items()}
    return {**method.weights(), **arrays}


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
    changed = [f"{key} was {before}, is {after}" for key, before, after in _differences(old, new)]
    if changed:
        raise ValueError(
            f"cannot resume under another recipe: {'; '.join(changed)}. Take the old values, or another run.folder"
        )


def _differences(old: Any, new: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of every setting that differs, in two dumps of one kind of recipe."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at, old, new
