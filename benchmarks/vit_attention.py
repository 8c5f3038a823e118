"""A small ViT trained from nothing on scenes, read position by position in each of the training-free ways.

    python benchmarks/vit_attention.py        about 10 minutes of training, then the numbers of docs/localize.md

open_clip's ViTs are large; this one has its blocks, 48 pixels and 6 x 6 patches. There is no goal: the recipes of
MaskCLIP, SCLIP and NACLIP were made for towers that saw hundreds of millions of pictures.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Literal

import open_clip

from benchmarks.marked import ROOT
from evaluation.dense.scene_set import chosen_pairs
from evaluation.dense.task import scenes_task
from evaluation.encoder import DenseArtifactEncoder
from evaluation.locating import Looking
from evaluation.scenes_report import single_accuracy
from model_store.store import Store
from training.data.source import JUDGED
from training.loop import train
from training.opening import open_checkpoint
from training.publish import publish_checkpoint

ARCHITECTURE = "clipworks-vit-48-6"
FOLDER, RECIPE = ROOT / ".runs" / "lab" / "vit", ROOT / "training" / "configs" / "lab" / "b0.toml"
RECORD = ROOT / "benchmarks" / "lab" / "vit.json"
WAYS: tuple[Literal["naclip", "sclip", "maskclip"], ...] = ("naclip", "sclip", "maskclip")
SHAPE = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 48, "layers": 4, "width": 128, "patch_size": 6, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}
ROWS = ("pointing game", "mIoU, labels given", "mAP, peak of the map", "mAP, whole picture")


def register(folder: Path) -> None:
    """Make the architecture known to open_clip, which reads shapes from files."""
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    open_clip.add_model_config(folder)


def ensure() -> None:
    """Train the ViT by B0's recipe unless its checkpoint is finished."""
    model = f'model={{kind="open_clip", architecture="{ARCHITECTURE}"}}'
    if not (FOLDER / "finished.json").exists():
        resume = (FOLDER / "checkpoint.json").exists()
        found = train(RECIPE, [model, 'name="vit"', f'run.folder="{FOLDER}"'], resume=resume)
        (FOLDER / "finished.json").write_text(json.dumps({"step": found.step}) + "\n", encoding="utf-8")


def judged(folder: Path) -> dict[str, object]:
    """Score and bound of each row on held-out scenes, by the way that the last block is read."""
    pairs = chosen_pairs("trained")
    found: dict[str, object] = {"single": single_accuracy(open_checkpoint(FOLDER), pairs=pairs, seed=JUDGED["test"])}
    for way in WAYS:
        artifact = publish_checkpoint(FOLDER, f"vit-{way}", Store(folder), precisions=("fp32",), dense=way)
        looking = Looking(short_px=48, templates=("a {}",))
        task = scenes_task(seed=JUDGED["test"], pairs="trained", pictures=300, looking=looking)
        rows = {row.name: row for row in task.measure(DenseArtifactEncoder(artifact)).rows}
        found[way] = {
            name: {
                "score": rows[name].score,
                "low": rows[name].low,
                "high": rows[name].high,
                "chance": rows[name].chance,
            }
            for name in ROWS
        }
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        register(Path(name))
        ensure()
        (Path(name) / "store").mkdir()
        found = judged(Path(name) / "store")
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
