"""A store and a dict side by side through random lives: the same rows, the same hits, in the same order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.retrieval import CollectionSpec, CollectionStore, IndexSpec, RetrievalSettings, StoreItem

DIM = 3
SETTINGS = RetrievalSettings(train_min_rows=3, threads=1, checkpoint_s=3600)
ids = st.sampled_from([f"i{n}" for n in range(8)] + ["é/x", "a b"])
# Few directions, so that ties and duplicates are common.
directions = st.sampled_from(
    [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (1, 1, 0), (1, 1, 1), (0.3, 0.2, 0.9), (-0.7, 0.1, 0.4)]
)
metadata = st.fixed_dictionaries(
    {}, optional={"n": st.integers(0, 3), "tags": st.lists(st.sampled_from("xyz"), max_size=2), "flag": st.booleans()}
)
filters: dict[str, tuple[dict[str, Any], Any]] = {
    "none": ({}, lambda m: True),
    "equal": ({"n": 1}, lambda m: m.get("n") == 1),
    "range": ({"n": {"$gte": 1, "$lt": 3}}, lambda m: 1 <= m.get("n", -1) < 3),
    "tag": ({"tags": {"$in": ["x", "q"]}}, lambda m: "x" in m.get("tags", [])),
    "not": ({"$not": {"flag": True}}, lambda m: m.get("flag") is not True),
}


def unit(direction: tuple[float, ...]) -> np.ndarray:
    values = np.array(direction, dtype=np.float64)
    return (values / np.linalg.norm(values)).astype(np.float32)


class StoreMachine(RuleBasedStateMachine):
    """kind flat and sq8 in one store; sq8 must agree too: with so few rows every one of them is a candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="clipworks-machine-"))
        self.store = CollectionStore.open(self.folder, settings=SETTINGS)
        self.model: dict[str, dict[str, tuple[np.ndarray, dict[str, Any]]]] = {"flat": {}, "sq8": {}}
        self.snapshots: list[tuple[Path, dict[str, tuple[np.ndarray, dict[str, Any]]]]] = []

    @initialize()
    def create(self) -> None:
        for kind in self.model:
            spec = CollectionSpec(
                model="m@1",
                space="s",
                fingerprints={},
                dim=DIM,
                index=IndexSpec(kind=kind),
                metadata_schema={"n": "number"},
            )
            assert self.store.create(kind, spec)[1]
            assert not self.store.create(kind, spec)[1]

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(
        name=st.sampled_from(["flat", "sq8"]),
        rows=st.lists(st.tuples(ids, directions, metadata), min_size=1, max_size=4),
    )
    def upsert(self, name: str, rows: list[Any]) -> None:
        model = self.model[name]
        outcomes = self.store.get(name).upsert([StoreItem(id, unit(way), data) for id, way, data in rows])
        for (id, way, data), outcome in zip(rows, outcomes, strict=True):
            assert (outcome.error, outcome.created) == (None, id not in model)
            model[id] = (unit(way), data)

    @rule(name=st.sampled_from(["flat", "sq8"]), chosen=st.lists(ids, max_size=4))
    def delete(self, name: str, chosen: list[str]) -> None:
        gone = {id for id in chosen if self.model[name].pop(id, None)}
        assert self.store.get(name).delete(chosen) == len(gone)

    @rule(name=st.sampled_from(["flat", "sq8"]), filter=st.sampled_from(["equal", "tag"]))
    def delete_by_filter(self, name: str, filter: str) -> None:
        wanted, matches = filters[filter]
        gone = [id for id, (_, data) in self.model[name].items() if matches(data)]
        for id in gone:
            del self.model[name][id]
        assert self.store.get(name).delete(filter=wanted) == len(gone)

    @rule(
        name=st.sampled_from(["flat", "sq8"]),
        ways=st.lists(directions, min_size=1, max_size=3),
        filter=st.sampled_from(sorted(filters)),
        top_k=st.integers(1, 12),
        offset=st.integers(0, 3),
        excluded=st.lists(ids, max_size=2),
        min_score=st.none() | st.sampled_from([-0.5, 0.0, 0.5]),
    )
    def search(
        self, name: str, ways: list[Any], filter: str, top_k: int, offset: int, excluded: list[str], min_score: Any
    ) -> None:
        wanted, matches = filters[filter]
        queries = np.stack([unit(way) for way in ways])
        results = self.store.get(name).search(
            queries,
            top_k=top_k,
            offset=offset,
            filter=wanted or None,
            exclude_ids=[excluded] * len(ways),
            min_score=min_score,
        )
        for query, result in zip(queries, results, strict=True):
            scored = sorted(
                (-float(np.float32((row.astype(np.float64) * query.astype(np.float64)).sum())), id)
                for id, (row, data) in self.model[name].items()
                if matches(data) and id not in excluded
            )
            kept = [(score, id) for score, id in scored if min_score is None or -score >= min_score]
            assert [(-hit.score, hit.id) for hit in result.hits] == kept[offset : offset + top_k]
            assert [hit.metadata for hit in result.hits] == [self.model[name][hit.id][1] for hit in result.hits]

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = CollectionStore.open(self.folder, settings=SETTINGS)
        assert self.store.warnings == ()

    @rule(name=st.sampled_from(["flat", "sq8"]))
    def compact(self, name: str) -> None:
        self.store.get(name).compact()
        assert self.store.get(name).describe().dead == 0

    @rule(name=st.sampled_from(["flat", "sq8"]))
    def snapshot(self, name: str) -> None:
        path = self.folder / f"{len(self.snapshots)}.snapshot"
        assert self.store.get(name).snapshot(path).count == len(self.model[name])
        self.snapshots.append((path, dict(self.model[name])))

    @rule(name=st.sampled_from(["flat", "sq8"]), pick=st.integers(0, 10))
    def restore(self, name: str, pick: int) -> None:
        if self.snapshots:
            path, rows = self.snapshots[pick % len(self.snapshots)]
            self.store.drop(name)
            self.store.restore(path, name=name)
            self.model[name] = dict(rows)

    @invariant()
    def same_rows(self) -> None:
        for name, model in self.model.items():
            if name not in {info.name for info in self.store.list()}:
                continue
            collection = self.store.get(name)
            page = collection.items(limit=100, with_vectors=True)
            assert [record.id for record in page.records] == sorted(model)
            for record in page.records:
                assert (record.vector == model[record.id][0]).all()
                assert record.metadata == model[record.id][1]
            assert collection.describe().count == len(model)


StoreMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = StoreMachine.TestCase
