"""All instances of this PoP: their sockets, what they claim and commit.

What it is: the server of the instance protocol. The store calls themselves are made by `rounds.py`.
What it is not: starting and stopping instances. The runner writes local documents "instance"; this listens on their sockets and writes "instance_state".
What must stay true: an attempt ends once, by commit, failure or release, whatever the instance does; a socket that closes gives back what was
claimed; an attempt that outlives its timeout is ended and its instance told to exit; what was claimed ahead and never handed over is nobody's fault.
"""

import contextlib
import os
import random
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from edgeflow.core.channels import check_key
from edgeflow.core.failpoints import hit
from edgeflow.core.retries import retry_delay_ms
from edgeflow.core.routing import FunctionRoute, RouteTable, compile_routes
from edgeflow.core.typed import typed_json
from edgeflow.core.wire import Message
from edgeflow.errors import EdgeflowError, OutputLimit, ProtocolError
from edgeflow.flow.accounts import Accounts
from edgeflow.flow.ahead import Ahead, InboxKey, Waiting
from edgeflow.flow.bodies import InstanceBodies, WantBody, answer
from edgeflow.flow.covering import Covering
from edgeflow.flow.direct import DirectStats
from edgeflow.flow.outputs import build_events, build_increments, build_ops, build_state, build_values
from edgeflow.flow.reactor import READ, Reactor
from edgeflow.flow.sessions import Held, InstanceSpec, Session
from edgeflow.flow.timings import Timings
from edgeflow.settings import Limits
from edgeflow.store import Claim, Claimed, Commit, RoundResult, Store, Value
from edgeflow.store.namespace import now_ms
from edgeflow.store.replica import ReplicatedNamespace

_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

log = structlog.get_logger(__name__)

MAX_PREFETCH = 64
DETAIL_CHARS = 10_000
_LEASE_SLACK_MS = 5_000


@dataclass(frozen=True, slots=True)
class Collected:
    """What instances of one namespace sent since the last round."""

    commits: list[tuple[Session, Commit, Message]]
    blobs: list[tuple[str, bytes]]


class Wish(NamedTuple):
    """How much to claim in the name of an instance: what it asked for, and what is worth claiming ahead."""

    session: Session
    limit: int


