"""What the data process answers: questions of this PoP's control process (the mailbox), and calls of other PoPs.

What it is: one method per kind of question, and those that wait: for an entry to be applied, a peer to confirm, a body to come.
What it is not: the way a call travels (calls.py), or values and their operations (edgeflow.store.decided).
What must stay true: an answer says what is so, never what is likely; what waits is bounded and ends at its time; a kind that is not known is
refused by name; nothing here blocks the loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from edgeflow.cluster.calls import Body, Done, Outcome
from edgeflow.cluster.linkproto import DIGEST, Call
from edgeflow.cluster.ports import LinkNamespace, LinkStore
from edgeflow.cluster.standing import Standing
from edgeflow.cluster.wants import Wants
from edgeflow.core.channels import check_namespace
from edgeflow.errors import BadRequest, EdgeflowError, NotFound, Throttled, Unavailable, describe, described
from edgeflow.store.decided import execute
from edgeflow.store.mailbox import Asked
from edgeflow.store.records import LogId

log = structlog.get_logger(__name__)

WAITING = 10_000
"""Most questions that wait here at a time."""
AGAIN_S = 0.2
"""After this long a peer that could not be asked is asked again."""


class Peers(Protocol):
    """The links, as a question needs them."""

    def peers(self) -> list[str]: ...
    def call(self, peer: str, kind: str, ns: str, body: Mapping[str, Any], timeout_s: float, done: Done) -> None: ...
    def ping_all(self) -> None: ...
    def push(self, ns: str) -> None: ...


@dataclass(slots=True)
class _Wait:
    """Something that will be so sooner or later: `look` says whether it is, by ending it."""

    ns: str
    until_s: float
    look: Callable[[bool], bool]
    """Called when something changed, and with True when the time is over; whether it is done with."""
    by_peers: bool = False
    """Whether it is about where peers stand."""


@dataclass(slots=True)
class _Confirming:
    """An entry that `wanted` other PoPs shall have."""

    ns: str
    body: Body
    wanted: int
    until_s: float
    to_ask: set[str]
    ask_at_s: float = 0.0
    has: set[str] = field(default_factory=set)


class Desk:
    """One per PoP."""

    def __init__(
        self, me: str, store: LinkStore, standing: Standing, wants: Wants, peers: Peers, clock: Callable[[], float]
    ) -> None:
        self._me = me
        self._store = store
        self._standing = standing
        self._wants = wants
        self._peers = peers
        self._clock = clock
        self._waits: list[_Wait] = []
        self._questions: dict[str, Callable[[Asked], None]] = {
            "await": self._await, "home": self._home, "fetch": self._fetch, "sync": self._sync, "has": self._has,
            "stand": self._stand,
        }  # fmt: skip
        self._calls: dict[str, Callable[[str, Call, Body, Done], None]] = {
            "applied": self._call_applied, "has": self._call_has, "home": self._call_home,
        }  # fmt: skip

    # What comes in

    def serve(self, asked: Asked) -> None:
        """A question of the control process."""
        question = self._questions.get(asked.kind)
        try:
            if question is None:
                raise BadRequest(f"the data process knows no question {asked.kind[:40]!r}")
            question(asked)
        except Exception as error:  # one bad question must not end the loop
            if not isinstance(error, EdgeflowError):
                log.exception("question_failed", kind=asked.kind)
            asked.refuse(described(describe(error)))

    def answer_call(self, peer: str, call: Call, body: Body, done: Done) -> None:
        """A question of another PoP. Raises what it is refused with."""
        kind = self._calls.get(call.kind)
        if kind is None:
            raise BadRequest(f"{self._me} knows no call {call.kind[:40]!r}")
        if not self._store.has_namespace(call.ns):
            raise NotFound(f"there is no namespace {call.ns!r} at {self._me}")
        kind(peer, call, body, done)

    def changed(self, ns: str) -> None:
        """Something was applied in a namespace, or a body came."""
        if any(wait.ns == ns for wait in self._waits):
            self._look(lambda wait: wait.ns == ns)

    def heard(self) -> None:
        """A peer said where it stands."""
        if any(wait.by_peers for wait in self._waits):
            self._look(lambda wait: wait.by_peers)

    def tick(self) -> None:
        """Several times a second: looks at everything that waits, and ends what is too late."""
        if self._waits:
            self._standing.touch({wait.ns for wait in self._waits})
            self._look(lambda _wait: True)

    def _look(self, which: Callable[[_Wait], bool]) -> None:
        now_s = self._clock()
        looked_at, self._waits = self._waits, []
        for wait in looked_at:
            try:
                done = which(wait) and (wait.look(False) or (now_s > wait.until_s and wait.look(True)))
            except Exception:  # the store is away, for one; it is looked at again
                log.exception("wait_failed", namespace=wait.ns)
                done = now_s > wait.until_s
            if not done:
                self._waits.append(wait)

    def _wait(self, wait: _Wait) -> None:
        if wait.look(False):
            return
        if len(self._waits) >= WAITING:
            raise Throttled("too many questions wait at this PoP")
        self._waits.append(wait)

    # Has this PoP applied an entry, bodies included?

    def _is_applied(self, ns: str, log_id: LogId, seq: int) -> bool:
        return seq <= self._standing.own(ns).applied.get(log_id, 0)

    def _lacking(self, handle: LinkNamespace, log_id: LogId, seq: int) -> list[str]:
        """Bodies of one entry that are not here: where they are fetched when they are read, it may be applied without them.

        This PoP is about to say that it has the entry, bodies included: from now on it keeps them.
        """
        found = handle.read_log(log_id, seq - 1, count=1, max_bytes=1)
        if not found or found[0][0] != seq:
            return []
        return handle.keep_blobs([ref.digest for ref in handle.entry_blobs(found[0][1])])

    def _is_whole(self, ns: str, log_id: LogId, seq: int) -> bool:
        return self._is_applied(ns, log_id, seq) and not self._lacking(self._store.namespace(ns), log_id, seq)

    def _call_applied(self, _peer: str, call: Call, body: Body, done: Done) -> None:
        log_id, seq = _position(body)
        handle = self._store.namespace(call.ns)
        pinned: set[str] = set()

        def look(is_late: bool) -> bool:
            if self._is_applied(call.ns, log_id, seq):
                lacking = self._lacking(handle, log_id, seq)
                if not lacking:
                    self._wants.unpin(call.ns, pinned)
                    done({"applied": True})
                    return True
                pinned.update(lacking)
                self._wants.pin(call.ns, lacking, self._clock())
            if is_late:
                self._wants.unpin(call.ns, pinned)
                done({"applied": False})
            return is_late

        self._standing.touch({call.ns})
        self._wait(_Wait(call.ns, self._clock() + call.within_ms / 1000, look))

    def _call_has(self, _peer: str, call: Call, body: Body, done: Done) -> None:
        log_id, seq = _position(body)
        self._standing.touch({call.ns})
        done({"has": self._is_applied(call.ns, log_id, seq)})

    def _has(self, asked: Asked) -> None:
        ns = _namespace(asked.args)
        log_id, seq = _position(asked.args)
        peer = str(asked.args.get("pop") or self._me)
        if peer == self._me:
            self._standing.touch({ns})
            asked.answer({"has": self._is_applied(ns, log_id, seq)})
        else:
            self._ask(asked, peer, "has", ns, {"origin": log_id.origin, "epoch": log_id.epoch, "seq": seq})

    def _await(self, asked: Asked) -> None:
        ns = _namespace(asked.args)
        log_id, seq = _position(asked.args)
        wanted, timeout_ms = _number(asked.args, "k"), _number(asked.args, "timeout_ms")
        timeout_s = min(timeout_ms / 1000, max(0.0, asked.left_s))
        self.confirm(ns, log_id, seq, wanted, timeout_s, lambda count: asked.answer({"confirmed": count}))

    def confirm(
        self, ns: str, log_id: LogId, seq: int, wanted: int, timeout_s: float, done: Callable[[int], None]
    ) -> None:
        """Tells how many other PoPs have an entry, bodies included: as soon as `wanted` have, or when the time is over. Raises BadRequest, Throttled."""
        everyone = self._peers.peers()
        if wanted > len(everyone):
            raise BadRequest(f"{wanted} other PoPs shall have it, the cluster has {len(everyone)}")
        # Written at its home: that one has it by itself, and this PoP is one of the others.
        others = [peer for peer in everyone if peer != log_id.origin]
        now_s = self._clock()
        until_s = now_s + timeout_s
        body: Body = {"origin": log_id.origin, "epoch": log_id.epoch, "seq": seq}
        task = _Confirming(ns, body, wanted, until_s, set(others))
        ended = False

        def look(is_late: bool) -> bool:
            nonlocal ended
            if log_id.origin != self._me and self._me not in task.has and self._is_whole(ns, log_id, seq):
                task.has.add(self._me)
            if not ended and (len(task.has) >= wanted or is_late):
                ended = True
                done(len(task.has))
            if not ended:
                self._confirm(task, look)
            return ended

        self._peers.push(ns)
        self._wait(_Wait(ns, until_s, look))

    def _confirm(self, task: _Confirming, look: Callable[[bool], bool]) -> None:
        now_s = self._clock()
        if now_s < task.ask_at_s:
            return
        to_ask, task.to_ask = task.to_ask, set()
        task.ask_at_s = now_s + AGAIN_S

        def asker(peer: str) -> Done:
            def done(outcome: Outcome) -> None:
                if isinstance(outcome, dict) and outcome.get("applied") is True:
                    task.has.add(peer)
                    look(False)
                else:
                    task.to_ask.add(peer)

            return done

        for peer in to_ask:
            self._peers.call(peer, "applied", task.ns, task.body, max(0.0, task.until_s - now_s), asker(peer))

    # Operations at another PoP

    def _home(self, asked: Asked) -> None:
        ns = _namespace(asked.args)
        body = {name: value for name, value in asked.args.items() if name not in ("pop", "ns")}
        peer = str(asked.args.get("pop") or "")
        if peer == self._me:
            asked.answer(execute(self._store.namespace(ns), body.get("op"), body))
            self._peers.push(ns)
        else:
            self._ask(asked, peer, "home", ns, body)

    def _call_home(self, _peer: str, call: Call, body: Body, done: Done) -> None:
        """Carries out what another PoP asks, as soon as the bodies that it refers to (`needs`) are here."""
        handle = self._store.namespace(call.ns)
        named = body.pop("needs", None)
        needs = [digest for digest in named if isinstance(digest, str)] if isinstance(named, list) else []
        if not needs:
            done(execute(handle, body.get("op"), body))
            self._peers.push(call.ns)
            return

        def look(is_late: bool) -> bool:
            lacking = [digest for digest in needs if handle.blob_size(digest) is None]
            if lacking and not is_late:
                self._wants.pin(call.ns, lacking, self._clock())
                return False
            self._wants.unpin(call.ns, set(needs))
            try:
                if lacking:
                    raise Unavailable(f"{self._me} did not get the body {lacking[0]} in time")
                done(execute(handle, body.get("op"), body))
            except EdgeflowError as error:
                done(error)
            self._peers.push(call.ns)
            return True

        self._wait(_Wait(call.ns, self._clock() + call.within_ms / 1000, look))

    def _ask(self, asked: Asked, peer: str, kind: str, ns: str, body: Body) -> None:
        if peer not in self._peers.peers():
            raise BadRequest(f"{peer[:40]!r} is not a PoP of this cluster")

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, EdgeflowError):
                asked.refuse(outcome)
            else:
                asked.answer(outcome)

        self._peers.call(peer, kind, ns, body, max(0.0, asked.left_s), done)

    # Bodies, and how fresh this PoP is

    def _fetch(self, asked: Asked) -> None:
        ns = _namespace(asked.args)
        digest = asked.args.get("digest")
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise BadRequest("'fetch' names no digest")

        def done(size: int | None) -> None:
            if size is not None:
                asked.answer({"size": size})
            else:
                asked.refuse(Unavailable(f"no PoP that can be reached has {digest}"))

        self.want(ns, digest, max(0.0, asked.left_s), done)

    def want(self, ns: str, digest: str, within_s: float, done: Callable[[int | None], None]) -> None:
        """Has a body come here; `done` is told its size when it is here, None when the time is over."""
        handle = self._store.namespace(ns)

        def look(is_late: bool) -> bool:
            size = handle.blob_size(digest)
            if size is not None or is_late:
                self._wants.unpin(ns, {digest})
                done(size)
                return True
            self._wants.pin(ns, [digest], self._clock())
            return False

        self._wait(_Wait(ns, self._clock() + within_s, look))

    def _sync(self, asked: Asked) -> None:
        def done(staleness_ms: int | None) -> None:
            asked.answer({"staleness_ms": staleness_ms})

        self.sync(_namespace(asked.args), 0.9 * max(0.0, asked.left_s), done)

    def sync(self, ns: str, within_s: float, done: Callable[[int | None], None]) -> None:
        """Asks all others how far they are; tells for how long something may have been written that is not readable here, as soon as all have been
        heard and what they had is here, or when the time is over. None: not known. Raises Throttled."""
        now_s = self._clock()

        def look(is_late: bool) -> bool:
            complete_s = [self._standing.complete_s(ns, peer) for peer in self._peers.peers()]
            if is_late or all(at_s is not None and at_s >= now_s for at_s in complete_s):
                done(self._standing.staleness_ms(ns, self._clock()))
                return True
            return False

        self._standing.touch({ns})
        self._wait(_Wait(ns, now_s + within_s, look, by_peers=True))
        self._peers.ping_all()

    def _stand(self, asked: Asked) -> None:
        ns = _namespace(asked.args)
        asked.answer({
            "passed": [[origin, epoch, seq] for (origin, epoch), seq in self._standing.passed(ns).items()],
            "floor": self._standing.floor(ns),
            "staleness_ms": self._standing.staleness_ms(ns, self._clock()),
        })  # fmt: skip


def _namespace(args: Mapping[str, Any]) -> str:
    return check_namespace(str(args.get("ns")))


def _number(args: Mapping[str, Any], name: str) -> int:
    value = args.get(name)
    if type(value) is not int or value < 0:
        raise BadRequest(f"{name!r} is not a number")
    return value


def _position(args: Mapping[str, Any]) -> tuple[LogId, int]:
    origin = args.get("origin")
    if not isinstance(origin, str):
        raise BadRequest("'origin' is not a PoP")
    return LogId(origin, _number(args, "epoch")), _number(args, "seq")
