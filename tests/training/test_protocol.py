"""The protocol of methods, proved by methods that are files in a folder: nothing else is edited to add one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_store.errors import ExportRefused
from model_store.store import Store
from training import method as methods
from training.checkpoint import load_model, load_state
from training.loop import train
from training.opening import open_checkpoint
from training.publish import publish_checkpoint

FIRST_LINES = """
from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from training.losses import info_nce, positive_pairs
from training.method import Needs, ParamGroup, Produced, StepMethod
from training.models.building import build_model


def create(options):
    if options:
        raise ValueError(f"no options here, got {sorted(options)}")
    return Dummy()
"""

# Learns from captions and, through a projection that is thrown away, from a frozen teacher's picture vectors.
TAUGHT = (
    FIRST_LINES
    + """

class Dummy(StepMethod):
    needs = Needs(fields=("image", "text", "caption_id"))

    def setup(self, context):
        teacher = context.required_base("taught")
        spec = context.tokenizer.spec
        self.teacher = teacher.model
        self.model = build_model(context.model, vocab_size=spec.vocab_size, end_id=spec.end_id)
        width = self.teacher.encode_image(torch.from_numpy(context.source.pixels[:1])).shape[1]
        self.projection = nn.Linear(width, width)

    def modules(self):
        return {
            "model": (self.model, "export"),
            "projection": (self.projection, "train_only"),
            "teacher": (self.teacher, "frozen"),
        }

    def param_groups(self):
        return [
            ParamGroup(parameters={f"model.{n}": p for n, p in self.model.named_parameters()}),
            ParamGroup(
                parameters={f"projection.{n}": p for n, p in self.projection.named_parameters()}, rate_share=10.0
            ),
        ]

    def step(self, batch, progress):
        image = self.model.encode_image(batch["image"]).float()
        text = functional.normalize(self.model.encode_text(batch["text"]).float(), dim=-1)
        with torch.no_grad():
            taught = self.teacher.encode_image(batch["image"]).float()
        scale = self.model.logit_scale.exp()
        return {
            "info_nce": info_nce(
                functional.normalize(image, dim=-1), text, scale, positive_pairs(batch["caption_id"])
            ),
            "teacher": (1 - progress) * functional.mse_loss(self.projection(image), taught),
        }

    def artifact(self):
        return Produced(graphs={"image_encoder": "model.encode_image", "text_encoder": "model.encode_text"})
"""
)

# Learns from pictures that a step along the sign of the loss's own gradient has made harder (FGSM).
ATTACKED = (
    FIRST_LINES
    + """
from training.losses import unit
from training.methods.base import TowerOptions, TwoTowers

EPSILON = 4 / 255


class Dummy(TwoTowers):
    needs = Needs(fields=("image", "text", "caption_id"))

    def __init__(self):
        super().__init__(TowerOptions())
        self.seen = []

    def step(self, batch, progress):
        model = self.model
        positives = positive_pairs(batch["caption_id"])
        text = unit(model.encode_text(batch["text"]))
        scale = model.logit_scale.exp()

        def loss(x, against):
            return info_nce(unit(model.encode_pixels(x)), against, scale, positives)

        clean = model.pixel_input.unit_range(batch["image"]).requires_grad_()
        before = loss(clean, text.detach())
        (gradient,) = torch.autograd.grad(before, clean)
        attacked = (clean + EPSILON * gradient.sign()).clamp(0, 1).detach()
        after = loss(attacked, text)
        if not gradient.any() or (attacked - clean).abs().max() > EPSILON + 1e-6:
            raise ValueError("the step left its range, or no gradient reached the pixels")
        # For the log: how much harder it got; it moves nothing.
        return {"attacked": after, "harder": (after - before).detach() * 0 + (after > before)}
