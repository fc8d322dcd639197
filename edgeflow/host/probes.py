"""Asks a process whether it does its work: Redis by PING, the broker by a connection, data by its listener, control by /readyz."""

import asyncio
import contextlib
import os
from pathlib import Path

TIMEOUT_S = 3.0
LISTENING = "0A"


async def redis_answers(socket: Path) -> bool:
    """Whether the Redis on this unix socket is up and has loaded its data."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            with contextlib.closing(writer):
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False


async def socket_answers(socket: Path) -> bool:
    """Whether somebody accepts connections on this unix socket."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_unix_connection(str(socket))
            writer.close()
            return True
    except (OSError, TimeoutError):
        return False


async def listens(port: int) -> bool:
    """Whether some process of this machine listens on this TCP port. Looks only: a connection would show up in the listener's log."""
    return port in _listening_ports()


def _listening_ports() -> set[int]:
    ports: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING:
                    ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


async def http_status(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and first part of the body of a GET. (0, reason) when there is no answer."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.closing(writer):
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read(8192)
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body.decode(errors="replace")
    except (OSError, TimeoutError) as error:
        return 0, os.strerror(error.errno) if error.errno else type(error).__name__
    except (IndexError, ValueError):
        return 0, "the answer is not HTTP"
