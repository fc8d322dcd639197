"""A worker on a Redis Stream, as one writes it with XREADGROUP and XACK: `python stream_worker.py SOCKET NAME [CRASH_AT]`.

With CRASH_AT it is killed behind the effect of that many items, before it acknowledges the last of them.
"""

import os
import signal
import sys

import redis

GROUP = "workers"
IDLE_MS = 200


def main(socket: str, name: str, crash_at: int) -> None:
    """Serve until nothing comes for a second, and nobody's work has lain idle for that long."""
    door = redis.Redis(unix_socket_path=socket)
    handled, is_quiet = 0, False
    while True:
        _, items, _ = door.xautoclaim("in", GROUP, name, IDLE_MS, count=10)
        if not items:
            fresh = door.xreadgroup(GROUP, name, {"in": ">"}, count=10, block=1000)
            items = fresh[0][1] if fresh else []
        if not items and is_quiet:
            return
        is_quiet = not items
        for id, fields in items:
            door.xadd("out", fields)
            handled += 1
            if handled == crash_at:
                os.kill(os.getpid(), signal.SIGKILL)
            door.xack("in", GROUP, id)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
