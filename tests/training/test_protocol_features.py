"""The method protocol on frozen features: a new method is one new file, with steps or in closed form."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training import method as methods
from training import methods as folder_of_methods
from training.checkpoint import load_head, load_model, read_checkpoint
from training.data.source import open_source
from training.loop import train
from training.models.building import image_spec
from training.opening import open_checkpoint

pytestmark = pytest.mark.torch

STEPS = '''
"""A training-only shift between the frozen vectors, and nothing to export but what the base has."""
import copy
import torch
from torch import nn
from training.method import Needs, ParamGroup, Produced, StepMethod

def create(options):
    return Shift()

class Shift(StepMethod):
    needs = Needs(fields=("image_embeds", "text_embeds"), level="features")

    def setup(self, context):
        self.seen = context.required_features().image.shape
        self.model = copy.deepcopy(context.required_base("shift").model)
        self.shift = nn.Linear(self.seen[1], self.seen[1])

    def modules(self):
        return {"model": (self.model, "frozen"), "shift": (self.shift, "train_only")}

    def param_groups(self):
        return [ParamGroup(parameters={f"shift.{name}": p for name, p in self.shift.named_parameters()})]

    def step(self, batch, progress):
        assert batch["image_embeds"].shape == (8, 16) and 0 <= progress < 1
        return {"distance": (self.shift(batch["text_embeds"]) - batch["image_embeds"]).square().mean()}

    def weights(self):
        return {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}

    def artifact(self):
        return Produced(graphs={"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"},
                        inherited=("image_encoder", "text_encoder"))
'''
CLOSED = '''
"""The mean vector of each class."""
import numpy as np
from training.method import FitMethod, Needs, Produced

def create(options):
    return Means()

class Means(FitMethod):
    needs = Needs(fields=("image_embeds",), level="features", labels=("shape",), captions=0)

    def setup(self, context):
        self.truth = context.source.labels("shape")
        self.expected = context.source.labels("shape", "validation")

    def modules(self):
        return {}

    def fit(self, features):
        unit = features.image / np.linalg.norm(features.image, axis=1, keepdims=True)
        self.names = tuple(sorted(set(self.truth)))
        self.means = np.stack([unit[[one == name for one in self.truth]].mean(axis=0) for name in self.names])
        found = [self.names[at] for at in (features.validation @ self.means.T).argmax(axis=1)]
        self.right = float(np.mean([a == b for a, b in zip(found, self.expected, strict=True)]))

    def report(self):
        return {"right": self.right}

    def artifact(self):
        return Produced(arrays={"class_head/weight": np.ascontiguousarray(self.means.T.astype(np.float32)),
                                "class_head/bias": np.zeros(len(self.names), dtype=np.float32)}, labels=self.names)
'''
RECIPE = """
name = "dummy"
seed = 1
method = "base"
data = {kind = "scenes", cache_px = 48, parts = [{scenes = 60, share = 1, count = [1, 1], mix = {attributes = 1}}]}
[model]
kind = "small"
embed_dim = 16
image = {trunk = "clipworks_conv_t", size_px = 48}
text = {merges = 100, context_length = 24, width = 16, layers = 1, heads = 2, pool = "eos+bag"}
[optim]
batch_size = 8
steps = 12
rate = 1e-2
warmup_steps = 0
weight_decay = 0
clip_norm = 10
ema_decay = 0.5
[run]
device = "cpu"
threads = 1
report = "scenes"
folder = "unset"
log_steps = 1
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of two steps, a recipe on top of it, and the dummies in a folder of their own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "base.toml").write_text(RECIPE)
    train(folder / "base.toml", ["optim.steps=2", f"run.folder={json.dumps(str(folder / 'base'))}"])
    (folder / "dummy.toml").write_text(f"base = {json.dumps(str(folder / 'base'))}\n{RECIPE}")
    (folder / "more").mkdir()
    for name, text in (("dummy_shift", STEPS), ("dummy_means", CLOSED)):
        (folder / "more" / f"{name}.py").write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def found(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_of_methods, "__path__", [*folder_of_methods.__path__, str(lab / "more")])


@pytest.mark.long
@pytest.mark.usefixtures("found")
def test_a_method_on_features_takes_steps(lab: Path, tmp_path: Path) -> None:
    assert {"dummy_shift", "dummy_means", "base", "gda"} <= set(methods.available())
    folder = tmp_path / "shift"
    result = train(lab / "dummy.toml", ['method="dummy_shift"', f"run.folder={json.dumps(str(folder))}"])
    before, after = (load_file(path / "weights.safetensors") for path in (lab / "base", folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Training-only weights are in the state, to resume from, and not in what is shipped.
    state = load_file(folder / "state.safetensors")
    assert {"live/shift.weight", "average/shift.bias"} <= state.keys()
    assert not any(name.startswith("live/model.") for name in state)
    assert not torch.equal(state["live/shift.weight"], torch.zeros(16, 16))
    lines = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    losses = [float(line[-1]) for line in lines if "distance" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert result.metrics["single"] == read_checkpoint(lab / "base").metrics["validation"]["single"]
    assert [path.suffix for path in (tmp_path / "features").iterdir()] == [".npz"]


@pytest.mark.usefixtures("found")
def test_a_closed_form_has_no_steps(lab: Path, tmp_path: Path) -> None:
    folder = tmp_path / "means"
    result = train(lab / "dummy.toml", ['method="dummy_means"', f"run.folder={json.dumps(str(folder))}"])
    head, base = load_head(folder), load_model(lab / "base")
    assert (result.step, head.base_sha256) == (0, base.info.weights_sha256)
    assert head.arrays["weight"].shape == (16, len(head.labels))
    assert result.metrics == read_checkpoint(folder).metrics["validation"]
    # Its number on validation, worked out again from what was saved.
    recipe = base.info.config
    specs = image_spec(recipe.model), image_spec(recipe.model)
    source = open_source(recipe, cache_spec=specs[0], image_spec=specs[1])
    scores = open_checkpoint(lab / "base").encode_prepared(source.pictures("validation")) @ head.arrays["weight"]
    said = [head.labels[at] for at in scores.argmax(axis=1)]
    right = np.mean([a == b for a, b in zip(said, source.labels("shape", "validation"), strict=True)])
    assert result.metrics["right"] == pytest.approx(right, abs=1e-9)


@pytest.mark.usefixtures("found")
def test_features_need_a_base(lab: Path, tmp_path: Path) -> None:
    for method in ("dummy_shift", "dummy_means"):
        with pytest.raises(ValueError, match="set base to its checkpoint"):
            train(lab / "base.toml", [f'method="{method}"', f"run.folder={json.dumps(str(tmp_path / method))}"])


def test_names_that_are_no_file_are_refused() -> None:
    with pytest.raises(ValueError, match="no method 'dummy_shift'; there are: aligned, base"):
        methods.create("dummy_shift", {})
