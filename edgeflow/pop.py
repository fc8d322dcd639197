"""The composition root of a PoP: `python -m edgeflow.pop --config pop.json` is its data process.

What it is: gateway, publisher, instances and links on one reactor, over one store.
What it is not: the control process (`edgeflow.api`), which has the HTTP API and the runner.
What must stay true: SIGTERM finishes the round, gives claims back, stores cursors, then leaves; kill -9 at any point loses and doubles nothing.
"""

import edgeflow.lean  # noqa: F401  (before whatever imports structlog)

# isort: split
import argparse
import gc
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from edgeflow import __version__
from edgeflow.cluster.introduction import Introduction
from edgeflow.cluster.manager import Links
from edgeflow.cluster.takeover import Takeover
from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.failpoints import hit
from edgeflow.errors import EdgeflowError
from edgeflow.flow.accounts import Accounts
from edgeflow.flow.broker import BrokerSession
from edgeflow.flow.discovery import Discovery
from edgeflow.flow.gateway import Gateway
from edgeflow.flow.guard import CHECK_S, BrokerGuard
from edgeflow.flow.instances import Instances
from edgeflow.flow.letters import announce
from edgeflow.flow.overload import Manifests, Overload
from edgeflow.flow.popload import PopLoad
from edgeflow.flow.publisher import Publisher
from edgeflow.flow.reactor import READ, Reactor, Timer
from edgeflow.flow.replies import Replies
from edgeflow.flow.rounds import Rounds
from edgeflow.settings import PopSettings
from edgeflow.store import OwnRelease, Store
from edgeflow.store.client import LOCAL, Wakeups
from edgeflow.store.drift import DriftBook
from edgeflow.store.mailbox import MAIL
from edgeflow.store.members import MemberBook
from edgeflow.store.policies import PolicyBook

log = structlog.get_logger(__name__)

TICK_S = 0.1
SECOND_S = 1.0
TIDY_S = 30.0
PUSH_DELAY_S = 0.0015
"""How long entries that a round appended wait for company before they are pushed to the peers, and the shortest time between two pushes; part of
the staleness there."""


