"""Namespaces that come into being by an MQTT publish, without losing the message that did it.

What it is: one QoS 0 session that sees every topic, ignores what a gateway serves, and covers for a gateway until its own subscription is in place.
What it is not: a way in for anything else. It reads what a broker account with rights to a new namespace published, which only operators have.
What must stay true: of the messages of a new namespace none is lost between its first one and the gateway's subscription, and none is taken twice.

How the handover is exact: the broker is one thread, so for both sessions the messages of a namespace come in one and the same order. A marker,
published once the gateway is subscribed, comes to both. What the gateway got before the marker is the end of what this session got before it;
the rest of that is what the gateway missed.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from edgeflow.core.channels import NAMESPACE, is_reserved
from edgeflow.core.mqttprops import encode_properties
from edgeflow.flow.broker import BrokerSession
from edgeflow.flow.gateway import Gateway
from edgeflow.flow.pahofast import Message

log = structlog.get_logger(__name__)

MARKER_LEVEL = "_gateway"
MAX_HELD = 100_000


@dataclass(slots=True)
class _Handover:
    gateway: Gateway | None = None
    marker: str | None = None
    seen: list[Message] = field(default_factory=list)
    marked_here: bool = False
    held: int | None = None
    """Messages that the gateway got before the marker, once it has come there."""
    on_done: Callable[[], None] | None = None


class Discovery:
    """The handovers that are under way. `on_new(namespace)` creates a namespace and serves it, which calls `expect`."""

    def __init__(self, serves: Callable[[str], bool], on_new: Callable[[str], None]) -> None:
        self._serves = serves
        self._on_new = on_new
        self._open: dict[str, _Handover] = {}
        self._connected = False
        self.session: BrokerSession | None = None

    def expect(self, name: str, gateway: Gateway) -> None:
        """A gateway is about to subscribe for the first time; it holds what it gets until `done`."""
        self._open.setdefault(name, _Handover()).gateway = gateway
        gateway.hold(lambda topic, held: self._gateway_got(name, topic, held))

    def gateway_ready(self, name: str, on_done: Callable[[], None]) -> None:
        """The gateway is subscribed. `on_done` is called once the handover is over, at once when there is none."""
        handover = self._open.get(name)
        if handover is None:
            on_done()
            return
        handover.on_done = on_done
        self._send_marker(name, handover)

    def ready(self, _boot: str) -> None:
        """This session is connected."""
        self._connected = True
        for name, handover in self._open.items():
            if handover.on_done is not None:
                self._send_marker(name, handover)

    def lost(self) -> None:
        """This session is gone, and with it what it would have seen."""
        self._connected = False
        for handover in self._open.values():
            handover.seen.clear()
            handover.marked_here = False
            handover.held = None

    def take(self, message: Message) -> None:
        """One message of any namespace."""
        try:
            name, _, path = message.topic.partition("/")
        except UnicodeDecodeError:
            return
        handover = self._open.get(name)
        if handover is None:
            if self._serves(name) or is_reserved(message.topic) or not path or not NAMESPACE.fullmatch(name):
                return
            handover = self._open[name] = _Handover()
            log.info("namespace_discovered", namespace=name)
            self._on_new(name)
        if message.topic == handover.marker:
            handover.marked_here = True
            self._finish(name, handover)
        elif not handover.marked_here and not _is_marker(message.topic):
            if len(handover.seen) < MAX_HELD:
                handover.seen.append(message)
            elif len(handover.seen) == MAX_HELD:
                log.error("handover_overflow", namespace=name, limit=MAX_HELD)

    def _send_marker(self, name: str, handover: _Handover) -> None:
        if self._connected and self.session is not None:
            handover.marker = f"{name}/{MARKER_LEVEL}/{secrets.token_hex(8)}"
            self.session.publish(handover.marker, b"", encode_properties())
            self.session.flush()

    def _gateway_got(self, name: str, topic: str, held: int) -> bool:
        if not _is_marker(topic):
            return False
        handover = self._open.get(name)
        if handover is not None and topic == handover.marker:
            handover.held = held
            self._finish(name, handover)
        return True

    def _finish(self, name: str, handover: _Handover) -> None:
        gateway = handover.gateway
        if gateway is None or handover.held is None or not handover.marked_here:
            return
        del self._open[name]
        missed = handover.seen[: max(0, len(handover.seen) - handover.held)]
        gateway.go_on(missed)
        log.info("namespace_handed_over", namespace=name, messages=len(missed))
        if handover.on_done is not None:
            handover.on_done()


def _is_marker(topic: str) -> bool:
    return topic.partition("/")[2].startswith(MARKER_LEVEL + "/")
