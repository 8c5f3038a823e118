"""The table of roles in docs/adapters.md: trains a small model with each method, publishes and serves it, compares.

    python benchmarks/methods_served.py              trains, publishes, serves, writes the record and the table
    python benchmarks/methods_served.py --table      the table of docs/adapters.md from the record alone

Each method is trained for some steps on top of one small base of drawn scenes. Texts and pictures are then given to the
checkpoint, to the artifact and to a server, and the largest difference is kept. The rows are `RUNS`; a method of
`training.methods` without one is an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.marked import RECORDS, ROOT, markdown_table, replace_blocks
from clipworks.client import Client
from evaluation.encoder import ServerEncoder, open_artifact, png
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from model_store.store import Artifact, Store
from training.checkpoint import read_checkpoint
from training.loop import train
from training.method import available
from training.methods.parts.conditional_run import ConditionalRun
from training.opening import method_of, open_checkpoint
from training.publication import Publication
from training.publish import publish_checkpoint
from training.saved import SavedRun

RECORD, PAGE, BLOCK = RECORDS / "methods-served.json", ROOT / "docs" / "adapters.md", "methods-served"
RECIPE = """
name = "served"
seed = 1
method = "base"
[data]
kind = "scenes"
cache_px = 48
[[data.parts]]
scenes = 384
share = 3.0
count = [1, 1]
mix = {mentions = 0.7, negatives = 0.3}
[[data.parts]]
scenes = 128
share = 1.0
count = [2, 2]
mix = {mentions = 0.7, negatives = 0.3}
[model]
kind = "small"
embed_dim = 32
image = {trunk = "clipworks_conv_t", size_px = 48, pool = "flat"}
text = {merges = 2000, context_length = 24, width = 32, layers = 1, heads = 2, pool = "eos+bag"}
[optim]
batch_size = 32
steps = 300
rate = 2e-3
warmup_steps = 2
weight_decay = 0.1
clip_norm = 1.0
ema_decay = 0.5
[run]
folder = "unset"
device = "cpu"
threads = 1
report = "scenes"
"""
BASE, VIT = "base", "vit"
BASES = {BASE: (), VIT: ("model.image={trunk='clipworks_vit_t',size_px=48}", "optim.steps=30")}
TEXTS = ["a red circle", "a blue square left of a green star", "there is no cross", "a picture without a circle"]
_FEW = "optim.steps=20"
_ONE_WORD = "method_options={label='shape',words='a',n_ctx=1}"


@dataclass(frozen=True)
class MethodRun:
    """Overrides of a method's run; base: one of `BASES`. by_itself: it starts from none."""

    method: str
    overrides: tuple[str, ...] = ()
    base: str = BASE
    by_itself: bool = False


@dataclass(frozen=True)
class Elsewhere:
    """A method that this base cannot carry, or whose like has a row, and the test that compares its doors."""

    method: str
    why: str
    test: str


