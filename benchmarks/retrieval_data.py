"""Vectors to measure retrieval on, and their true neighbours."""

from __future__ import annotations

import argparse

import numpy as np

_BLOCK = 50_000
_QUERIES = 1024


def clustered(rows: int, dim: int, *, seed: int, clusters: int = 1000) -> np.ndarray:
    """Unit vectors around random centres of uneven size, as embeddings lie: float32 [rows, dim]."""
    rng = np.random.default_rng(seed)
    centres = normalised(np.random.default_rng(0).standard_normal((clusters, dim)).astype(np.float32))
    weights = np.random.default_rng(0).pareto(1.5, clusters) + 0.1
    out = np.empty((rows, dim), np.float32)
    for start in range(0, rows, _BLOCK):
        part = out[start : start + _BLOCK]
        chosen = rng.choice(clusters, len(part), p=weights / weights.sum())
        part[:] = centres[chosen] + rng.standard_normal((len(part), dim), dtype=np.float32) * np.float32(dim**-0.5)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def perturbed(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, str]:
    """Real embeddings, some held out as queries; repeated up to --rows with noise of that length if it is given."""
    real = normalised(np.load(arguments.vectors))
    order = np.random.default_rng(0).permutation(len(real))
    queries, kept = real[order[:_QUERIES]], real[order[_QUERIES:]]
    source = f"{len(kept)} embeddings of photographs"
    if arguments.noise:
        rng = np.random.default_rng(1)
        kept = np.resize(kept, (arguments.rows, kept.shape[1]))
        noise = rng.standard_normal(kept.shape, dtype=np.float32) * np.float32(arguments.noise * kept.shape[1] ** -0.5)
        source += f", repeated with noise of length {arguments.noise}"
        kept = normalised(kept + noise)
    return np.ascontiguousarray(kept), np.ascontiguousarray(queries), source


def normalised(vectors: np.ndarray) -> np.ndarray:
    values = vectors.astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def true_neighbours(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Row numbers [Q, k] of the best inner products, by brute force in blocks."""
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.zeros((len(queries), k), np.int64)
    for start in range(0, len(vectors), _BLOCK):
        scores = queries @ vectors[start : start + _BLOCK].T
        few = np.argpartition(-scores, k, axis=1)[:, :k] if scores.shape[1] > k else np.argsort(-scores, axis=1)
        scores = np.concatenate([best_scores, np.take_along_axis(scores, few, 1)], axis=1)
        rows = np.concatenate([best_rows, few + start], axis=1)
        order = np.argsort(-scores, axis=1)[:, :k]
        best_scores, best_rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return best_rows
