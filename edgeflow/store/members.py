"""The member records as one process of a PoP knows them: values of the system namespace.

What it is: the loading and saving of `members/<pop>`, a cache of them, and the answer to "which PoPs are there".
What it is not: who is heard (edgeflow.cluster.membership), or the meaning of a record (edgeflow.core.membership).
What must stay true: a record that cannot be read changes nothing, and is said in the log; a PoP of the settings is a member until its record says
that it left.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.membership import LEFT, WISHES, Member, load_member
from edgeflow.errors import BadMember, BadRequest, NotFound, VersionMismatch

log = structlog.get_logger(__name__)

MEMBERS = "members/"
FRESH_S = 1.0
"""How long the control process takes its last look for true."""
_PAGE = 500
_TRIES = 20


class _Store(Protocol):
    def namespace(self, name: str, /) -> Any: ...


class MemberBook:
    """One per process. Thread-safe. `configured`: the PoPs that the settings name."""

    def __init__(
        self, store: _Store, me: str, configured: Iterable[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.me = me
        self._store = store
        self._configured = tuple(configured)
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, Member]] = {}
        self._unreadable: dict[str, str] = {}
        self._looked_s = float("-inf")

    def look(self) -> bool:
        """Read what has changed; whether something has."""
        system = self._store.namespace(SYSTEM_NAMESPACE)
        found: dict[str, str] = {}
        after = ""
        while True:
            page = system.list(MEMBERS, after=after, limit=_PAGE)
            found.update({info.key.removeprefix(MEMBERS): info.version for info in page})
            if len(page) < _PAGE:
                break
            after = page[-1].key
        changed = False
        for pop, version in found.items():
            known = self._known.get(pop)
            if (known is not None and known[0] == version) or self._unreadable.get(pop) == version:
                continue
            value = system.get(MEMBERS + pop)
            if value is None:
                continue
            try:
                member = load_member(pop, bytes(value.data))
            except BadMember as error:
                self._unreadable[pop] = version
                log.error("member_unreadable", member=pop, error=error.message)
                continue
            with self._lock:
                self._known[pop] = (value.version, member)
            changed = True
        for pop in set(self._known) - set(found):
            with self._lock:
                del self._known[pop]
            changed = True
        self._looked_s = self._clock()
        return changed

    def fresh(self) -> "MemberBook":
        """This book, not older than FRESH_S."""
        if self._clock() - self._looked_s > FRESH_S:
            self.look()
        return self

    def records(self) -> Mapping[str, Member]:
        """All records by PoP, also of those that left."""
        with self._lock:
            return {pop: member for pop, (_version, member) in self._known.items()}

    def of(self, pop: str) -> Member | None:
        """The record of one PoP."""
        known = self._known.get(pop)
        return None if known is None else known[1]

    def pops(self) -> list[str]:
        """The PoPs of the cluster: this one first, then the others in the order of their ids; not those that left."""
        records = self.records()
        there = {*self._configured, *records} - {self.me}
        return [self.me, *sorted(pop for pop in there if pop not in records or not records[pop].is_left)]

    def others(self) -> list[str]:
        """`pops` without this one."""
        return self.pops()[1:]

    # Changes

    def introduce(self, own: Member, now_ms: int) -> bool:
        """Record what this PoP says of itself; whether that was news. A PoP that left stays so."""

        def said(before: Member | None) -> Member | None:
            if before is None:
                return replace(own, added_ms=now_ms, joined_ms=now_ms)
            return None if before.is_left else own.said_again(before)

        return self._change(own.pop, said)

    def joined(self, now_ms: int) -> bool:
        """Record that this PoP has what the others have."""
        return self._change(self.me, lambda before: replace(before, joined_ms=now_ms) if before else None)

    def wish(self, pop: str, state: str) -> Member:
        """Record what is wished of a PoP. Raises NotFound, and BadRequest for one that left and for a wish that nobody knows."""
        if state not in WISHES:
            raise BadRequest(f"{state[:40]!r} cannot be wished of a PoP", hint=f"One of {', '.join(WISHES)}.")
        self.look()
        if pop not in self.pops() and self.of(pop) is None:
            raise NotFound(f"there is no PoP {pop[:40]!r} in this cluster", hint="`edgeflow pops list` shows them.")

        def wished(before: Member | None) -> Member | None:
            if before is not None and before.is_left and state != LEFT:
                raise BadRequest(f"{pop} has left", hint="`edgeflow pops join` brings it back, as a new PoP.")
            return replace(before or Member(pop), state=state)

        self._change(pop, wished)
        found = self.of(pop)
        assert found is not None
        return found

    def admit(self, member: Member) -> None:
        """Record a new PoP, or one that left and comes again."""
        self._change(member.pop, lambda _before: member)

    def _change(self, pop: str, make: Callable[[Member | None], Member | None]) -> bool:
        """Replace the record by what `make` says of the present one (None: leave it), unless it is the same."""
        system = self._store.namespace(SYSTEM_NAMESPACE)
        for _ in range(_TRIES):
            value = system.get(MEMBERS + pop)
            before = None if value is None else load_member(pop, bytes(value.data))
            after = make(before)
            if after is None or after == before:
                return False
            try:
                system.put(
                    MEMBERS + pop, after.dump(), content_type="application/json",
                    if_version=None if value is None else value.version, if_absent=value is None,
                )  # fmt: skip
            except VersionMismatch:
                continue
            self.look()
            return True
        raise BadRequest(f"the record of {pop!r} is changed by somebody else all the time", hint="Try again.")
