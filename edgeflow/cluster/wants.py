"""Which blobs this PoP lacks, and whom it has asked for each.

What it is: one small table that all links of a PoP share; time is an argument.
What it is not: the truth about what is missing. That is the store; `settle` brings the table back to it.
What must stay true: a blob is asked of one peer at a time; every missing blob is asked for again as long as it is missing, whatever is lost on the way.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeflow.cluster.spools import Spools

RETRY_S = 2.0
"""After this long, peers that did not have a blob are asked again."""
STALL_S = 15.0
"""Without a chunk for this long, another peer is asked."""

SENDING_S = 5.0
"""A peer that sent a piece of a body this long ago is still at it."""

Key = tuple[str, str]
"""(namespace, digest)."""


@dataclass(slots=True)
class _Want:
    at_s: float
    asked: str | None = None
    without: set[str] = field(default_factory=set)
    given_up: bool = False
    announced: str | None = None
    """Who said that it sends it."""


class Wants:
    """The blobs that are missing here."""

    def __init__(self) -> None:
        self.spools = Spools()
        """What has come of them so far."""
        self._wants: dict[Key, _Want] = {}
        self._unasked: dict[Key, _Want] = {}
        self._pinned: set[Key] = set()
        self._sending_s: dict[str, float] = {}
        """When a piece of any body came from a peer."""

    def __len__(self) -> int:
        return sum(not want.given_up for want in self._wants.values())

    def missing(self, ns: str, digests: Iterable[str], now_s: float) -> None:
        """These are not here, and nobody has been asked unless the table says so."""
        for digest in digests:
            self._add((ns, digest), now_s)

    def pin(self, ns: str, digests: Iterable[str], now_s: float) -> None:
        """Somebody here waits for these, though no gate does; until `unpin`. Who still waits then pins them again."""
        for digest in digests:
            self._pinned.add((ns, digest))
            self._add((ns, digest), now_s)

    def unpin(self, ns: str, digests: Iterable[str]) -> None:
        """Nobody waits for these any more."""
        for digest in digests:
            self._pinned.discard((ns, digest))

    def coming(self, ns: str, digests: Iterable[str], peer: str, now_s: float) -> None:
        """`peer` said that it sends these."""
        for digest in digests:
            key = (ns, digest)
            self._add(key, now_s)
            if key in self._unasked:
                self._ask(key, peer, now_s)
            self._wants[key].announced = peer

    def sending(self, peer: str, now_s: float) -> None:
        """A piece of a body came from `peer`."""
        self._sending_s[peer] = now_s

    def on_their_way(self, ns: str, now_s: float) -> list[str]:
        """Bodies of a namespace that a peer has announced, or was asked for, and that peer sends bodies just now."""
        busy = {peer for peer, at_s in self._sending_s.items() if now_s - at_s < SENDING_S}
        if not busy:
            return []
        return [
            key[1]
            for key, want in self._wants.items()
            if key[0] == ns and (want.announced in busy or want.asked in busy)
        ]

    def take(self, peer: str, now_s: float) -> dict[str, list[str]]:
        """What to ask of `peer` now, by namespace; it counts as asked from here on."""
        asked: dict[str, list[str]] = {}
        for key in [key for key, want in self._unasked.items() if peer not in want.without]:
            self._ask(key, peer, now_s)
            asked.setdefault(key[0], []).append(key[1])
        return asked

    def progress(self, key: Key, now_s: float) -> None:
        """A chunk came."""
        if (want := self._wants.get(key)) is not None:
            want.at_s = now_s

    def arrived(self, key: Key) -> None:
        """It is readable here."""
        self._wants.pop(key, None)
        self._unasked.pop(key, None)

    def failed(self, key: Key, peer: str, now_s: float) -> None:
        """`peer` has not got it, or sent something else in its place."""
        if (want := self._wants.get(key)) is not None:
            want.without.add(peer)
            if want.announced == peer:
                want.announced = None
            self.spools.release(key, peer)
            if want.asked == peer:
                self._free(key, want, now_s)

    def give_up(self, key: Key, now_s: float) -> None:
        """It can never be taken (too large): not asked for again while this process lives."""
        self._add(key, now_s)
        self._wants[key].given_up = True
        self._unasked.pop(key, None)

    def peer_lost(self, peer: str, now_s: float) -> None:
        """The link to `peer` is down: what it was asked for is asked of others."""
        self.spools.peer_lost(peer, now_s)
        self._sending_s.pop(peer, None)
        for key, want in self._wants.items():
            want.without.discard(peer)
            if want.announced == peer:
                want.announced = None
            if want.asked == peer:
                self._free(key, want, now_s)

    def settle(self, ns: str, missing: Iterable[str], now_s: float) -> None:
        """The store's own list for a namespace; what is no longer on it is forgotten."""
        wanted = {*missing, *(digest for name, digest in self._pinned if name == ns)}
        gone = [key for key, want in self._wants.items() if key[0] == ns and key[1] not in wanted and not want.given_up]
        for key in gone:
            self.arrived(key)
        self.missing(ns, wanted, now_s)

    def tick(self, now_s: float) -> None:
        """Lets stalled transfers and refused questions be asked again."""
        self.spools.tick(now_s)
        for key, want in self._wants.items():
            if want.asked is not None and now_s - want.at_s > STALL_S:
                announced = want.announced
                self.failed(key, want.asked, now_s)
                want.announced = announced  # a queue may be long: a stall is no answer
            elif want.asked is None and want.without and now_s - want.at_s > RETRY_S:
                want.without.clear()

    def _add(self, key: Key, now_s: float) -> None:
        if key not in self._wants:
            self._wants[key] = self._unasked[key] = _Want(now_s)

    def _ask(self, key: Key, peer: str, now_s: float) -> None:
        want = self._unasked.pop(key)
        want.asked, want.at_s = peer, now_s

    def _free(self, key: Key, want: _Want, now_s: float) -> None:
        want.asked, want.at_s = None, now_s
        if not want.given_up:
            self._unasked[key] = want
