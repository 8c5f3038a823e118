"""The training loop: one function that reads top to bottom and knows no method."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from contextlib import closing
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
from training.accumulation import add_gradients, check_accumulation, total
from training.bases import open_base
from training.batch_norms import average_statistics, norms_in_training, synchronise
from training.checkpoint import (
    ARRAY_PREFIX,
    INFO_FILE,
    LoadedModel,
    git_sha,
    load_state,
    read_checkpoint,
    save_checkpoint,
)
from training.config import StoredModel, TrainConfig, load_config
from training.data.batches import BatchPlan, TextIds
from training.data.source import open_source
from training.data.vocabulary import tokenizer_of
from training.features import FeatureBatches, cached_features
from training.fetching import Fetching
from training.gradient_exchange import GradientExchange
from training.history import note_step, resumable, save_step, saved_steps
from training.interrupts import TrainingStopped, asked_to_stop
from training.judging import Judge
from training.log import NoLog, RunLog
from training.mirror import Mirror
from training.models.building import image_spec as spec_of
from training.models.towers import DualEncoder
from training.optimization import LossWatch, adamw, rate_at
from training.precision import MixedPrecision
from training.progress import tracked_on
from training.resuming import refuse_other_run
from training.run_state import RunState

STREAM, PROCESS_STREAM = 2**32, 2**24
TOOLS = ("torch", "timm", "open_clip_torch", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the checkpoint lies and what validation said at its last step."""

    folder: Path
    step: int
    metrics: dict[str, Any]


