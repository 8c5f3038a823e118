"""Measurements of a student: naming, retrieval, agreement with its teacher, mistakes that they share, size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lab_judge import SIZE, TOY_SINGLES, TOY_SIZE, rows_of, scene_data
from benchmarks.lab_records import Record
from benchmarks.lab_runs import RUNS, TOY, StudyRun
from benchmarks.lab_tables import SINGLES
from evaluation.agreement import centred_distance, found_across, overlap
from evaluation.encoder import ArtifactEncoder, Encoder
from evaluation.retrieval import retrieval
from evaluation.scenes.captions import mention
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.splits import Splits
from evaluation.scenes_report import single_accuracy
from evaluation.suites import Suite, picture_px, run
from model_store.manifest import Precision, Role
from model_store.store import Artifact, Store
from training.data.scenes import scene_splits
from training.data.source import JUDGED
from training.opening import open_checkpoint
from training.publish import publish_checkpoint

PROBES = ("binding", "relation", "order", "negation")
SCENES, TOY_SCENES = 1000, 40
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
STORE, TOY_STORE = RUNS / "distillation" / "store", TOY / "distillation" / "store"


@dataclass(frozen=True)
class Questions:
    """Held-out scenes, and what a teacher answers: two things of known pairs each, and one caption of each scene."""

    splits: Splits
    seed: int
    small: bool
    images: NDArray[np.float32]
    texts: NDArray[np.float32]

    @classmethod
    def asked_of(cls, teacher: Encoder, splits: Splits, *, seed: int, small: bool) -> Questions:
        shown, said, _ = two_things(splits, seed, count=TOY_SCENES if small else SCENES, size_px=picture_px(teacher))
        return cls(splits, seed, small, teacher.encode_images(shown), teacher.encode_texts(said))

    def answered_by(self, encoder: Encoder) -> dict[str, float]:
        """Naming, retrieval and agreement: `overlap_10` is of pictures that a caption finds; the rest compares vectors,
        and means nothing unless a term drew the two spaces together."""
        shown, said, titles = two_things(
            self.splits, self.seed, count=TOY_SCENES if self.small else SCENES, size_px=picture_px(encoder)
        )
        images, texts = encoder.encode_images(shown), encoder.encode_texts(said)
        found = retrieval(images, texts, titles)
        singles = TOY_SINGLES if self.small else SINGLES
        scores = {
            "naming": single_accuracy(encoder, pairs=self.splits.validation.pairs, seed=self.seed, count=singles),
            "naming, held-out pairs": single_accuracy(
                encoder, pairs=self.splits.heldout.pairs, seed=self.seed, count=singles
            ),
            **{name: found[name].value for name in ("t2i_r@1", "t2i_r@10", "i2t_r@10")},
            "overlap_10": overlap(texts @ images.T, self.texts @ self.images.T),
        }
        if images.shape == self.images.shape:
            scores |= {
                "images apart": centred_distance(images, self.images),
                "texts apart": centred_distance(texts, self.texts),
                "found across": found_across(images, self.images),
            }
        return scores


def measure(one: StudyRun, *, teacher: StudyRun, served: bool) -> Record:
    """The numbers of a run that stands here, as plain data. served: publish it, and judge int8 beside it."""
    torch.set_num_threads(1)
    splits, size = scene_splits(scene_data(teacher)), TOY_SIZE if one.small else SIZE
    expert, student = open_checkpoint(teacher.folder), open_checkpoint(one.folder)
    asked = {name: Questions.asked_of(expert, splits, seed=JUDGED[name], small=one.small) for name in JUDGED}
    probes = Suite(name="distillation", probes=PROBES, size=size, seed=JUDGED["test"], pairs=splits.validation.pairs)
    found: Record = {
        "scores": asked["test"].answered_by(student),
        "validation": asked["validation"].answered_by(student),
        "probes": rows_of(run(student, probes)),
        "MFLOPs": _mflops(student),
    }
    if served:
        artifact = _published(one)
        found["int8"] = asked["test"].answered_by(ArtifactEncoder(artifact, precision="int8"))
        found["artifact"] = {"reference": artifact.reference, **_weighed(artifact)}
    return found


def two_things(
    splits: Splits, seed: int, *, count: int, size_px: int
) -> tuple[list[NDArray[np.uint8]], list[str], list[str]]:
    """Pictures of two things that differ in shape and colour, a caption of each, and a title that is equal where the
    same two things are shown."""
    config = SceneConfig(
        count=(2, 2),
        differ_in=("shape", "colour"),
        pairs=splits.validation.pairs,
        textures=("plain",),
        stream=f"retrieval/{seed}",
    )
    scenes = [sample(number, config) for number in range(count)]
    titles = [" and ".join(sorted(f"{thing.colour} {thing.shape}" for thing in scene.things)) for scene in scenes]
    return [render(scene, size_px).image for scene in scenes], [mention(scene).text for scene in scenes], titles


def _published(one: StudyRun) -> Artifact:
    """With fp32 and int8; what derives from the teacher, with the teacher before it."""
    store = Store(TOY_STORE if one.small else STORE)
    if one.recipe == "kd-image":
        assert one.base is not None
        publish_checkpoint(one.base.folder, "base", store, precisions=PRECISIONS, dense="none")
    return publish_checkpoint(one.folder, one.kind.replace("/", "-"), store, precisions=PRECISIONS, dense="none")


def _weighed(artifact: Artifact) -> dict[str, Any]:
    """Of each tower, inherited or not: parameters of the fp32 graph, and MB of graph and weights by precision."""
    found: dict[str, Any] = {"parameters": {}, "MB": {}}
    roles: tuple[Role, ...] = ("image_encoder", "text_encoder")
    for role in roles:
        for precision in PRECISIONS:
            at = artifact.graph_spec(role, precision)
            if at is None:
                continue
            owner, graph = at
            files = [owner.folder / name for name in (graph.file, *graph.external_files)]
            found["MB"][f"{role} {precision}"] = round(sum(file.stat().st_size for file in files) / 1e6, 3)
            if precision == "fp32":
                weights = onnx.load(files[0], load_external_data=False).graph.initializer
                found["parameters"][role] = sum(math.prod(each.dims) for each in weights)
    return found


def _mflops(encoder: Encoder) -> dict[str, float]:
    """Millions of floating point operations, two for each multiply-add, of one picture and of one caption."""
    side_px = picture_px(encoder)
    found: dict[str, float] = {}
    for name, encode in (
        ("image", lambda: encoder.encode_images([np.zeros((side_px, side_px, 3), np.uint8)])),
        ("text", lambda: encoder.encode_texts(["a red circle and a blue square"])),
    ):
        # What torch fuses for inference is not counted.
        torch.backends.mha.set_fastpath_enabled(False)
        with FlopCounterMode(display=False) as counter:
            encode()
        torch.backends.mha.set_fastpath_enabled(True)
        found[name] = round(counter.get_total_flops() / 1e6, 2)
    return found
