"""Commits of instances: collected for the round, and answered with what it did.

What it is: from the message `commit` to the values, events and operations of a store commit; and the answer.
What it is not: the store call, which is the round's (rounds.py), or other ends of attempts (attempts.py).
What must stay true: a commit is taken from the instance that holds the attempt only, and once; it is answered after the store has it.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from edgeflow.core.failpoints import hit
from edgeflow.core.wire import Message
from edgeflow.errors import EdgeflowError, OutputLimit, ProtocolError
from edgeflow.flow.attempts import Attempts
from edgeflow.flow.outputs import build_events, build_increments, build_ops, build_state, build_values
from edgeflow.flow.roster import Roster
from edgeflow.flow.sessions import Session
from edgeflow.flow.standing import Standing
from edgeflow.settings import Limits
from edgeflow.store import Commit, RoundResult, Store
from edgeflow.store.namespace import now_ms


@dataclass(frozen=True, slots=True)
class Collected:
    """What instances of one namespace sent since the last round."""

    commits: list[tuple[Session, Commit, Message]]
    blobs: list[tuple[str, bytes]]


class Commits:
    """The commits of one PoP's instances that wait for the round."""

    def __init__(self, store: Store, limits: Limits, roster: Roster, attempts: Attempts, standing: Standing) -> None:
        self._store = store
        self._limits = limits
        self._roster = roster
        self._attempts = attempts
        self._standing = standing
        self._commits: dict[str, list[tuple[Session, Commit, Message]]] = defaultdict(list)
        self._blobs: dict[str, list[tuple[str, bytes]]] = defaultdict(list)

    def __bool__(self) -> bool:
        return bool(self._commits or self._blobs)

    def take(self, session: Session, message: Message) -> None:
        """A `commit` of an instance."""
        id, attempt = named_attempt(message)
        held = session.held.get(id)
        if held is None or held.ended or held.claimed.attempt != attempt:
            session.send({"t": "committed", "invocation": id, "attempt": attempt, "status": "stale", "error": None})
            return
        try:
            events = build_events(
                message.get("outputs") or (), invocation=id, namespace=session.spec.namespace, route=session.route, pop=self._store.pop,
                hop=held.hop + 1, now_ms=now_ms(), limits=self._limits,
            )  # fmt: skip
            function = session.spec.function
            values = build_values(message.get("values") or (), function=function, limits=self._limits)
            values += build_state(
                message.get("state"), key=held.claimed.state_key, function=function, limits=self._limits
            )
            increments = build_increments(message.get("increments") or (), function=function, limits=self._limits)
            ops = build_ops(message.get("ops") or (), function=function, limits=self._limits)
        except EdgeflowError as error:
            reason = error.code if isinstance(error, OutputLimit) else "bad-output"
            self._attempts.refuse(session, id, attempt, reason, f"{error.message} Hint: {error.hint}")
            return
        self._commits[session.spec.namespace].append(
            (session, Commit(id, attempt, events, values, increments, ops), message)
        )
        held.ended = True
        handler_us = _number(_timing(message).get("handler_us"))
        session.took(handler_us)
        self._standing.timings[(session.spec.namespace, session.spec.function)].busy_us += handler_us
        session.committing += 1
        hit("commit-collected")

    def take_blob(self, namespace: str, blob: tuple[str, bytes]) -> None:
        """A small body, which travels with the commit that refers to it."""
        self._blobs[namespace].append(blob)

    def collected(self) -> dict[str, Collected]:
        """Per namespace what waits; `finish` gets the results."""
        work: dict[str, Collected] = {}
        for name in {*self._commits, *self._blobs}:
            work[name] = Collected(self._commits.pop(name, []), self._blobs.pop(name, []))
        return work

    def put_back(self, name: str, collected: Collected) -> None:
        """What `collected` returned could not be taken; a later round tries again."""
        self._commits[name] = collected.commits + self._commits[name]
        self._blobs[name] = collected.blobs + self._blobs[name]
        for session, _, _ in collected.commits:
            session.answer_reads()  # nobody knows for how long

    def finish(self, collected: Collected, result: RoundResult, done_us: float) -> None:
        """Answer the commits with what a round did."""
        if collected.commits:
            hit("commit-stored")
        for (session, commit, message), ended in zip(collected.commits, result.ended, strict=True):
            if ended.status == "missing":
                self._attempts.refuse(
                    session,
                    commit.id,
                    commit.attempt,
                    "bad-output",
                    f"the output refers to {ended.detail}, which was never sent, or not with that size",
                )
                continue
            if ended.status in ("wrong-type", "too-many"):
                why = (
                    "is of another type"
                    if ended.status == "wrong-type"
                    else "would have more elements or fields than a set or a map takes"
                )
                self._attempts.refuse(
                    session, commit.id, commit.attempt, "bad-output", f"the key {ended.detail!r} {why}"
                )
                continue
            if ended.status == "mismatch":
                self._attempts.refuse(
                    session, commit.id, commit.attempt, "precondition-failed", _unmet(ended.detail), retry=True
                )
                continue
            if ended.status == "elsewhere":
                why = f"{ended.detail}: a function writes it at that PoP only"
                self._attempts.refuse(session, commit.id, commit.attempt, "home-elsewhere", why)
                continue
            self._committed(session, commit, message, ended.status, done_us)
        if collected.commits:
            hit("commit-answered", self._roster.flush)
        for session, _, _ in collected.commits:
            if not session.committing:
                session.answer_reads()

    def _committed(self, session: Session, commit: Commit, message: Message, status: str, done_us: float) -> None:
        held = self._attempts.end_held(session, commit.id)
        if held is not None and status == "committed":
            timing = _timing(message)
            queued, handler, fetch = (_number(timing.get(name)) for name in ("queued_us", "handler_us", "fetch_us"))
            timings = self._standing.timings[(session.spec.namespace, session.spec.function)]
            timings.add(done_us - held.claimed.accepted_us, held.waiting_us + queued, handler - fetch)
            self._standing.counts[session.spec.instance][0] += 1
        session.send(
            {"t": "committed", "invocation": commit.id, "attempt": commit.attempt, "status": status, "error": None}
        )


def named_attempt(message: Message) -> tuple[str, int]:
    """Invocation and attempt that a message ends. Raises ProtocolError when it does not say."""
    id, attempt = message.get("invocation"), message.get("attempt")
    if not isinstance(id, str) or not isinstance(attempt, int):
        raise ProtocolError("an end of an attempt needs invocation and attempt")
    return id, attempt


def _unmet(detail: str) -> str:
    """Why a condition does not hold; `detail` is the key and its version."""
    key, _, version = detail.rpartition(" ")
    state = f"has version {version}" if version else "has no plain value"
    return f"the key {key!r} {state}, which is not what `if_version` or `if_absent` asked for"


def _timing(message: Message) -> dict[str, Any]:
    timing = message.get("timing")
    return timing if isinstance(timing, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0
