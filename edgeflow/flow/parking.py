"""Instances that are told to wait without work, and are woken by the first that comes.

What it is: `park` and `unpark` of the instance protocol, as the documents `instance` ask for them (`park`), and the hint to the runner, which pauses and resumes.
What it is not: pausing itself, or how many are to be awake: both are the runner's.
What must stay true: an instance that is parked, or on its way there, has nothing claimed and is given nothing; work that arrives while nobody else of its inbox is
awake wakes one at once; a hint is given until it is heard.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from edgeflow.flow.ahead import Ahead
from edgeflow.flow.attempts import Attempts
from edgeflow.flow.roster import Roster
from edgeflow.flow.sessions import InboxKey, Session
from edgeflow.store import Store

log = structlog.get_logger(__name__)

AGAIN_S = 0.5
"""How long a hint may be without effect before it is given again."""
ASLEEP = frozenset({"parking", "parked"})
AWAKE = frozenset({"ready", "waking", "connected"})


class Parking:
    """The instances of one PoP that are parked, or may be."""

    def __init__(
        self, store: Store, roster: Roster, ahead: Ahead, attempts: Attempts, on_state: Callable[[Session], None]
    ) -> None:
        self._store = store
        self._roster = roster
        self._ahead = ahead
        self._attempts = attempts
        self._on_state = on_state
        self._hinted_s: dict[str, float] = {}
        self._is_used = False

    def follow(self, session: Session, document: Mapping[str, Any]) -> None:
        """What the runner wants of an instance."""
        wanted = bool(document.get("park"))
        if session.route.direct:
            return  # those are parked by who of them subscribes
        if not wanted:
            was_woken, session.woken = session.woken, False
            if session.state in ASLEEP:
                self._unpark(session)
            elif was_woken:
                self._on_state(session)
        elif session.state == "ready" and not session.woken:
            self._is_used = True
            session.state, session.claim_max = "parking", 0
            session.send({"t": "park"})
            session.flush()
            self._attempts.give_back(session.spec.namespace, self._ahead.take_of(session))
            self._on_state(session)

    @property
    def is_used(self) -> bool:
        """Whether any instance was ever parked here: others need not look."""
        return self._is_used

    def parked(self, session: Session) -> None:
        """It has said so: it has nothing claimed any more."""
        if session.route.direct or session.state == "parking":
            session.state = "parked"
            self._on_state(session)
            self.look({session.spec.inbox})

    def awake(self, session: Session) -> None:
        """It has asked for work again."""
        session.state = "ready"
        self._hinted_s.pop(session.spec.instance, None)
        self._on_state(session)

    def look(self, inboxes: set[InboxKey]) -> None:
        """Wake one for each inbox that has work and nobody to do it."""
        for key in inboxes:
            asleep = None
            for session in self._roster.of(key):
                if session.state in AWAKE:
                    asleep = None
                    break
                if session.state in ASLEEP and not session.route.direct:
                    # One that is not paused yet is back soonest.
                    asleep = session if asleep is None or session.state == "parking" else asleep
            if asleep is not None and self._store.namespace(key[0]).has_ready(key[1]):
                log.info("instance_woken", instance=asleep.spec.instance, function=asleep.spec.function)
                asleep.woken = True
                self._unpark(asleep)

    def remind(self) -> None:
        """Give hints again that had no effect; called now and then."""
        now_s = time.monotonic()
        for session in self._roster.all():
            since_s = self._hinted_s.get(session.spec.instance)
            if session.state == "waking" and (since_s is None or now_s - since_s > AGAIN_S):
                self._hint(session)
        if self._hinted_s:
            known = {session.spec.instance for session in self._roster.all()}
            self._hinted_s = {one: at_s for one, at_s in self._hinted_s.items() if one in known}

    def _unpark(self, session: Session) -> None:
        session.state = "waking"
        session.send({"t": "unpark"})
        session.flush()
        self._hint(session)
        self._on_state(session)

    def _hint(self, session: Session) -> None:
        self._hinted_s[session.spec.instance] = time.monotonic()
        self._store.local.hint("wake", session.spec.instance)
