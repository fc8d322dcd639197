"""All instances of this PoP: who comes and goes, and where each of their messages goes.

What it is: the server of the instance protocol, put together: sockets (listeners.py), who is connected (roster.py), work that is handed over
(handover.py), commits (commits.py) and other ends of attempts (attempts.py), bodies, reads, and what is written down of it all (standing.py).
What it is not: starting and stopping instances. The runner writes local documents "instance"; this listens on their sockets and writes "instance_state".
What must stay true: an attempt ends once, by commit, failure or release, whatever the instance does; a socket that closes gives back what was
claimed.
"""

import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from edgeflow.core.routing import FunctionRoute, compile_routes
from edgeflow.core.wire import Message
from edgeflow.errors import ProtocolError
from edgeflow.flow.accounts import Accounts
from edgeflow.flow.ahead import Ahead
from edgeflow.flow.attempts import Attempts
from edgeflow.flow.bodies import InstanceBodies, WantBody, answer
from edgeflow.flow.commits import Collected, Commits, named_attempt
from edgeflow.flow.covering import Covering
from edgeflow.flow.handover import HandOver, Wish
from edgeflow.flow.listeners import Listeners
from edgeflow.flow.load import LoadBook
from edgeflow.flow.parking import ASLEEP, Parking
from edgeflow.flow.reactor import Reactor
from edgeflow.flow.reads import Reads
from edgeflow.flow.roster import Roster
from edgeflow.flow.sessions import InstanceSpec, Session
from edgeflow.flow.standing import Standing
from edgeflow.settings import Limits
from edgeflow.store import RoundResult, Store

log = structlog.get_logger(__name__)

DETAIL_CHARS = 10_000


