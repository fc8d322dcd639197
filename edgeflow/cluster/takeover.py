"""Who does the work of functions at several PoPs as others come and go: tells the store which PoPs are out, and has the work distributed anew.

What it is: the states of the members (membership.py) turned into "out" per namespace, the pieces of the distribution, and the pause after a return.
What it is not: the ranking (edgeflow.core.ownership), or what one piece does (`store/lua/66_owners.lua`).
What must stay true: a PoP is out only while it is down, has left, drains or is not complete yet, as this PoP sees it; nothing that was pending when this
process began, or stood still, is given out before the PoPs that are heard have told what they did meanwhile. A wrong picture costs work that is done twice,
never work that nobody does, and never a second visible result.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from edgeflow.core.membership import DOWN, DRAINING, JOINING, LEFT, SUSPECT
from edgeflow.core.routing import RouteTable

log = structlog.get_logger(__name__)

OUT = frozenset({DOWN, LEFT, DRAINING, JOINING})
PIECES = 20
"""Pieces of a distribution at one look: the loop has other things to do."""
RETURN_WAIT_S = 30.0
"""After a start, what was pending here waits at most so long for PoPs that are heard and do not get complete."""
PAUSE_S = 5.0
"""A longer time between two looks: this process stood still, and others may have taken over meanwhile."""


class OwnedPort(Protocol):
    """See edgeflow.store.owned."""

    is_held: bool

    def routes(self) -> RouteTable: ...
    def set_out(self, pops: Collection[str], *, again: bool = False) -> bool: ...
    def sweep(self) -> tuple[bool, list[str]]: ...


class StorePort(Protocol):
    """See edgeflow.store.client.Store."""

    @property
    def pop(self) -> str: ...
    def namespace(self, name: str) -> OwnedPort: ...


class PeersPort(Protocol):
    """See edgeflow.cluster.manager.Links."""

    def peers(self) -> list[str]: ...
    def state(self, pop: str) -> str: ...
    def complete_s(self, namespace: str, peer: str) -> float | None: ...


@dataclass(slots=True)
class _Known:
    out: frozenset[str] = frozenset()
    version: str = ""
    sweeping: bool = False


class Takeover:
    """One per PoP. `on_work(namespace, inboxes)` is called when inboxes got work."""

    def __init__(
        self, store: StorePort, peers: PeersPort, on_work: Callable[[str, list[str]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._store = store
        self._peers = peers
        self._on_work = on_work
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._since_s = self._looked_s = clock()
        self._started: frozenset[str] = frozenset()

    def start(self, namespaces: Iterable[str]) -> None:
        """These have been here before: what is pending in them waits until it is known what others did."""
        self._started = frozenset(namespaces)
        self._hold(self._clock())

    def look(self, namespaces: Iterable[str]) -> None:
        """Several times a second."""
        now_s = self._clock()
        if now_s - self._looked_s > PAUSE_S:
            log.warning("stood_still", seconds=round(now_s - self._looked_s, 1))
            self._started = frozenset(self._known)
            self._hold(now_s)
        self._looked_s = now_s
        for name in namespaces:
            self._look(name, now_s)

    def _hold(self, now_s: float) -> None:
        self._since_s = now_s
        for name in self._started:
            self._store.namespace(name).is_held = True

    def _look(self, name: str, now_s: float) -> None:
        handle = self._store.namespace(name)
        table = handle.routes()
        known = self._known.get(name)
        if handle.is_held and self._is_told(name, now_s):
            handle.is_held = False
        placed = {
            pop for route in table.functions if route.placement and route.is_shared for pop in route.placement.pops
        }
        if not placed and (known is None or not (known.out or known.sweeping or known.version)):
            return
        first = known is None
        known = self._known.setdefault(name, _Known())
        out = frozenset(pop for pop in placed if self._is_out(pop, known))
        if first or out != known.out or table.version != known.version:
            # Another table may place functions elsewhere, so that what is kept here has another owner.
            known.sweeping = handle.set_out(out, again=first or table.version != known.version)
            if out != known.out:
                log.info("owners_changed", namespace=name, out=sorted(out), before=sorted(known.out))
            known.out, known.version = out, table.version if placed else ""
        for _ in range(PIECES if known.sweeping else 0):
            known.sweeping, inboxes = handle.sweep()
            if inboxes:
                self._on_work(name, inboxes)
            if not known.sweeping:
                break

    def _is_out(self, pop: str, known: _Known) -> bool:
        state = self._peers.state(pop)
        # One that was not heard just now is what it was.
        return pop in known.out if state == SUSPECT else state in OUT

    def _is_told(self, name: str, now_s: float) -> bool:
        """Whether all that the PoPs that are heard had written when this began is applied here."""
        if now_s - self._since_s > RETURN_WAIT_S:
            return True
        for peer in self._peers.peers():
            if self._peers.state(peer) in (DOWN, LEFT):
                continue
            complete_s = self._peers.complete_s(name, peer)
            if complete_s is None or complete_s < self._since_s:
                return False
        return True
