"""A PoP's store on its own Redis, and a clock that stands where the test puts it.

What must stay true: closing ends the Redis; nothing of a test is left behind.
"""

from pathlib import Path

from link_pops import RedisServer, make_settings

from edgeflow.store import Store
from edgeflow.store.replica import ReplicatedNamespace

NAME = "app"
START_MS = 1_800_000_000_000


class Clock:
    """Stands in for the module `time` in the store: what the scripts are told is what the test says."""

    def __init__(self) -> None:
        self.ms = START_MS

    def time_ns(self) -> int:
        return self.ms * 1_000_000

    def monotonic(self) -> float:
        return self.ms / 1000


class StorePop:
    """The store of PoP `pop`, "a", "b" or "c", with the namespace NAME."""

    def __init__(self, folder: Path, pop: str, **limits: int) -> None:
        self.settings = make_settings(folder, pop, {"a": 1, "b": 2, "c": 3}, **limits)
        self.redis = RedisServer(folder / pop / "redis", self.settings.store.redis_socket).start()
        self.store = Store.open(self.settings)
        self.store.create_namespace(NAME)
        self.ns: ReplicatedNamespace = self.store.namespace(NAME)

    def close(self) -> None:
        self.store.close()
        self.redis.kill()