RUNS: Mapping[str, MethodRun | Elsewhere] = {
    "base": MethodRun("base", ("seed=2", "optim.steps=5")),
    "negclip": MethodRun("negclip", (_FEW,)),
    # Small steps: a base of 300 steps names few things, and the proof of its space leaves no room for large ones.
    "negation": MethodRun("negation", (_FEW, "optim.rate=5e-4", "method_options.excuse_true=true")),
    "labclip": MethodRun("labclip", (_FEW, "optim.rate=5e-4")),
    "tinyclip": MethodRun("tinyclip", (_FEW, "method_options.text={width=24,mlp=64}")),
    "kd": MethodRun("kd", (_FEW, "method_options={teacher='BASE',fd=100.0}"), by_itself=True),
    "kd_image": MethodRun("kd_image", (_FEW, "method_options.image={trunk='clipworks_conv_t',size_px=48}")),
    "aligned": Elsewhere("aligned", "a model of another kind", "tests/training/test_aligned_training.py"),
    "unmix": Elsewhere("unmix", "heads of positions", "tests/training/test_unmix_served.py"),
    "intra_modal": Elsewhere("intra_modal", "a matrix behind each tower", "tests/training/test_method_intra_modal.py"),
    "rerank": Elsewhere("rerank", "a logit of a pair", "tests/training/test_method_rerank.py"),
    "fare": Elsewhere("fare", "an image tower as of `kd_image`", "tests/training/test_methods_served.py"),
    "tecoa": Elsewhere("tecoa", "published as `fare` is", "tests/training/test_methods_served.py"),
    "gda": MethodRun("gda", ("method_options.label=shape",)),
    "linear_probe": MethodRun("linear_probe", ("method_options.label=pair",)),
    "tip_adapter": MethodRun("tip_adapter", ("method_options={label='colour',alpha=[20.0],beta=[5.0]}",)),
    "tip_adapter_f": MethodRun("tip_adapter_f", ("method_options={label='shape',alpha=[20.0],beta=[5.0],rate=0.01}",)),
    "clip_adapter": MethodRun("clip_adapter", ("method_options={label='pair',ratio=[0.4]}",)),
    "coop": MethodRun("coop", ("optim.steps=200", "optim.rate=2e-2", "method_options={label='pair',words='a'}")),
    "coop, the proof fails": MethodRun("coop", (_FEW, "optim.rate=1.0", "method_options={label='pair',n_ctx=8}")),
    "coop, specific": MethodRun("coop", (_FEW, "method_options={label='shape',n_ctx=4,specific=true}")),
    "cocoop": MethodRun("cocoop", ("optim.steps=60", "optim.rate=2e-2", "method_options={label='shape',reduction=4}")),
    "vpt": MethodRun("vpt", (_FEW, "optim.rate=2e-2", "method_options={label='shape',depth=2}"), base=VIT),
    "ivlp": MethodRun("ivlp", (_FEW, "optim.rate=2e-2", _ONE_WORD), base=VIT),
    "maple": MethodRun("maple", (_FEW, "optim.rate=2e-2", _ONE_WORD), base=VIT),
    "promptsrc": MethodRun("promptsrc", (_FEW, "optim.rate=2e-2", _ONE_WORD), base=VIT),
    "promptsrc, texts": MethodRun(
        "promptsrc", (_FEW, "optim.rate=2e-3", "method_options={label='shape',words='a',n_ctx=1,towers='text'}")
    ),
    "clip_lora": MethodRun("clip_lora", ("optim.steps=10", "optim.rate=2e-2", "method_options.label=shape")),
    "clip_lora, texts": MethodRun(
        "clip_lora", ("optim.steps=10", "optim.rate=2e-3", "method_options={label='shape',towers='text'}")
    ),
    "full": MethodRun("full", ("optim.steps=10", "optim.rate=2e-3", "method_options.label=shape")),
    "full, texts": MethodRun(
        "full", ("optim.steps=10", "optim.rate=2e-4", "method_options={label='shape',towers='text'}")
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of what each method publishes, in docs/adapters.md.")
    parser.add_argument("--table", action="store_true", help="write the table from the record, and train nothing")
    parser.add_argument("--only", help="measure these rows anew, separated by semicolons; the others stay")
    chosen = parser.parse_args()
    check_rows(available())
    if not chosen.table:
        rows = list(RUNS) if chosen.only is None else chosen.only.split(";")
        with tempfile.TemporaryDirectory() as folder:
            anew = measured(rows, Path(folder))
        found = {**(read_record() if chosen.only is not None and RECORD.exists() else {}), **anew}
        RECORD.write_text(json.dumps({row: found[row] for row in RUNS if row in found}, indent=1) + "\n", "utf-8")
    PAGE.write_text(replace_blocks(PAGE.read_text(encoding="utf-8"), {BLOCK: table(read_record())}), encoding="utf-8")


def check_rows(methods: Sequence[str]) -> None:
    """Raises:
    ValueError: a method has no row.
    """
    if missing := sorted(set(methods) - {run.method for run in RUNS.values()}):
        raise ValueError(f"no row of RUNS in {Path(__file__).name} trains {', '.join(missing)}")


def measured(rows: Sequence[str], folder: Path) -> dict[str, Any]:
    """The record of these rows; checkpoints and artifacts lie in `folder`."""
    recipe, store = folder / "recipe.toml", Store(folder / "store", builtin=False)
    recipe.write_text(RECIPE, encoding="utf-8")
    runs = {row: (f"run-{at}", run) for at, row in enumerate(rows) if isinstance(run := RUNS[row], MethodRun)}
    for base in dict.fromkeys((BASE, *(run.base for _, run in runs.values()))):
        train(recipe, [f"run.folder={json.dumps(str(folder / base))}", *BASES[base]])
        publish_checkpoint(folder / base, base, store, precisions=("fp32",))
    for row, (name, run) in runs.items():
        print(f"{row}", flush=True)
        base = [] if run.by_itself or run.method == "base" else [f"base={json.dumps(str(folder / run.base))}"]
        overrides = [each.replace("BASE", str(folder / BASE)) for each in run.overrides]
        train(recipe, [f"run.folder={json.dumps(str(folder / name))}", *base, f"method={run.method}", *overrides])
        publish_checkpoint(folder / name, name, store, precisions=("fp32",))
    names = [name for name, _ in runs.values()]
    with served(folder / "store", names) as url, Client(url) as client:
        return {row: row_of(folder, name, store.open(run.base), store, client) for row, (name, run) in runs.items()}


def row_of(folder: Path, name: str, base: Artifact, store: Store, client: Client) -> dict[str, Any]:
    """Roles of one artifact, its space, and the largest difference of each door to the checkpoint."""
    artifact = store.open(name)
    own = list(dict.fromkeys(graph.role for graph in artifact.manifest.graphs))
    pictures = [render(sample(seed, SceneConfig()), 64).image for seed in range(9)]
    found: dict[str, Any] = {
        "own": own,
        "inherited": [role for role in artifact.roles() if role not in own],
        "searchable": artifact.manifest.space == base.manifest.space,
    }
    doors = {"artifact": open_artifact(artifact), "HTTP": ServerEncoder(client, model=name)}
    if set(own) - {"class_head", "conditional_head"}:
        checkpoint = open_checkpoint(folder / name)
        expected = np.concatenate([checkpoint.encode_texts(TEXTS), checkpoint.encode_images(pictures)])
        found["vectors"] = {
            door: _largest(np.concatenate([each.encode_texts(TEXTS), each.encode_images(pictures)]), expected)
            for door, each in doors.items()
        }
    if "class_head" in own:
        run = SavedRun(folder=folder / name, info=read_checkpoint(folder / name))
        ((head, source),) = method_of(run.info).derivation(Publication(run=run, store=store)).heads.items()
        seen_by = name if "image_encoder" in own else base.manifest.name
        vectors = open_checkpoint(folder / seen_by).encode_images(pictures)
        with torch.inference_mode():
            scores = source.module(torch.from_numpy(vectors)).softmax(dim=1).numpy()
        answers = client.classify([png(each) for each in pictures], model=name, label_set=head)
        by_label = [{each.label: each.score for each in row} for row in answers]
        over_http = np.array([[row[label] for label in source.labels] for row in by_label])
        artifacts = open_artifact(artifact).class_scores(head, pictures)
        found["scores"] = {"artifact": _largest(artifacts, scores), "HTTP": _largest(over_http, scores)}
    if "conditional_head" in own:
        opened = ConditionalRun.of(SavedRun(folder=folder / name, info=read_checkpoint(folder / name)), position="end")
        labels = [*opened.run.info.labels, "red thing", "a star and a circle"]
        expected = opened.logits(open_checkpoint(folder / base.manifest.name).encode_images(pictures), labels)
        scores = torch.from_numpy(expected).softmax(dim=1).numpy()
        logits = torch.from_numpy(open_artifact(artifact).label_logits(labels, pictures))
        answers = client.classify([png(each) for each in pictures], labels, model=name)
        by_label = [{each.label: each.score for each in row} for row in answers]
        over_http = np.array([[row[label] for label in labels] for row in by_label])
        found["scores"] = {
            "artifact": _largest(logits.softmax(dim=1).numpy(), scores),
            "HTTP": _largest(over_http, scores),
        }
    return found


def _largest(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    return float(f"{np.abs(found - expected).max():.1e}")


def read_record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def table(record: Mapping[str, Any]) -> str:
    """One line a row.

    Raises:
        ValueError: a row was not measured.
    """
    lines: list[list[str]] = []
    for row, run in RUNS.items():
        name = f"`{run.method}`" + row.removeprefix(run.method)
        if isinstance(run, Elsewhere):
            lines.append([name, f"{run.why}: `{run.test}`", "", "", "", ""])
            continue
        if row not in record:
            raise ValueError(f"{RECORD.name} has no row {row!r}: run {Path(__file__).name} --only {row!r}")
        found = record[row]
        differences = ["; ".join(_shown(found, door)) for door in ("artifact", "HTTP")]
        searchable = "yes" if found["searchable"] else "no, a space of its own"
        lines.append([name, _roles(found["own"]), _roles(found["inherited"]), searchable, *differences])
    head = ("method", "brings", "inherits", "collections of the base", "checkpoint - artifact", "checkpoint - HTTP")
    return markdown_table(head, lines)


def _roles(roles: Sequence[str]) -> str:
    return ", ".join(f"`{role}`" for role in roles)


def _shown(found: Mapping[str, Any], door: str) -> list[str]:
    return [f"{what} {found[what][door]:.1e}" for what in ("vectors", "scores") if what in found]


@contextmanager
def served(store: Path, names: Sequence[str]) -> Iterator[str]:
    """The address of a server of the base and of these models.

    Raises:
        RuntimeError: it did not start.
    """
    command = [str(Path(sys.executable).with_name("clipworks")), "serve", "--port", "0", "--log-level", "warning"]
    command += ["--no-builtin", "--store", str(store), "--model", BASE, "--extra-models", ",".join(names)]
    server = subprocess.Popen([*command, "--data", "memory"], stdout=subprocess.PIPE, text=True)
    try:
        url = ""
        for line in server.stdout or ():
            url = line.removeprefix("clipworks: listening on ").strip() if "listening" in line else url
            if "ready" in line:
                break
        else:
            raise RuntimeError(f"the server ended with status {server.wait()}")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


if __name__ == "__main__":
    main()
