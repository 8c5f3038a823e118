"""Streamed samples: each once in an epoch over processes and workers, bad ones counted, and on from every place."""

from __future__ import annotations

import http.server
import io
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation.standard.tar_members import tar_members
from model_store.manifest import ImageSpec
from model_store.modality.image import decode, prepare
from tests.tars import picture, tar_bytes
from training.data.augment import CaptionAugment, ImageAugment
from training.data.batches import TextIds
from training.data.sample_stream import SampleStream, StreamPlace, StreamPlan, moved_places
from training.data.stream_batches import SampleRows, StreamBatches
from training.data.vocabulary import clip_merges, clip_text_spec

pytestmark = pytest.mark.torch

SPEC = ImageSpec(
    height_px=20, width_px=20, resize_mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)
ROWS = SampleRows(
    spec=SPEC,
    image_augment=ImageAugment(size_px=16),
    caption_augment=CaptionAugment(templates=("a photo of {}",)),
    tokenize=TextIds(clip_text_spec(200, context_length=16), clip_merges(200)),
)


def shard(numbers: range, **change: bytes | None) -> bytes:
    """Samples of one grey each, with their number as caption; change: extension_number="..." replaces a member."""
    members: dict[str, bytes] = {}
    for number in numbers:
        for extension, data in (("jpg", picture(number)), ("txt", f"number {number}".encode())):
            given = change.get(f"{extension}_{number}", data)
            if given is not None:
                members[f"{number:04d}.{extension}"] = given
    return tar_bytes(members)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Six shards of eight samples, 0 to 47."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(6):
        (folder / f"{number}.tar").write_bytes(shard(range(8 * number, 8 * number + 8)))
    return tuple(str(folder / f"{number}.tar") for number in range(6))


def plan_of(shards: tuple[str, ...], **change: Any) -> StreamPlan:
    return StreamPlan(**{"shards": shards, "samples": 48, "seed": 3, "buffer": 5, "bad_share": 0.1, **change})


def drawn(stream: SampleStream, count: int) -> list[int]:
    """The numbers of the next samples."""
    rng = stream.begin_batch()
    return [int(stream.draw(rng).caption.split()[1]) for _ in range(count)]


def taken(batches: StreamBatches, steps: int) -> list[dict[str, torch.Tensor]]:
    return [batches(step) for step in range(steps)]


def equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
        for one, two in zip(left, right, strict=True)
    )


