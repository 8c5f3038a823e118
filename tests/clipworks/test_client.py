"""Both clients against a real server: order, inputs, errors of single items, splitting, what an import costs."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from clipworks import AsyncClient, Client, RetryPolicy, errors
from clipworks.schemas import LabelPrompts
from service.app import create_app
from service.settings import read_settings

TINY_STORE = Path(__file__).parents[1] / "fixtures" / "tiny_store"
GOLDENS = TINY_STORE / "tiny" / "1" / "goldens"
PHOTO = GOLDENS / "rgb_jpeg_331x227.bin"
ROTATED = GOLDENS / "exif_rotated_jpeg.bin"
BROKEN = GOLDENS / "truncated_jpeg.bin"
PICTURES = [GOLDENS / f"{name}.bin" for name in ("rgb_jpeg_331x227", "rgba_png_73x151", "grey_png", "webp_lossy")]
Call = Callable[..., Any]


def in_process(use: Callable[[AsyncClient], Any], *, client: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Run `use` with a client of an application with these settings, in this process."""

    async def run() -> Any:
        ready = asyncio.get_running_loop().create_future()
        overrides = {"store": TINY_STORE, "model": "tiny", "builtin": False, "probe": False, "access_log": False}
        app = create_app(
            read_settings(overrides | settings),
            on_ready=lambda: ready.set_result(None),
            on_fatal=lambda reason: ready.set_exception(AssertionError(reason)),
        )
        async with app.router.lifespan_context(app):
            await ready
            transport = httpx2.ASGITransport(app=app)
            async with AsyncClient("http://in-process", transport=transport, **(client or {})) as opened:
                return await use(opened)

    return asyncio.run(run())


def test_many_inputs_come_back_in_their_order(server_url: str, call: Call) -> None:
    texts = [f"picture number {number}" for number in range(23)]
    images = PICTURES * 5
    together = call(server_url, "embed", texts=texts, images=images, client={"batch_size": 3, "concurrency": 4})
    assert together.shape == (43, 32)
    assert together.dtype == np.float32
    for index in (0, 7, 22):
        assert_allclose(together[index], call(server_url, "embed", texts=[texts[index]])[0], atol=1e-6)
    for index, image in enumerate(PICTURES):
        assert_allclose(together[23 + index], call(server_url, "embed", images=[image])[0], atol=1e-6)
    assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("file", [PHOTO, ROTATED], ids=["plain", "EXIF orientation"])
def test_a_path_its_bytes_and_its_picture_give_one_vector(server_url: str, call: Call, file: Path) -> None:
    with Image.open(file) as picture:
        forms = [file, str(file), file.read_bytes(), memoryview(file.read_bytes()), picture]
        vectors = call(server_url, "embed", images=forms)
    for vector in vectors[1:]:
        assert_array_equal(vector, vectors[0])


def test_all_ways_to_the_model_give_the_same_vectors(server_url: str) -> None:
    texts, images = ["a red shirt", "zwei Hunde"], PICTURES

    async def embed(client: AsyncClient) -> Any:
        return await client.embed(texts=texts, images=images)

    with Client(server_url) as client:
        over_http = client.embed(texts=texts, images=images)
        assert_array_equal(client.embed(texts=texts, images=images), over_http)
    assert_array_equal(in_process(embed), over_http)


def test_a_bad_input_fails_alone_when_asked(server_url: str, call: Call) -> None:
    images = [PHOTO, "no-such-file.jpg", BROKEN, "https://example.org/a.jpg", PHOTO, object()]
    options = {"client": {"batch_size": 4}, "on_error": "item"}
    result = call(server_url, "embed", texts=["a", "\ud800"], images=images, **options)
    assert {index: type(error) for index, error in result.errors.items()} == {
        1: errors.UnreadableInput,
        3: errors.UnreadableInput,
        4: errors.InvalidInput,
        5: errors.Forbidden,
        7: errors.UnreadableInput,
    }
    assert result.errors[4].code == "invalid_image"
    assert all(error.index == index for index, error in result.errors.items())
    assert np.isnan(result.vectors[[1, 3, 4, 5, 7]]).all()
    assert_array_equal(result.vectors[2], result.vectors[6])
    assert_allclose(result.vectors[2], call(server_url, "embed", images=[PHOTO])[0], atol=1e-6)
    assert result.identity.model == "tiny@1"
    assert result.identity.dim == 32


