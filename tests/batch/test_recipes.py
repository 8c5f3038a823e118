"""The recipes of docs/batch.md that need a framework, run as they stand there but for the model, which is the tiny one.

`make test-batch` makes an environment that has all of them.
"""

import importlib.util
import socket

import pyarrow.parquet as pq
import pytest

from tests.batch.recipes import RECIPES, Job, run_recipe

needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed: make test-batch")
needs_dask = pytest.mark.skipif(not importlib.util.find_spec("distributed"), reason="no distributed: make test-batch")
# A cluster on this machine that thinks it has four CPUs: two actors, and room for the tasks that read and write.
# On a busy machine Ray's own processes take longer than the 30 s that it waits for them: it is tried again.
CLUSTER = """import ray
for left in (2, 1, 0):
    try:
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
        break
    except Exception:
        if not left:
            raise
"""
SERVED = """
from clipworks import Client

with Client("http://localhost:%d") as client:
    vectors = client.embed(images=["one.png"] * 12, model="tiny")
assert len({each.tobytes() for each in vectors}) == 1
vectors[0].tofile("served.bin")
serve.shutdown()
"""


@needs_dask
@pytest.mark.slow
def test_dask(job: Job) -> None:
    run_recipe(job.folder, RECIPES["dask"])
    job.check(pq.read_table(job.folder / "vectors"))


@needs_ray
@pytest.mark.slow
def test_ray_data(job: Job) -> None:
    run_recipe(job.folder, CLUSTER + RECIPES["ray"])
    job.check(pq.read_table(job.folder / "vectors"))


@needs_ray
@pytest.mark.slow
def test_ray_data_against_a_server(job: Job) -> None:
    given = f'"url": "{job.url}", "model": "tiny"'
    recipe = RECIPES["ray"].replace("Embedder", "RemoteEmbedder").replace('"model": "everyday-small"', given)
    run_recipe(job.folder, CLUSTER + recipe)
    job.check(pq.read_table(job.folder / "vectors"))


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("job", [200], indirect=True)
def test_a_killed_worker_loses_and_doubles_nothing(job: Job) -> None:
    """The recipe with a worker that ends by SIGKILL, once, when it has done three batches of its share."""
    died = job.folder / "died"
    worker = f"""
import os, signal
class Killed(Embedder):
    done = 0
    def __call__(self, batch):
        rows = super().__call__(batch)
        self.done += 1
        try:
            if self.done == 3:
                os.close(os.open({str(died)!r}, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass  # another one, or the one before
        return rows
pictures ="""
    recipe = RECIPES["ray"].replace("pictures =", worker, 1).replace("    Embedder,", "    Killed,")
    recipe = recipe.replace("batch_size=64", "batch_size=8")
    run_recipe(job.folder, CLUSTER + recipe)
    assert died.exists()
    job.check(pq.read_table(job.folder / "vectors"))


@needs_ray
@pytest.mark.slow
def test_ray_serve(job: Job) -> None:
    path, vector = next(iter(job.wanted.items()))
    table = pq.read_table(job.folder / "pictures.parquet").to_pylist()
    (job.folder / "one.png").write_bytes(next(row["bytes"] for row in table if row["path"] == path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    at_port = f'serve.start(http_options={{"port": {port}}})\n'
    run_recipe(job.folder, CLUSTER + RECIPES["serve"].replace("serve.run(", f"{at_port}serve.run(") + SERVED % port)
    assert (job.folder / "served.bin").read_bytes() == vector.tobytes()
