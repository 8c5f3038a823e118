"""Near duplicates by vectors against numpy brute force, and whole builds with a stored model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from clipworks.cli.data_filter import StoredEmbedder
from clipworks.local import LocalModel
from tests.building.raw import mosaic, plan, samples_of, shard, shards_of, states, table_of
from training.building.build import BuildPlan, Progress, build
from training.building.near_vectors import NEAR_VECTOR, NORM, drop_near_vectors, rounded, vectors_path, write_vector
from training.building.queries import QueryIndex
from training.building.scanning import ScanPlan, facts_path

STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
DIGEST = QueryIndex(["red mug"]).digest()


def greedy(vectors: np.ndarray, order: list[int], cosine: float) -> dict[int, int]:
    """One that goes -> the first in the order that stays and is near; of float64 vectors, one by one."""
    stays: list[int] = []
    gone: dict[int, int] = {}
    for place in order:
        cosines = [
            vectors[place] @ vectors[i] / np.sqrt((vectors[place] ** 2).sum() * (vectors[i] ** 2).sum()) for i in stays
        ]
        near = [other for other, value in zip(stays, cosines, strict=True) if value >= cosine]
        if near:
            gone[place] = near[0]
        else:
            stays.append(place)
    return gone


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), count=st.integers(0, 40), block=st.integers(1, 41), columns=st.integers(1, 41))
def test_what_stays_is_what_comparing_all_would_leave(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, block: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 16))
    vectors = centres[rng.integers(0, 4, count)] + 0.35 * rng.normal(size=(count, 16))
    whole = np.stack([*rounded(np.zeros((1, 16))), *map(rounded, vectors / np.linalg.norm(vectors, axis=1)[:, None])])
    folder = tmp_path_factory.mktemp("drawn")
    sides = rng.integers(8, 11, count).tolist()
    table = table_of(folder / "t", [{"size": [side, side]} for side in sides])
    facts = [folder / "t.jsonl"]
    with vectors_path(facts[0]).open("wb") as stream:
        for place in range(count):
            write_vector(stream, place, whole[1 + place])
    order = [row for (row,) in table.db.execute("SELECT id - 1 FROM pairs ORDER BY pixels DESC, rank")]
    drop_near_vectors(table, facts, folder, cosine=0.9, dim=16, block=block, columns=columns)
    wanted = greedy(whole[1:].astype(np.float64), order, 0.9)
    assert dict(table.db.execute("SELECT id - 1, twin - 1 FROM pairs WHERE state = ?", (NEAR_VECTOR,))) == wanted
    assert states(table).count("") == count - len(wanted)
    assert not [*folder.glob("vectors.kept")]
    table.close()


@pytest.mark.parametrize("dim", [3, 384, 2048])
def test_sums_of_products_are_exact_in_any_order(dim: int) -> None:
    rng = np.random.default_rng(dim)
    ones = rng.normal(size=(2, dim))
    one = np.stack([rounded(each / np.linalg.norm(each)) for each in ones])
    exact = one.astype(np.int64) @ one.astype(np.int64).T
    for order in (np.arange(dim), rng.permutation(dim)):
        kept = one[:, order].astype(np.float32)
        assert np.array_equal((kept @ kept.T).astype(np.int64), exact)
    assert (np.abs(one).astype(np.int64) ** 2).sum(axis=1).max() < 2**24
    assert exact[0, 1] / NORM**2 == pytest.approx(ones[0] @ ones[1] / np.prod(np.linalg.norm(ones, axis=1)), abs=1e-3)


def changed(seed: int, change: Callable[[Image.Image], Image.Image], quality: int) -> bytes:
    out = io.BytesIO()
    change(Image.open(io.BytesIO(mosaic(seed, side=60)))).save(out, format="JPEG", quality=quality)
    return out.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Three originals; each coded again, mirrored (smaller), and ten others."""
    copies = [mosaic(seed, side=60) for seed in range(3)]
    copies += [changed(seed, lambda image: image, 40) for seed in range(3)]
    copies += [changed(seed, lambda image: ImageOps.mirror(image).resize((50, 50)), 90) for seed in range(3)]
    return [*copies, *(mosaic(100 + seed, side=44 + seed) for seed in range(10))]


