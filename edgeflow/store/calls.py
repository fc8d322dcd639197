"""What every piece of a namespace's client stands on: the calls into the Lua library, and the routing table they are made with.

What it is: one operation's payload, its repetition when the routes were stale, the log not open, or the store away.
What it is not: any operation in particular; those are in the pieces above (bodies, values, the namespace itself).
What must stay true: what is repeated says so, and only what may be repeated is.
"""

import time
from collections.abc import Callable
from typing import Any

import msgpack
import redis

from edgeflow.core.routing import RouteTable
from edgeflow.errors import StaleRoutes
from edgeflow.settings import Limits
from edgeflow.store.blobs import BlobFiles, Room
from edgeflow.store.connection import Command, Connection, error_of

Rows = list
"""`list` by another name: inside the class, `list` is the method."""


def now_ms() -> int:
    """Wall clock, ms since the epoch. It dates things; it never decides what is safe."""
    return time.time_ns() // 1_000_000


class Calls:
    """The lowest piece of a namespace's handle."""

    def __init__(
        self, name: str, pop: str, connection: Connection, files: BlobFiles, limits: Limits, open_log: Callable[[], object], by: str, room: Room
    ) -> None:  # fmt: skip
        self.name = name
        self.pop = pop
        self.prefix = f"ef:{{{name}}}:"
        self._connection = connection
        self._files = files
        self._limits = limits
        self._open_log = open_log
        self._by = by
        self._room = room
        self._table = RouteTable()
        self._fetched_routes = False
        self._home_term: int | None = None

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _command(self, operation: str, payload: dict[str, Any]) -> Command:
        """One FCALL on this namespace."""
        payload.setdefault("ns", self.name)
        payload.setdefault("pop", self.pop)
        micros = time.time_ns() // 1000
        payload.setdefault("now", micros // 1000)
        payload.setdefault("us", micros)
        payload.setdefault("skew", self._limits.skew_ms)
        if self._home_term is not None:
            payload.setdefault("home", self._home_term)
        # cmsgpack in Redis knows no bin type: text and bytes are the same raw type to it.
        return ("FCALL", operation, 1, self.prefix, msgpack.packb(payload, use_bin_type=False))

    def _call(self, operation: str, **payload: Any) -> Any:
        return self._routed(lambda _again: [self._command(operation, {**payload, "rv": self.routes().version})])[-1]

    def _routed(self, prepare: Callable[[bool], Rows[Command]], *, again: bool = False) -> Rows[Any]:
        """Run what `prepare(again)` returns; prepare again when the routes were stale or the log is not open yet."""

        def after_outage() -> Rows[Command]:
            nonlocal again
            again = True
            return prepare(True)

        for _ in range(20):
            replies = self._connection.run(prepare(again), on_outage=after_outage)
            trouble = next((reply for reply in replies if isinstance(reply, redis.ResponseError)), None)
            if trouble is None:
                return replies
            if "STALEROUTES" in str(trouble):
                self._fetched_routes = False
            elif "NOEPOCH" in str(trouble):
                self._open_log()
            else:
                raise error_of(trouble)
            again = True
        raise StaleRoutes()

    def epoch(self) -> int:
        """The epoch of this PoP's own log; 0 before it was opened."""
        return int(self._connection.one("GET", self.prefix + "epoch") or 0)

    # -- routes --------------------------------------------------------------------------------------------------------

    def routes(self) -> RouteTable:
        """The routing table of this PoP, as last seen. A call made with an older one is refused by the store and repeated."""
        if not self._fetched_routes:
            version, table = self._connection.one("MGET", self.prefix + "routes:version", self.prefix + "routes")
            self._table = RouteTable.from_json(version.decode(), table.decode()) if version else RouteTable()
            self._fetched_routes = True
        return self._table

    def refresh_routes(self) -> RouteTable:
        """Look whether the table changed, and return the current one."""
        version = self._connection.one("GET", self.prefix + "routes:version")
        if (version or b"").decode() != self._table.version:
            self._fetched_routes = False
        return self.routes()

    def set_routes(self, table: RouteTable) -> bool:
        """Install the table of this PoP; True when it changed."""
        inboxes = [route.inbox for route in table.functions]
        shapes = {route.function: f"{route.revision}:{route.shape}" for route in table.functions}
        call = {"version": table.version, "table": table.to_json(), "inboxes_here": inboxes, "shapes": shapes}
        call["shared_here"] = [route.function for route in table.functions if route.is_shared]
        changed = self._connection.one(*self._command("ef_routes", call))
        self._fetched_routes = False
        return bool(changed)
