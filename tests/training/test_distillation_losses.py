"""The losses of distillation against numpy, autograd and the notes' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.distillation_losses import (
    PairVectors,
    affinity_loss,
    contrast_gradients,
    feature_distance,
    gradient_distance,
    interactive_contrast,
    relation_distance,
)
from training.losses import info_nce, positive_pairs, unit

SCALE, TEACHER_SCALE = torch.tensor(7.0), torch.tensor(20.0)
POSITIVES = positive_pairs(torch.tensor([0, 1, 1, 2, 0, 3]))
EYE = torch.eye(6, dtype=torch.bool)


def pair(seed: int) -> PairVectors:
    stream = torch.Generator().manual_seed(seed)
    return PairVectors(*(functional.normalize(torch.randn(6, 5, generator=stream), dim=1) for _ in range(2)))


STUDENT, TEACHER = pair(0), pair(1)


def losses(student: PairVectors, teacher: PairVectors, rows: slice | None = None) -> dict[str, Tensor]:
    return {
        "fd": feature_distance(student, teacher, rows=rows),
        "icl": interactive_contrast(student, teacher, SCALE, positives=POSITIVES, rows=rows),
        "crd": relation_distance(student, teacher, SCALE, SCALE, rows=rows),
        "gd": gradient_distance(student, teacher, SCALE, SCALE, positives=POSITIVES, rows=rows),
    }


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    found = losses(TEACHER, TEACHER)
    for term in ("fd", "crd", "gd"):
        assert abs(found[term].item()) < 1e-6
    torch.testing.assert_close(found["icl"], info_nce(*TEACHER, SCALE, POSITIVES))
    assert min(loss.item() for loss in losses(STUDENT, TEACHER).values()) > 0.01


def test_the_mean_over_parts_of_a_batch_is_the_loss_of_the_whole() -> None:
    parts = [losses(STUDENT, TEACHER, rows) for rows in (slice(0, 3), slice(3, 6))]
    for term, whole in losses(STUDENT, TEACHER).items():
        torch.testing.assert_close((parts[0][term] + parts[1][term]) / 2, whole)


def test_fd_is_the_notes_formula_divided_by_the_size_of_a_vector() -> None:
    notes = sum(((own - its) ** 2).sum(dim=1).mean() for own, its in zip(STUDENT, TEACHER, strict=True))
    torch.testing.assert_close(feature_distance(STUDENT, TEACHER), notes / 5)


def test_icl_crosses_the_towers() -> None:
    labels = torch.arange(6)
    expected = functional.cross_entropy(7 * STUDENT.image @ TEACHER.text.T, labels)
    expected = (expected + functional.cross_entropy(7 * STUDENT.text @ TEACHER.image.T, labels)) / 2
    torch.testing.assert_close(interactive_contrast(STUDENT, TEACHER, SCALE, positives=EYE), expected)


def test_crd_is_the_notes_formula_halved() -> None:
    def softmax(query: Tensor, key: Tensor, scale: float) -> np.ndarray:
        powers = np.exp(scale * query.numpy().astype(np.float64) @ key.numpy().T)
        return powers / powers.sum(axis=1, keepdims=True)

    notes = 0.0
    for own, other in ((0, 1), (1, 0)):
        wanted, found = softmax(TEACHER[own], TEACHER[other], 20), softmax(STUDENT[own], STUDENT[other], 7)
        notes += (wanted * np.log(wanted / found)).sum(axis=1).mean()
    assert relation_distance(STUDENT, TEACHER, SCALE, TEACHER_SCALE).item() == pytest.approx(notes / 2, rel=1e-5)


@pytest.mark.parametrize("positives", [EYE, POSITIVES])
def test_gradients_in_closed_form_are_autograds(positives: Tensor) -> None:
    targets = positives / positives.sum(dim=1, keepdim=True)
    expected: list[Tensor] = []
    for chooser in (0, 1):
        query, key = (STUDENT[at].clone().requires_grad_() for at in (chooser, 1 - chooser))
        functional.cross_entropy(SCALE * query @ key.T, targets).backward()
        assert query.grad is not None
        assert key.grad is not None
        expected += [query.grad, key.grad]
    for found, wanted in zip(contrast_gradients(STUDENT, SCALE, positives=positives), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


def test_gd_sees_the_temperature_multiply() -> None:
    """The paper's code divides by the scale: its gradients are smaller by the square of it."""
    plain = contrast_gradients(STUDENT, SCALE, positives=EYE)[0]
    assert plain.abs().max() > 0.1
    colder = contrast_gradients(STUDENT, 1 / SCALE, positives=EYE)[0]
    assert colder.abs().max() < 0.05


def test_affinity_by_hand() -> None:
    image, text = torch.eye(2), torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    teacher_image, teacher_text = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), torch.tensor([[0.8, 0, 0.6], [0, 1.0, 0]])
    found = affinity_loss(PairVectors(image, text), PairVectors(teacher_image, teacher_text), 2.0, 3.0)
    student, teacher = np.array([[1.2, 2.0], [1.6, 0.0]]), np.array([[2.4, 0.0], [1.8, 0.0]])
    losses = []
    for ours, theirs in ((student, teacher), (student.T, teacher.T)):
        wanted = np.exp(theirs) / np.exp(theirs).sum(axis=1, keepdims=True)
        losses.append(-(wanted * (ours - np.log(np.exp(ours).sum(axis=1, keepdims=True)))).sum(axis=1).mean())
    assert float(found) == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_a_teacher_that_mimics_itself_has_its_entropy_and_no_gradient() -> None:
    torch.manual_seed(0)
    image, text = (unit(torch.randn(6, 4)).requires_grad_() for _ in range(2))
    teacher = [each.detach().clone().requires_grad_() for each in (image, text)]
    loss = affinity_loss(PairVectors(image, text), PairVectors(*teacher), 20.0, 20.0)
    loss.backward()
    logits = 20 * image.detach() @ text.detach().T
    entropy = [-(each.softmax(dim=1) * each.log_softmax(dim=1)).sum(dim=1).mean() for each in (logits, logits.T)]
    torch.testing.assert_close(loss.detach(), (entropy[0] + entropy[1]) / 2)
    for each in (image, text):
        torch.testing.assert_close(each.grad, torch.zeros(6, 4), atol=1e-6, rtol=0)
    assert all(each.grad is None for each in teacher), "the teacher learns nothing"
    affinity_loss(PairVectors(image, text), PairVectors(*teacher), 10.0, 20.0).backward()
    assert float(image.grad.abs().max()) > 1e-2  # type: ignore[union-attr]


def test_parts_of_the_rows_average_to_the_whole() -> None:
    torch.manual_seed(0)
    given = [PairVectors(unit(torch.randn(6, size)), unit(torch.randn(6, size))) for size in (4, 5)]
    halves = [affinity_loss(*given, 20.0, 30.0, rows=rows) for rows in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, affinity_loss(*given, 20.0, 30.0))