@pytest.fixture(scope="module")
def raw(pictures: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards; a pair without a query in front of the others of each."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(2):
        pairs = [(f"{row:03d}", pictures[row], "a red mug") for row in range(number, len(pictures), 2)]
        shard(folder / f"{number}.tar", [("zero", mosaic(999), "nothing"), *pairs])
    return folder


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "queries.tsv"
    path.write_text("red mug", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def embedder() -> StoredEmbedder:
    return StoredEmbedder.of("tiny", STORE)


def by_vectors(raw: Path, queries: Path, out: Path, embedder: StoredEmbedder, cosine: float) -> BuildPlan:
    made = plan(raw, queries, out, near_bits=None, near_vectors=cosine)
    scan = ScanPlan(queries=queries, embedder=embedder)
    return BuildPlan(**{**vars(made), "scan": scan})


def test_copies_of_a_build_are_those_of_brute_force(
    raw: Path, queries: Path, pictures: list[bytes], embedder: StoredEmbedder, tmp_path: Path
) -> None:
    vectors = np.asarray(LocalModel("tiny", STORE).embed(images=pictures), dtype=np.float64)
    cosines = vectors @ vectors.T
    cosine = float(np.sort([cosines[row, row + 3] for row in range(3)])[0]) - 0.002  # the copies that were coded again
    report = build(by_vectors(raw, queries, tmp_path, embedder, cosine))
    sides = [Image.open(io.BytesIO(data)).size[0] for data in pictures]
    kept = sorted(int(sample.meta["build"]["source"][-7:-4]) for sample in samples_of(tmp_path))
    assert report.dropped[NEAR_VECTOR] == len(pictures) - len(kept) >= 3
    assert report.stages["no near copies by vectors"] == len(kept)
    assert report.kept + sum(report.dropped.values()) == len(pictures) + 2
    for row in range(len(pictures)):  # chance decides between equal sizes: what brute force leaves has these two marks
        nearer = [
            other for other in kept if other != row and cosines[row, other] >= cosine and sides[other] >= sides[row]
        ]
        assert bool(nearer) == (row not in kept)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["plan"]["near_vectors"] == cosine
    assert written["examples"][NEAR_VECTOR][0]["twin"].endswith(".jpg")
    vectors_of = [*(tmp_path / "work" / "facts").glob("*.vectors")]
    assert len(vectors_of) == 2
    assert not [*tmp_path.glob("vectors.*")]


class Cut(BaseException):
    """The end of a process, as far as files see it."""


def cut_after(steps: int) -> Progress:
    @contextmanager
    def progress(label: str, total: int) -> Generator[Callable[[int], None]]:
        def advance(count: int) -> None:
            nonlocal steps
            steps -= count
            if steps < 0:
                raise Cut

        yield advance

    return progress


def test_a_build_that_was_cut_ends_with_the_same_bytes(
    raw: Path, queries: Path, embedder: StoredEmbedder, tmp_path: Path
) -> None:
    build(by_vectors(raw, queries, tmp_path / "whole", embedder, 0.9))
    for steps in (0, 1, 6, 8):  # after a unit, after all units, after the vectors, after a shard
        again = by_vectors(raw, queries, tmp_path / "cut", embedder, 0.9)
        with pytest.raises(Cut):
            build(again, progress=cut_after(steps))
        (tmp_path / "cut" / "vectors.kept").write_bytes(b"left by a process that was killed")
    units = [facts_path(tmp_path / "cut" / "work" / "facts", again.scan, unit, DIGEST) for unit in again.units]
    units[0].unlink()  # its vectors come first, so they may be there alone
    vectors_path(units[0]).write_bytes(b"half")
    build(again)
    assert shards_of(tmp_path / "cut") == shards_of(tmp_path / "whole") != {}
    assert not [*(tmp_path / "cut").glob("vectors.*")]


def test_vectors_do_not_depend_on_the_pictures_beside(pictures: list[bytes], embedder: StoredEmbedder) -> None:
    model = embedder.open()
    together = model.vectors(pictures)
    for row in (0, 7, 18):
        (alone,) = model.vectors([pictures[row]])
        assert np.array_equal(np.asarray(alone), np.asarray(together[row]))


def test_refused_without_a_model(raw: Path, queries: Path, tmp_path: Path) -> None:
    for cosine, message in ((0.9, "no model says them"), (1.5, "expected more than 0, at most 1")):
        with pytest.raises(ValueError, match=message):
            build(plan(raw, queries, tmp_path / "out", near_vectors=cosine))