@settings(deadline=None, max_examples=25)
@given(readers=st.integers(1, 6), buffer=st.integers(1, 60), seed=st.integers(0, 5), resampled=st.booleans())
def test_every_sample_of_an_epoch_comes_once_over_all_readers(
    shards: tuple[str, ...], readers: int, buffer: int, seed: int, resampled: bool
) -> None:
    plan = plan_of(shards, buffer=buffer, seed=seed, resampled=resampled)
    streams = [SampleStream(plan, reader=reader, readers=readers) for reader in range(readers)]
    # As many turns for each as make whole epochs of all of them together.
    turns = 6 * readers // np.gcd(6, readers) // readers
    found = Counter(number for stream in streams for number in drawn(stream, 8 * turns))
    epochs = turns * readers // 6
    if not resampled:
        assert found == Counter({number: epochs for number in range(48)})
    else:
        assert found.total() == 48 * epochs
        assert len({number // 8 for number in found}) < 6 or len({*found.values()}) > 1 or epochs == 1


def test_shards_and_samples_are_shuffled_anew_in_each_epoch_and_for_each_seed(shards: tuple[str, ...]) -> None:
    first = drawn(SampleStream(plan_of(shards), reader=0, readers=1), 96)
    assert sorted(first[:48]) == sorted(first[48:]) == list(range(48))
    assert first[:48] != first[48:]
    other = drawn(SampleStream(plan_of(shards, seed=4), reader=0, readers=1), 48)
    assert other != first[:48]
    ordered = drawn(SampleStream(plan_of(shards, buffer=1), reader=0, readers=1), 48)
    assert [number % 8 for number in ordered] == list(range(8)) * 6
    assert [number // 8 for number in ordered[::8]] != list(range(6))


@settings(deadline=None, max_examples=30)
@given(
    before=st.integers(0, 60),
    buffer=st.integers(1, 20),
    reader=st.integers(0, 1),
    resampled=st.booleans(),
)
def test_a_stream_goes_on_from_every_place(
    shards: tuple[str, ...], before: int, buffer: int, reader: int, resampled: bool
) -> None:
    plan = plan_of(shards, buffer=buffer, resampled=resampled)
    whole = SampleStream(plan, reader=reader, readers=2)
    drawn(whole, before)
    place = StreamPlace.of(whole.place().tensors())
    assert place == whole.place()
    again = SampleStream(plan, reader=reader, readers=2, place=place)
    assert again.place() == place
    assert drawn(whole, 30) == drawn(again, 30)
    assert whole.place() == again.place()


@pytest.mark.parametrize("old", [1, 2, 3])
@pytest.mark.parametrize("new", [1, 2, 3])
def test_other_readers_go_on_behind_what_was_begun(shards: tuple[str, ...], old: int, new: int) -> None:
    plan = plan_of(shards)
    streams = [SampleStream(plan, reader=reader, readers=old) for reader in range(old)]
    seen = {number for stream in streams for number in drawn(stream, 3)}
    places = moved_places([stream.place() for stream in streams], readers=new)
    assert places[0].good == 3 * old
    begun = {number // 8 for number in seen}
    start = places[0].start
    assert start >= len(begun)
    rest = 6 - start  # turns of this epoch
    more = [SampleStream(plan, reader=reader, readers=new, place=place) for reader, place in enumerate(places)]
    turns = [len(range(reader, rest, new)) for reader in range(new)]
    found = [number for stream, own in zip(more, turns, strict=True) for number in drawn(stream, 8 * own)]
    assert len(set(found)) == len(found) == 8 * rest
    assert not seen & {*found}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_of_the_served_pixels_and_of_equal_ids(shards: tuple[str, ...], workers: int) -> None:
    plain = SampleRows(
        spec=SPEC,
        image_augment=ImageAugment(size_px=20, scale=(1.0, 1.0), flip=0.0),
        caption_augment=CaptionAugment(word_drop=0.0),
        tokenize=ROWS.tokenize,
    )
    batches = StreamBatches(plan_of(shards), plain, batch_size=6, workers=workers, prefetch=1)
    rows: list[int] = []
    for batch in taken(batches, 8):
        assert {name: tensor.dtype for name, tensor in batch.items()} == {
            **{"image": torch.uint8, "text": torch.int64},
            **{"row": torch.int64, "caption_id": torch.int64},
        }
        assert batch["image"].shape == (6, 20, 20, 3)
        texts: list[str] = []
        for at in range(6):
            # JPEGs of one grey: which one it is can be seen.
            number = round(int(batch["image"][at, 0, 0, 0]) / 5)
            expected = prepare(decode(picture(number)), SPEC)
            assert np.array_equal(batch["image"][at].numpy(), expected)
            texts.append(f"number {number}")
        assert np.array_equal(batch["text"].numpy(), plain.tokenize(texts))
        rows += batch["row"].tolist()
    assert len(set(rows)) == 48
    batches.close()


@pytest.mark.parametrize(("workers", "steps"), [(0, 5), (2, 4), (2, 5)])
def test_batches_are_the_same_again_and_go_on_from_any(shards: tuple[str, ...], workers: int, steps: int) -> None:
    def fresh() -> StreamBatches:
        return StreamBatches(plan_of(shards), ROWS, batch_size=4, workers=workers, prefetch=2)

    whole, part, rest = fresh(), fresh(), fresh()
    expected = taken(whole, steps + 6)
    assert equal(taken(part, steps), expected[:steps])
    rest.resume(part.position())
    assert equal(taken(rest, 6), expected[steps:])
    assert equal([rest.position()], [whole.position()])
    for batches in (whole, part, rest):
        batches.close()


def test_processes_and_workers_share_an_epoch(shards: tuple[str, ...]) -> None:
    rows: list[int] = []
    for process in (0, 1):
        batches = StreamBatches(
            plan_of(shards), ROWS, batch_size=8, workers=2, prefetch=1, process=process, processes=2
        )
        rows += [row for batch in taken(batches, 12) for row in batch["row"].tolist()]
        batches.close()
    # Four readers take three shards each: two epochs.
    assert sorted(Counter(rows).values()) == [2] * 48


def test_too_few_shards_and_uneven_batches_are_refused(shards: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="6 shards for 8 readers"):
        StreamBatches(plan_of(shards), ROWS, batch_size=8, workers=4, prefetch=1, processes=2)
    with pytest.raises(ValueError, match="a batch of 7 does not divide among 2 processes"):
        StreamBatches(plan_of(shards), ROWS, batch_size=7, workers=0, prefetch=1, processes=2)
    batches = StreamBatches(plan_of(shards), ROWS, batch_size=4, workers=0, prefetch=1)
    batches(0)
    with pytest.raises(ValueError, match="taken already"):
        batches.resume(batches.position())


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_counted_by_what_is_wrong(tmp_path: Path, workers: int) -> None:
    bad = shard(
        range(12),
        jpg_1=picture(1)[:300],
        jpg_2=None,
        txt_3=None,
        txt_4=b"\xff",
        txt_5=b"  ",
        jpg_6=b"x" * (2**25 + 1),
        txt_7=b"word " * 2000,
    )
    (tmp_path / "0.tar").write_bytes(bad)
    whole = shard(range(20, 30))
    *_, last = tar_members(io.BytesIO(whole), max_bytes=10**6)
    (tmp_path / "1.tar").write_bytes(whole[: last.start + 3])
    shards = (str(tmp_path / "0.tar"), str(tmp_path / "1.tar"))
    plan = plan_of(shards, samples=22, bad_share=0.5, buffer=30)
    batches = StreamBatches(plan, ROWS, batch_size=2, workers=workers, prefetch=1)
    rows = Counter(row for batch in taken(batches, 7) for row in batch["row"].tolist())
    # 0, 8, 9, 10, 11 of the one shard, 20 to 28 of the other.
    assert sorted(rows.values()) == [1] * 14
    assert batches.bad_samples() == {
        "no picture": 1,
        "no caption": 2,
        "unreadable text": 2,
        "too large": 1,
        "broken picture": 1,
        "broken shard": 2,
    }
    batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_end_the_run(tmp_path: Path, workers: int) -> None:
    broken = {f"jpg_{number}": b"junk" for number in range(0, 40, 2)}
    (tmp_path / "0.tar").write_bytes(shard(range(40), **broken))
    plan = plan_of((str(tmp_path / "0.tar"),), samples=40, bad_share=0.1)
    batches = StreamBatches(plan, ROWS, batch_size=10, workers=workers, prefetch=1)
    with pytest.raises(ValueError, match=r"101 of \d+ samples are bad \(101 broken picture\), .* 0\.1; .*0\.tar/00"):
        taken(batches, 100)
    batches.close()
    strict = plan_of((str(tmp_path / "0.tar"),), samples=40, bad_share=0.0)
    with pytest.raises(ValueError, match="1 of "):
        taken(StreamBatches(strict, ROWS, batch_size=10, workers=0, prefetch=1), 2)


def test_shards_without_any_sample_end_the_run(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(tar_bytes({}))
    plan = plan_of(tuple(str(tmp_path / f"{number}.tar") for number in range(3)), samples=3)
    with pytest.raises(ValueError, match="3 shards in turn held no sample"):
        StreamBatches(plan, ROWS, batch_size=2, workers=0, prefetch=1)(0)


def test_a_lost_shard_counts_as_an_average_one(shards: tuple[str, ...], tmp_path: Path) -> None:
    plan = plan_of((*shards[:5], str(tmp_path / "gone.tar")), bad_share=0.5)
    batches = StreamBatches(plan, ROWS, batch_size=8, workers=0, prefetch=1)
    rows = [row for batch in taken(batches, 5) for row in batch["row"].tolist()]
    assert len(set(rows)) == 40
    assert batches.bad_samples()["broken shard"] == 8


def test_a_shard_that_changed_cannot_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(shard(range(10)))
    plan = plan_of((str(path),), samples=10)
    batches = StreamBatches(plan, ROWS, batch_size=2, workers=0, prefetch=1)
    batches(0)
    path.write_bytes(shard(range(1)))
    again = StreamBatches(plan, ROWS, batch_size=2, workers=0, prefetch=1)
    again.resume(batches.position())
    with pytest.raises(ValueError, match=r"cannot go on: .*0\.tar has no sample at byte"):
        again(1)


def streamed(urls: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Shards behind URLs give what files give, from the start and in the middle."""
    whole = taken(StreamBatches(plan_of(expected), ROWS, batch_size=4, workers=0, prefetch=1), 9)
    remote = StreamBatches(plan_of(urls), ROWS, batch_size=4, workers=0, prefetch=1)
    assert equal(taken(remote, 5), whole[:5])
    again = StreamBatches(plan_of(urls), ROWS, batch_size=4, workers=0, prefetch=1)
    again.resume(remote.position())
    assert equal(taken(again, 4), whole[5:])


def test_shards_in_memory(shards: tuple[str, ...]) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards:
        memory.pipe(f"/stream/{Path(path).name}", Path(path).read_bytes())
    streamed(tuple(f"memory://stream/{Path(path).name}" for path in shards), shards)


class Files(http.server.SimpleHTTPRequestHandler):
    """Whole files, as Python's server gives them; with `ranges`, parts of them too. Some answers break off."""

    ranges = False
    faults: Counter[str] = Counter()

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range", "") if self.ranges else ""
        if not asked.startswith("bytes="):
            return self._answer(200, data, {})
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data) - 1) + 1]
        return self._answer(206, part, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"})

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        if self.faults[self.path] > 0:
            self.faults[self.path] -= 1
            self.send_error(503)
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data)), "Accept-Ranges": self._unit()}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _unit(self) -> str:
        return "bytes" if self.ranges else "none"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(params=[False, True], ids=["whole files", "ranges"])
def server(request: pytest.FixtureRequest, shards: tuple[str, ...]) -> Iterator[str]:
    folder = str(Path(shards[0]).parent)

    class Here(Files):
        ranges = request.param

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=folder)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_shards_over_http(server: str, shards: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    urls = tuple(f"{server}/{Path(path).name}" for path in shards)
    streamed(urls, shards)
    monkeypatch.setattr("training.data.sample_stream._PAUSE_S", 0.01)
    # A server that is busy twice is asked again; one that always is costs the shard.
    Files.faults.update({f"/{Path(path).name}": 2 for path in shards})
    streamed(urls, shards)
    Files.faults.update({"/0.tar": 1000})
    batches = StreamBatches(plan_of(urls, bad_share=0.5), ROWS, batch_size=8, workers=0, prefetch=1)
    rows = [row for batch in taken(batches, 5) for row in batch["row"].tolist()]
    assert len(set(rows)) == 40
    assert batches.bad_samples()["broken shard"] == 8
    Files.faults.clear()


def test_workers_read_over_http(server: str, shards: tuple[str, ...]) -> None:
    urls = tuple(f"{server}/{Path(path).name}" for path in shards)
    expected, found = (
        StreamBatches(plan_of(each), ROWS, batch_size=4, workers=1, prefetch=1) for each in (shards, urls)
    )
    assert equal(taken(found, 3), taken(expected, 3))
    expected.close()
    found.close()


def test_a_picture_of_the_test_can_be_told(tmp_path: Path) -> None:
    for number in (0, 7, 47):
        with Image.open(io.BytesIO(picture(number))) as image:
            assert round(np.asarray(image)[0, 0, 0] / 5) == number
