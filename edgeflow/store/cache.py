"""Which bodies a PoP keeps, and the cached copies of those that are kept elsewhere.

What it is: the policies of a namespace as far as bodies are concerned, what was read of cached copies, and the search for bodies that a changed
policy keeps here.
What it is not: the policies themselves (edgeflow.core.policies), the budget (18_bodies.lua lets go what is too much), or the fetching
(edgeflow.cluster).
What must stay true: what is placed elsewhere holds no gate and is never pushed; whatever a policy keeps here is here, or missing and asked for.
"""

import threading
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.policies import EAGER, LAZY, NONE, Place, Policies, Rule, load_policies
from edgeflow.core.routing import NORMAL, RouteTable
from edgeflow.errors import BadPolicy
from edgeflow.store.bodies import Bodies
from edgeflow.store.calls import Rows, now_ms
from edgeflow.store.records import unpack_entry

PLACES_EVERY_S = 1.0
NOTES_EVERY_S = 1.0
FILL_KEYS = 5000
"""Keys that one step of the search looks at."""
_PAGE = 500
SYSTEM_POLICIES = Policies((Rule("pieces/", LAZY),))
"""Of the system namespace, at every PoP: pieces of images go where they are needed."""
_SYSTEM = f"ef:{{{SYSTEM_NAMESPACE}}}:"