class Instances:
    """The instance sockets of one PoP."""

    def __init__(
        self, reactor: Reactor, store: Store, limits: Limits, on_committed: Callable[[str], None], accounts: Accounts, want_body: WantBody
    ) -> None:  # fmt: skip
        self._reactor = reactor
        self._store = store
        self._limits = limits
        self._accounts = accounts
        self._bodies = InstanceBodies(store, limits, want_body)
        self.covering = Covering(store)
        self.reads = Reads(store, limits, self._bodies)
        self._roster = Roster()
        self._ahead = Ahead()
        self._standing = Standing(store, self._roster)
        self._attempts = Attempts(store, self._roster, self._ahead, self._standing, on_committed)
        self._hand_over = HandOver(store, self._roster, self._ahead, self._attempts)
        self._parking = Parking(
            store, self._roster, self._ahead, self._attempts, lambda one: self._standing.write(one.spec, one.state)
        )
        self._load = LoadBook(store, self._roster, self._standing)
        self._commits = Commits(store, limits, self._roster, self._attempts, self._standing)
        self._listeners = Listeners(
            reactor, lambda spec: self._standing.write(spec, "listening"), self._connected, self._stopped_listening
        )

    # -- instances come and go -----------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Listen for exactly the instances that the runner has written down."""
        wanted = self._store.local.docs("instance")
        self._listeners.sync(wanted)
        self._accounts.keep(
            (document["namespace"], document["function"], document["revision"]) for document in wanted.values()
        )
        for instance, document in wanted.items():
            session = self._roster.get(instance)
            if session is not None:
                self._parking.follow(session, document)
            if document.get("drain") and session is not None and session.state != "draining":
                session.state = "draining"
                session.send({"t": "drain"})
                session.flush()
                self._attempts.give_back(document["namespace"], self._ahead.take_of(session))

    def _stopped_listening(self, spec: InstanceSpec) -> None:
        if (session := self._roster.get(spec.instance)) is not None:
            session.close()
        self._standing.forget(spec)

    def _connected(self, spec: InstanceSpec, sock: socket.socket) -> None:
        if (before := self._roster.get(spec.instance)) is not None:
            # One socket, one process: a second connection is a child that must not be there, or a reconnect that beat the close of the first.
            before.close()
        route = self._route(spec)
        if route is None:
            log.info("instance_of_old_revision", instance=spec.instance, function=spec.function, revision=spec.revision)
            sock.close()
            return
        self._roster.add(
            Session(
                self._reactor, sock, spec, route, self._store.pop, self._message, self._session_closed, self._welcome_direct,
                self._roster.to_flush,
            )
        )  # fmt: skip
        self._standing.write(spec, "connected")

    def _route(self, spec: InstanceSpec) -> FunctionRoute | None:
        route = self._store.namespace(spec.namespace).refresh_routes().find(spec.function, spec.revision)
        if route is not None:
            return route
        # A revision that is no longer in the table finishes what its inbox holds; the runner wrote down what it is.
        document = self._store.local.get_doc("instance", spec.instance) or {}
        if "spec" not in document:
            return None
        return compile_routes({"functions": {spec.function: document["spec"]}}, self._store.pop).find(
            spec.function, spec.revision
        )

    def _session_closed(self, session: Session) -> None:
        spec = session.spec
        self._bodies.forget(session)
        self.reads.forget(session)
        if self._roster.remove(session):
            self._hand_over.forget(spec.inbox)
        self._attempts.abandon(session)
        self.notify(spec.namespace)
        if session.route.direct:
            self._settle_direct(spec)
        if spec.instance in self._listeners:
            self._standing.write(spec, "hung" if session.state == "hung" else "lost")

    # -- messages ------------------------------------------------------------------------------------------------------

    def _message(self, session: Session, message: Message) -> None:
        kind = message.get("t")
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is None:
            raise ProtocolError(f"unknown message {str(kind)[:40]!r}")
        handler(self, session, message)

    def _on_ready(self, session: Session, _message: Message) -> None:
        session.state = "ready"
        self._standing.write(session.spec, "ready")
        if session.route.direct:
            self._settle_direct(session.spec)

    def _on_claim(self, session: Session, message: Message) -> None:
        limit = message.get("max")
        if not isinstance(limit, int) or limit < 1:
            raise ProtocolError("claim needs max >= 1")
        if session.state == "waking":
            self._parking.awake(session)
        if session.state not in ASLEEP:
            self._hand_over.ask(session, limit)  # one that crosses `park` is void

    def _on_commit(self, session: Session, message: Message) -> None:
        self._commits.take(session, message)

    def _on_fail(self, session: Session, message: Message) -> None:
        id, attempt = named_attempt(message)
        if id not in session.held:
            return
        detail = f"{message.get('error', '')}\n{message.get('traceback') or ''}".strip()[:DETAIL_CHARS]
        self._attempts.end_held(session, id)
        self._attempts.failed(
            session.spec.namespace,
            session.route,
            id,
            attempt,
            "handler-failed",
            detail,
            retry=bool(message.get("retry", True)),
        )

    def _on_release(self, session: Session, message: Message) -> None:
        pairs = message.get("invocations")
        ids = (
            [pair[0] for pair in pairs if isinstance(pair, list) and pair and pair[0] in session.held]
            if isinstance(pairs, list)
            else []
        )
        self._attempts.release(
            session.spec.namespace, [held for id in ids if (held := self._attempts.end_held(session, id)) is not None]
        )
        if ids:
            session.asked = 0  # it may rest before it asks again: nothing is claimed ahead for it
            self.notify(session.spec.namespace)

    def _on_leave(self, session: Session, _message: Message) -> None:
        # What it has not ended by now it has not begun: that is nobody's fault, and goes back when the socket closes.
        session.state, session.claim_max = "draining", 0
        self._attempts.give_back(session.spec.namespace, self._ahead.take_of(session))

    def _on_blob(self, session: Session, message: Message) -> None:
        whole = self._bodies.take(session, message)
        if whole is not None:
            self._commits.take_blob(session.spec.namespace, whole)

    def _on_fetch(self, session: Session, message: Message) -> None:
        # What a digest names never changes: it need not wait for commits.
        self._bodies.fetch(session, message)

    def _on_read(self, session: Session, message: Message) -> None:
        self.reads.ask(session, message)

    def _on_session(self, session: Session, message: Message) -> None:
        self.covering.ask(session, message)

    def _reply(self, session: Session, message: Message, reply: Callable[[], dict[str, Any]]) -> None:
        session.read(lambda: answer(session, message, reply))

    # -- instances that hear the broker themselves -----------------------------------------------------------------------

    def _welcome_direct(self, session: Session) -> None:
        self._accounts.grant(_account_key(session.spec), session.route, session.welcome)

    def _settle_direct(self, spec: InstanceSpec) -> None:
        """Let one instance of the function subscribe: while revisions change hands there are two, and the current one goes first."""
        at = [
            s for s in self._roster.all()
            if s.route.direct and s.state in ("ready", "parked") and (s.spec.namespace, s.spec.function) == (spec.namespace, spec.function)
        ]  # fmt: skip
        table = self._store.namespace(spec.namespace).routes()
        heir = next((s for s in at if table.find(s.spec.function, s.spec.revision) is not None), at[0] if at else None)
        for session in at:
            if session is heir and session.state == "parked":
                session.send({"t": "unpark"})
            elif session is not heir and session.state == "ready":
                session.send({"t": "park"})
            session.flush()

    def _on_grant(self, session: Session, _message: Message) -> None:
        # The broker refused the account: it has lost or changed it.
        def give(mqtt: dict[str, str]) -> None:
            session.send({"t": "granted", "mqtt": mqtt})
            session.flush()

        if not session.route.direct:
            raise ProtocolError("grant is for functions whose input has qos 0")
        self._accounts.grant(_account_key(session.spec), session.route, give, anew=True)

    def _on_stats(self, session: Session, message: Message) -> None:
        spec = session.spec
        self._standing.counts[spec.instance][:] = self._standing.direct[(spec.namespace, spec.function)].take(
            spec.instance, message
        )

    def _on_context(self, session: Session, message: Message) -> None:
        self._reply(session, message, lambda: {"values": self._hand_over.context(session)})

    def _on_parked(self, session: Session, _message: Message) -> None:
        self._parking.parked(session)

    # -- the round -----------------------------------------------------------------------------------------------------

    def notify(self, namespace: str, inboxes: Iterable[str] | None = None) -> None:
        """Inboxes ("function:revision") of a namespace got work; None = any of them may have."""
        self.covering.look(namespace)
        self.reads.look(namespace)
        self._roster.wake(namespace, inboxes)
        if self._parking.is_used:
            self._parking.look({key for key in self._roster.maybe_work if key[0] == namespace})

    def collected(self) -> dict[str, Collected]:
        """Per namespace the commits and bodies that wait; `finish` gets the results."""
        return self._commits.collected()

    def unblock(self) -> None:
        """Functions that got nothing because an inbox behind them was full ask again."""
        self._hand_over.unblock()

    def put_back(self, name: str, collected: Collected) -> None:
        """What `collected` returned could not be taken; a later round tries again."""
        self._commits.put_back(name, collected)
        self.notify(name)

    def claiming(self) -> dict[str, list[Wish]]:
        """Per namespace the instances that wait for work, or are worth claiming for ahead, where there may be some."""
        return self._hand_over.claiming()

    def finish(self, name: str, collected: Collected, claiming: list[Wish], result: RoundResult) -> set[str]:
        """Answer commits and claims in namespace `name` with what a round did. Returns the inboxes that gave what they had."""
        done_us = time.time_ns() / 1000
        self._commits.finish(collected, result, done_us)
        return self._hand_over.finish(name, claiming, result, done_us)

    @property
    def has_work(self) -> bool:
        """Whether another round may find something to commit or to hand over."""
        return bool(self._commits) or self._hand_over.may_find_work()

    def flush_sockets(self) -> None:
        """Write the answers."""
        self._roster.flush()

    # -- time ----------------------------------------------------------------------------------------------------------

    def check_timeouts(self) -> None:
        """End the attempt that an instance has been on for longer than its timeout, and tell the instance to exit."""
        self.covering.look()
        self.reads.look()
        self._attempts.check_timeouts()

    def expire(self, namespace: str, id: str, attempt: int, function: str) -> None:
        """A lease ended without its instance: the attempt failed, unless no instance ever had it (this process stood still for so long)."""
        self._attempts.expire(namespace, id, attempt, function)

    def write_documents(self) -> None:
        """Write states and timings down for the control process; called once a second."""
        self._standing.write_all()
        self._load.write()
        self._parking.remind()

    def close(self) -> None:
        """Give everything back and close: the agent leaves, the instances wait for it to return."""
        for instance in self._listeners.all():
            session = self._roster.get(instance)
            if session is not None:
                self._store.namespace(session.spec.namespace).release_claims(instance=instance)
                session.held.clear()
                self._ahead.take_of(session)
            self._listeners.close(instance)


_HANDLERS: dict[str, Callable[[Instances, Session, Message], None]] = {
    "ready": Instances._on_ready, "claim": Instances._on_claim, "commit": Instances._on_commit, "fail": Instances._on_fail,
    "release": Instances._on_release, "blob": Instances._on_blob, "fetch": Instances._on_fetch, "get": Instances._on_read,
    "head": Instances._on_read, "versions": Instances._on_read, "list": Instances._on_read, "session": Instances._on_session,
    "parked": Instances._on_parked, "leave": Instances._on_leave, "grant": Instances._on_grant, "stats": Instances._on_stats,
    "context": Instances._on_context,
}  # fmt: skip


def _account_key(spec: InstanceSpec) -> tuple[str, str, str]:
    return (spec.namespace, spec.function, spec.revision)
