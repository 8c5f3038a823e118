"""Tip-Adapter-F: plain torch's keys after each epoch, of which validation takes one, epoch 0 among them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.training.few_shots import Problem, drawn
from training.method import create
from training.methods.parts.cache_heads import CacheHead, cache_of
from training.methods.parts.class_heads import ClassHead, accuracy
from training.methods.tip_adapter_f import TrainedCacheOptions, trained_keys

pytestmark = pytest.mark.torch


def chosen(problem: Problem, *, seed: int = 0, **options: Any) -> tuple[ClassHead, dict[str, Any]]:
    method = problem.of(create("tip_adapter_f", {"label": "x", **options}), seed=seed)
    return method.choose(problem.shots, problem.truth, problem.validation, problem.expected)


def test_without_an_epoch_it_is_tip_adapter_to_the_bit() -> None:
    problem = drawn()
    head, tried = chosen(problem, epochs=0)
    plain = problem.of(create("tip_adapter", {"label": "x"}))
    expected, told = plain.choose(problem.shots, problem.truth, problem.validation, problem.expected)
    assert (head(problem.unseen) == expected(problem.unseen)).all()
    assert (tried["alpha"], tried["beta"], tried["epoch"]) == (told["alpha"], told["beta"], 0)


def test_keys_move_as_in_plain_torch() -> None:
    problem = drawn(sizes=(3, 5, 4))
    start = cache_of(problem.zero_shot, problem.shots, problem.truth).at((20.0, 4.0))
    options = TrainedCacheOptions(label="x", epochs=3, batch=50, rate=0.02)
    *_, (last, found) = trained_keys(start, problem.shots, problem.truth, options, seed=0)
    keys = torch.from_numpy(problem.shots.copy()).requires_grad_()
    x, y = torch.from_numpy(problem.shots), torch.from_numpy(problem.truth)
    share = functional.one_hot(y).float() / functional.one_hot(y).sum(dim=0)
    optimizer = torch.optim.AdamW([keys], lr=0.02, eps=1e-4)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 + np.cos(np.pi * step / 3)) / 2
        logits = x @ torch.from_numpy(problem.zero_shot.weight) + 20 * torch.exp(-4 * (1 - x @ keys.T)) @ share
        optimizer.zero_grad()
        functional.cross_entropy(logits, y).backward()
        optimizer.step()
    assert last == 3
    assert np.abs(found - start.keys).max() > 0.01
    np.testing.assert_allclose(found, keys.detach().numpy(), atol=1e-5)


def test_the_epoch_is_the_first_that_is_best_on_validation() -> None:
    problem = drawn(seed=2, sizes=(2, 2, 2, 2, 2))
    fixed = {"alpha": [30.0], "beta": [2.0], "epochs": 12, "rate": 0.02}
    head, tried = chosen(problem, **fixed)
    start = cache_of(problem.zero_shot, problem.shots, problem.truth).at((30.0, 2.0))
    kept = [start.keys]
    options = TrainedCacheOptions(label="x", epochs=12, rate=0.02)
    kept += [keys for _, keys in trained_keys(start, problem.shots, problem.truth, options, seed=0)]
    curve = [accuracy(with_keys(start, keys), problem.validation, problem.expected) for keys in kept]
    assert 0 < int(np.argmax(curve)) < 12  # neither what there is without training, nor what is always taken
    assert tried["epoch"] == int(np.argmax(curve))
    assert list(tried["accuracy_by_epoch"].values()) == curve
    assert isinstance(head, CacheHead)
    assert (head.keys == kept[tried["epoch"]]).all()
    assert (head.values == start.values).all()
    assert (head.weight == problem.zero_shot.weight).all()


def with_keys(head: CacheHead, keys: np.ndarray) -> CacheHead:
    return CacheHead(weight=head.weight, bias=head.bias, keys=keys, values=head.values, beta=head.beta)


def test_alpha_0_stays_a_choice_and_labels_at_random_gain_nothing() -> None:
    problem = drawn(seed=1)
    mixed = np.random.default_rng(1).permutation(problem.truth)
    method = problem.of(create("tip_adapter_f", {"label": "x", "rate": 0.01}))
    head, tried = method.choose(problem.shots, mixed, problem.validation, problem.expected)
    assert tried["trained_at"]["alpha"] > 0
    assert tried["alpha"] == 0
    assert (head(problem.unseen) == problem.zero_shot(problem.unseen)).all()
    head, tried = method.choose(problem.shots, problem.truth, problem.validation, problem.expected)
    assert problem.gain(head) > 0.1


def test_alpha_0_is_zero_shot_to_the_bit_whatever_the_keys_have_become() -> None:
    problem = drawn()
    cache = cache_of(problem.zero_shot, problem.shots, problem.truth)
    options = TrainedCacheOptions(label="x", rate=0.02)
    *_, (_, keys) = trained_keys(cache.at((20.0, 4.0)), problem.shots, problem.truth, options, seed=0)
    assert np.abs(keys - cache.keys).max() > 0.01
    trained, expected = replace(cache, keys=keys), problem.zero_shot(problem.unseen)
    pictures, weight, bias = map(torch.from_numpy, (problem.unseen, problem.zero_shot.weight, problem.zero_shot.bias))
    for beta in (0.5, 4.0, 50.0):
        head = trained.at((0.0, beta))
        assert (head(problem.unseen) == expected).all()
        assert torch.equal(head.module()(pictures), pictures @ weight + bias)
    assert np.abs(trained.at((20.0, 4.0))(problem.unseen) - expected).max() > 1


def test_the_seed_alone_decides() -> None:
    problem = drawn()
    options = TrainedCacheOptions(label="x", epochs=2, batch=7, rate=0.02)
    start = cache_of(problem.zero_shot, problem.shots, problem.truth).at((20.0, 4.0))
    first, again, other = (
        list(trained_keys(start, problem.shots, problem.truth, options, seed=seed))[-1][1] for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert np.abs(first - other).max() > 1e-6


def test_keys_without_a_weight_are_refused() -> None:
    with pytest.raises(ValueError, match=r"(?s)method_options of tip_adapter_f:.*one alpha must be above 0"):
        create("tip_adapter_f", {"label": "x", "alpha": [0.0]})
