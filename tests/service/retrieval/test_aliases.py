"""Aliases: moved at once and for good, whatever else goes on, also from a name that was a collection's own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import apsw
import numpy as np
import pytest

from service.retrieval import CollectionSpec, CollectionStore, RetrievalSettings, StoreItem
from service.retrieval.errors import AliasNotFound, CollectionConflict, CollectionNotFound, InvalidCollection

SETTINGS = RetrievalSettings(threads=1, checkpoint_s=3600)
WAY = np.eye(8, dtype=np.float32)


def opened(folder: Path) -> CollectionStore:
    return CollectionStore.open(folder, settings=SETTINGS)


def test_a_name_becomes_an_alias_and_moves_on(tmp_path: Path, spec: Callable[..., CollectionSpec]) -> None:
    with opened(tmp_path) as store:
        old, new = store.create("photos", spec())[0], store.create("photos@2", spec())[0]
        old.upsert([StoreItem("old", WAY[0], {})])
        new.upsert([StoreItem("new", WAY[0], {})])
        with pytest.raises(CollectionConflict, match="keep_as"):
            store.set_alias("photos", "photos@2")
        assert store.set_alias("photos", "photos@2", keep_as="photos@1") is True
        assert store.get("photos") is new
        assert (store.get("photos@1"), old.name) == (old, "photos@1")
        assert store.aliases() == {"photos": "photos@2"}
        assert sorted(info.name for info in store.list()) == ["photos@1", "photos@2"]
    with opened(tmp_path) as store:
        assert store.aliases() == {"photos": "photos@2"}
        assert store.get("photos").get("new").id == "new"
        assert store.get("photos@1").get("old").id == "old"
        assert store.set_alias("photos", "photos@1") is False
        assert store.get("photos").name == "photos@1"
        store.delete_alias("photos")
        with pytest.raises(CollectionNotFound):
            store.get("photos")
        with pytest.raises(AliasNotFound):
            store.delete_alias("photos")
    with opened(tmp_path) as store:
        assert store.aliases() == {}


def test_what_would_leave_a_name_in_doubt_is_refused(tmp_path: Path, spec: Callable[..., CollectionSpec]) -> None:
    with opened(tmp_path) as store:
        first = store.create("a", spec())[0]
        store.create("b", spec())
        store.set_alias("x", "a")
        with pytest.raises(CollectionConflict, match="is an alias of a"):
            store.drop("x")
        with pytest.raises(CollectionConflict, match="has the alias x"):
            store.drop("a")
        with pytest.raises(CollectionConflict, match="no collection y to keep"):
            store.set_alias("y", "a", keep_as="z")
        with pytest.raises(CollectionConflict, match="the name b is taken"):
            store.set_alias("a", "b", keep_as="b")
        with pytest.raises(CollectionConflict, match="the name x is taken"):
            store.set_alias("a", "b", keep_as="x")
        with pytest.raises(CollectionNotFound):
            store.set_alias("x", "nothing")
        with pytest.raises(InvalidCollection):
            store.set_alias("X!", "a")
        with pytest.raises(InvalidCollection):
            store.set_alias("a", "b", keep_as="a@0")
        with pytest.raises(CollectionConflict, match="another"):
            store.create("x", spec(dim=4))
        assert store.create("x", spec())[0] is first
        first.upsert([StoreItem("one", WAY[0], {})])
        with pytest.raises(CollectionConflict, match="is at change 1, not at 0"):
            store.set_alias("x", "b", if_sequence=0)
        with pytest.raises(CollectionConflict, match="means no collection"):
            store.set_alias("new", "b", if_sequence=0)
        assert store.aliases() == {"x": "a"}
        store.set_alias("x", "b", if_sequence=1)
        store.drop("a")
        assert store.aliases() == {"x": "b"}


def test_searches_never_notice_a_switch(tmp_path: Path, spec: Callable[..., CollectionSpec]) -> None:
    """Each answer is one collection's whole, never an error, and after a switch never the old one's."""
    with opened(tmp_path) as store:
        store.create("photos", spec())
        store.get("photos").upsert([StoreItem(f"v1-{n}", WAY[n], {}) for n in range(8)])
        wrong: list[object] = []
        answers, done, least = 0, threading.Event(), 1

        def look() -> None:
            nonlocal answers
            while not done.is_set():
                oldest = least
                try:
                    hits = store.get("photos").search(WAY[:1], top_k=8)[0].hits
                except Exception as error:
                    wrong.append(error)
                    return
                versions = {hit.id.partition("-")[0] for hit in hits}
                if len(hits) != 8 or len(versions) != 1 or int(versions.pop()[1:]) < oldest:
                    wrong.append((oldest, [hit.id for hit in hits]))
                answers += 1

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(2, 8):
            made = store.create(f"photos@{version}", spec())[0]
            made.upsert([StoreItem(f"v{version}-{n}", WAY[n], {}) for n in range(8)])
            store.set_alias("photos", made.name, keep_as="photos@1" if version == 2 else None)
            least = version
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert answers > 20


def test_a_kill_leaves_the_name_before_or_after(tmp_path: Path, spec: Callable[..., CollectionSpec]) -> None:
    """Of a process that switches to and fro until it is killed: the name always means one of the two."""
    with opened(tmp_path) as store:
        for name in ("a", "b"):
            store.create(name, spec())[0].upsert([StoreItem(name, WAY[0], {})])
        store.set_alias("x", "a")
    script = (
        "import sys; from pathlib import Path; from service.retrieval import CollectionStore\n"
        "store = CollectionStore.open(Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "while True:\n    store.set_alias('x', 'b'); store.set_alias('x', 'a')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        threading.Event().wait(0.1)
        process.kill()
    with opened(tmp_path) as store:
        meant = store.get("x")
        assert meant.name in ("a", "b")
        assert meant.get(meant.name).id == meant.name


def test_a_file_without_aliases_or_with_stray_ones_opens(tmp_path: Path, spec: Callable[..., CollectionSpec]) -> None:
    """A file of before has no such table; an alias that means nothing is left out."""
    with opened(tmp_path) as store:
        store.create("a", spec())
        store.set_alias("x", "a")
    db = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs="cksmvfs")
    db.execute("INSERT INTO aliases VALUES ('a', 1), ('stray', 99)")
    db.close()
    with opened(tmp_path) as store:
        assert store.aliases() == {"x": "a"}
    db = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs="cksmvfs")
    db.execute("DROP TABLE aliases")
    db.close()
    with opened(tmp_path) as store:
        assert (store.aliases(), store.get("a").name) == ({}, "a")


def test_declared_fields_with_dots_of_a_file_of_before(tmp_path: Path, spec: Callable[..., CollectionSpec]) -> None:
    """Their index saw the nested field only; it is replaced at open, and flat keys are found."""
    with opened(tmp_path) as store:
        store.create("c", spec(schema={"a.b": "number"}))
        store.get("c").upsert([StoreItem("flat", WAY[0], {"a.b": 1}), StoreItem("nested", WAY[1], {"a": {"b": 1}})])
    db = apsw.Connection(str(tmp_path / "collections.sqlite3"), vfs="cksmvfs")
    db.execute("DROP INDEX dotted_1_0")
    db.execute("""CREATE INDEX field_1_0 ON metadata_1 (json_extract(document, '$."a"."b"'))""")
    db.execute("""UPDATE metadata_1 SET document = '{"a.b":"x"}' WHERE rid = 1""")  # no door looked at flat keys
    db.close()
    with opened(tmp_path) as store:
        hits = store.get("c").search(WAY[:1], filter={"a.b": {"$gte": 0}}, with_metadata=False)[0].hits
        assert [hit.id for hit in hits] == ["nested"]
        names = [name for (name,) in store.get("c")._log._writer.execute("SELECT name FROM sqlite_schema")]  # noqa: SLF001
        assert "dotted_1_0" in names
        assert "field_1_0" not in names
