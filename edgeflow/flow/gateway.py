"""The gateway: what comes in over MQTT goes into the log, then is acknowledged.

What it is: for one namespace, the durable MQTT subscription of its functions, and the receipts on response topics.
What it is not: what goes out to MQTT subscribers (`publisher.py`).
What must stay true: a message is acknowledged to the broker only after it is in the log on disk, or refused by name; a redelivery that is in the
ring is acknowledged and not ingested again.

MQTT 5.0: 3.3.2.3.5 response topic, 4.4 delivery retry; CloudEvents MQTT protocol binding 1.0.2, binary and structured mode.
"""

import json
import uuid
import zlib
from collections.abc import Callable
from typing import Any

import structlog
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgeflow.core.channels import RECEIPTS_LEVEL, is_reserved
from edgeflow.core.events import dataref_of, from_cloudevent, make_event
from edgeflow.errors import BadEvent, BadName, EdgeflowError, TooLarge
from edgeflow.flow.broker import BrokerSession
from edgeflow.settings import Limits
from edgeflow.store import Arrival, Namespace, Receipt, Refusal
from edgeflow.store.namespace import now_ms

log = structlog.get_logger(__name__)

STRUCTURED = "application/cloudevents+json"


class Gateway:
    """One namespace's way in. Messages are collected by `take` and ingested together by `flush`."""

    def __init__(self, namespace: Namespace, limits: Limits, source: str, on_ingested: Callable[[str], None]) -> None:
        self._namespace = namespace
        self._limits = limits
        self._source = source
        self._on_ingested = on_ingested
        self._pending: list[tuple[MQTTMessage, Arrival | EdgeflowError]] = []
        self._boot = ""
        self.session: BrokerSession | None = None

    def ready(self, boot: str) -> None:
        """The session is connected to the broker life `boot`."""
        self._boot = boot

    def lost(self) -> None:
        """The session is gone: what was not ingested yet comes again as a redelivery."""
        self._pending.clear()

    def take(self, message: MQTTMessage) -> None:
        """Collect one message."""
        try:
            arrival: Arrival | EdgeflowError = self._arrival(message)
        except EdgeflowError as error:
            arrival = error
        self._pending.append((message, arrival))

    def flush(self) -> bool:
        """Ingest what was collected, send receipts, acknowledge. False when there was nothing."""
        if not self._pending or self.session is None:
            return False
        batch, self._pending = self._pending, []
        arrivals = [arrival for _, arrival in batch if isinstance(arrival, Arrival)]
        results = iter(self._namespace.ingest(arrivals)) if arrivals else iter(())
        for message, arrival in batch:
            result = next(results) if isinstance(arrival, Arrival) else Refusal("", arrival)
            if isinstance(result, Refusal):
                log.warning(
                    "publish_refused", namespace=self._namespace.name, channel=message.topic, code=result.error.code, error=result.error.message,
                    hint=result.error.hint,
                )  # fmt: skip
            self._answer(message, result)
            self.session.ack(message)
        self._on_ingested(self._namespace.name)
        return True

    def _arrival(self, message: MQTTMessage) -> Arrival:
        channel, payload = message.topic, bytes(message.payload)
        if is_reserved(channel):
            raise BadName(f"channel {channel!r} is reserved", hint="Levels that begin with _ belong to edgeflow.")
        if len(payload) > self._limits.event_bytes:
            raise TooLarge(f"the payload on {channel} has {len(payload)} bytes, an event may have {self._limits.event_bytes}")
        properties = message.properties
        attributes = {name: value for name, value in getattr(properties, "UserProperty", ())} if properties is not None else {}
        content_type = getattr(properties, "ContentType", None)
        now = now_ms()
        dataref = attributes.get("dataref")
        fallback_id = uuid.uuid4().hex
        if content_type is not None and content_type.partition(";")[0].strip().lower() == STRUCTURED:
            try:
                document = json.loads(payload)
            except ValueError:
                raise BadEvent(f"the payload on {channel} is not JSON, but its content type says CloudEvents JSON") from None
            event, dataref = from_cloudevent(document, channel, id=fallback_id, source=self._source, now_ms=now)
            own_id = "id" in document
        else:
            dataref = dataref or dataref_of(payload)
            event = make_event(
                channel, b"" if dataref else payload, id=attributes.get("id", fallback_id), source=attributes.get("source", self._source),
                now_ms=now, type=attributes.get("type"), subject=attributes.get("subject"), time=attributes.get("time"),
                datacontenttype=content_type, attributes=attributes,
            )  # fmt: skip
            own_id = "id" in attributes
        ring = None
        if message.qos:
            ring = f"{self._boot}:{message.mid}:{zlib.crc32(payload, zlib.crc32(channel.encode())):08x}"
        return Arrival(event, via="mqtt", dataref=dataref, deduplicate=own_id, ring=ring, again=bool(message.dup))

    def _answer(self, message: MQTTMessage, result: Receipt | Refusal) -> None:
        topic = getattr(message.properties, "ResponseTopic", None) if message.properties is not None else None
        if topic is None or self.session is None:
            return
        if not topic.startswith(f"{self._namespace.name}/{RECEIPTS_LEVEL}/") or "+" in topic or "#" in topic:
            log.warning("response_topic_refused", namespace=self._namespace.name, channel=message.topic, response_topic=topic[:200])
            return
        document: dict[str, Any]
        if isinstance(result, Receipt):
            document = result.to_json()
        else:
            document = {"class": "refused", "code": result.error.code, "detail": result.error.message, "hint": result.error.hint}
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        correlation = getattr(message.properties, "CorrelationData", None)
        if correlation is not None:
            properties.CorrelationData = correlation
        self.session.publish(topic, json.dumps(document).encode(), properties)
