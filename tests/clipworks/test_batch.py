"""clipworks.batch: the same vectors as the server's, errors by row, and no vector from a model that is another one."""

import datetime
import io
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipworks import Client, RetryPolicy
from clipworks.batch import ColumnEmbedder, Embedder, RemoteEmbedder, as_table
from clipworks.errors import ClientError, InvalidInput, ModelChanged, NotFound, UnreadableInput
from clipworks.local import LocalModel
from model_store.errors import ArtifactNotFound, GoldenError, ProviderError
from tests.batch.recipes import RECIPES, make_job, run_recipe
from tests.clipworks.conftest import GOLDENS, TINY_STORE

PHOTO = (GOLDENS / "rgb_jpeg_331x227.bin").read_bytes()
TEXTS = ["a red shoe", "a", "the quick brown fox jumps over a lazy dog", "zwölf &amp; ein Hund", "", "a red shoe"]
BROKEN = {
    "truncated": (GOLDENS / "truncated_jpeg.bin").read_bytes(),
    "no picture": b"<svg/>",
    "empty": b"",
    "nothing": None,
    "no file": "nowhere/there.jpg",
}


def pictures(count: int) -> list[bytes]:
    """Different pictures of different sizes, as PNG."""
    chance, found = np.random.default_rng(7), list[bytes]()
    for index in range(count):
        sink = io.BytesIO()
        pixels = chance.integers(0, 256, (30 + 5 * index, 90 - index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(sink, "PNG")
        found.append(sink.getvalue())
    return found


@pytest.fixture(scope="module", params=["in this process", "of a server"])
def embedders(request: pytest.FixtureRequest, server_url: str) -> Callable[..., ColumnEmbedder]:
    """embedders(**options): one of the two classes, for the tiny model."""
    if request.param == "of a server":
        return lambda **options: RemoteEmbedder(server_url, model="tiny", **options)
    return lambda **options: Embedder("tiny", TINY_STORE, **options)


def test_pictures_get_the_vectors_of_the_server_and_errors_stay_in_their_rows(
    embedders: Callable[..., ColumnEmbedder], server_url: str
) -> None:
    good = [*pictures(9), PHOTO]
    mixed: list[Any] = [*good[:3], *BROKEN.values(), *good[3:]]
    batch = {"path": np.array([f"{index}.png" for index in range(len(mixed))]), "bytes": mixed}
    found = embedders(batch_size=4)(batch)
    assert list(found) == ["path", "bytes", "vector", "error", "space", "fingerprint"]
    assert found["path"] is batch["path"]
    codes = [text.partition(":")[0] for text in found["error"]]
    bad = ["invalid_image", "unsupported_image", "invalid_image", "unreadable_input", "unreadable_input"]
    assert codes == [*[""] * 3, *bad, *[""] * 7]
    assert found["vector"].dtype == np.float32
    assert np.isnan(found["vector"][3:8]).all()
    with Client(server_url) as client:
        wanted = client.embed(images=good, model="tiny")
        model = client.model("tiny")
    assert found["vector"][found["error"] == ""].tobytes() == wanted.tobytes()
    assert set(found["space"]) == {model.space}
    assert set(found["fingerprint"]) == {model.fingerprint.image}


def test_every_way_to_give_a_picture_gives_its_vector(embedders: Callable[..., ColumnEmbedder], tmp_path: Path) -> None:
    (data,) = pictures(1)
    (tmp_path / "one.png").write_bytes(data)
    with Image.open(io.BytesIO(data)) as opened:
        ways = [data, tmp_path / "one.png", str(tmp_path / "one.png"), np.asarray(opened), opened.copy()]
    ways += [bytearray(data), {"bytes": data, "path": None}, {"bytes": None, "path": str(tmp_path / "one.png")}]
    found = embedders(column="it")({"it": ways})
    assert list(found["error"]) == [""] * len(ways)
    assert len({row.tobytes() for row in found["vector"]}) == 1
    together = embedders(column="it")({"it": np.stack([np.asarray(ways[3])] * 2)})  # as Ray gives pictures of one size
    assert together["vector"][1].tobytes() == found["vector"][0].tobytes()


def test_texts_get_the_vectors_of_the_server(embedders: Callable[..., ColumnEmbedder], server_url: str) -> None:
    lines: list[Any] = [*TEXTS, None, "\ud800", "long " * 3000]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model knows nothing of an empty text
        found = embedders(kind="text", batch_size=2)({"text": lines})
        with Client(server_url) as client:
            wanted = client.embed(texts=TEXTS, model="tiny")
    assert [text.partition(":")[0] for text in found["error"]] == [
        *[""] * len(TEXTS), "unreadable_input", "unreadable_input", "invalid_text",
    ]  # fmt: skip
    assert found["vector"][: len(TEXTS)].tobytes() == wanted.tobytes()


def test_what_the_model_knows_nothing_of_is_said_or_refused(embedders: Callable[..., ColumnEmbedder]) -> None:
    with pytest.warns(UserWarning, match=r"inputs\[1\].*knows nothing"):
        found = embedders(kind="text")({"text": ["a shoe", ""]})
    assert list(found["error"]) == ["", ""]
    strict = embedders(kind="text", on_unknown="error")({"text": ["a shoe", ""]})
    assert [text.partition(":")[0] for text in strict["error"]] == ["", "no_direction"]


def test_batches_without_rows_and_of_bad_rows_alone_keep_the_shape(embedders: Callable[..., ColumnEmbedder]) -> None:
    embed = embedders()
    assert embed({"bytes": []})["vector"].shape == (0, embed.dim)
    found = embed({"bytes": [None, None]})
    assert found["vector"].shape == (2, embed.dim)
    assert as_table({"path": ["a", "b"], **found}).schema.field("vector").type.list_size == embed.dim


def test_what_is_wrong_with_the_whole_batch_raises(embedders: Callable[..., ColumnEmbedder]) -> None:
    embed = embedders()
    with pytest.raises(ValueError, match=r"no column 'bytes' or 'image' or 'path'.*it has \['name'\]"):
        embed({"name": ["a"]})
    with pytest.raises(ValueError, match="a column 'error' already"):
        embed({"bytes": [PHOTO], "error": [""]})
    with pytest.raises(ValueError, match="lost trailing zeros"):
        embed({"bytes": np.array([PHOTO])})
    with pytest.raises(ValueError, match="kind: expected image or text"):
        embedders(kind="audio")


def test_it_is_pickled_by_its_arguments_and_opened_once_in_a_process(embedders: Callable[..., ColumnEmbedder]) -> None:
    embed = embedders()
    data = ForkingPickler.dumps(embed)
    assert len(data) < 1000
    again = ForkingPickler.loads(data)
    assert (again.model, again.fingerprint) == ("tiny@1", embed.fingerprint)
    assert again({"bytes": [PHOTO]})["vector"].tobytes() == embed({"bytes": [PHOTO]})["vector"].tobytes()
    if isinstance(embed, Embedder):
        assert again._model._opened is embed._model._opened


FORKING = """
import multiprocessing, sys
from clipworks.batch import Embedder, RemoteEmbedder

data = open(sys.argv[1], "rb").read()
embeds = [Embedder("tiny", sys.argv[2]), RemoteEmbedder(sys.argv[3])]
wanted = [embed({"bytes": [data]})["vector"].tobytes() for embed in embeds]


def in_child(index):
    vector = embeds[index]({"bytes": [data]})["vector"].tobytes()
    here = embeds[index]._model._opened if index == 0 else embeds[index]._client
    return vector, id(here)


before = [id(embeds[0]._model._opened), id(embeds[1]._client)]
with multiprocessing.get_context("fork").Pool(1) as pool:
    for index in range(2):
        vector, opened = pool.apply_async(in_child, [index]).get(60)
        assert vector == wanted[index]
        assert opened != before[index], "sessions and connections of the parent"
"""


def test_a_forked_process_opens_its_own(server_url: str) -> None:
    """The start method that Python 3.11 takes on Linux; in a program of its own, whose only threads are its pool's."""
    photo = str(GOLDENS / "rgb_jpeg_331x227.bin")
    program = [sys.executable, "-c", FORKING, photo, str(TINY_STORE), server_url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_another_model_of_the_same_name_is_refused(embedders: Callable[..., ColumnEmbedder]) -> None:
    with pytest.raises(ModelChanged, match="expected " + "0" * 64):
        embedders(fingerprint="0" * 64)


def test_no_vector_comes_from_a_model_that_does_not_reproduce_its_golden_cases(tmp_path: Path) -> None:
    store = Path(shutil.copytree(TINY_STORE, tmp_path / "store"))
    goldens = store / "tiny" / "1" / "goldens"
    with np.load(goldens / "arrays.npz") as stored:
        arrays = dict(stored)
    arrays["image_embeds"] = arrays["image_embeds"][::-1]
    np.savez(goldens / "arrays.npz", **arrays)
    _update_manifest(store / "tiny" / "1")
    with pytest.raises(GoldenError, match="image_encoder fp32 is not the exported model"):
        Embedder("tiny", store)
    assert Embedder("tiny", store, kind="text")({"text": ["a shoe"]})["error"][0] == ""  # its own cases are right


def test_a_machine_without_the_device_is_refused() -> None:
    with pytest.raises(ProviderError, match="CUDAExecutionProvider"):
        Embedder("tiny", TINY_STORE, device="cuda")


def test_the_server_must_have_the_model(server_url: str) -> None:
    with pytest.raises(NotFound):
        RemoteEmbedder(server_url, model="nobody")
    with pytest.raises(ArtifactNotFound):
        Embedder("nobody", TINY_STORE)
    assert RemoteEmbedder(server_url).model == "tiny@1"  # it has one only


def test_no_server_is_no_fault_of_a_row() -> None:
    with pytest.raises(ClientError):
        RemoteEmbedder("http://127.0.0.1:1", retry=RetryPolicy(attempts=1))


def test_a_full_server_is_asked_again(serving: Callable[..., AbstractContextManager[str]]) -> None:
    """A queue of two items, and six requests of three: all are answered in the end."""
    options = ("--store", TINY_STORE, "--model", "tiny", "--data", "memory", "--max-queue-items", "2")
    with serving(*options) as url:
        embed = RemoteEmbedder(url, concurrency=6, batch_size=3, retry=RetryPolicy(attempts=60, first_pause_s=0.05))
        found = embed({"bytes": pictures(18)})
        counted = httpx2.get(f"{url}/metrics").text
    assert set(found["error"]) == {""}
    assert re.search(r'clipworks_requests_total{.*status="429".*} [1-9]', counted)


def test_the_local_model_raises_for_the_first_bad_input() -> None:
    model = LocalModel("tiny", TINY_STORE)
    with pytest.raises(InvalidInput, match="not an image") as refused:
        model.embed(texts=["a"], images=[PHOTO, b"<svg/>", b""])
    assert (refused.value.index, refused.value.code) == (2, "unsupported_image")
    with pytest.raises(UnreadableInput, match="fetch it first"):
        model.embed(images=["https://example.org/a.png"])
    raw = model.embed(images=[PHOTO], normalize=False)
    assert raw / np.linalg.norm(raw) == pytest.approx(model.embed(images=[PHOTO]), abs=1e-6)


def test_the_recipe_for_processes_makes_what_the_server_answers(server_url: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, server_url, 24)
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "000001.parquet").write_bytes(b"there already")  # a job that was stopped goes on
    run_recipe(tmp_path, RECIPES["multiprocessing"])
    files = sorted((tmp_path / "vectors").iterdir())
    assert [file.name for file in files] == ["000000.parquet", "000001.parquet", "000002.parquet"]
    assert files[1].read_bytes() == b"there already"
    gone = {f"{index}.png" for index in range(8, 16)}
    left = {path: vector for path, vector in job.wanted.items() if path not in gone}
    job._replace(wanted=left, broken=job.broken - gone).check(pa.concat_tables(map(pq.read_table, files[::2])))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder of two parquet files as a batch job writes them, with a broken picture; and all their columns."""
    embed = Embedder("tiny", TINY_STORE)
    data = [*pictures(5), b"broken"]
    batch = {"path": [f"{n}.png" for n in range(6)], "colour": ["red"] * 6, "bytes": data}
    found = embed(batch)
    table = as_table(found, columns=("path", "colour", "vector", "error", "space", "fingerprint"))
    (tmp_path / "out").mkdir()
    pq.write_table(table.slice(0, 3), tmp_path / "out" / "0.parquet")
    pq.write_table(table.slice(3), tmp_path / "out" / "1.parquet")
    return tmp_path / "out", found


def test_the_files_of_a_job_are_imported(
    job: tuple[Path, dict[str, Any]], server_url: str, cli: Callable[..., tuple[int, str, str]]
) -> None:
    folder, found = job
    run = ("collections", "import", folder, "--name", "jobs", "--url", server_url)
    assert cli(*run)[0] == 2  # there is none, and nothing says which model
    code, out, err = cli(*run, "--model", "tiny")
    assert code == 1
    assert "5 items stored in jobs, 1 failed" in err
    assert "5.png" in out
    assert "unsupported_image" in out
    with Client(server_url) as client:
        items = {item.id: item for item in client.collection("jobs").items(include=("metadata", "vector"))}
        assert sorted(items) == [f"{n}.png" for n in range(5)]
        assert items["2.png"].vector == pytest.approx(found["vector"][2], abs=1e-6)
        assert items["2.png"].metadata == {"path": "2.png", "colour": "red"}
        assert client.collection("jobs").search([{"image": pictures(5)[3]}])[0].hits[0].id == "3.png"
        client.delete_collection("jobs")


def test_a_row_that_cannot_be_an_item_fails_alone(
    job: tuple[Path, dict[str, Any]], server_url: str, cli: Callable[..., tuple[int, str, str]]
) -> None:
    folder, _ = job
    table = pq.read_table(folder / "0.parquet")
    spans = pa.array([None, datetime.timedelta(seconds=1), None])  # JSON has no such thing
    pq.write_table(table.append_column("exposure", spans), folder / "0.parquet")
    code, out, err = cli("collections", "import", folder, "--name", "rows", "--url", server_url, "--model", "tiny")
    assert (code, "4 items stored in rows, 2 failed" in err) == (1, True), err
    assert "1.png" in out
    assert "timedelta" in out
    numbered = table.set_column(table.column_names.index("path"), "path", pa.array([7, 8, 9]))
    pq.write_table(numbered, folder / "0.parquet")
    code, _, err = cli("collections", "import", folder, "--name", "rows", "--url", server_url)
    assert (code, "7 in 'path' is no id: ids are strings" in err) == (2, True), err
    with Client(server_url) as client:
        client.delete_collection("rows")


def test_a_table_of_a_data_frame_with_a_row_that_failed() -> None:
    vectors = [np.ones(4, np.float32), None]
    table = as_table({"path": ["a", "b"], "vector": vectors, "error": ["", "invalid_image: no"]})
    assert table.schema.field("vector").type.list_size == 4
    assert np.isnan(table.column("vector")[1].as_py()).all()


@pytest.mark.parametrize("column", ["space", "fingerprint"])
def test_vectors_of_two_models_are_refused_before_anything_is_written(
    column: str, job: tuple[Path, dict[str, Any]], server_url: str, cli: Callable[..., tuple[int, str, str]]
) -> None:
    folder, _ = job
    table = pq.read_table(folder / "1.parquet")
    other = as_table({**table.to_pydict(), column: ["f" * 64] * len(table)}, columns=table.column_names)
    run = ("collections", "import", folder, "--name", "mixed", "--url", server_url, "--model", "tiny")
    pq.write_table(other, folder / "1.parquet")
    code, _, err = cli(*run)
    assert code == 3
    assert f"vectors of two models: {column}" in err
    (folder / "0.parquet").unlink()
    code, _, err = cli(*run)
    assert code == 3
    assert "f" * 64 in err
    with Client(server_url) as client:
        assert "mixed" not in [each.name for each in client.collections()]


def test_an_id_that_comes_twice_is_refused(
    job: tuple[Path, dict[str, Any]], server_url: str, cli: Callable[..., tuple[int, str, str]]
) -> None:
    folder, _ = job
    shutil.copy(folder / "0.parquet", folder / "2.parquet")
    code, _, err = cli("collections", "import", folder, "--name", "twice", "--url", server_url, "--model", "tiny")
    assert code == 2
    assert "there twice" in err


def _update_manifest(folder: Path) -> None:
    from model_store.manifest import Manifest
    from model_store.store import file_entries

    path = folder / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_bytes())
    path.write_text(manifest.model_copy(update={"files": file_entries(folder)}).model_dump_json())