def test_a_bad_input_is_named_by_its_place_in_the_call(server_url: str, call: Call) -> None:
    images = [PHOTO] * 9 + [BROKEN, PHOTO]
    with pytest.raises(errors.InvalidInput) as caught:
        call(server_url, "embed", texts=["a", "b"], images=images, client={"batch_size": 4})
    assert caught.value.index == 11
    assert caught.value.status == 422
    assert caught.value.request_id
    with pytest.raises(errors.UnreadableInput) as unread:
        call(server_url, "embed", images=[PHOTO, "no-such-file.jpg"])
    assert unread.value.index == 1


def test_all_inputs_unreadable_leave_no_vector(server_url: str, call: Call) -> None:
    result = call(server_url, "embed", images=["nope.jpg", "neither.jpg"], on_error="item")
    assert result.vectors.shape == (2, 0)
    assert result.identity is None
    assert list(result.errors) == [0, 1]


def test_wrong_calls_are_refused_at_once(server_url: str, call: Call) -> None:
    with pytest.raises(ValueError, match="at least one input"):
        call(server_url, "embed")
    with pytest.raises(TypeError, match="texts=\\[text\\]"):
        call(server_url, "embed", texts="a cat")
    with pytest.raises(TypeError, match="images=\\[image\\]"):
        call(server_url, "classify", "cat.jpg", ["cat"])
    with pytest.raises(TypeError, match="labels"):
        call(server_url, "classify", [PHOTO], "cat,dog")
    with pytest.raises(ValueError, match="http"):
        call("ftp://somewhere", "health")


def test_classify(server_url: str, call: Call) -> None:
    labels = ["cat", "dog", LabelPrompts(name="car", prompts=["a fast car", "a small car"])]
    found = call(
        server_url, "classify", [PHOTO, ROTATED, PHOTO], labels, activation="softmax", client={"batch_size": 2}
    )
    assert [len(each) for each in found] == [3, 3, 3]
    for predictions in found:
        assert {each.label for each in predictions} == {"cat", "dog", "car"}
        assert sum(each.score for each in predictions) == pytest.approx(1, abs=1e-5)
        assert [each.score for each in predictions] == sorted((each.score for each in predictions), reverse=True)
    assert found[0] == found[2]
    mixed = call(server_url, "classify", [BROKEN, PHOTO], ["cat", "dog"], top_k=1, on_error="item")
    assert isinstance(mixed.errors[0], errors.InvalidInput)
    assert mixed.predictions[0] == []
    assert len(mixed.predictions[1]) == 1


def test_label_sets(server_url: str, call: Call) -> None:
    info = call(server_url, "put_label_set", "pets", ["cat", "dog"], templates=["a {} in a picture"])
    assert info.ready
    assert "pets" in [each.name for each in call(server_url, "label_sets")]
    assert call(server_url, "label_set", "pets").templates == ["a {} in a picture"]
    stored = call(server_url, "classify", [PHOTO], label_set="pets")
    inline = call(server_url, "classify", [PHOTO], ["cat", "dog"], templates=["a {} in a picture"])
    assert [(each.label, pytest.approx(each.score, abs=1e-5)) for each in stored[0]] == [
        (each.label, each.score) for each in inline[0]
    ]
    call(server_url, "delete_label_set", "pets")
    with pytest.raises(errors.NotFound):
        call(server_url, "label_set", "pets")


