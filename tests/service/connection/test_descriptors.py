"""The cap on connections stays below the limit of open files, in a process of its own."""

import resource
import subprocess
import sys

CODE = """
import logging, resource, sys
from service.connection.descriptors import room_for_connections
logging.basicConfig(format="%(message)s", stream=sys.stdout)
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(room_for_connections(1024), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def run(soft: int, hard: int) -> list[str]:
    code = CODE.format(soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


def test_the_soft_limit_is_raised_as_far_as_needed() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 2048:
        return
    [line] = run(256, 2048)
    room, soft = map(int, line.split())
    assert room == 1024
    assert 1024 + 256 <= soft < 2048


def test_a_low_hard_limit_leaves_fewer_connections_and_says_so() -> None:
    for limit in (1024, 300):
        warning, line = run(limit, limit)
        room = int(line.split()[0])
        assert limit // 2 <= room <= limit - 150
        assert "CLIPWORKS_MAX_CONNECTIONS" in warning
        assert str(limit) in warning
