"""FARE and TeCoA: attacks that stay in their ball and raise the loss, towers that learn from them, and the artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from clipworks.cli import app
from evaluation.robustness.classifier import PulledClassifier, PulledEncoder, VectorClassifier
from evaluation.robustness.standard_attack import AttackPlan, attacked
from training.checkpoint import load_model, read_checkpoint
from training.encoder import TorchEncoder, encoder_of
from training.loop import train
from training.method import Context, create
from training.methods.fare import FareMethod
from training.methods.parts import pixel_attack
from training.methods.parts.adversarial_tower import AdversarialTower
from training.methods.parts.pixel_attack import PixelAttack
from training.methods.tecoa import TecoaMethod

pytestmark = pytest.mark.torch
MakeContext = Callable[..., Context]


def begun(context: Context, method: str, **options: object) -> AdversarialTower:
    """As the loop has it in front of the first step."""
    made = create(method, {**({"label": "colour"} if method == "tecoa" else {}), **options})
    assert isinstance(made, FareMethod | TecoaMethod)
    made.setup(context)
    made.model.train()
    return made


def batch_of(context: Context) -> dict[str, Tensor]:
    pixels = torch.from_numpy(context.source.pictures("train")[:6])
    return {"image": pixels, "class_id": torch.arange(6) % 4}


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 255.0])
def test_an_attack_stays_in_its_ball_and_never_lowers_a_pictures_loss(epsilon: float) -> None:
    torch.manual_seed(0)
    pixels, weight = torch.randint(0, 256, (5, 4, 4, 3), dtype=torch.uint8), torch.randn(4, 4, 3)

    def loss(x: Tensor) -> Tensor:
        return ((x * weight).sum(dim=(1, 2, 3)) / 50).sin()  # steps of the sign overshoot it

    attack = PixelAttack(epsilon=epsilon, attack_steps=3, step_size=1.0)
    found = pixel_attack.attacked(pixels, loss, attack)
    assert (found - pixels).abs().max() <= epsilon + 1e-4
    assert found.min() >= 0
    assert found.max() <= 255
    assert (loss(found) >= loss(pixels.float())).all()
    assert (loss(found) > loss(pixels.float())).any()
    assert not found.requires_grad
    exact = pixel_attack.attacked(pixels, loss, PixelAttack(epsilon=0))
    assert torch.equal(exact, pixels.float())


@pytest.mark.parametrize("method", ["fare", "tecoa"])
def test_losses_are_those_of_the_formulas(make_context: MakeContext, square_base: Path, method: str) -> None:
    """Without a radius they are of clean pictures, and what FARE lowers is nothing yet."""
    context, loaded = make_context(base=square_base), load_model(square_base)
    batch = batch_of(context)
    plain = begun(context, method, epsilon=0).step(batch, 0.0)["attacked"]
    if method == "fare":
        assert plain.item() < 1e-9
        wanted = None
    else:
        ids = torch.from_numpy(
            loaded.tokenizer.pad([loaded.tokenizer.encode(c) for c in ("blue", "green", "red", "white")])
        )
        images, texts = loaded.model.encode_image(batch["image"]), loaded.model.encode_text(ids)
        cosines = nn.functional.normalize(images, dim=1) @ nn.functional.normalize(texts, dim=1).T
        wanted = nn.functional.cross_entropy(loaded.model.logit_scale.exp() * cosines, batch["class_id"])
        torch.testing.assert_close(plain.detach(), wanted, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    both = begun(context, method, epsilon=4, attack_steps=2, clean_weight=0.25).step(batch, 0.0)
    torch.manual_seed(0)
    one = begun(context, method, epsilon=4, attack_steps=2).step(batch, 0.0)
    assert set(one) == {"attacked"}
    torch.testing.assert_close(both["attacked"], 0.75 * one["attacked"])
    torch.testing.assert_close(both["clean"], 0.25 * plain, rtol=1e-4, atol=1e-7)
    assert one["attacked"] > plain


def test_fare_is_the_squared_distance_of_unnormalised_vectors(make_context: MakeContext, square_base: Path) -> None:
    context = make_context(base=square_base)
    method, batch = begun(context, "fare", epsilon=0), batch_of(context)
    with torch.no_grad():
        for name, parameter in method.model.named_parameters():
            if name.startswith("image_projection"):
                parameter.mul_(1.1)
        new, old = method.model.encode_image(batch["image"]), method.base.encode_image(batch["image"])
    wanted = sum(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(new, old, strict=True)) / 6
    torch.testing.assert_close(method.step(batch, 0.0)["attacked"].detach(), wanted)


def test_bf16_does_not_round_the_attack_away(make_context: MakeContext, square_base: Path) -> None:
    context = make_context(base=square_base)
    method, batch = begun(context, "fare", epsilon=1, attack_steps=1), batch_of(context)
    found: list[Tensor] = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(method.step(batch, 0.0)["attacked"].detach())
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


@pytest.fixture(scope="module")
def learnt(prompt_squares: Path, prompt_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of a few steps of each."""
    folder, found = tmp_path_factory.mktemp("adversarial"), dict[str, Path]()
    for name, options in {"fare": "{attack_steps=1}", "tecoa": "{label='colour',attack_steps=1}"}.items():
        found[name] = folder / name
        places = [f"run.folder={json.dumps(str(found[name]))}", f"base={json.dumps(str(prompt_base))}"]
        train(prompt_squares, [*places, f"method={name}", f"method_options={options}", "optim.steps=3"])
    return found


