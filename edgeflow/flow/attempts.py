"""Ends of attempts other than by commit: failed, given back, timed out, left by an instance that is gone.

What it is: the calls that end an attempt in the store, and what the instance and the figures are told of it.
What it is not: commits (commits.py), or what is claimed next (handover.py).
What must stay true: an attempt ends once, whatever the instance does; one that outlives its timeout is ended and its instance told to exit; what was
claimed ahead and never handed over is nobody's fault.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import structlog

from edgeflow.core.failpoints import hit
from edgeflow.core.retries import retry_delay_ms
from edgeflow.core.routing import FunctionRoute
from edgeflow.flow.ahead import Ahead, Waiting
from edgeflow.flow.roster import Roster
from edgeflow.flow.sessions import Held, Session
from edgeflow.flow.standing import Standing
from edgeflow.store import Store

_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

log = structlog.get_logger(__name__)


class Attempts:
    """Ends the attempts of one PoP's instances."""

    def __init__(
        self, store: Store, roster: Roster, ahead: Ahead, standing: Standing, on_committed: Callable[[str], None]
    ) -> None:
        self._store = store
        self._roster = roster
        self._ahead = ahead
        self._standing = standing
        self._on_committed = on_committed

    def release(self, name: str, held: Iterable[Held], *, suspect: bool = False) -> None:
        """Give attempts back to the inbox without blame."""
        of: dict[str, list[str]] = defaultdict(list)
        for one in held:
            of[one.by].append(one.claimed.id)
        for instance, ids in of.items():
            self._store.namespace(name).release_claims(instance=instance, ids=ids, suspect=suspect)

    def give_back(self, name: str, waiting: Iterable[Waiting]) -> None:
        """Give back what nobody has seen."""
        of: dict[Session, list[str]] = defaultdict(list)
        for owner, claimed, _ in waiting:
            of[owner].append(claimed.id)
        for owner, ids in of.items():
            self._store.namespace(name).release_claims(instance=owner.spec.instance, ids=ids)
            self._roster.maybe_work.add(owner.spec.inbox)

    @staticmethod
    def end_held(session: Session, id: str) -> Held | None:
        """The instance does not hold this any more."""
        session.progress_s = time.monotonic()
        held = session.held.pop(id, None)
        if held is not None and held.ended:
            session.committing -= 1
        return held

    def refuse(self, session: Session, id: str, attempt: int, reason: str, detail: str, *, retry: bool = False) -> None:
        """A commit that cannot be taken, at any time or (`retry`) as things are now: a dead letter or a failed attempt, and the instance is told."""
        self.end_held(session, id)
        self.failed(session.spec.namespace, session.route, id, attempt, reason, detail, retry=retry)
        status = "failed" if retry else "refused"
        session.send({"t": "committed", "invocation": id, "attempt": attempt, "status": status, "error": detail})

    def failed(
        self, name: str, route: FunctionRoute, id: str, attempt: int, reason: str, detail: str, *, retry: bool
    ) -> None:
        """End an attempt: later again, or a dead letter."""
        namespace = self._store.namespace(name)
        delay = retry_delay_ms(route.retry, namespace.failures(id) + 1, _chance.random()) if retry else None
        hit("fail-before")
        outcome = namespace.fail(id, attempt, reason, detail, delay)
        hit("fail-after")
        log.warning(
            "attempt_failed", namespace=name, function=route.function, invocation=id, attempt=attempt, reason=reason, outcome=outcome,
            retry_ms=delay, detail=detail[:300],
        )  # fmt: skip
        self._standing.timings[(name, route.function)].fail(reason, detail)
        if outcome == "dead":
            self._on_committed(name)

    def abandon(self, session: Session) -> None:
        """The session has ended: what it held and had not ended is looked at."""
        spec = session.spec
        # A commit that was sent is carried out: only what had no end yet counts.
        held = session.working_on
        session.held.clear()
        if len(held) == 1 and session.state != "draining":
            claimed = held[0].claimed
            self.failed(
                spec.namespace,
                session.route,
                claimed.id,
                claimed.attempt,
                "instance-crashed",
                "the instance ended while it worked on this",
                retry=True,
            )
        elif held:
            # Which of them the instance died of is not known: none is blamed, each is claimed alone next time.
            self.release(spec.namespace, held, suspect=True)
        self.give_back(spec.namespace, self._ahead.take_of(session))

    def check_timeouts(self) -> None:
        """End the attempt that an instance has been on for longer than its timeout, and tell the instance to exit."""
        now = time.monotonic()
        for one in self._ahead.take_late(now):
            self.give_back(one.owner.spec.namespace, [one])
        for session in self._roster.all():
            working_on = session.working_on
            if not working_on or now - session.progress_s <= session.route.retry.timeout_ms / 1000:
                continue
            held = working_on[0]
            id = held.claimed.id
            self.end_held(session, id)
            log.warning(
                "attempt_timed_out",
                namespace=session.spec.namespace,
                function=session.spec.function,
                instance=session.spec.instance,
                invocation=id,
            )
            self.failed(
                session.spec.namespace, session.route, id, held.claimed.attempt, "timeout",
                f"the handler did not return within {session.route.retry.timeout_ms} ms", retry=True,
            )  # fmt: skip
            self.release(session.spec.namespace, working_on[1:])
            session.held.clear()
            session.state = "hung"
            session.kill()

    def expire(self, namespace: str, id: str, attempt: int, function: str) -> None:
        """A lease ended without its instance: the attempt failed, unless no instance ever had it (this process stood still for so long)."""
        if waiting := self._ahead.take_one(id, attempt):
            self.give_back(namespace, waiting)
            return
        route = next(
            (route for route in self._store.namespace(namespace).routes().functions if route.function == function), None
        )
        if route is not None:
            self.failed(namespace, route, id, attempt, "lease-expired", "nobody finished this in time", retry=True)
