"""A smaller sentence encoder learns from a larger one of the same width what it says of each token and of each text."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_store.modality.text import Tokenizer
from training.aligned_sources import PAD_ID
from training.config import OptimConfig
from training.loop import rate_at
from training.losses import unit
from training.models.bert import BertTower
from training.shipped.everyday_tiny.sentences import Sentences

TERMS = {"text fd": 1.0, "text tokens": 1.0}
_SORTED_BATCHES = 8  # whose texts are divided by length, so that little is padded
_LINES = 10


def train_text_tower(
    student: BertTower,
    teacher: BertTower,
    tokenizer: Tokenizer,
    sentences: Sentences,
    validation: Mapping[str, Sequence[str]],
    optim: OptimConfig,
    *,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Train `student` in place: 1 - cosine of its text vectors and the teacher's, and the squared distance of their
    tokens' vectors, as a part of the teacher's own square. Both towers subtract the teacher's centre.

    Sentences are drawn anew at every step. `say` is told how near the student is to its teacher on `validation`.
    """
    student.requires_grad_(True).train()
    student.centre.copy_(teacher.centre)
    wanted = {name: _texts(teacher, tokenizer, texts) for name, texts in validation.items()}
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=optim.rate, betas=optim.betas, eps=optim.epsilon)
    batches = _batches(sentences, tokenizer, optim.batch_size, random.Random(seed))
    for step in range(optim.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, optim)
        loss = text_loss(student, teacher, next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), optim.clip_norm)
        optimizer.step()
        if (step + 1) % max(1, optim.steps // _LINES) == 0:
            near = {
                name: float((_texts(student, tokenizer, texts) * wanted[name]).sum(dim=1).mean())
                for name, texts in validation.items()
            }
            say(f"text step {step + 1}: cosine " + ", ".join(f"{name} {value:.4f}" for name, value in near.items()))
    student.eval().requires_grad_(False)


def text_loss(student: BertTower, teacher: BertTower, ids: Tensor) -> Tensor:
    """Of token ids [B, L]."""
    inside = (ids != PAD_ID)[..., None].float()
    with torch.no_grad():
        its_tokens = teacher.token_vectors(ids)
        its_texts = unit(teacher.pooled(its_tokens, ids))
    tokens = student.token_vectors(ids)
    texts = unit(student.pooled(tokens, ids))
    apart = ((tokens - its_tokens).square() * inside).sum() / (its_tokens.square() * inside).sum()
    return TERMS["text fd"] * (1 - (texts * its_texts).sum(dim=1)).mean() + TERMS["text tokens"] * apart


def _texts(tower: BertTower, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Unit vectors [n, D] in eval mode."""
    training = tower.training
    tower.eval()
    with torch.no_grad():
        found = unit(tower(torch.from_numpy(_padded(tokenizer, texts))))
    tower.train(training)
    return found


def _batches(sentences: Sentences, tokenizer: Tokenizer, size: int, rng: random.Random) -> Iterator[Tensor]:
    while True:
        drawn = sorted((sentences.draw(rng) for _ in range(size * _SORTED_BATCHES)), key=len)
        parts = [drawn[at : at + size] for at in range(0, len(drawn), size)]
        rng.shuffle(parts)
        for part in parts:
            yield torch.from_numpy(_padded(tokenizer, part))


def _padded(tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray:
    return tokenizer.pad([tokenizer.encode(text) for text in texts])
