"""What instances are given to do: claims in their names, at once or ahead of their asking, and the hand-over.

What it is: which instances claim how much in the next round, and who gets what was claimed.
What it is not: the store call, which is the round's (rounds.py), or the ends of attempts (attempts.py, commits.py).
What must stay true: an instance gets work only when it asked, and no more than it asked for; what nobody has seen may go to any instance of its inbox.
"""

import time
from collections import defaultdict
from typing import Any, NamedTuple

from edgeflow.core.failpoints import hit
from edgeflow.core.routing import FunctionRoute, RouteTable
from edgeflow.flow.ahead import Ahead, Waiting
from edgeflow.flow.attempts import Attempts
from edgeflow.flow.roster import Roster
from edgeflow.flow.sessions import Held, InboxKey, Session
from edgeflow.store import Claim, Claimed, RoundResult, Store, Value

MAX_PREFETCH = 64
_LEASE_SLACK_MS = 5_000


class Wish(NamedTuple):
    """How much to claim in the name of an instance: what it asked for, and what is worth claiming ahead."""

    session: Session
    limit: int


class HandOver:
    """Claims and hands over for the instances of one PoP."""

    def __init__(self, store: Store, roster: Roster, ahead: Ahead, attempts: Attempts) -> None:
        self._store = store
        self._roster = roster
        self._ahead = ahead
        self._attempts = attempts
        self._waits_well: dict[InboxKey, tuple[RouteTable, bool]] = {}
        self._blocked: set[InboxKey] = set()
        self._outages = store.outages

    def ask(self, session: Session, limit: int) -> None:
        """The instance is free for so many."""
        session.asked = session.claim_max = min(limit, MAX_PREFETCH)
        session.idle_since_us = time.time_ns() / 1000
        self._roster.maybe_work.add(session.spec.inbox)
        self._serve(session, session.idle_since_us)
        session.flush()

    def forget(self, inbox: InboxKey) -> None:
        """No instance works on it any more."""
        self._waits_well.pop(inbox, None)

    def unblock(self) -> None:
        """Functions that got nothing because an inbox behind them was full ask again."""
        self._roster.maybe_work |= self._blocked
        self._blocked.clear()

    def claiming(self) -> dict[str, list[Wish]]:
        """Per namespace the instances that wait for work, or are worth claiming for ahead, where there may be some."""
        if self._store.outages != self._outages:
            self._outages = self._store.outages
            self._recover_claims()
        found: dict[str, list[Wish]] = defaultdict(list)
        for key in self._roster.maybe_work:
            for session in self._roster.of(key):
                if wanted := self._wanted(session, key):
                    found[key[0]].append(Wish(session, wanted))
        self._roster.maybe_work.clear()
        return found

    def _wanted(self, session: Session, key: InboxKey) -> int:
        if session.state != "ready":
            return 0
        room = Ahead.room(session)
        return session.claim_max + (room if room and self._may_wait(session, key) else 0)

    def _may_wait(self, session: Session, key: InboxKey) -> bool:
        """Whether it makes no difference to this function when an invocation is claimed a little earlier than it begins."""
        table = self._store.namespace(key[0]).routes()
        known = self._waits_well.get(key)
        if known is None or known[0] is not table:
            route = session.route
            well = not route.context and all(table.policy(one.channel).on_full != "keep-latest" for one in route.inputs)
            known = self._waits_well[key] = (table, well)
        return known[1]

    @staticmethod
    def claim(wish: Wish) -> Claim:
        """The claim in the name of an instance. Its lease covers what the instance holds, since that comes first."""
        session, limit = wish
        spec = session.spec
        attempt_ms = session.route.retry.timeout_ms + _LEASE_SLACK_MS
        return Claim(
            spec.function, spec.revision, spec.instance, limit, attempt_ms * (limit + session.ahead + len(session.held))
        )

    def finish(self, name: str, claiming: list[Wish], result: RoundResult, done_us: float) -> set[str]:
        """Hand over what a round claimed in namespace `name`. Returns the inboxes that gave what they had."""
        self._blocked.update((name, inbox) for inbox in result.blocked)
        emptied: set[str] = set()
        for (session, limit), items in zip(claiming, result.claimed, strict=True):
            key = session.spec.inbox
            if items:
                if len(items) < limit:
                    emptied.add(key[1])
                hit("claim-after-store")
                self._ahead.put(session, key, items, time.monotonic())
                if session.closed:
                    self._attempts.give_back(name, self._ahead.take_of(session))
        # Whoever waits gets what there is, in whose name it ever was claimed.
        for key in {wish.session.spec.inbox for wish in claiming}:
            for session in list(self._roster.of(key)) if key in self._ahead else ():
                self._serve(session, done_us)
        return emptied

    def may_find_work(self) -> bool:
        """Whether another round may find something to hand over."""
        return any(self._wanted(session, key) for key in self._roster.maybe_work for session in self._roster.of(key))

    def _serve(self, session: Session, now_us: float) -> None:
        """Hand over what waits for an instance that asks, if it asks."""
        key = session.spec.inbox
        if not session.claim_max or session.state != "ready" or key not in self._ahead:
            return
        taken = self._ahead.take(key, session.claim_max)
        late = [one for one in taken if one.claimed.expires_ms is not None and one.claimed.expires_ms < now_us / 1000]
        if late:
            # The store ends them for what they are.
            self._attempts.give_back(key[0], late)
            taken = [one for one in taken if one not in late]
        if taken:
            self._hand_over(session, taken, now_us)
            hit("claim-handed-over", session.flush)

    def _hand_over(self, session: Session, items: list[Waiting], now_us: float) -> None:
        context = self.context(session)
        idle_since_us = session.idle_since_us
        session.claim_max = 0
        if not session.working_on:
            session.progress_s = time.monotonic()
        deadline_ms = int(now_us / 1000) + session.route.retry.timeout_ms
        work = []
        for owner, claimed, _ in items:
            # Ready before the instance asked: it waited for a free instance. Ready after: the hand-over is the platform's time.
            waiting_us = max(0.0, idle_since_us - claimed.ready_us)
            hop = max(stored.get("h", 0) for _, stored in claimed.stored)
            session.held[claimed.id] = Held(claimed, owner.spec.instance, hop, waiting_us)
            work.append(
                {
                    "invocation": claimed.id,
                    "attempt": claimed.attempt,
                    "deadline_ms": deadline_ms,
                    "inputs": [_input(session.route, name, stored) for name, stored in claimed.stored],
                    "context": context,
                    **_about(claimed),
                }
            )
        session.send({"t": "work", "items": work})

    def context(self, session: Session) -> dict[str, Any]:
        """The values of the function's `context:` as they are now."""
        names = session.route.context
        if not names:
            return {}
        values = self._store.namespace(session.spec.namespace).small_values(list(names.values()))
        return {name: _value_of(value) for name, value in zip(names, values, strict=True)}

    def _recover_claims(self) -> None:
        # A claim that was under way when Redis went away may have been carried out without its answer reaching us.
        known = {id for session in self._roster.all() for id in session.held}
        for session in self._roster.all():
            namespace = self._store.namespace(session.spec.namespace)
            known |= self._ahead.ids_of(session)
            unknown = [id for id, attempt in namespace.holds(session.spec.instance) if id not in known]
            if unknown:
                namespace.release_claims(instance=session.spec.instance, ids=unknown)
        for session in self._roster.all():
            self._roster.maybe_work.add(session.spec.inbox)


def _input(route: FunctionRoute, name: str, stored: dict[str, Any]) -> dict[str, Any]:
    captures = route.captures_of(name, stored["c"])
    return {"name": name, "event": stored, **({"captures": captures} if captures else {})}


def _about(claimed: Claimed) -> dict[str, Any]:
    """What an attempt is told besides its inputs; only what there is."""
    about: dict[str, Any] = {}
    if claimed.key:
        about["key"] = claimed.key
    if claimed.window is not None:
        about["window"] = list(claimed.window)
    if claimed.state is not None:
        about["state"] = _value_of(claimed.state)
    if claimed.replay:
        about["replay"] = claimed.replay
    if claimed.shadow:
        about["shadow"] = True
    return about


def _value_of(value: Value | None) -> dict[str, Any] | None:
    if value is None:
        return None
    data = value.data if value.digest is None else None
    return {"version": value.version, "digest": value.digest, "data": data, "content_type": value.content_type}