"""
)


def logged(folder: Path, name: str) -> list[float]:
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()[1:]]
    return [float(value) for _, series, number, value in rows if (series, number) == ("train", name)]


def test_a_file_in_the_folder_is_a_method(added: Callable[[str, str], Path]) -> None:
    before = methods.available()
    added("taught", TAUGHT)
    assert set(methods.available()) == {*before, "taught"}
    with pytest.raises(ValueError, match=r"no options here, got \['rate'\]"):
        methods.create("taught", {"rate": 1})


def test_helpers_beside_methods_are_no_methods(added: Callable[[str, str], Path], tmp_path: Path) -> None:
    before = methods.available()
    added("_shared", TAUGHT)
    (tmp_path / "more_methods" / "pieces").mkdir()
    (tmp_path / "more_methods" / "pieces" / "__init__.py").touch()
    assert methods.available() == before
    assert "parts" not in before
    with pytest.raises(ValueError, match="no method '_shared'"):
        methods.create("_shared", {})


def test_a_frozen_teacher_and_a_projection_for_training_only(
    added: Callable[[str, str], Path], train_squares: Callable[..., Path], square_base: Path, squares: Path
) -> None:
    added("taught", TAUGHT)
    steps = ("method=taught", "optim.steps=4", "run.checkpoint_steps=2")
    folder = train_squares(*steps, base=square_base, name="whole")
    shipped, state = load_file(folder / "weights.safetensors"), load_state(folder)
    assert {name.split(".", 1)[0] for name in shipped} == {"model"}
    # The projection is kept to resume, averaged like the rest; the teacher is not kept at all.
    for kind in ("live", "average"):
        parts = {name.split("/", 1)[1].split(".", 1)[0] for name in state if name.startswith(f"{kind}/")}
        assert parts == {"model", "projection"}
    teacher = load_file(square_base / "weights.safetensors")
    assert any(not torch.equal(shipped[name], teacher[name]) for name in shipped)
    assert load_model(square_base).info.weights_sha256 == load_model(folder).info.base_sha256
    losses = logged(folder, "teacher")
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    # It loads again without the projection, and answers.
    (folder / "state.safetensors").unlink()
    encoder = open_checkpoint(folder)
    assert encoder.encode_texts(["plain red shirt"]).shape == (1, 16)


def test_the_teacher_teaches_in_eval_mode_and_stays_as_it_was(
    added: Callable[[str, str], Path],
    train_squares: Callable[..., Path],
    square_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added("taught", TAUGHT)
    made: list[methods.Method] = []
    create = methods.create

    def keep(name: str, options: dict[str, object]) -> methods.Method:
        made.append(create(name, options))
        return made[-1]

    monkeypatch.setattr(methods, "create", keep)
    train_squares("method=taught", "optim.steps=3", base=square_base)
    modules = made[0].modules()
    teacher, _ = modules["teacher"]
    assert not any(part.training for part in teacher.modules())
    assert modules["model"][0].training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = load_file(square_base / "weights.safetensors")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[f"model.{name}"]), name


def test_a_method_resumes_with_its_projection(
    added: Callable[[str, str], Path],
    train_squares: Callable[..., Path],
    square_base: Path,
    squares: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added("taught", TAUGHT)
    steps = ("method=taught", "optim.steps=4", "run.checkpoint_steps=2")
    whole = train_squares(*steps, base=square_base, name="whole")
    create = methods.create

    def dies_in_the_third_step(name: str, options: dict[str, object]) -> methods.Method:
        method = create(name, options)
        assert isinstance(method, methods.StepMethod)
        step, calls = method.step, iter(range(9))

        def stop(batch: dict[str, torch.Tensor], progress: float) -> dict[str, torch.Tensor]:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return step(batch, progress)

        monkeypatch.setattr(method, "step", stop)
        return method

    with monkeypatch.context() as patch:
        patch.setattr(methods, "create", dies_in_the_third_step)
        with pytest.raises(KeyboardInterrupt):
            train_squares(*steps, base=square_base, name="broken")
    broken = whole.with_name("broken")
    where = [f"run.folder={json.dumps(str(broken))}", f"base={json.dumps(str(square_base))}"]
    train(squares, [*where, *steps], resume=True)
    left, right = load_state(whole), load_state(broken)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_method_that_needs_gradients_of_pixels(
    added: Callable[[str, str], Path], train_squares: Callable[..., Path]
) -> None:
    added("attacked", ATTACKED)
    folder = train_squares("method=attacked", "optim.steps=4")
    assert logged(folder, "harder") == [1.0] * 4
    assert all(loss > 0 for loss in logged(folder, "attacked"))
    assert load_model(folder).info.config.method == "attacked"
    assert open_checkpoint(folder).encode_texts(["plain red shirt"]).shape == (1, 16)


WRONG = {
    "role": ('"image_encoder": "model', '"image_encodr": "model', "role 'image_encodr'; is image_encoder meant"),
    "inherited role": ("})\n", '}, inherited=("text_encodr",))\n', "role 'text_encodr'; is text_encoder meant"),
    "module": ('"model.encode_image"', '"modle.encode_image"', r"no 'modle'; is model meant\?; it has: model, project"),
    "function": ("model.encode_text", "model.encode_txt", "model has no function 'encode_txt'; is encode_text meant"),
    "path": ('"model.encode_image"', '"model"', "image_encoder as 'model': model has no function ''"),
    "use": (
        '"train_only"',
        '"training"',
        "modules.. says 'training' of projection, expected one of export, train_only",
    ),
    "no encoder": (
        ', "text_encoder": "model.encode_text"',
        "",
        "artifact.. names no text_encoder: validation needs both",
    ),
    "field": ('"caption_id"))', '"caption_ids"))', "no batch field 'caption_ids'; is caption_id meant"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_declaration_is_refused_before_a_checkpoint_is_written(
    added: Callable[[str, str], Path], train_squares: Callable[..., Path], square_base: Path, tmp_path: Path, what: str
) -> None:
    right, wrong, said = WRONG[what]
    start, declared = TAUGHT.rsplit("\n    def artifact", 1)  # the last lines hold artifact(), the rest everything else
    declared = "\n    def artifact" + declared
    changed = start + declared.replace(right, wrong) if right in declared else start.replace(right, wrong) + declared
    assert changed != TAUGHT
    added("taught", changed)
    with pytest.raises(ValueError, match=said):
        train_squares("method=taught", "optim.steps=4", "run.checkpoint_steps=1", base=square_base)
    assert not (tmp_path / "run" / "checkpoint.json").exists()


def test_a_step_is_given_what_was_declared_and_no_more(
    added: Callable[[str, str], Path], train_squares: Callable[..., Path], square_base: Path
) -> None:
    added("taught", TAUGHT.replace('("image", "text", "caption_id")', '("image", "text")'))
    with pytest.raises(KeyError, match="caption_id"):
        train_squares("method=taught", "optim.steps=1", base=square_base)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("base", {"text_rate_sharee": 1}, "text_rate_sharee: there is no such option; is text_rate_share meant?"),
        ("unmix", {"hiden": 3}, "hiden: there is no such option; is hidden meant?"),
        ("labclip", {"whitten": True}, "whitten: there is no such option; is whiten meant?"),
        ("gda", {"label": "x", "shotz": 1}, "shotz: there is no such option; is shots meant?"),
        ("negation", {"zzz": 1}, "method_options of negation: 1 refused\n  zzz: there is no such option"),
        ("negclip", {"loss": "focus", "neighbours": -1}, "2 refused"),
    ],
)
def test_options_are_refused_in_one_way(method: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"method_options of {method}: .* refused") as refused:
        methods.create(method, options)
    assert said in str(refused.value)


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no method 'negclop'; is negclip meant\?"):
        methods.create("negclop", {})


def test_a_method_that_inherits_and_cannot_say_how_is_refused_at_publishing(
    added: Callable[[str, str], Path], train_squares: Callable[..., Path], square_base: Path, tmp_path: Path
) -> None:
    added("taught", TAUGHT.replace("})\n", '}, inherited=("image_encoder",))\n'))
    folder = train_squares("method=taught", "optim.steps=1", base=square_base)
    with pytest.raises(ExportRefused, match=r"training.methods.taught inherits roles .* defines no derivation"):
        publish_checkpoint(folder, "taught", Store(tmp_path / "store", builtin=False), precisions=("fp32",))