def train(
    config_path: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    from_step: int | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train a recipe, as `clipworks train CONFIG [--set key=value] [--resume | --from-step STEP]`.

    Under `torchrun` the processes share every batch and all judging; the first one writes.

    Raises:
        ValueError: the recipe, the data or the checkpoint to resume is wrong; the message says where.
        TrainingStopped: Ctrl-C; a checkpoint was saved.
    """
    config = load_config(config_path, overrides)
    folder, resume = config.run.folder, resume or from_step is not None
    if not resume and ((folder / INFO_FILE).exists() or saved_steps(folder)):
        raise ValueError(
            f"{folder} holds a run already: go on with --resume, or take another one: --set run.folder=..."
        )
    _refuse_unwritable(folder)
    with distributed.joined(config.run.device):
        return run(config, resume=resume, from_step=from_step, console=console)


# Longer than 60 lines on purpose: the whole story of a run stands in one place, in the order in which it happens.
def run(
    config: TrainConfig, *, resume: bool = False, from_step: int | None = None, console: Console | None = None
) -> TrainResult:
    """Train `config` to its last step and return the checkpoint; with `resume`, go on from one in `run.folder`.

    from_step: resume from the checkpoint of that step, not from the newest.

    On a CPU with the same thread count a resumed run is bit-equal to an uninterrupted one: batches and dropout depend
    on (seed, step) only, and the checkpoint holds every other state.
    """
    folder, optim, first = config.run.folder, config.optim, distributed.rank() == 0
    device = config.run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.run.threads:
        torch.set_num_threads(config.run.threads)

    # Data: the source draws or decodes every training picture once; a base brings its tokenizer and its specs.
    base, method = open_base(config), methods.create(config.method, config.method_options)
    text_spec, tokenizer_bytes, cache_spec, image_spec = _inputs_of(config, base)
    image_spec = method.image_spec(image_spec)
    tokenizer = Tokenizer(text_spec, tokenizer_bytes)
    track = tracked_on(console if first else None)
    source = open_source(config, cache_spec=cache_spec, image_spec=image_spec, track=track)

    digest = source.digest()

    # Method: it builds the modules; their weights depend on the seed alone.
    torch.manual_seed(config.seed)
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
            data_key=_data_key(config, digest, image_spec),
            track=track,
        )
    )
    modules = method.modules()
    for module, use in modules.values():
        module.to(memory_format=torch.channels_last).train(use != "frozen")
        if use == "frozen":
            module.requires_grad_(False)
    trained = [module for module, use in modules.values() if use != "frozen"]
    facts = {
        "config": config.model_dump(mode="json"),
        "image_spec": image_spec.model_dump(mode="json"),
        "text_spec": text_spec.model_dump(mode="json"),
        "image_spec_digest": spec_digest(image_spec),
        "text_spec_digest": spec_digest(text_spec),
        "data_digest": digest,
        "git_sha": git_sha(Path(__file__).parent),
        "base_sha256": base.info.weights_sha256 if base is not None else None,
        "tools": {name: importlib.metadata.version(name) for name in TOOLS},
    }

    # A closed form takes no steps.
    if isinstance(method, methods.FitMethod):
        if features is None:
            raise ValueError(f"method {config.method} is fitted in closed form, and must ask for features")
        method.fit(features)
        methods.check_produced(config.method, method)
        metrics = method.report()
        info = {**facts, "step": 0, "metrics": {"validation": metrics}, **_produced(method, config)}
        if first:
            save_checkpoint(folder, info, weights=_shipped(method), state={}, tokenizer=tokenizer_bytes)
        return TrainResult(folder=folder, step=0, metrics=metrics)
    if not isinstance(method, methods.StepMethod):
        raise ValueError(f"method {config.method} has neither steps nor a closed form")

    # What would go wrong late is found now.
    methods.check_produced(config.method, method)
    check_accumulation(config.method, method, optim.accumulate)
    judge = Judge(
        config.method, method, source, image_spec=image_spec, tokenizer=tokenizer, device=device, run=config.run
    )
    judge.rehearse()
    mirror = Mirror(config.run.mirror if first else None)

    batches = method.batches(batch_size=optim.batch_size, seed=config.seed)
    if batches is None and features is not None:
        batches = FeatureBatches(features=features, batch_size=optim.batch_size, seed=config.seed)
    elif batches is None:
        batches = source.batches(
            TextIds(text_spec, tokenizer_bytes),
            BatchPlan(
                batch_size=optim.batch_size,
                pairs="text" in needs.fields,
                negatives=needs.negatives,
                truth="excused" in needs.fields,
                codes="meaning_code" in needs.fields,
                captions=needs.captions,
                neighbours=method.neighbours,
                looks=method.looks,
                second=method.second,
            ),
        )
    fetch = Fetching(batches, needs.of, batch_size=optim.batch_size, device=device)

    # Optimizer and state; several processes are one in batch norms, gradients and losses.
    with torch.no_grad():
        method.constrain()
    if config.run.gradient_checkpointing:
        _checkpoint_gradients(config.method, trained)
    if config.run.sync_batch_norm and distributed.count() > 1:
        synchronise(trained, device=device)
    precision = MixedPrecision(config.run.precision, device=device)
    optimizer, names = adamw(method.param_groups(), optim)
    state = RunState(modules, optimizer, names, precision)
    initial = state.copied() if config.wise_ft is not None else {}
    trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    exchange, watch = GradientExchange(trainable), LossWatch(device, at_once=device == "cpu")

    # Resume: everything that a step changes comes back; batches and dropout depend on (seed, step) only.
    start, notes = 0, list[str]()
    if resume:
        newest = resumable(folder, from_step)
        before = read_checkpoint(newest)
        refuse_other_run(before, config, own_model=method.artifact().model is not None)
        if before.base_sha256 != facts["base_sha256"]:
            raise ValueError(f"cannot resume: base {config.base} has other weights than those the run started from")
        tensors = load_state(newest)
        state.restore(tensors)
        fetch.resume(tensors)
        start = before.step
        if (planned := before.config.optim.steps) != optim.steps:
            rates = " and now ".join(f"{rate_at(start, each):.3g}" for each in (before.config.optim, optim))
            notes.append(f"{optim.steps} steps in place of {planned}: the rate of the next one was to be {rates}")
    if optim.accumulate > 1 and norms_in_training(trained):
        notes.append("optim.accumulate: batch norms see a part of the batch, gradients are not those of the whole")
    metrics: dict[str, Any] = {"validation": {}}

    def save(done: int, shipped: dict[str, Tensor], position: dict[str, Tensor]) -> Path:
        with state.placed(shipped):
            weights = {name: tensor.clone() for name, tensor in _shipped(method).items()}
        info = {**facts, "step": done, "metrics": metrics, **_produced(method, config)}
        return save_step(
            folder,
            info,
            weights=weights,
            state={**state.saved(), **position},
            tokenizer=tokenizer_bytes,
            keep=config.run.keep,
            in_use=mirror.in_use(),
        )

    log = NoLog()
    if first:
        log = RunLog(
            folder, start=start, total=optim.steps, console=console, wandb=config.run.wandb, settings=facts["config"]
        )
    alone = distributed.count() == 1
    with log, mirror, closing(fetch), asked_to_stop(listen=alone) as asked:
        for note in notes:
            log.say(note)
        for step in range(start, optim.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, optim) * group["rate_share"]
            # Dropout's stream of this step, another one in every process.
            reseed = partial(torch.manual_seed, config.seed * STREAM + step + distributed.rank() * PROCESS_STREAM)
            reseed()
            batch = fetch(step)

            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                method.prepare(step, step / optim.steps)
            losses = add_gradients(
                method,
                batch,
                step / optim.steps,
                parts=optim.accumulate,
                modules=trained,
                autocast=precision.autocast,
                scaled=precision.scaled,
                reseed=reseed,
                before_last=exchange.start,
            )
            loss = distributed.mean(total(losses).detach())
            watch.note(step, loss)
            exchange.finish()
            precision.unscale(optimizer)
            norm = nn.utils.clip_grad_norm_(trainable, optim.clip_norm)
            precision.step(optimizer)
            with torch.no_grad():
                method.constrain()
                method.stepped(step, (step + 1) / optim.steps)
            average_statistics(trained)
            state.follow(step, decay=optim.ema_decay)

            fetch.stepped()
            done = step + 1
            is_last = done == optim.steps
            logs = done % config.run.log_steps == 0 or is_last
            saves = done % config.run.checkpoint_steps == 0 or is_last or asked.stop
            validates = done % config.run.validate_steps == 0 or is_last
            every = config.run.zero_shot_steps
            classifies = every > 0 and (done % every == 0 or is_last)
            if logs or saves or validates or classifies:
                watch.check()
            if logs:
                numbers = {name: distributed.mean(value.detach()).item() for name, value in losses.items()}
                numbers |= {"loss": loss.item(), "grad_norm": norm.item(), "rate": rate_at(step, optim)}
                numbers |= precision.numbers()
                log.write("train", done, {**numbers, **fetch.speed()})
                log.left_out(done, fetch.bad_samples())
            log.advance(done, loss.item() if done % config.run.log_steps == 0 else None)
            # Saved first: whatever goes wrong while judging, the steps are not lost.
            position = fetch.position() if saves else {}
            saved = save(done, state.average, position) if first and saves else None
            if asked.stop and not is_last:
                if saved is not None:
                    mirror.send(saved)
                raise TrainingStopped(folder, done, optim.steps)
            for series, wanted, judged in (
                ("validation", validates, judge.validated),
                ("zero_shot", classifies, judge.classified),
            ):
                if wanted:
                    with state.placed(state.average):
                        metrics[series] = judged()
                    log.judged(series, done, metrics[series])
            if config.wise_ft is not None and is_last:
                curve, chosen = judge.interpolated(
                    config.wise_ft, start=initial, end=state.average, placed=state.placed
                )
                facts["wise_ft"], metrics["validation"] = curve, curve["chosen"]["metrics"]
                saved = save(done, chosen, position) if first else None
            if saved is not None:
                note_step(folder, done, metrics)
                mirror.send(saved)
    return TrainResult(folder=folder, step=optim.steps, metrics=metrics["validation"])


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


def _data_key(config: TrainConfig, digest: str, image_spec: ImageSpec) -> str:
    """What fixed looks at the data depend on, beside the looks' numbers."""
    parts = (digest, config.seed, config.data.model_dump_json(), config.augment.model_dump_json(), image_spec.height_px)
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _produced(method: methods.Method, config: TrainConfig) -> dict[str, Any]:
    """What the checkpoint says of the method's artifact; its config names the model that the checkpoint holds."""
    produced = method.artifact()
    if produced.model is not None:
        config = config.model_copy(update={"model": produced.model})
    return {
        "config": config.model_dump(mode="json"),
        "graphs": produced.graphs,
        "templates": list(produced.templates),
        "labels": list(produced.labels),
        "inherited": list(produced.inherited),
        "behind_base": produced.behind_base,
        "presence": None if produced.presence is None else produced.presence.model_dump(mode="json"),
        "distillation": None if produced.distillation is None else produced.distillation.model_dump(mode="json"),
    }


def _shipped(method: methods.Method) -> dict[str, Tensor]:
    """Weights and arrays of the method as they are now."""
    arrays = {f"{ARRAY_PREFIX}{name}": torch.from_numpy(array) for name, array in method.artifact().arrays.items()}
    return {**method.weights(), **arrays}


def _checkpoint_gradients(name: str, modules: Sequence[nn.Module]) -> None:
    """Raises:
    ValueError: the method `name` trains no towers, or towers that cannot do it.
    """
    towers = [module for module in modules if isinstance(module, DualEncoder)]
    if not towers:
        raise ValueError(f"run.gradient_checkpointing is for methods that train towers, which {name} does not")
    for each in towers:
        each.checkpoint_gradients()
