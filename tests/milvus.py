"""Which Milvus the tests of that backend talk to: milvus-lite, or the server that CLIPWORKS_TEST_MILVUS names.

    CLIPWORKS_TEST_MILVUS=http://127.0.0.1:19530 python -m pytest tests/service/retrieval/test_backends.py

Everything on such a server is deleted, so it has to be one for tests; one process of tests at a time.
"""

from __future__ import annotations

import os
from pathlib import Path

SERVER = os.environ.get("CLIPWORKS_TEST_MILVUS")
DURABILITY = "remote" if SERVER else "process"


def empty_milvus(file: Path) -> str:
    """The address of one without collections. file: of milvus-lite, new, ends in .db."""
    if not SERVER:
        return str(file)
    from pymilvus import MilvusClient

    client = MilvusClient(SERVER)
    for name in client.list_collections():
        client.drop_collection(name)
    client.close()
    return SERVER