class _Notes:
    """What was read since it was last written down. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}
        self._hits = self._misses = 0
        self._taken_s = time.monotonic()

    def add(self, digest: str, fetched: bool) -> bool:
        """One read; True when it is time to write it down."""
        with self._lock:
            self._used[digest] = now_ms()
            self._misses += fetched
            self._hits += not fetched
            return time.monotonic() - self._taken_s > NOTES_EVERY_S

    def take(self) -> tuple[dict[str, int], int, int]:
        """Last use by digest, hits and misses; nothing is left of them here."""
        with self._lock:
            taken = self._used, self._hits, self._misses
            self._used, self._hits, self._misses, self._taken_s = {}, 0, 0, time.monotonic()
            return taken


class CachedBodies(Bodies):
    """Bodies of which some are kept elsewhere."""

    _policies: Policies = NONE
    _policies_read_s = 0.0
    _ranked_s = 0.0
    _filled: Policies | None = None
    """The policies for which the search has been through all keys."""
    _fill_after = ""
    _filling: Policies | None = None

    # -- where bodies are kept -----------------------------------------------------------------------------------------

    def placing_policies(self) -> Policies:
        """The policies of this namespace, looked at once a second."""
        if self.name == SYSTEM_NAMESPACE:
            return SYSTEM_POLICIES
        now = time.monotonic()
        if now - self._policies_read_s > PLACES_EVERY_S:
            self._policies_read_s = now
            data, digest, deleted = self._connection.one(
                "HMGET", f"{_SYSTEM}value:policies/{self.name}", "data", "digest", "deleted"
            )
            if digest:
                data = self._connection.one("GET", f"{_SYSTEM}blob:{digest.decode()}")
            try:
                self._policies = load_policies(data) if data and deleted != b"1" else NONE
            except BadPolicy:
                pass  # as they were; whoever wrote them is told elsewhere
        return self._policies

    def places(self) -> list[list[Any]]:
        """What the store's scripts want to know: [prefix, 1 when bodies under it are kept here], longest prefix first."""
        return [
            [rule.prefix, int(_keeps(rule.place, self.pop))]
            for rule in self.placing_policies().rules
            if rule.place is not None
        ]

    def kept_elsewhere(self, raw: bytes, pop: str) -> set[str]:
        """Bodies of an entry that another PoP does not keep: they are not sent to it unless it asks."""
        policies = self.placing_policies()
        if all(rule.place in (None, EAGER) for rule in policies.rules):
            return set()
        entry = unpack_entry(raw)
        kept = {event[4] for event in entry[b"ev"]}
        elsewhere: set[bytes] = set()
        for value in entry[b"va"]:
            if value[2]:
                (kept if _keeps(policies.place(value[0].decode()), pop) else elsewhere).add(value[2])
        return {digest.decode() for digest in elsewhere - kept}

    def priorities(self, raw: bytes) -> dict[str, int] | None:
        """How urgent the bodies of an entry's events are on the links: 0 what goes first, and before the entry, then 1, then 2. None: no channel of the
        namespace has a priority. A body that no event refers to is a value's: as urgent as a channel without a priority."""
        table = self._ranked()
        best = table.best_rank
        if best is None:
            return None
        found: dict[str, int] = {}
        entry = unpack_entry(raw)
        for value in entry[b"va"]:
            if value[2]:
                found[value[2].decode()] = NORMAL - best
        for event in entry[b"ev"]:
            if event[4]:
                digest, rank = event[4].decode(), table.policy(event[0].decode()).rank - best
                found[digest] = min(rank, found.get(digest, rank))
        return found

    def wanted_rank(self) -> int:
        """How urgent a body is that a peer asks for by name."""
        best = self._ranked().best_rank
        return 0 if best is None else NORMAL - best

    def _ranked(self) -> RouteTable:
        """The routing table, looked at once a second: nothing that is read only would be refused for an older one."""
        now = time.monotonic()
        if now - self._ranked_s > PLACES_EVERY_S:
            self._ranked_s = now
            return self.refresh_routes()
        return self.routes()

    # -- what is read of cached copies ---------------------------------------------------------------------------------

    def note_read(self, digest: str, *, fetched: bool) -> None:
        """A cached copy was read; `fetched`: it had to come for that. Written down about once a second."""
        if self._notes.add(digest, fetched):
            self.write_notes()

    def write_notes(self) -> None:
        """Write down what was read."""
        used, hits, misses = self._notes.take()
        if used:
            flat = [part for item in used.items() for part in item]
            self._connection.one(*self._command("ef_cache", {"used": flat, "hits": hits, "misses": misses}))

    @cached_property
    def _notes(self) -> "_Notes":
        return _Notes()

    def cached_bytes(self) -> int:
        """Bytes of the cached copies that are here."""
        return int(self._connection.one("GET", self.prefix + "cached:bytes") or 0)

    # -- what a changed policy keeps here ------------------------------------------------------------------------------

    def fill_bodies(self) -> int:
        """One step through all keys after the policies changed: bodies that are kept here and are not are missing from now on; how many were found."""
        policies = self.placing_policies()
        if policies == self._filled or (self._filled is None and policies == NONE):
            return 0
        if policies != self._filling:
            self._filling, self._fill_after = policies, ""
        found = 0
        for _ in range(0, FILL_KEYS, _PAGE):
            low = f"({self._fill_after}" if self._fill_after else "-"
            keys = self._connection.one("ZRANGEBYLEX", self.prefix + "keys", low, "+", "LIMIT", 0, _PAGE)
            found += self._expect([key.decode() for key in keys if _keeps(policies.place(key.decode()), self.pop)])
            if len(keys) < _PAGE:
                self._filled = policies
                break
            self._fill_after = keys[-1].decode()
        return found

    def _expect(self, keys: list[str]) -> int:
        digests = (
            self._connection.run([("HGET", f"{self.prefix}value:{key}", "digest") for key in keys]) if keys else []
        )
        wanted = [digest for digest in digests if digest]
        here = self._connection.run([("HEXISTS", self.prefix + "blobs", digest) for digest in wanted]) if wanted else []
        absent = sorted({digest.decode() for digest, is_here in zip(wanted, here, strict=True) if not is_here})
        return len(self.keep_blobs(absent))

    def keep_blobs(self, digests: Sequence[str]) -> Rows[str]:
        """Bodies that are kept here from now on, whatever the policies say; those that are not here are missing and asked for, and returned."""
        if not digests:
            return []
        absent = self._connection.one(*self._command("ef_keep_bodies", {"digests": list(digests)}))
        return [digest.decode() for digest in absent]


def _keeps(place: Place | None, pop: str) -> bool:
    """Whether a PoP that is not their origin keeps bodies of that place."""
    return pop in place if isinstance(place, frozenset) else place != LAZY
