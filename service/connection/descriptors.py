"""The number of connections that the limit of open files leaves room for."""

from __future__ import annotations

import logging

from service.connection.connections import SPARE_CONNECTIONS

log = logging.getLogger("clipworks.server")
# Models, collections, snapshots, child processes and the standard streams need descriptors too.
_RESERVED = 256 + SPARE_CONNECTIONS


def files_for(connections: int) -> int:
    """Files that a server with so many connections may have open at one time."""
    return connections + _RESERVED


def room_among(files: int, wanted: int) -> int:
    """Connections, at most `wanted`, of a process that may open so many files."""
    return min(wanted, max(files - _RESERVED, files // 2))


def room_for_connections(wanted: int) -> int:
    """At most `wanted` connections; fewer, with a warning, if the limit of descriptors cannot be raised far enough."""
    try:
        import resource
    except ImportError:  # no such limit on this system
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files_for(wanted)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):
        raised = soft
    room = room_among(raised, wanted)
    if room < wanted:
        log.warning(
            "only %d of %d connections (CLIPWORKS_MAX_CONNECTIONS): this process may open %d files; raise `ulimit -n`",
            room,
            wanted,
            raised,
        )
    return room