@pytest.mark.parametrize("name", ["fare", "tecoa"])
def test_the_image_tower_moves_and_nothing_else(learnt: dict[str, Path], prompt_base: Path, name: str) -> None:
    info = read_checkpoint(learnt[name])
    assert info.inherited == ("text_encoder",)
    before, after = (load_file(each / "weights.safetensors") for each in (prompt_base, learnt[name]))
    moved = {each for each in before if not torch.equal(before[each], after[each])}
    assert moved
    assert not any(each.startswith("model.text.") or "logit" in each for each in moved)
    if name == "tecoa":
        assert set(info.metrics["validation"]) == {"zero_shot", "adapted", "shots"}


def test_statistics_of_batch_norms_stay(make_context: MakeContext, square_base: Path) -> None:
    context = make_context(base=square_base)
    method = begun(context, "fare", epsilon=2, attack_steps=1)
    before = {name: each.clone() for name, each in method.model.named_buffers()}
    assert any("running_mean" in name for name in before)
    method.step(batch_of(context), 0.0)["attacked"].backward()
    assert all(torch.equal(each, before[name]) for name, each in method.model.named_buffers())
    norms = [p for name, p in method.model.named_parameters() if "trunk" in name and p.ndim == 1]
    assert all(each.grad is not None for each in norms)
    assert all(each.grad is None for each in method.model.text.parameters())  # type: ignore[union-attr]


def test_a_checkpoint_is_attacked_by_its_gradients_and_a_graph_has_none(square_base: Path) -> None:
    encoder = encoder_of(load_model(square_base), name="base")
    assert isinstance(encoder, PulledEncoder)
    pixels = np.random.default_rng(0).integers(40, 200, (8, 16, 16, 3)).astype(np.uint8)
    classes = encoder.encode_texts(["plain red shirt 0", "plain blue shirt 0"])
    model = VectorClassifier(encoder=encoder, classes=classes, scale=10)
    assert isinstance(model, PulledClassifier)
    x = torch.from_numpy(pixels).float().requires_grad_(True)
    loaded = load_model(square_base).model
    cosines = nn.functional.normalize(loaded.encode_image(x), dim=1) @ torch.from_numpy(classes).T
    logits, pull = model.pulled(pixels.astype(np.float32))
    np.testing.assert_allclose(logits, 10 * cosines.detach().numpy(), atol=1e-4)
    (wanted,) = torch.autograd.grad(10 * cosines[:, 0].sum(), x)
    found = pull(np.array([[1.0, 0.0]] * 8))
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5 * float(wanted.abs().max()) + 1e-9)
    truth = logits.argmax(axis=1)
    (worst,) = attacked(model, pixels, truth, epsilons=[40], plan=AttackPlan(steps=8, targets=1, queries=0))
    assert not worst.named.all()
    stored = TorchEncoder(
        lambda pixels: loaded.encode_image(pixels).detach(),
        loaded.encode_text,
        image_spec=load_model(square_base).info.image_spec,
        tokenizer=load_model(square_base).tokenizer,
        name="graph",
        fingerprint="graph",
    )
    with pytest.raises(ValueError, match="gives no gradients"):
        stored.pulled_vectors(pixels.astype(np.float32))


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("fare", {"epsilon": -1}, "epsilon"),
        ("fare", {"attack_steps": 0}, "attack_steps"),
        ("fare", {"clean_weight": 1.5}, "clean_weight"),
        ("fare", {"label": "colour"}, "label: there is no such option"),
        ("tecoa", {}, "label"),
        ("tecoa", {"label": "size"}, "no label 'size'"),
    ],
)
def test_what_cannot_be_trained(
    make_context: MakeContext, square_base: Path, method: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        create(method, options).setup(make_context(base=square_base))


def test_without_a_base_there_is_nothing_to_keep(make_context: MakeContext) -> None:
    with pytest.raises(ValueError, match="method fare starts from a checkpoint"):
        create("fare", {}).setup(make_context())


def test_the_command_attacks_a_checkpoint(square_base: Path, squares: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for at, name in enumerate(("red", "green")):
        (pictures / name).mkdir(parents=True)
        shutil.copy(squares.parent / f"{at}.png", pictures / name)
    options = ["--checkpoint", square_base, "--pictures", pictures, "--attack-steps", 2, "--attack-queries", 2]
    result = CliRunner().invoke(app, ["eval", "--suite", "robustness", "--epsilon", "60", *map(str, options)])
    assert result.exit_code == 0, result.stderr
    assert "attacked at 60/255" in result.stdout
    assert "Square alone" not in result.stderr
