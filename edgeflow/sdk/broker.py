"""The MQTT session of an instance with a `qos: 0` input.

What it is: one paho client on the broker's unix socket, driven by whoever owns it through `fileno`, `read`, `write` and `maintain`; no thread of its own.
What it is not: what messages mean and when they are handled (direct.py), or a durable subscription: nothing is kept, acknowledged or sent again.
What must stay true: no event is read while an answer cannot be written; whoever knows the client id could take the session over, so it is a secret.

This is the one part of the SDK that needs paho-mqtt. It relies on `_handle_publish` and `_in_packet`, which paho does not promise (its version is
bounded): paho's own decoding of the attributes takes longer than everything else that an event costs here.
"""

import random
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeflow.core.mqttprops import PackedProperties, PublishProperties, decode_properties
from edgeflow.errors import ProtocolError
from edgeflow.sdk.log import Log

_chance = random.Random()
"""Of our own: the global generator belongs to the program that uses this, which may have seeded it."""

Received = tuple[str, bytes, PublishProperties]
"""Topic, payload and properties of one message."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0
SEND_BUFFER_BYTES = 1 << 20


class BrokerSession:
    """One session: reconnects by itself, subscribes to one channel or filter, collects its messages in `received`."""

    def __init__(self, grant: Mapping[str, str], channel: str, keepalive_s: int, log: Log) -> None:
        """`grant`: socket, username, password and client_id, from the agent's welcome. Raises KeyError when one is missing."""
        self.received: deque[Received] = deque()
        self.subscribed = False
        self.refused = ""
        """Why the broker refused the account or the subscription; empty while it has not. A new grant helps."""
        self.grant = dict(grant)
        self._channel = channel
        self._keepalive_s = keepalive_s
        self._log = log
        self._open = True
        self._wait_s = FIRST_WAIT_S
        self._due_s: float | None = 0.0
        self._client = self._new_client()

    # -- for the owner -------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The socket's descriptor, -1 while there is none."""
        sock = self._client.socket()
        return -1 if sock is None else int(sock.fileno())

    @property
    def want_write(self) -> bool:
        """Whether something waits to be written."""
        return self._client.want_write()

    @property
    def due_s(self) -> float | None:
        """When (monotonic seconds) `maintain` has something to do besides keeping alive; None = nothing."""
        return self._due_s

    def maintain(self) -> None:
        """Connect when it is time, and keep a connection alive. Call at `due_s` and about once a second."""
        if self._due_s is None:
            self._client.loop_misc()
        elif time.monotonic() >= self._due_s:
            self._connect()

    def read(self) -> None:
        """Read one packet; a message goes to `received`."""
        self._client.loop_read()

    def write(self) -> None:
        """Write what waits, as far as the socket takes it."""
        self._client.loop_write()

    def publish(self, channel: str, payload: bytes, properties: bytes) -> bool:
        """Publish with packed properties; False when there is no connection and it is gone."""
        packed: Any = PackedProperties(properties)
        return self._client.publish(channel, payload, qos=0, properties=packed).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def renew(self, grant: Mapping[str, str]) -> None:
        """Go on with this grant: at once if it is another one or the old one was refused. Raises KeyError when a part is missing."""
        if dict(grant) == self.grant and not self.refused:
            return
        self.pause()
        self.grant = dict(grant)
        self._client = self._new_client()
        self.refused = ""
        self.resume()

    def pause(self) -> None:
        """Leave the broker; nothing is heard from now on."""
        self._open = False
        self._due_s = None
        if self._client.socket() is not None:
            self._client.disconnect()
            self._client.loop_write()
        self.subscribed = False
        self.received.clear()

    def resume(self) -> None:
        """Come back."""
        self._open = True
        self._wait_s = FIRST_WAIT_S
        self._due_s = time.monotonic()
        self.maintain()

    # -- paho ----------------------------------------------------------------------------------------------------------

    def _new_client(self) -> "_Client":
        client = _Client(self.received, self.grant["client_id"])
        client.username_pw_set(self.grant["username"], self.grant["password"])
        client.on_socket_open = _socket_opened
        client.on_connect = self._connected
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._disconnected
        return client

    def _connect(self) -> None:
        self._due_s = None
        try:
            self._client.connect(self.grant["socket"], keepalive=self._keepalive_s, clean_start=True)
            self._client.loop_write()
        except OSError as error:
            if self._wait_s > 1.0:
                self._log.warning("broker_unreachable", error=str(error))
            self._retry()

    def _retry(self) -> None:
        if self._open:
            self._due_s = time.monotonic() + self._wait_s * _chance.uniform(0.8, 1.2)
            self._wait_s = min(self._wait_s * 2, LONGEST_WAIT_S)

    def _connected(self, client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            self.refused = str(reason)
            self._log.warning("broker_refused", reason=str(reason))
            return
        # retainHandling=2: what is retained has been heard before, or is none of ours to begin with; as in the durable subscription.
        client.subscribe(
            self._channel, options=SubscribeOptions(qos=0, noLocal=True, retainAsPublished=True, retainHandling=2)
        )

    def _on_subscribe(
        self, _client: Client, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self.refused = ", ".join(str(reason) for reason in reasons)
            self._log.warning("subscription_refused", channel=self._channel, reason=self.refused)
            return
        self.subscribed = True
        self.refused = ""
        self._wait_s = FIRST_WAIT_S
        self._log.info("subscribed", channel=self._channel)

    def _disconnected(self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if self.subscribed and self._open:
            self._log.warning("broker_lost", reason=str(reason))
        self.subscribed = False
        self._retry()


class _Client(Client):
    """paho, with the decoding of a QoS 0 PUBLISH replaced."""

    def __init__(self, received: deque[Received], client_id: str) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5, transport="unix"
        )
        self._arrivals = received

    def _handle_publish(self) -> MQTTErrorCode:
        if self._in_packet["command"] & 0x06:
            return super()._handle_publish()
        packet = self._in_packet["packet"]
        try:
            # A broker sends whole topics to a client that has not allowed aliases.
            end = 2 + int.from_bytes(packet[:2], "big")
            topic = packet[2:end].decode()
            properties, at = decode_properties(packet, end)
        except (ProtocolError, UnicodeDecodeError):
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._arrivals.append((topic, bytes(packet[at:]), properties))
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def _socket_opened(_client: Client, _data: Any, sock: Any) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