def test_models_and_health(server_url: str, call: Call) -> None:
    (model,) = call(server_url, "models")
    assert (model.name, model.version, model.dim, model.loaded) == ("tiny", 1, 32, True)
    assert call(server_url, "model", "tiny@1").templates
    assert call(server_url, "health").status == "ok"
    with pytest.raises(errors.NotFound) as caught:
        call(server_url, "model", "no-such-model")
    assert caught.value.code == "model_not_found"
    with pytest.raises(errors.Forbidden):
        call(server_url, "load_model", "tiny")


def test_a_server_with_small_limits_is_met_by_smaller_requests() -> None:
    photo = PHOTO.read_bytes()
    large = photo + bytes(3 * len(photo))  # what follows the end of a JPEG does not count as its picture

    async def use(client: AsyncClient) -> None:
        assert (await client.embed(texts=[str(number) for number in range(50)])).shape == (50, 32)
        assert (await client.embed(images=[photo] * 9)).shape == (9, 32)
        result = await client.embed(images=[photo, large, photo], on_error="item")
        assert isinstance(result.errors[1], errors.TooLarge)
        assert not np.isnan(result.vectors[[0, 2]]).any()
        with pytest.raises(errors.TooLarge) as caught:
            await client.embed(images=[photo, large, photo])
        assert (caught.value.index, caught.value.code) == (1, "body_too_large")
        with pytest.raises(errors.TooLarge, match="labels"):
            await client.classify([photo, photo], ["a", "b", "c", "d"], on_error="item")

    in_process(use, max_items=8, max_body_bytes=3 * len(photo), max_label_texts=3)


def test_keys() -> None:
    async def without(client: AsyncClient) -> None:
        with pytest.raises(errors.Unauthorized):
            await client.embed(texts=["a"])
        assert (await client.health()).status == "ok"

    async def with_key(client: AsyncClient) -> None:
        assert (await client.embed(texts=["a"])).shape == (1, 32)
        with pytest.raises(errors.Forbidden):
            await client.load_model("tiny")

    keys = {"api_keys": "a-secret-key", "admin_keys": "another-secret"}
    in_process(without, **keys)
    in_process(with_key, client={"api_key": "a-secret-key"}, **keys)


def test_a_server_that_is_not_ready_says_so() -> None:
    async def run() -> None:
        settings = read_settings({"store": TINY_STORE, "model": "tiny", "builtin": False, "access_log": False})
        app = create_app(settings)  # its life has not begun: nothing is loaded
        transport = httpx2.ASGITransport(app=app)
        async with AsyncClient("http://x", transport=transport, retry=RetryPolicy(attempts=1)) as client:
            assert (await client.health()).status == "starting"
            with pytest.raises(errors.NotReady):
                await client.embed(texts=["a"])

    asyncio.run(run())


def test_without_numpy_vectors_are_lists(server_url: str) -> None:
    code = (
        "import sys, json; sys.modules['numpy'] = None\n"
        "from clipworks import Client\n"
        "with Client(sys.argv[1]) as c:\n"
        "    result = c.embed(texts=['a', 'b'], images=['nope.jpg'], on_error='item')\n"
        "    print(json.dumps(result.vectors))"
    )
    done = subprocess.run([sys.executable, "-c", code, server_url], capture_output=True, text=True, check=True)
    lists = json.loads(done.stdout)
    with Client(server_url) as client:
        assert_array_equal(np.array(lists[:2], np.float32), client.embed(texts=["a", "b"]))
    assert np.isnan(lists[2]).all()
    assert len(lists[2]) == 32


def test_an_import_is_cheap() -> None:
    code = (
        "import sys\n"
        "def roots(): return {name.partition('.')[0] for name in sys.modules}\n"
        "import clipworks; bare = roots()\n"
        "from clipworks import AsyncClient, Client, ClientError; used = roots()\n"
        "print(sorted(bare & {'httpx2', 'pydantic', 'asyncio'}), end=' ')\n"
        "heavy = {'numpy', 'torch', 'PIL', 'rich', 'typer', 'fastapi', 'onnxruntime', 'model_store', 'service'}\n"
        "print(sorted(used & heavy), {'httpx2', 'pydantic'} <= used)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] [] True"