class Instances:
    """The instance sockets of one PoP."""

    def __init__(
        self, reactor: Reactor, store: Store, limits: Limits, on_committed: Callable[[str], None], accounts: Accounts, want_body: WantBody
    ) -> None:  # fmt: skip
        self._reactor = reactor
        self._store = store
        self._limits = limits
        self._on_committed = on_committed
        self._accounts = accounts
        self._bodies = InstanceBodies(store, limits, want_body)
        self._direct: dict[tuple[str, str], DirectStats] = defaultdict(DirectStats)
        self._listeners: dict[str, tuple[InstanceSpec, socket.socket]] = {}
        self._sessions: dict[str, Session] = {}
        self._of_inbox: dict[InboxKey, list[Session]] = defaultdict(list)
        self._to_flush: set[Session] = set()
        self._ahead = Ahead()
        self.covering = Covering(store)
        self._waits_well: dict[InboxKey, tuple[RouteTable, bool]] = {}
        self._maybe_work: set[InboxKey] = set()
        self._blocked: set[InboxKey] = set()
        self._commits: dict[str, list[tuple[Session, Commit, Message]]] = defaultdict(list)
        self._blobs: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        self._timings: dict[tuple[str, str], Timings] = defaultdict(Timings)
        self._written_states: dict[str, dict[str, Any]] = {}
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._outages = store.outages

    # -- instances come and go -----------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Listen for exactly the instances that the runner has written down."""
        wanted = self._store.local.docs("instance")
        for instance in list(self._listeners):
            if instance not in wanted:
                self._stop_listening(instance)
        self._accounts.keep(
            (document["namespace"], document["function"], document["revision"]) for document in wanted.values()
        )
        for instance, document in wanted.items():
            if instance not in self._listeners:
                spec = InstanceSpec(
                    document["namespace"], document["function"], document["revision"], instance, document["socket"]
                )
                try:
                    self._listen(spec)
                except OSError as error:
                    log.error("instance_socket_failed", instance=instance, socket=spec.socket, error=str(error))
            elif (
                document.get("drain")
                and (session := self._sessions.get(instance)) is not None
                and session.state != "draining"
            ):
                session.state = "draining"
                session.send({"t": "drain"})
                session.flush()
                self._give_back(document["namespace"], self._ahead.take_of(session))

    def _listen(self, spec: InstanceSpec) -> None:
        path = Path(spec.socket)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        # The folder holds nothing but this socket and only its instance sees it, under whatever user it runs.
        os.chmod(path, 0o666)
        listener.listen(4)
        listener.setblocking(False)
        self._reactor.register(listener, READ, lambda _events: self._accept(spec, listener))
        self._listeners[spec.instance] = (spec, listener)
        self._write_state(spec, "listening")

    def _stop_listening(self, instance: str) -> None:
        spec, listener = self._listeners.pop(instance)
        self._reactor.unregister(listener)
        listener.close()
        with contextlib.suppress(OSError):
            Path(spec.socket).unlink()
        if (session := self._sessions.get(instance)) is not None:
            session.close()
        self._written_states.pop(instance, None)
        self._counts.pop(instance, None)
        if (stats := self._direct.get((spec.namespace, spec.function))) is not None:
            stats.forget(instance)

    def _accept(self, spec: InstanceSpec, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if spec.instance in self._sessions:
            # One socket, one process: a second connection is a child that must not be there, or a reconnect that beat the close of the first.
            self._sessions[spec.instance].close()
        route = self._route(spec)
        if route is None:
            log.info("instance_of_old_revision", instance=spec.instance, function=spec.function, revision=spec.revision)
            sock.close()
            return
        session = self._sessions[spec.instance] = Session(
            self._reactor, sock, spec, route, self._store.pop, self._message, self._session_closed, self._welcome_direct,
            self._to_flush,
        )  # fmt: skip
        self._of_inbox[_inbox_key(spec)].append(session)
        self._write_state(spec, "connected")

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
        if self._sessions.get(spec.instance) is session:
            del self._sessions[spec.instance]
        siblings = self._of_inbox[_inbox_key(spec)]
        siblings.remove(session)
        if not siblings:
            del self._of_inbox[_inbox_key(spec)]
            self._waits_well.pop(_inbox_key(spec), None)
        # A commit that was sent is carried out: only what had no end yet is looked at.
        held = session.working_on
        session.held.clear()
        if len(held) == 1 and session.state != "draining":
            claimed = held[0].claimed
            self._failed(
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
            self._release(spec.namespace, held, suspect=True)
        self._give_back(spec.namespace, self._ahead.take_of(session))
        self.notify(spec.namespace)
        if session.route.direct:
            self._settle_direct(spec)
        if spec.instance in self._listeners:
            self._write_state(spec, "hung" if session.state == "hung" else "lost")

    # -- messages ------------------------------------------------------------------------------------------------------

    def _message(self, session: Session, message: Message) -> None:
        kind = message.get("t")
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is None:
            raise ProtocolError(f"unknown message {str(kind)[:40]!r}")
        handler(self, session, message)

    def _on_ready(self, session: Session, _message: Message) -> None:
        session.state = "ready"
        self._write_state(session.spec, "ready")
        if session.route.direct:
            self._settle_direct(session.spec)

    def _on_claim(self, session: Session, message: Message) -> None:
        limit = message.get("max")
        if not isinstance(limit, int) or limit < 1:
            raise ProtocolError("claim needs max >= 1")
        session.asked = session.claim_max = min(limit, MAX_PREFETCH)
        session.idle_since_us = time.time_ns() / 1000
        self._maybe_work.add(_inbox_key(session.spec))
        self._serve(session, session.idle_since_us)
        session.flush()

    def _on_commit(self, session: Session, message: Message) -> None:
        id, attempt = _named_attempt(message)
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
            self._refuse(session, id, attempt, reason, f"{error.message} Hint: {error.hint}")
            return
        self._commits[session.spec.namespace].append(
            (session, Commit(id, attempt, events, values, increments, ops), message)
        )
        held.ended = True
        session.took(_number(_timing(message).get("handler_us")))
        session.committing += 1
        hit("commit-collected")

    def _on_fail(self, session: Session, message: Message) -> None:
        id, attempt = _named_attempt(message)
        if id not in session.held:
            return
        detail = f"{message.get('error', '')}\n{message.get('traceback') or ''}".strip()[:DETAIL_CHARS]
        self._end_held(session, id)
        self._failed(
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
        self._release(session.spec.namespace, [held for id in ids if (held := self._end_held(session, id)) is not None])
        if ids:
            self.notify(session.spec.namespace)

    def _on_leave(self, session: Session, _message: Message) -> None:
        # What it has not ended by now it has not begun: that is nobody's fault, and goes back when the socket closes.
        session.state, session.claim_max = "draining", 0
        self._give_back(session.spec.namespace, self._ahead.take_of(session))

    def _on_blob(self, session: Session, message: Message) -> None:
        whole = self._bodies.take(session, message)
        if whole is not None:
            self._blobs[session.spec.namespace].append(whole)

    def _on_fetch(self, session: Session, message: Message) -> None:
        # What a digest names never changes: it need not wait for commits.
        self._bodies.fetch(session, message)

    def _on_get(self, session: Session, message: Message) -> None:
        self._reply(session, message, lambda: {"value": self._get(session, message)})

    def _get(self, session: Session, message: Message) -> dict[str, Any] | None:
        namespace, key = self._store.namespace(session.spec.namespace), check_key(str(message.get("key")))
        version = message.get("version")
        head = namespace.small_values([key])[0]
        if head is None and version is None:
            return self._typed(namespace, key)
        if (
            head is not None
            and head.digest is not None
            and version in (None, head.version)
            and (head.size >= self._limits.redis_blob_bytes or not namespace.has_blob(head.digest))
        ):
            # It is fetched, in pieces, when the handler looks at it.
            return {
                "key": key, "version": head.version, "digest": head.digest, "size": head.size, "content_type": head.content_type,
            }  # fmt: skip
        value = namespace.get(key, version=version)
        if value is None:
            return None
        return {"key": value.key, "version": value.version, "data": value.data, "content_type": value.content_type}

    @staticmethod
    def _typed(namespace: ReplicatedNamespace, key: str) -> dict[str, Any] | None:
        """A counter, a set or a map as JSON."""
        info = namespace.head(key)
        if info is None or info.kind == "register":
            return None
        content: Any
        if info.kind == "counter":
            content = namespace.count_value(key)
        else:
            content = namespace.set_members(key) if info.kind == "set" else namespace.map_fields(key)
        if content is None:
            return None
        version = "" if info.kind == "counter" else info.version
        return {
            "key": key,
            "version": version,
            "data": typed_json(info.kind, content),
            "content_type": "application/json",
        }

    def _on_session(self, session: Session, message: Message) -> None:
        self.covering.ask(session, message)

    def _on_list(self, session: Session, message: Message) -> None:
        self._reply(session, message, lambda: {"items": self._list(session, message)})

    def _list(self, session: Session, message: Message) -> list[dict[str, Any]]:
        limit = message.get("limit")
        infos = self._store.namespace(session.spec.namespace).list(
            str(message.get("prefix") or ""), after=str(message.get("after") or ""), limit=min(limit, 1000) if isinstance(limit, int) and limit > 0 else 100
        )  # fmt: skip
        return [{"key": info.key, "version": info.version, "size": info.size} for info in infos]

    def _reply(self, session: Session, message: Message, reply: Callable[[], dict[str, Any]]) -> None:
        session.read(lambda: answer(session, message, reply))

    # -- instances that hear the broker themselves -----------------------------------------------------------------------

    def _welcome_direct(self, session: Session) -> None:
        self._accounts.grant(_account_key(session.spec), session.route, session.welcome)

    def _settle_direct(self, spec: InstanceSpec) -> None:
        """Let one instance of the function subscribe: while revisions change hands there are two, and the current one goes first."""
        at = [
            s for s in self._sessions.values()
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
        self._counts[spec.instance][:] = self._direct[(spec.namespace, spec.function)].take(spec.instance, message)

    def _on_context(self, session: Session, message: Message) -> None:
        self._reply(session, message, lambda: {"values": self._context(session)})

    def _on_parked(self, session: Session, _message: Message) -> None:
        session.state = "parked"
        self._write_state(session.spec, "parked")

    # -- the round -----------------------------------------------------------------------------------------------------

    def notify(self, namespace: str, inboxes: Iterable[str] | None = None) -> None:
        """Inboxes ("function:revision") of a namespace got work; None = any of them may have."""
        self.covering.look(namespace)
        if inboxes is None:
            self._maybe_work.update(
                _inbox_key(s.spec) for s in self._sessions.values() if s.spec.namespace == namespace
            )
        else:
            self._maybe_work.update((namespace, inbox) for inbox in inboxes)

    def collected(self) -> dict[str, Collected]:
        """Per namespace the commits and bodies that wait; `finish` gets the results."""
        work: dict[str, Collected] = {}
        for name in {*self._commits, *self._blobs}:
            work[name] = Collected(self._commits.pop(name, []), self._blobs.pop(name, []))
        return work

    def unblock(self) -> None:
        """Functions that got nothing because an inbox behind them was full ask again."""
        self._maybe_work |= self._blocked
        self._blocked.clear()

    def put_back(self, name: str, collected: Collected) -> None:
        """What `collected` returned could not be taken; a later round tries again."""
        self._commits[name] = collected.commits + self._commits[name]
        self._blobs[name] = collected.blobs + self._blobs[name]
        for session, _, _ in collected.commits:
            session.answer_reads()  # nobody knows for how long
        self.notify(name)

    def claiming(self) -> dict[str, list[Wish]]:
        """Per namespace the instances that wait for work, or are worth claiming for ahead, where there may be some."""
        if self._store.outages != self._outages:
            self._outages = self._store.outages
            self._recover_claims()
        found: dict[str, list[Wish]] = defaultdict(list)
        for key in self._maybe_work:
            for session in self._of_inbox.get(key, ()):
                if wanted := self._wanted(session, key):
                    found[key[0]].append(Wish(session, wanted))
        self._maybe_work.clear()
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

    def finish(self, name: str, collected: Collected, claiming: list[Wish], result: RoundResult) -> set[str]:
        """Answer commits and claims in namespace `name` with what a round did. Returns the inboxes that gave what they had."""
        self._blocked.update((name, inbox) for inbox in result.blocked)
        done_us = time.time_ns() / 1000
        if collected.commits:
            hit("commit-stored")
        for (session, commit, message), ended in zip(collected.commits, result.ended, strict=True):
            if ended.status == "missing":
                self._refuse(
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
                self._refuse(session, commit.id, commit.attempt, "bad-output", f"the key {ended.detail!r} {why}")
                continue
            if ended.status == "elsewhere":
                why = f"{ended.detail}: a function writes it at that PoP only"
                self._refuse(session, commit.id, commit.attempt, "home-elsewhere", why)
                continue
            self._committed(session, commit, message, ended.status, done_us)
        if collected.commits:
            hit("commit-answered", self.flush_sockets)
        for session, _, _ in collected.commits:
            if not session.committing:
                session.answer_reads()
        emptied: set[str] = set()
        for (session, limit), items in zip(claiming, result.claimed, strict=True):
            key = _inbox_key(session.spec)
            if items:
                if len(items) < limit:
                    emptied.add(key[1])
                hit("claim-after-store")
                self._ahead.put(session, key, items, time.monotonic())
                if session.closed:
                    self._give_back(name, self._ahead.take_of(session))
        # Whoever waits gets what there is, in whose name it ever was claimed.
        for key in {_inbox_key(wish.session.spec) for wish in claiming}:
            for session in list(self._of_inbox.get(key, ())) if key in self._ahead else ():
                self._serve(session, done_us)
        return emptied

    @property
    def has_work(self) -> bool:
        """Whether another round may find something to commit or to hand over."""
        return bool(self._commits or self._blobs) or any(
            self._wanted(session, key) for key in self._maybe_work for session in self._of_inbox.get(key, ())
        )

    def flush_sockets(self) -> None:
        """Write the answers."""
        sessions = list(self._to_flush)
        self._to_flush.clear()
        for session in sessions:
            session.flush()

    def _committed(self, session: Session, commit: Commit, message: Message, status: str, done_us: float) -> None:
        held = self._end_held(session, commit.id)
        if held is not None and status == "committed":
            timing = _timing(message)
            queued, handler, fetch = (_number(timing.get(name)) for name in ("queued_us", "handler_us", "fetch_us"))
            timings = self._timings[(session.spec.namespace, session.spec.function)]
            timings.add(done_us - held.claimed.accepted_us, held.waiting_us + queued, handler - fetch)
            self._counts[session.spec.instance][0] += 1
        session.send(
            {"t": "committed", "invocation": commit.id, "attempt": commit.attempt, "status": status, "error": None}
        )

    def _serve(self, session: Session, now_us: float) -> None:
        """Hand over what waits for an instance that asks, if it asks."""
        key = _inbox_key(session.spec)
        if not session.claim_max or session.state != "ready" or key not in self._ahead:
            return
        taken = self._ahead.take(key, session.claim_max)
        late = [one for one in taken if one.claimed.expires_ms is not None and one.claimed.expires_ms < now_us / 1000]
        if late:
            # The store ends them for what they are.
            self._give_back(key[0], late)
            taken = [one for one in taken if one not in late]
        if taken:
            self._hand_over(session, taken, now_us)
            hit("claim-handed-over", session.flush)

    def _hand_over(self, session: Session, items: list[Waiting], now_us: float) -> None:
        context = self._context(session)
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

    def _context(self, session: Session) -> dict[str, Any]:
        names = session.route.context
        if not names:
            return {}
        values = self._store.namespace(session.spec.namespace).small_values(list(names.values()))
        return {name: _value_of(value) for name, value in zip(names, values, strict=True)}

    # -- ends of attempts ----------------------------------------------------------------------------------------------

    def _release(self, name: str, held: Iterable[Held], *, suspect: bool = False) -> None:
        """Give attempts back to the inbox without blame."""
        of: dict[str, list[str]] = defaultdict(list)
        for one in held:
            of[one.by].append(one.claimed.id)
        for instance, ids in of.items():
            self._store.namespace(name).release_claims(instance=instance, ids=ids, suspect=suspect)

    def _give_back(self, name: str, waiting: Iterable[Waiting]) -> None:
        """Give back what nobody has seen."""
        of: dict[Session, list[str]] = defaultdict(list)
        for owner, claimed, _ in waiting:
            of[owner].append(claimed.id)
        for owner, ids in of.items():
            self._store.namespace(name).release_claims(instance=owner.spec.instance, ids=ids)
            self._maybe_work.add(_inbox_key(owner.spec))

    def _end_held(self, session: Session, id: str) -> Held | None:
        session.progress_s = time.monotonic()
        held = session.held.pop(id, None)
        if held is not None and held.ended:
            session.committing -= 1
        return held

    def _refuse(self, session: Session, id: str, attempt: int, reason: str, detail: str) -> None:
        self._end_held(session, id)
        self._failed(session.spec.namespace, session.route, id, attempt, reason, detail, retry=False)
        session.send({"t": "committed", "invocation": id, "attempt": attempt, "status": "refused", "error": detail})

    def _failed(
        self, name: str, route: FunctionRoute, id: str, attempt: int, reason: str, detail: str, *, retry: bool
    ) -> None:
        namespace = self._store.namespace(name)
        delay = retry_delay_ms(route.retry, namespace.failures(id) + 1, _chance.random()) if retry else None
        hit("fail-before")
        outcome = namespace.fail(id, attempt, reason, detail, delay)
        hit("fail-after")
        log.warning(
            "attempt_failed", namespace=name, function=route.function, invocation=id, attempt=attempt, reason=reason, outcome=outcome,
            retry_ms=delay, detail=detail[:300],
        )  # fmt: skip
        self._timings[(name, route.function)].fail(reason, detail)
        if outcome == "dead":
            self._on_committed(name)

    # -- time ----------------------------------------------------------------------------------------------------------

    def check_timeouts(self) -> None:
        """End the attempt that an instance has been on for longer than its timeout, and tell the instance to exit."""
        self.covering.look()
        now = time.monotonic()
        for one in self._ahead.take_late(now):
            self._give_back(one.owner.spec.namespace, [one])
        for session in list(self._sessions.values()):
            working_on = session.working_on
            if not working_on or now - session.progress_s <= session.route.retry.timeout_ms / 1000:
                continue
            held = working_on[0]
            id = held.claimed.id
            self._end_held(session, id)
            log.warning(
                "attempt_timed_out",
                namespace=session.spec.namespace,
                function=session.spec.function,
                instance=session.spec.instance,
                invocation=id,
            )
            self._failed(
                session.spec.namespace, session.route, id, held.claimed.attempt, "timeout",
                f"the handler did not return within {session.route.retry.timeout_ms} ms", retry=True,
            )  # fmt: skip
            self._release(session.spec.namespace, working_on[1:])
            session.held.clear()
            session.state = "hung"
            session.kill()

    def expire(self, namespace: str, id: str, attempt: int, function: str) -> None:
        """A lease ended without its instance: the attempt failed, unless no instance ever had it (this process stood still for so long)."""
        if waiting := self._ahead.take_one(id, attempt):
            self._give_back(namespace, waiting)
            return
        route = next(
            (route for route in self._store.namespace(namespace).routes().functions if route.function == function), None
        )
        if route is not None:
            self._failed(namespace, route, id, attempt, "lease-expired", "nobody finished this in time", retry=True)

    def write_documents(self) -> None:
        """Write states and timings down for the control process; called once a second."""
        for session in self._sessions.values():
            self._write_state(session.spec, session.state)
        for (namespace, function), timings in self._timings.items():
            self._store.local.put_doc("function_stats", f"{namespace}/{function}", timings.to_json())
        for (namespace, function), stats in self._direct.items():
            self._store.local.put_doc("function_stats", f"{namespace}/{function}", stats.to_json())

    def close(self) -> None:
        """Give everything back and close: the agent leaves, the instances wait for it to return."""
        for instance in list(self._listeners):
            session = self._sessions.get(instance)
            if session is not None:
                self._store.namespace(session.spec.namespace).release_claims(instance=instance)
                session.held.clear()
                self._ahead.take_of(session)
            self._stop_listening(instance)

    def _recover_claims(self) -> None:
        # A claim that was under way when Redis went away may have been carried out without its answer reaching us.
        known = {id for session in self._sessions.values() for id in session.held}
        for session in self._sessions.values():
            namespace = self._store.namespace(session.spec.namespace)
            known |= self._ahead.ids_of(session)
            unknown = [id for id, attempt in namespace.holds(session.spec.instance) if id not in known]
            if unknown:
                namespace.release_claims(instance=session.spec.instance, ids=unknown)
        for session in self._sessions.values():
            self._maybe_work.add(_inbox_key(session.spec))

    def _write_state(self, spec: InstanceSpec, state: str) -> None:
        session = self._sessions.get(spec.instance)
        committed, failed = self._counts[spec.instance]
        document = {
            "state": state, "in_flight": len(session.held) if session else 0, "committed": committed, "failed": failed,
            "namespace": spec.namespace, "function": spec.function, "revision": spec.revision,
        }  # fmt: skip
        before = self._written_states.get(spec.instance, {})
        if {**document, "since_ms": before.get("since_ms")} == before:
            return
        document["since_ms"] = before.get("since_ms") if before.get("state") == state else now_ms()
        self._written_states[spec.instance] = document
        self._store.local.put_doc("instance_state", spec.instance, document)


_HANDLERS: dict[str, Callable[[Instances, Session, Message], None]] = {
    "ready": Instances._on_ready, "claim": Instances._on_claim, "commit": Instances._on_commit, "fail": Instances._on_fail,
    "release": Instances._on_release, "blob": Instances._on_blob, "fetch": Instances._on_fetch, "get": Instances._on_get,
    "list": Instances._on_list, "session": Instances._on_session, "parked": Instances._on_parked, "leave": Instances._on_leave,
    "grant": Instances._on_grant, "stats": Instances._on_stats, "context": Instances._on_context,
}  # fmt: skip


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


def _inbox_key(spec: InstanceSpec) -> InboxKey:
    return (spec.namespace, f"{spec.function}:{spec.revision}")


def _account_key(spec: InstanceSpec) -> tuple[str, str, str]:
    return (spec.namespace, spec.function, spec.revision)


def _named_attempt(message: Message) -> tuple[str, int]:
    id, attempt = message.get("invocation"), message.get("attempt")
    if not isinstance(id, str) or not isinstance(attempt, int):
        raise ProtocolError("an end of an attempt needs invocation and attempt")
    return id, attempt


def _timing(message: Message) -> dict[str, Any]:
    timing = message.get("timing")
    return timing if isinstance(timing, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value >= 0 else 0.0
