"""Loopback ports (embedded mode): a free one for the program, and whether it is really our program that listens there.

What must stay true: a request never goes to another instance's program that has taken the port in between: so the listener's socket is looked for
among the descriptors of this instance's session.
"""

import os
import socket
from pathlib import Path

HOST = "127.0.0.1"
_LISTEN = "0A"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody accepts connections on a loopback port."""
    try:
        with socket.create_connection((HOST, port), timeout=2.0):
            return True
    except OSError:
        return False


def is_ours(port: int) -> bool:
    """Whether a process of this session listens on `port`."""
    sockets = _listeners(port)
    session = os.getsid(0)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getsid(int(folder.name)) != session:
                continue
            for descriptor in (folder / "fd").iterdir():
                if os.readlink(descriptor) in sockets:
                    return True
        except OSError:
            continue  # it has ended
    return False


def _listeners(port: int) -> set[str]:
    """What descriptors of the sockets that listen on `port` look like."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
