"""The gateway: what comes in over MQTT goes into the log, then is acknowledged.

What it is: for one namespace, the durable MQTT subscription of its functions, and the receipts on response topics.
What it is not: what goes out to MQTT subscribers (`publisher.py`).
What must stay true: a message is acknowledged to the broker only after it is in the log on disk, or refused by name; a redelivery that is in the
ring is acknowledged and not ingested again; messages are acknowledged in the order in which they came. (Mosquitto counts an acknowledgement far from
the head of its window as room and lets a new message past those that wait: seen with 2.0.11.) What is collected and waits for its round is bounded
in number and bytes, whatever the broker sends: above it the sockets that bring it are not read, and the broker keeps the rest.

MQTT 5.0: 3.3.2.3.5 response topic, 4.4 delivery retry; CloudEvents MQTT protocol binding 1.0.2, binary and structured mode.
"""

import json
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog

from edgeflow.core.channels import RECEIPTS_LEVEL, is_reserved
from edgeflow.core.durability import DURABLE, copies_of, replicated
from edgeflow.core.events import dataref_of, from_cloudevent, make_event, parse_cloudevent
from edgeflow.core.failpoints import hit
from edgeflow.core.ids import invocation_id
from edgeflow.core.mqttprops import encode_properties
from edgeflow.errors import (
    BadEvent,
    BadName,
    EdgeflowError,
    GatedChannel,
    NotFound,
    NotReplicated,
    QueueFull,
    QuotaExceeded,
    Throttled,
    TooLarge,
)
from edgeflow.flow.broker import BrokerSession
from edgeflow.flow.pahofast import Message
from edgeflow.flow.refusals import Refusals
from edgeflow.flow.replies import Replies
from edgeflow.settings import Limits
from edgeflow.store import Arrival, Namespace, Receipt, Refusal
from edgeflow.store.namespace import now_ms

log = structlog.get_logger(__name__)

_Taken = tuple[Message, Arrival | EdgeflowError | None]
"""A message and what it asks for; None: only to be acknowledged in its turn."""

STRUCTURED = "application/cloudevents+json"
REFUSALS_EVERY_S = 1.0
PENDING = 512
"""Above so many messages that wait for their round nothing more is read from the broker, until they are down to half of it."""
PENDING_BYTES = 16 * 1024 * 1024
"""The same for the bytes of their payloads."""

DURABILITY = "durability"
"""User property of a publish that asks for a class of receipt; it is no attribute of the event."""
COPIES_S = 30.0
"""How long other PoPs may take to confirm an event."""
Confirm = Callable[[str, Receipt, int, float, Callable[[int], None]], None]
"""(namespace, receipt, at how many other PoPs, how long (s), who is told how many it are)."""


