"""Times a search with diversity, folding, facets, a histogram or ranks beside a plain one: milliseconds of a query.

    python benchmarks/search_extras.py --rows 100000

Made of clusters, 512 numbers a row, in an embedded store of its own; kinds are run in turn, the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from benchmarks.retrieval_data import clustered
from service.collections.arranging import Arrangement, search_arranged
from service.retrieval import CollectionSpec, CollectionStore, EmbeddedCollection, StoreItem
from service.retrieval.stopping import NEVER
from service.retrieval.surveys import SurveySpec

DIM = 512
_AT_ONCE = 5_000


def filled(store: CollectionStore, rows: int) -> EmbeddedCollection:
    spec = CollectionSpec(model="m@1", space="s", fingerprints={}, dim=DIM, metadata_schema={"declared": "number"})
    collection, _ = store.create("extras", spec)
    vectors = clustered(rows, DIM, seed=0)
    for start in range(0, rows, _AT_ONCE):
        collection.upsert(
            [
                StoreItem(f"r{n:08}", vectors[n], {"declared": n % 50, "other": n % 50, "tags": ["a", f"b{n % 9}"]})
                for n in range(start, min(start + _AT_ONCE, rows))
            ]
        )
    return collection


def kinds(collection: EmbeddedCollection) -> Mapping[str, Callable[[int], object]]:
    queries = clustered(256, DIM, seed=1)

    def query(turn: int) -> object:
        return queries[turn % len(queries)][None]

    def plain(turn: int) -> object:
        return collection.search(query(turn), top_k=10)  # pyright: ignore[reportArgumentType]

    def arranged(asked: Arrangement, turn: int) -> object:
        search = partial(collection.search, query(turn))  # pyright: ignore[reportArgumentType]
        return search_arranged(
            search,
            lambda id: collection.get(id).metadata,
            asked,
            offset=0,
            top_k=10,
            largest=2_000,
            with_metadata=True,
            with_vectors=False,
            stop=NEVER,
        )

    def surveyed(asked: SurveySpec, turn: int) -> object:
        return collection.survey(query(turn), asked)  # pyright: ignore[reportArgumentType]

    return {
        "ten best": plain,
        "group_near .95": partial(arranged, Arrangement(group_near=0.95)),
        "diversity .4": partial(arranged, Arrangement(diversity=0.4)),
        "diversity .4, pool 2,000": partial(arranged, Arrangement(diversity=0.4, pool=2_000)),
        "histogram": partial(surveyed, SurveySpec(bins=20)),
        "score_of, one item": partial(surveyed, SurveySpec(ids=("r00000007",))),
        "facet, declared number": partial(surveyed, SurveySpec(facets=("declared",))),
        "facet, undeclared": partial(surveyed, SurveySpec(facets=("other",))),
        "facet, lists": partial(surveyed, SurveySpec(facets=("tags",))),
    }


def measure(rows: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, CollectionStore.open(Path(folder)) as store:
        collection = filled(store, rows)
        collection.compact()
        taken: dict[str, list[float]] = {}
        for turn in range(rounds + 1):
            for name, call in kinds(collection).items():
                began = time.perf_counter()
                call(turn)
                if turn:  # the first one warms up
                    taken.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        return {name: round(statistics.median(times), 2) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(json.dumps({"rows": arguments.rows, "ms": measure(arguments.rows, arguments.rounds)}, indent=2))


if __name__ == "__main__":
    main()
