"""Configuration of one PoP's Redis.

What must stay true: it listens on a unix socket of the agent only; a write is on disk before it is acknowledged; nothing is ever evicted (a full
store refuses instead).
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StoreParams:
    """Paths are as the Redis process sees them."""

    socket: Path
    """Where it listens."""
    data_dir: Path
    """Where its append-only file lives."""
    memory_bytes: int
    """Above it writes are refused."""


def redis_conf(params: StoreParams) -> str:
    """The text of redis.conf."""
    return "\n".join(
        [
            "# Written by edgeflow at each start; changes are lost.",
            "port 0",
            f'unixsocket "{params.socket}"',
            "unixsocketperm 700",
            f'dir "{params.data_dir}"',
            "databases 1",
            "daemonize no",
            'logfile ""',
            "loglevel notice",
            "",
            "appendonly yes",
            "appendfsync always",
            "no-appendfsync-on-rewrite no",
            "aof-load-truncated yes",
            'save ""',
            "",
            f"maxmemory {params.memory_bytes}",
            "maxmemory-policy noeviction",
            # A value is a hash of ten short fields and its data: kept together, one of 100 bytes takes a third of the memory.
            "hash-max-listpack-value 1024",
            "client-output-buffer-limit pubsub 64mb 32mb 60",
            "",
        ]
    )
