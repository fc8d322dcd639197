"""One MQTT 5 session with this PoP's broker, driven by the reactor.

What it is: paho without its threads, its sockets registered with the reactor, reconnecting for ever.
What it is not: what the messages mean (`gateway.py`, `publisher.py`).
What must stay true: client ids are secrets, since whoever knows one can take the session over; messages are acknowledged by hand, after the ingest.
"""

import secrets
import socket
from collections.abc import Callable
from typing import Any

import structlog
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeflow.core.mqttprops import encode_properties
from edgeflow.flow.pahofast import FastClient, Message
from edgeflow.flow.reactor import READ, WRITE, Reactor, Timer
from edgeflow.settings import MqttSettings

log = structlog.get_logger(__name__)

SESSION_EXPIRY_S = 7 * 24 * 3600
BOOT_TOPIC = "_edgeflow/boot"
_BOOT_WAIT_S = 0.1
_KEEPALIVE_S = 30


class BrokerSession:
    """One session. `on_ready(boot_id)` is called after each connect once the boot id is known; messages that came before are kept until then."""

    def __init__(
        self, reactor: Reactor, settings: MqttSettings, client_id: str, topic_filter: str, *, on_message: Callable[[Message], None],
        on_ready: Callable[[str], None], on_lost: Callable[[], None], on_published: Callable[[int], None], durable: bool = True,
        ignores: Callable[[bytes], bool] | None = None,
    ) -> None:  # fmt: skip
        """`durable`: a session that outlives the connection, QoS 1 and without its own publishes; else none of it. `ignores`: topics of no interest."""
        self._reactor = reactor
        self._settings = settings
        self._filter = topic_filter
        self._durable = durable
        self._on_message = on_message
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._socket: Any = None
        self._events = 0
        self._reading, self._writing = True, False
        self._boot: str | None = None
        self._held: list[Message] = []
        self._boot_timer: Timer | None = None
        self._backoff_s = 0.05
        self._closed = False
        self.connected = False
        client = FastClient(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True,
            transport="unix" if settings.socket is not None else "tcp",
        )  # fmt: skip
        client.username_pw_set(settings.username, settings.password_file.read_text().strip())
        client.max_inflight_messages_set(settings.receive_maximum)
        client.max_queued_messages_set(0)
        client.on_socket_open = self._socket_opened
        client.on_socket_close = self._socket_closed
        client.on_socket_register_write = lambda *_: self._want_write(True)
        client.on_socket_unregister_write = lambda *_: self._want_write(False)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_message = self._message
        client.on_subscribe = self._subscribed
        client.ignores = ignores
        client.on_publish = lambda _client, _data, mid, _reason, _properties: on_published(mid)
        self._client = client
        self._connect()
        reactor.call_every(5.0, self._keep_alive)

    # -- for the owner -------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, properties: bytes, *, retain: bool = False) -> int:
        """Queue a QoS 1 publish with packed properties; its message id, which `on_published` gets when the broker confirmed it."""
        return self._client.publish_packed(topic, payload, properties, retain=retain)

    def ack(self, message: Message) -> None:
        """Acknowledge a received message."""
        self._client.ack(message.mid, message.qos)

    def read(self, wanted: bool) -> None:
        """Whether the socket is read, once the boot id is known. While it is not, the broker keeps what it has for this session, confirmations too."""
        self._reading = wanted
        self._wait_for_socket()

    def flush(self) -> None:
        """Write what is queued, as far as the socket takes it."""
        if self._socket is not None and self._client.want_write():
            self._client.loop_write()

    def close(self) -> None:
        """Disconnect; the session stays at the broker."""
        self._closed = True
        self.flush()
        self._client.disconnect()
        self.flush()

    # -- connection ----------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._closed:
            return
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S if self._durable else 0
        properties.ReceiveMaximum = self._settings.receive_maximum
        host = str(self._settings.socket) if self._settings.socket is not None else self._settings.host
        try:
            self._client.connect(
                host, self._settings.port, keepalive=_KEEPALIVE_S, clean_start=not self._durable, properties=properties
            )
            self.flush()
        except OSError as error:
            log.debug("broker_unreachable", error=str(error))
            self._retry()

    def _retry(self) -> None:
        self._reactor.call_later(self._backoff_s, self._connect)
        self._backoff_s = min(self._backoff_s * 2, 2.0)

    def _connected(
        self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        if reason.is_failure:
            log.error("broker_refused", reason=str(reason), filter=self._filter)
            return
        self._backoff_s = 0.05
        self._boot = None
        # retainHandling=2 on the data: noLocal does not keep the broker from handing our own retained publishes back.
        data = SubscribeOptions(qos=int(self._durable), noLocal=self._durable, retainAsPublished=True, retainHandling=2)
        # QoS 0: the boot id comes past what waits for room in the window.
        boot = SubscribeOptions(qos=0, noLocal=False, retainAsPublished=True, retainHandling=0)
        self._client.subscribe([(BOOT_TOPIC, boot), (self._filter, data)])

    def _subscribed(
        self, _client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            log.error("subscribe_refused", filter=self._filter, reasons=refused)
        if self._boot is None:
            self._boot_timer = self._reactor.call_later(_BOOT_WAIT_S, self._propose_boot)

    def _propose_boot(self) -> None:
        # No retained id: the broker has lost its state, or is new. If another session proposes at the same moment, the one retained last is
        # seen at the next connect, and costs one rewind too many.
        if self._boot is None and self._socket is not None:
            boot = secrets.token_hex(8)
            self.publish(BOOT_TOPIC, boot.encode(), encode_properties(), retain=True)
            self._ready(boot)

    def _ready(self, boot: str) -> None:
        self._boot = boot
        if self._boot_timer is not None:
            self._boot_timer.cancel()
        self.connected = True
        self._on_ready(boot)
        held, self._held = self._held, []
        for message in held:
            self._on_message(message)
        self._wait_for_socket()

    def _message(self, _client: Client, _data: Any, message: Any) -> None:
        if message.topic == BOOT_TOPIC:
            if self._boot is None and message.payload:
                self._ready(message.payload.decode(errors="replace"))
        elif self._boot is None:
            self._held.append(message)
        else:
            self._on_message(message)

    def _disconnected(self, *_arguments: Any) -> None:
        was_connected = self.connected
        self.connected = False
        self._boot = None
        self._held.clear()
        if was_connected:
            log.warning("broker_lost", filter=self._filter)
        self._on_lost()
        if not self._closed:
            self._retry()

    def _keep_alive(self) -> None:
        if self._socket is None:
            return
        if not self._is_read:
            # An answer to a ping may be there and unread. A ping is still sent whenever one is due, so the broker knows that this end is alive.
            self._client._ping_t = 0.0
        self._client.loop_misc()

    # -- sockets -------------------------------------------------------------------------------------------------------

    def _socket_opened(self, _client: Client, _data: Any, sock: Any) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket = sock
        self._client.start_reading()
        self._events = 0
        self._writing = False
        self._wait_for_socket()

    def _socket_closed(self, _client: Client, _data: Any, sock: Any) -> None:
        if self._socket is not None:
            if self._events:
                self._reactor.unregister(sock)
            self._socket = None

    def _want_write(self, wanted: bool) -> None:
        self._writing = wanted
        self._wait_for_socket()

    @property
    def _is_read(self) -> bool:
        return self._reading or self._boot is None

    def _wait_for_socket(self) -> None:
        events = (READ if self._is_read else 0) | (WRITE if self._writing else 0)
        if self._socket is None or events == self._events:
            return
        if not events:
            self._reactor.unregister(self._socket)
        elif not self._events:
            self._reactor.register(self._socket, events, self._on_socket)
        else:
            self._reactor.modify(self._socket, events)
        self._events = events

    def _on_socket(self, events: int) -> None:
        if events & READ and self._is_read:
            self._client.read_packets()
        if events & WRITE and self._socket is not None:
            self._client.loop_write()