def configure_logging(settings: PopSettings, process: str) -> None:
    """Structured JSON lines on stderr, each with pop and process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(pop=settings.pop, process=process)


class DataProcess:
    """Everything that moves data at one PoP."""

    def __init__(self, settings: PopSettings) -> None:
        self._settings = settings
        self._reactor = Reactor()
        self._store = Store.open(settings, patient=True)
        self._gateways: dict[str, Gateway] = {}
        self._publishers: dict[str, Publisher] = {}
        self._replies: dict[str, Replies] = {}
        self._manifests = Manifests(self._store)
        self._policies = PolicyBook(self._store)
        self._overload = Overload(self._store, settings)
        self._load = PopLoad(self._store, self._reactor, settings.limits.inbox_pending)
        self._sessions: dict[str, BrokerSession] = {}
        self._accounts = Accounts(self._reactor, settings)
        self._drift = DriftBook(self._store.local)
        self._guard = BrokerGuard(self._accounts.control, settings, self._drift)
        self._accounts.on_refused = self._account_was_refused
        self._instances = Instances(
            self._reactor, self._store, settings.limits, self._released, self._accounts,
            lambda *wish: self._links.want_body(*wish),
        )  # fmt: skip
        self._rounds = Rounds(
            self._store, self._gateways, self._instances, self._round_released, self._reactor.serve_until
        )
        self._pushable: set[str] = set()
        self._push_timer: Timer | None = None
        self._pushed_s = 0.0
        self._is_company_due = False
        self._discovery = Discovery(self._gateways.__contains__, self._create_namespace)
        self._book = MemberBook(self._store, settings.pop, settings.link.peers)
        self._links = Links(settings, self._store, self._reactor, self._mirrored, book=self._book)
        self._introduction = Introduction(
            settings, self._book, self._links, lambda: self._released(SYSTEM_NAMESPACE), __version__
        )
        self._takeover = Takeover(self._store, self._links, self._instances.notify)
        self._links.limit(self._overload.link_rate)
        self._instances.covering.passed = self._links.passed
        self._instances.covering.staleness_ms = self._links.staleness_ms
        self._instances.reads.passed = self._links.passed
        self._instances.reads.elsewhere = self._links
        self._wakeups = self._store.wakeups()
        self._wake_fd = -1
        self._outages = self._store.outages

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._reactor.stop())
        for name in self._store.namespaces():
            self._store.open_log(name)
            # Whatever was claimed through the process before this one is void: its sockets are gone.
            self._store.namespace(name).release_claims()
        self._takeover.start(self._store.namespaces())
        self._discover()
        self._sync_namespaces()
        self._instances.sync()
        self._links.start()
        self._watch_wakeups()
        self._reactor.after_round += [self._rounds.run, self._pump_publishers, self._flush_sessions, self._push]
        self._reactor.call_every(TICK_S, self._tick)
        self._reactor.call_every(SECOND_S, self._second)
        self._reactor.call_every(TIDY_S, self._tidy)
        self._reactor.call_every(CHECK_S, self._look_for_drift)
        log.info("data_started", namespaces=sorted(self._gateways))
        self._reactor.run()
        self._close()

    # -- namespaces ----------------------------------------------------------------------------------------------------

    def _sync_namespaces(self) -> None:
        for name in self._store.namespaces():
            if name not in self._gateways:
                self._serve_namespace(name)

    def _serve_namespace(self, name: str) -> None:
        settings = self._settings
        namespace = self._store.namespace(name)
        self._store.open_log(name)
        replies = Replies(namespace, settings.limits, self._blob_url)
        gateway = Gateway(
            namespace, settings.limits, f"/pops/{settings.pop}/mqtt", replies,
            lambda function: self._manifests.has_function(name, function),
        )  # fmt: skip
        publisher = Publisher(namespace, self._store.local, settings, self._blob_url)

        def ready(boot: str) -> None:
            gateway.ready(boot)
            self._discovery.gateway_ready(name, lambda: serve(boot))

        def serve(boot: str) -> None:
            publisher.ready(boot)
            self._note_gateway(name, connected=True)

        def lost() -> None:
            gateway.lost()
            publisher.lost()
            self._note_gateway(name, connected=False)

        client_id, is_new = self._client_id(name)
        if is_new:
            self._discovery.expect(name, gateway)
        session = BrokerSession(
            self._reactor, settings.mqtt, client_id, f"{name}/#", on_message=gateway.take, on_ready=ready, on_lost=lost,
            on_published=publisher.confirmed,
        )  # fmt: skip
        gateway.session = publisher.session = session
        gateway.confirm = self._links.confirm
        self._gateways[name], self._publishers[name], self._sessions[name] = gateway, publisher, session
        self._replies[name] = replies
        log.info("namespace_served", namespace=name)

    def _client_id(self, name: str) -> tuple[str, bool]:
        """The client id of a namespace's gateway, and whether it is new. Secret, since a client id is enough to take a session over; kept, so that the broker holds messages while this process is away."""
        path = self._settings.state_dir / "gateway-sessions.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        is_new = name not in known
        if is_new:
            known[name] = f"gateway-{name}-{secrets.token_hex(16)}"
            temporary = path.with_suffix(".new")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as handle:
                json.dump(known, handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        return str(known[name]), is_new

    def _discover(self) -> None:
        self._discovery.session = BrokerSession(
            self._reactor, self._settings.mqtt, f"discovery-{secrets.token_hex(16)}", "+/#", on_message=self._discovery.take,
            on_ready=self._discovery.ready, on_lost=self._discovery.lost, on_published=lambda _mid: None, durable=False, ignores=self._discovery.ignores,
        )  # fmt: skip
        self._sessions[""] = self._discovery.session

    def _create_namespace(self, name: str) -> None:
        self._store.create_namespace(name)
        self._sync_namespaces()
        self._released(SYSTEM_NAMESPACE)

    def _note_gateway(self, name: str, *, connected: bool) -> None:
        self._store.local.put_doc(
            "gateway_state", name, {"connected": connected, "since_ms": time.time_ns() // 1_000_000}
        )

    def _blob_url(self, namespace: str, digest: str) -> str:
        return f"{self._settings.public.api_url}/v1/blobs/{namespace}/{digest}"

    # -- what happens --------------------------------------------------------------------------------------------------

    def _round_released(self, name: str, released: Sequence[OwnRelease]) -> None:
        self._pushable.add(name)
        self._is_company_due = True
        if name in self._publishers:
            self._publishers[name].offer(released)
            self._reply(name)
        if name == SYSTEM_NAMESPACE:
            self._reactor.call_soon(self._sync_namespaces)

    def _released(self, name: str) -> None:
        """Something was appended, and released here."""
        self._pushable.add(name)
        self._mirrored(name)

    def _mirrored(self, name: str) -> None:
        """Something was released here; which inboxes got work is said by the wake-up or by the round."""
        if name in self._publishers:
            self._publishers[name].notify()
            self._reply(name)
        if name == SYSTEM_NAMESPACE:
            self._reactor.call_soon(self._sync_namespaces)
            self._reactor.call_soon(self._look_at_policies)
            self._reactor.call_soon(self._links.meet)

    def _look_at_policies(self) -> None:
        self._policies.look()

    def _reply(self, name: str) -> None:
        self._replies[name].pump(self._sessions[name].publish)

    def _watch_wakeups(self) -> None:
        fd = self._wakeups.fileno()
        if fd == self._wake_fd:
            return
        if self._wake_fd >= 0:
            self._reactor.unregister(self._wake_fd)
        self._wake_fd = fd
        if fd >= 0:
            self._reactor.register(fd, READ, lambda _events: self._woken(self._wakeups))

    def _woken(self, wakeups: Wakeups) -> None:
        changed = wakeups.drain()
        self._watch_wakeups()
        if LOCAL in changed:
            self._instances.sync()
        if MAIL in changed:
            self._links.serve()
        for name, inboxes in changed.items():
            if name not in (LOCAL, MAIL):
                self._released(name)
                self._instances.notify(name, inboxes)

    # -- rounds and seconds --------------------------------------------------------------------------------------------

    def _pump_publishers(self) -> bool:
        more = False
        for publisher in self._publishers.values():
            more = publisher.pump() or more
        return more

    def _flush_sessions(self) -> bool:
        for session in self._sessions.values():
            session.flush()
        return False

    def _push(self) -> bool:
        if self._pushable and self._push_timer is None:
            # What a round appended does not go at once: what an instance here answers within the delay travels with its input, and the links' reading is
            # out of its way. What the api wrote is answered by nobody here; only a flood of it is worth waiting for.
            if self._is_company_due or time.monotonic() - self._pushed_s < PUSH_DELAY_S:
                self._push_timer = self._reactor.call_later(PUSH_DELAY_S, self._push_now)
            else:
                self._push_now()
        return False

    def _push_now(self) -> None:
        self._push_timer, self._pushed_s, self._is_company_due = None, time.monotonic(), False
        names, self._pushable = self._pushable, set()
        self._links.notify(names)

    def _tick(self) -> None:
        for name in list(self._gateways):
            hit("tick-before")
            namespace = self._store.namespace(name)
            for expired in namespace.tick():
                self._instances.expire(name, expired.id, expired.attempt, expired.function)
            if namespace.has_chores():
                namespace.run_replays()
                if announce(namespace, self._settings.limits):
                    self._released(name)
            hit("tick-after")
        self._takeover.look(self._gateways)
        self._instances.check_timeouts()
        self._instances.unblock()

    def _second(self) -> None:
        # Hints can be lost, with the connection or in a burst: what they would have said is asked once a second.
        if self._store.outages != self._outages:
            self._outages = self._store.outages
            self._store.check_epochs()
        self._woken(self._wakeups)
        self._links.serve()
        self._sync_namespaces()
        self._policies.look()
        self._instances.sync()
        for name in self._gateways:
            self._released(name)
            self._instances.notify(name)
        for publisher in self._publishers.values():
            publisher.store_cursor()
        self._instances.write_documents()
        self._introduction.look()
        self._overload.look(self._gateways)
        self._load.look(self._gateways)
        self._store.record_heads()

    def _look_for_drift(self) -> None:
        """What this process keeps as it is declared, and somebody may have changed behind its back."""
        self._guard.check()
        self._policies.check(self._drift)
        self._overload.check(self._drift)

    def _account_was_refused(self, key: tuple[str, str, str]) -> None:
        detail = f"the broker refused the account of {key[0]}/{key[1]} ({key[2]}); it was made again"
        self._drift.found("account", "/".join(key), detail)

    def _tidy(self) -> None:
        for name in self._gateways:
            namespace = self._store.namespace(name)
            namespace.tidy({})
            namespace.fill_bodies()

    def _close(self) -> None:
        log.info("data_stopping")
        self._rounds.run()
        self._instances.close()
        self._accounts.close()
        self._links.stop()
        for publisher in self._publishers.values():
            publisher.store_cursor()
        for session in self._sessions.values():
            session.close()
        self._store.record_heads()
        self._store.close()
        log.info("data_stopped")


def main() -> None:
    """Entry point of the data process."""
    parser = argparse.ArgumentParser(prog="edgeflow.pop", description="The data process of one PoP.")
    parser.add_argument("--config", type=Path, required=True, help="the PoP's pop.json")
    arguments = parser.parse_args()
    settings = PopSettings.load(arguments.config)
    configure_logging(settings, "data")
    # Handlers' threads are elsewhere; what little runs beside this thread must not hold it up for 5 ms.
    sys.setswitchinterval(1e-4)
    # What is alive now stays; the collector need not look at it again, and what flows is freed by reference counts.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    try:
        DataProcess(settings).run()
    except EdgeflowError as error:
        log.critical("data_failed", code=error.code, error=error.message, hint=error.hint)
        sys.exit(1)


if __name__ == "__main__":
    main()
