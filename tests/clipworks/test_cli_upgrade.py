"""`clipworks collections upgrade`: another model under the same name, resumed after a stop, no gap for searches."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipworks import Client
from clipworks.cli import app
from clipworks.cli.collection_copying import Copying, CopyReport, Sources
from clipworks.cli.collection_upgrade import require_model_of
from clipworks.cli.failures import UsageError
from clipworks.client import AsyncClient
from clipworks.errors import Conflict
from model_store.manifest import Fingerprint
from model_store.store import Store, file_entries

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
PICTURES = 12


@pytest.fixture(scope="module")
def server(
    serving: Callable[..., AbstractContextManager[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server with tiny@1 and a tiny@2 of another space."""
    root = tmp_path_factory.mktemp("two") / "store"
    shutil.copytree(TINY_STORE, root)
    store = Store(root, builtin=False)
    tiny = store.open("tiny@1")
    with store.staging() as folder:
        shutil.copytree(tiny.folder, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        changes = {
            "version": 2,
            "files": file_entries(folder),
            "space": "2" * 64,
            "fingerprint": Fingerprint(image="3" * 64, text="4" * 64),
        }
        store.publish(folder, tiny.manifest.model_copy(update=changes))
    options = ("--store", root, "--model", "tiny@1", "--extra-models", "tiny@2", "--data", "memory")
    with serving(*options, start_s=120) as url:
        yield url


@pytest.fixture
def photos(tmp_path: Path, server: str) -> Iterator[Path]:
    """A folder of pictures, indexed by tiny@1 into the collection `photos`."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(PICTURES):
        levels = np.random.default_rng(n).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{n:02}.png")
    code, _, said = run(server, "index", folder, "--collection", "photos", "--model", "tiny@1", "--field", "row=number")
    assert code == 0, said
    yield folder
    with Client(server) as client:
        for name in client.aliases():
            client.delete_alias(name)
        for info in client.collections():
            client.delete_collection(info.name)


def run(server: str, *arguments: str | Path) -> tuple[int, Any, str]:
    result = CliRunner().invoke(app, [*(str(each) for each in arguments), "--url", server])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    facts = json.loads(result.stdout) if "--json" in arguments and result.stdout else result.stdout
    return result.exit_code, facts, " ".join(result.stderr.split())


def upgrade(server: str, *more: str | Path) -> tuple[int, Any, str]:
    return run(server, "collections", "upgrade", "photos", "--model", "tiny@2", "--json", *more)


def test_the_name_means_the_new_model_and_searches_never_stop(server: str, photos: Path) -> None:
    seen: list[tuple[str, int]] = []
    wrong: list[object] = []
    done = threading.Event()

    def search() -> None:
        with Client(server) as client:
            while not done.is_set():
                try:
                    [hits] = client.collection("photos").search(["red"], top_k=100)
                    seen.append(("", len(hits.hits)))
                except Exception as error:
                    wrong.append(error)
                    return

    thread = threading.Thread(target=search)
    thread.start()
    code, facts, said = upgrade(server)
    done.set()
    thread.join()
    assert code == 0, said
    assert not wrong
    assert seen
    assert {count for _, count in seen} == {PICTURES}
    assert (facts["collection"], facts["model"], facts["kept_as"]) == ("photos@2", "tiny@2", "photos@1")
    assert (facts["encoded"], facts["failures"], facts["switched"]) == (PICTURES, [], True)
    with Client(server) as client:
        info, kept = client.collection("photos").info(), client.collection("photos@1").info()
        assert (info.name, info.model, info.aliases, info.count) == ("photos@2", "tiny@2", ["photos"], PICTURES)
        assert info.metadata_schema == kept.metadata_schema == {"row": "number"}
        assert (kept.model, kept.count) == ("tiny@1", PICTURES)
        olds, news = ({item.id: item.metadata for item in client.collection(n).items()} for n in ("photos@1", "photos"))
        assert olds == news
    code, _, said = upgrade(server)
    assert code == 2
    assert "encoded by tiny@2 already" in said
    code, facts, said = run(server, "collections", "upgrade", "photos", "--model", "tiny@1", "--json")
    assert (code, facts["encoded"], facts["unchanged"]) == (0, 0, PICTURES), said  # the way back costs nothing
    with Client(server) as client:
        assert client.aliases() == {"photos": "photos@1"}


def test_what_cannot_be_read_is_listed_and_nothing_switched(server: str, photos: Path) -> None:
    (photos / "03.png").unlink()
    (photos / "04.png").write_bytes((photos / "05.png").read_bytes())
    code, facts, _ = upgrade(server)
    assert code == 1
    assert {each["id"]: each["message"].partition(":")[0] for each in facts["failures"]}.keys() == {"03.png", "04.png"}
    assert "another one now" in next(each["message"] for each in facts["failures"] if each["id"] == "04.png")
    assert (facts["encoded"], facts["switched"]) == (PICTURES - 2, False)
    with Client(server) as client:
        assert client.aliases() == {}
        assert client.collection("photos").info().model == "tiny@1"
    code, facts, _ = upgrade(server, "--allow-missing")  # goes on: what is encoded is not encoded again
    assert (code, facts["encoded"], facts["unchanged"], facts["switched"]) == (1, 0, PICTURES - 2, True)
    with Client(server) as client:
        assert client.collection("photos").info().count == PICTURES - 2


def test_it_goes_on_where_it_ended_and_takes_what_changed(server: str, photos: Path, tmp_path: Path) -> None:
    """A run that did not switch, then changes of the old collection, pictures that were moved, and texts."""
    assert upgrade(server, "--no-switch")[1]["encoded"] == PICTURES
    with Client(server) as client:
        collection = client.collection("photos")
        collection.delete(["00.png"])
        collection.upsert([{"id": "note", "text": "a red square", "metadata": {"caption": "a red square"}}])
        item = collection.get("01.png")
        collection.upsert([{"id": "01.png", "image": photos / "01.png", "metadata": {**item.metadata, "seen": True}}])
    moved = tmp_path / "elsewhere"
    photos.rename(moved)
    code, facts, said = upgrade(server, "--source", moved, "--text-field", "caption")
    assert code == 0, said
    assert (facts["encoded"], facts["removed"], facts["unchanged"]) == (2, 1, PICTURES - 2)
    with Client(server) as client:
        news = {item.id: item.metadata for item in client.collection("photos").items()}
        assert news == {item.id: item.metadata for item in client.collection("photos@1").items()}
        assert news["01.png"]["seen"] is True
        assert "note" in news


def test_a_killed_upgrade_goes_on(server: str, photos: Path) -> None:
    """Killed at its first stored item: the name means the old collection, and nothing is encoded twice."""
    command = [sys.executable, "-m", "clipworks", "collections", "upgrade", "photos", "--model", "tiny@2"]
    command += ["--batch-size", "1", "--concurrency", "1", "--url", server]
    with Client(server) as client, subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        count = 0
        while not count and process.poll() is None:
            count = next((info.count for info in client.collections() if info.name == "photos@2"), 0)
        process.kill()
        process.wait()
        if client.aliases():
            pytest.skip("it was done before it could be killed")
        count = client.collection("photos@2").info().count
        assert client.collection("photos").info().model == "tiny@1"
    code, facts, said = upgrade(server)
    assert code == 0, said
    assert (facts["encoded"], facts["unchanged"], facts["switched"]) == (PICTURES - count, count, True)
    assert 0 < count < PICTURES


def test_another_model_than_the_collections_is_refused_with_the_remedy(server: str, photos: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(server) as client:
            info = await client.collection("photos").info()
            await require_model_of(client, info, "tiny@1")
            with pytest.raises(UsageError, match="clipworks collections upgrade photos --model tiny@2"):
                await require_model_of(client, info, "tiny@2")

    asyncio.run(ask())
    with Client(server) as client, pytest.raises(Conflict, match="space"):
        client.create_collection("photos", model="tiny@2", metadata_schema={"row": "number"})


def test_aliases_from_the_command_line(server: str, photos: Path) -> None:
    assert run(server, "collections", "alias", "best", "photos")[0] == 0
    assert run(server, "collections", "aliases", "--json")[1] == {"best": "photos"}
    code, _, said = run(server, "collections", "delete", "best", "--yes")
    assert code == 3
    assert "is an alias of photos" in said
    assert run(server, "collections", "unalias", "best")[0] == 0
    assert run(server, "collections", "aliases", "--json")[1] == {}


def test_after_the_switch_late_items_are_added_and_nothing_else_changes(server: str) -> None:
    async def go() -> None:
        async with AsyncClient(server) as client:
            old, new = await client.create_collection("late-old"), await client.create_collection("late-new")
            await old.upsert([{"id": id, "text": id, "metadata": {"t": id}} for id in ("a", "b")])
            sources = Sources(folder=None, text_field="t")
            copying = Copying(old, new, sources, CopyReport(), workers=1, batch=8)
            await copying.run(lambda _: None)
            await new.upsert([{"id": id, "text": "new", "metadata": {"t": "new"}} for id in ("a", "c")])
            await new.delete(["b"])
            await old.upsert([{"id": id, "text": "late", "metadata": {"t": "late"}} for id in ("a", "d")])
            await copying.add_late()
            found = {item.id: item.metadata async for item in new.items()}
            assert found == {"a": {"t": "new"}, "c": {"t": "new"}, "d": {"t": "late"}}
            for name in ("late-old", "late-new"):
                await client.delete_collection(name)

    asyncio.run(go())


def test_thumbnails_are_made_anew(server: str, photos: Path) -> None:
    code, _, said = run(server, "index", photos, "--collection", "small", "--model", "tiny@1", "--thumbnails")
    assert code == 0, said
    code, facts, said = run(server, "collections", "upgrade", "small", "--model", "tiny@2", "--json")
    assert (code, facts["encoded"], facts["switched"]) == (0, PICTURES, True), said
    with Client(server) as client:
        kept = client.collection("small").info().thumbnails
        assert kept
        assert (kept.count, client.collection("small").info().model) == (PICTURES, "tiny@2")
