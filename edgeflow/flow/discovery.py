"""Namespaces that come into being by an MQTT publish, without losing the message that did it.

What it is: one QoS 0 session that sees every topic, ignores what a gateway serves, and covers for a gateway until its own subscription is in place.
What it is not: a way in for anything else. It reads what a broker account with rights to a new namespace published, which only operators have.
What must stay true: of the messages of a new namespace none is lost between its first one and the gateway's subscription, none is taken twice, and
their order stays; while a gateway that is fed from here has enough to do, nothing is read, and the broker keeps what comes.

How the handover is exact: the broker is one thread, so the messages of a namespace come to both sessions in one and the same order. A marker,
published once the gateway is subscribed, comes to both. What comes to this session before the marker is handed to the gateway from here; what comes
to the gateway before the marker are copies of that, and what comes to it behind the marker waits until the marker has come here too.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from edgeflow.core.channels import NAMESPACE, is_reserved
from edgeflow.core.mqttprops import encode_properties
from edgeflow.flow.broker import BrokerSession
from edgeflow.flow.gateway import Gateway
from edgeflow.flow.pahofast import Message

log = structlog.get_logger(__name__)

MARKER_LEVEL = "_gateway"


@dataclass(slots=True)
class _Handover:
    gateway: Gateway | None = None
    marker: str | None = None
    messages: int = 0
    marked_here: bool = False
    marked_there: bool = False
    on_done: Callable[[], None] | None = None


class Discovery:
    """The handovers that are under way. `on_new(namespace)` creates a namespace and serves it, which calls `expect`."""

    def __init__(self, serves: Callable[[str], bool], on_new: Callable[[str], None]) -> None:
        self._serves = serves
        self._on_new = on_new
        self._open: dict[str, _Handover] = {}
        self._enough: set[str] = set()
        self._connected = False
        self.session: BrokerSession | None = None

    def expect(self, name: str, gateway: Gateway) -> None:
        """A gateway is about to subscribe for the first time."""
        self._open.setdefault(name, _Handover()).gateway = gateway
        gateway.cover(lambda topic: self._is_marker(name, topic), lambda wanted: self._read(name, wanted))

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
        """This session is gone."""
        self._connected = False

    def ignores(self, topic: bytes) -> bool:
        """Whether `take` has no use for messages of this topic. Asked for every message of the broker, so it is cheap."""
        name = topic.partition(b"/")[0].decode("ascii", "replace")
        return name not in self._open and self._serves(name)

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
        elif not handover.marked_here and not path.startswith(MARKER_LEVEL + "/") and handover.gateway is not None:
            handover.messages += 1
            handover.gateway.collect(message)

    def _read(self, name: str, wanted: bool) -> None:
        (self._enough.discard if wanted else self._enough.add)(name)
        if self.session is not None:
            self.session.read(not self._enough)

    def _send_marker(self, name: str, handover: _Handover) -> None:
        if self._connected and self.session is not None:
            handover.marked_here = handover.marked_there = False
            handover.marker = f"{name}/{MARKER_LEVEL}/{secrets.token_hex(8)}"
            self.session.publish(handover.marker, b"", encode_properties())
            self.session.flush()

    def _is_marker(self, name: str, topic: str) -> bool:
        handover = self._open.get(name)
        if handover is None or topic != handover.marker:
            return False
        handover.marked_there = True
        self._finish(name, handover)
        return True

    def _finish(self, name: str, handover: _Handover) -> None:
        if handover.gateway is None or not handover.marked_here or not handover.marked_there:
            return
        del self._open[name]
        self._read(name, True)
        handover.gateway.uncover()
        log.info("namespace_handed_over", namespace=name, messages=handover.messages)
        if handover.on_done is not None:
            handover.on_done()