class Gateway:
    """One namespace's way in. Messages are collected by `take`; a round ingests them together."""

    def __init__(
        self, namespace: Namespace, limits: Limits, source: str, replies: Replies, has_function: Callable[[str], bool]
    ) -> None:
        self._namespace = namespace
        self._limits = limits
        self._source = source
        self._replies = replies
        self._has_function = has_function
        self._pending: list[_Taken] = []
        self._batch: list[_Taken] = []
        self._connections = 0
        self._batch_of = 0
        self._noted: dict[str, tuple[float, int]] = {}
        self._refusals = Refusals()
        self._boot = ""
        self._is_marker: Callable[[str], bool] | None = None
        self._past_marker = False
        self._held: list[Message] = []
        self._bytes = self._held_bytes = 0
        self._reading = self._covering = True
        self._on_covering: Callable[[bool], None] | None = None
        self.session: BrokerSession | None = None
        self.confirm: Confirm | None = None
        """How a receipt of the class `replicated` is come by."""

    def ready(self, boot: str) -> None:
        """The session is connected to the broker life `boot`."""
        self._boot = boot

    def lost(self) -> None:
        """The session is gone: what it brought and was not ingested yet comes again as a redelivery."""
        self._connections += 1
        self._pending = [(message, arrival) for message, arrival in self._pending if not message.qos]
        self._held.clear()
        self._past_marker = False
        self._bytes, self._held_bytes = sum(len(message.payload) for message, _ in self._pending), 0
        self._watch()

    def cover(self, is_marker: Callable[[str], bool], on_covering: Callable[[bool], None]) -> None:
        """Another session covers for this one (see discovery.py): what comes before the marker is its to hand over, what comes after it waits.

        `on_covering` says whether that session should be read, or has brought enough for now.
        """
        self._is_marker = is_marker
        self._on_covering, self._covering = on_covering, True
        self._past_marker = False

    def uncover(self) -> None:
        """What was covered has been handed over: go on alone, first with what came behind the marker."""
        self._is_marker = None
        self._on_covering = None
        held, self._held, self._held_bytes = self._held, [], 0
        for message in held:
            self.collect(message)

    def take(self, message: Message) -> None:
        """One message of the own session."""
        if self._is_marker is None:
            self.collect(message)
        elif self._is_marker(message.topic):
            self._past_marker = True
            self._append(message, None)
        elif self._past_marker:
            self._held.append(message)
            self._held_bytes += len(message.payload)
            self._watch()
        else:
            # A copy of what came, or is about to come, over the covering session.
            self._append(message, None)

    def collect(self, message: Message) -> None:
        """Keep one message for the next round."""
        hit("gateway-received")
        try:
            arrival: Arrival | EdgeflowError = self._refusal(message) or self._arrival(message)
        except EdgeflowError as error:
            arrival = error
        except Exception as error:
            # A fault of ours must not come again with each redelivery and hold up what is behind it.
            log.exception("message_not_understood", namespace=self._namespace.name)
            arrival = EdgeflowError(f"the message could not be read: {error!r}")
        self._append(message, arrival)

    def _append(self, message: Message, arrival: Arrival | EdgeflowError | None) -> None:
        self._pending.append((message, arrival))
        self._bytes += len(message.payload)
        self._watch()

    def _watch(self) -> None:
        wanted = _wanted(self._reading, len(self._pending) + len(self._held), self._bytes + self._held_bytes)
        if wanted != self._reading:
            self._reading = wanted
            if self.session is not None:
                self.session.read(wanted)
        if self._on_covering is not None:
            # Without what is held here: it waits for the marker, which comes over there.
            wanted = _wanted(self._covering, len(self._pending), self._bytes)
            if wanted != self._covering:
                self._covering = wanted
                self._on_covering(wanted)

    @property
    def waiting(self) -> bool:
        """Whether a round should take what was collected."""
        return bool(self._pending)

    def channels(self, limit: int) -> set[str]:
        """Channels of the first `limit` that wait to be ingested."""
        return {arrival.event.channel for _, arrival in self._pending[:limit] if isinstance(arrival, Arrival)}

    def collected(self, limit: int) -> list[Arrival]:
        """What waits to be ingested, in order, at most `limit` of it, and what goes without the store; `finish` gets the results."""
        self._batch_of = self._connections
        taken: list[_Taken] = []
        wanted = 0
        for message, arrival in self._pending:
            if isinstance(arrival, Arrival):
                if wanted == limit:
                    break
                wanted += 1
            taken.append((message, arrival))
        self._batch, self._pending = taken, self._pending[len(taken) :]
        self._bytes -= sum(len(message.payload) for message, _ in self._batch)
        self._watch()
        if self._batch:
            hit("gateway-before-ingest")
        return [arrival for _, arrival in self._batch if isinstance(arrival, Arrival)]

    @property
    def turned_away(self) -> dict[str, int]:
        """How many of what `collected` took last were refused without the store, by counter."""
        counts: dict[str, int] = {}
        for _, arrival in self._batch:
            if isinstance(arrival, QueueFull | QuotaExceeded):
                name = "events_refused:full" if isinstance(arrival, QueueFull) else "events_refused:quota"
                counts[name] = counts.get(name, 0) + 1
        return counts

    def put_back(self) -> None:
        """What `collected` returned could not be taken; a later round tries again."""
        for _, arrival in self._batch:
            if isinstance(arrival, Arrival):
                arrival.again = True
        if self._batch_of != self._connections:
            # The connection was lost meanwhile: what it brought comes again by itself.
            self._batch = [(message, arrival) for message, arrival in self._batch if not message.qos]
        self._bytes += sum(len(message.payload) for message, _ in self._batch)
        self._batch, self._pending = [], self._batch + self._pending

    def finish(self, results: Sequence[Receipt | Refusal], ended: Iterable[str] = ()) -> None:
        """Send receipts and acknowledge what `collected` returned. `ended`: the inbox of each invocation that ended in the same round, behind it."""
        learned = False
        batch, self._batch = self._batch, []
        if batch:
            hit("gateway-after-ingest")
        answers = iter(results)
        for message, arrival in batch:
            if arrival is not None:
                result = next(answers) if isinstance(arrival, Arrival) else Refusal("", arrival)
                if isinstance(result, Refusal):
                    if isinstance(arrival, Arrival):
                        learned = True
                        self._refusals.learn(
                            self._namespace.routes(), message.topic, len(message.payload), result.error
                        )
                    self._note_refusal(message, result.error)
                self._answer(message, result)
            # A message id of a connection that was lost meanwhile may mean another message by now.
            if self.session is not None and self._batch_of == self._connections:
                self.session.ack(message)
        if batch and self.session is not None:
            hit("gateway-acked", self.session.flush)
        self._refusals.ended(ended)
        if learned:
            # What was understood before that was known.
            self._pending = [
                (message, self._refusal(message) or arrival)
                if isinstance(arrival, Arrival) and not arrival.again
                else (message, arrival)
                for message, arrival in self._pending
            ]

    def _refusal(self, message: Message) -> EdgeflowError | None:
        """Why this is refused before it is looked at. What comes again may be in the log: the store knows."""
        if message.dup or len(message.payload) > self._limits.event_bytes:
            return None
        try:
            return self._refusals.of(message.topic, len(message.payload))
        except UnicodeDecodeError:
            return None

    def _note_refusal(self, message: Message, error: EdgeflowError) -> None:
        """One line a second for each code: a flood that is refused must not cost more than one that is taken."""
        since, refused = self._noted.get(error.code, (0.0, 0))
        now = time.monotonic()
        if now - since < REFUSALS_EVERY_S:
            self._noted[error.code] = (since, refused + 1)
            return
        self._noted[error.code] = (now, 0)
        log.warning(
            "publish_refused", namespace=self._namespace.name, channel=message.topic, code=error.code, error=error.message, hint=error.hint,
            more_since=refused,
        )  # fmt: skip

    def _arrival(self, message: Message) -> Arrival:
        try:
            channel = message.topic
        except UnicodeDecodeError:
            raise BadName("a topic is not UTF-8") from None
        payload = bytes(message.payload)
        table = self._namespace.routes()
        invoked = table.invoked(channel)
        if invoked is not None:
            if not self._has_function(invoked):
                raise NotFound(f"there is no function {invoked!r} in namespace {self._namespace.name!r}")
        elif is_reserved(channel):
            raise BadName(f"channel {channel!r} is reserved", hint="Levels that begin with _ belong to edgeflow.")
        if table.policy(channel).gated:
            raise GatedChannel(f"channel {channel!r} is gated")
        if len(payload) > self._limits.event_bytes:
            raise TooLarge(
                f"the payload on {channel} has {len(payload)} bytes, an event may have {self._limits.event_bytes}"
            )
        properties = message.decoded
        attributes = dict(properties.user)
        if copies_of(attributes.pop(DURABILITY, DURABLE)) is None:
            raise BadEvent(
                f"{dict(properties.user)[DURABILITY][:40]!r} is no class of durability",
                hint="Ask for durable or replicated:<k>.",
            )
        content_type = properties.content_type
        now = now_ms()
        dataref = attributes.get("dataref")
        if content_type is not None and content_type.partition(";")[0].strip().lower() == STRUCTURED:
            document = parse_cloudevent(payload)
            event, dataref = from_cloudevent(document, channel, id=uuid.uuid4().hex, source=self._source, now_ms=now)
            own_id = "id" in document
        else:
            dataref = dataref or dataref_of(payload)
            own_id = "id" in attributes
            event = make_event(
                channel, b"" if dataref else payload, id=attributes["id"] if own_id else uuid.uuid4().hex, source=attributes.get("source", self._source),
                now_ms=now, type=attributes.get("type"), subject=attributes.get("subject"), time=attributes.get("time"),
                datacontenttype=content_type, attributes=attributes,
            )  # fmt: skip
        # A QoS 0 message is never redelivered by the broker, but a round that found no room may repeat it.
        mark = (
            f"{message.mid}:{zlib.crc32(payload, zlib.crc32(channel.encode())):08x}"
            if message.qos
            else uuid.uuid4().hex
        )
        ring = f"{self._boot}:{mark}"
        return Arrival(event, via="mqtt", dataref=dataref, deduplicate=own_id, ring=ring, again=bool(message.dup))

    def _answer(self, message: Message, result: Receipt | Refusal) -> None:
        topic = message.decoded.response_topic
        if topic is None or self.session is None:
            return
        if not topic.startswith(f"{self._namespace.name}/{RECEIPTS_LEVEL}/") or "+" in topic or "#" in topic:
            log.warning(
                "response_topic_refused",
                namespace=self._namespace.name,
                channel=message.topic,
                response_topic=topic[:200],
            )
            return
        document: dict[str, Any]
        if isinstance(result, Receipt):
            invoked = self._namespace.routes().invoked(message.topic)
            if invoked is not None and result.seq:
                # Not a receipt but the outcome: it comes when the function is done.
                id = invocation_id(invoked, result.origin, result.epoch, result.seq, 0)
                self._replies.ask(id, topic, message.decoded.correlation)
                return
            document = result.to_json()
            copies = copies_of(dict(message.decoded.user).get(DURABILITY, DURABLE))
            if copies and result.class_ == DURABLE:
                self._answer_replicated(topic, message.decoded.correlation, result, copies)
                return
        else:
            document = {
                "class": "refused",
                "code": result.error.code,
                "detail": result.error.message,
                "hint": result.error.hint,
            }
            if isinstance(result.error, Throttled):
                document["retry_after_s"] = result.error.retry_after_s
        self._tell(topic, message.decoded.correlation, document)

    def _answer_replicated(self, topic: str, correlation: bytes | None, receipt: Receipt, copies: int) -> None:
        """The receipt when that many other PoPs have the event, or that they do not have it in time."""

        def done(confirmed: int) -> None:
            document = receipt.to_json()
            if confirmed >= copies:
                document["class"] = replicated(confirmed)
            else:
                late = NotReplicated(
                    f"{confirmed} of {copies} other PoPs have confirmed the event within {COPIES_S:g} s"
                )
                document = {"class": "not-replicated", "code": late.code, "detail": late.message, "receipt": document}
            self._tell(topic, correlation, document)

        try:
            if self.confirm is None:
                raise NotReplicated("this PoP has no links")
            self.confirm(self._namespace.name, receipt, copies, COPIES_S, done)
        except EdgeflowError as error:
            document = {
                "class": "not-replicated",
                "code": error.code,
                "detail": error.message,
                "receipt": receipt.to_json(),
            }
            self._tell(topic, correlation, document)

    def _tell(self, topic: str, correlation: bytes | None, document: dict[str, Any]) -> None:
        if self.session is not None:
            properties = encode_properties(content_type="application/json", correlation=correlation)
            self.session.publish(topic, json.dumps(document).encode(), properties)


def _wanted(reading: bool, messages: int, size_bytes: int) -> bool:
    """Whether to read on, with so much that waits. Half of the bound lies between no more and again, so that it is not asked with every message."""
    part = 1 if reading else 2
    return messages < PENDING // part and size_bytes < PENDING_BYTES // part
