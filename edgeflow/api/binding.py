"""CloudEvents over HTTP: from a request to one arrival.

What it is: the binary mode (`ce-*` headers, the body is the data), the structured mode (`application/cloudevents+json`) and the plain way
(no header at all), as the CloudEvents HTTP binding 1.0.2 describes them, and the data reference `{"dataref": "ekv:<namespace>/<key>"}`.
What it is not: the rules for attributes (edgeflow.core.events), or what an arrival does (the store).
What must stay true: what the log sets (origin, epoch, seq, prev) is never taken from a client; the same payload means the same over HTTP and MQTT.
"""

import uuid
from collections.abc import Iterable

from starlette.types import Scope

from edgeflow.api.problems import AckNotSupported, Reserved, UnsupportedMediaType
from edgeflow.core.ceheaders import STRUCTURED, decode, encode, media_type
from edgeflow.core.channels import SYSTEM_NAMESPACE, check_channel, is_reserved, namespace_of
from edgeflow.core.durability import copies_of
from edgeflow.core.events import Event, dataref_of, from_cloudevent, make_event, parse_cloudevent
from edgeflow.core.gathered import BATCH
from edgeflow.errors import BadEvent, TooLarge
from edgeflow.settings import Limits

FORM = "application/x-www-form-urlencoded"
"""What curl says about `--data-binary` when it is told nothing: not a statement about the data."""
TRACE_HEADERS = ("traceparent", "tracestate")
OCTETS = "application/octet-stream"


def check_open(channel: str) -> str:
    """`channel` itself. Raises BadName when it is none, Reserved when only edgeflow may publish on it."""
    check_channel(channel)
    if is_reserved(channel) or namespace_of(channel) == SYSTEM_NAMESPACE:
        raise Reserved(f"the channel {channel!r} belongs to edgeflow")
    return channel


def headers_of(scope: Scope) -> list[tuple[str, str]]:
    """The headers of a request as text."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


def event_headers(event: Event) -> dict[str, str]:
    """A response's headers for `event` in the binary mode: `ce-*` with percent-encoded values, and its content type."""
    headers = {
        f"ce-{name}": encode(value)
        for name, value in {"specversion": "1.0", **event.wire_attributes(), "channel": event.channel}.items()
    }
    return {**headers, "Content-Type": event.datacontenttype or OCTETS}


def parse_ack(ack: str | None, prefer: str | None) -> int:
    """At how many other PoPs an event shall be before it is acknowledged: 0 for `durable`. Raises AckNotSupported for what is no class."""
    asked = [ack] if ack is not None else []
    for preference in (prefer or "").split(","):
        name, _, value = preference.strip().partition("=")
        if name.lower() == "ack":
            asked.append(value.strip('"'))
    copies = 0
    for name in asked:
        found = copies_of(name)
        if found is None:
            raise AckNotSupported(f"the acknowledgement class {name[:40]!r} is not offered over HTTP")
        copies = max(copies, found)
    return copies


def event_from_request(
    channel: str, headers: Iterable[tuple[str, str]], body: bytes, *, pop: str, now_ms: int, limits: Limits, takes_batch: bool = False
) -> tuple[Event, str | None, bool]:  # fmt: skip
    """(event, its dataref or None, whether the client gave it an id) of one POST. With `takes_batch` a batch of CloudEvents is the data of one event.

    Raises BadName, BadEvent, TooLarge or UnsupportedMediaType.
    """
    check_channel(channel)
    content_type: str | None = None
    attributes: dict[str, str] = {}
    for name, value in headers:
        if name == "content-type":
            content_type = stated_type(value)
        elif name.startswith("ce-"):
            attributes[name[3:]] = decode(name, value)
        elif name in TRACE_HEADERS:
            attributes.setdefault(name, value)
    kind = media_type(content_type)
    made_id, source = uuid.uuid4().hex, f"urn:edgeflow:{pop}:http"
    if kind.startswith("application/cloudevents") and not (takes_batch and kind == BATCH):
        if kind != STRUCTURED:
            raise UnsupportedMediaType(
                f"{kind} is not supported",
                hint=f"Send {STRUCTURED}, one event per request, or ce-* headers and the data.",
            )
        document = parse_cloudevent(body)
        event, dataref = from_cloudevent(document, channel, id=made_id, source=source, now_ms=now_ms)
    else:
        if "datacontenttype" in attributes:
            raise BadEvent("ce-datacontenttype is not a header of the binary mode", hint="Send it as Content-Type.")
        if attributes.get("specversion", "1.0") != "1.0":
            raise BadEvent(
                f"specversion {attributes['specversion'][:20]!r} is not supported",
                hint="Send ce-specversion: 1.0, or leave it out.",
            )
        dataref = attributes.get("dataref") or (dataref_of(body) if kind in ("application/json", "") else None)
        event = make_event(
            channel, b"" if dataref else body, id=attributes.get("id", made_id), source=attributes.get("source", source), now_ms=now_ms,
            type=attributes.get("type"), subject=attributes.get("subject"), time=attributes.get("time"),
            datacontenttype=None if dataref else content_type, attributes=attributes,
        )  # fmt: skip
    _check_limits(event, limits)
    return event, dataref, event.id != made_id


def stated_type(content_type: str | None) -> str | None:
    """A Content-Type header, or None when the client did not state one."""
    text = (content_type or "").strip()
    return None if not text or text.partition(";")[0].strip().lower() == FORM else text


def _check_limits(event: Event, limits: Limits) -> None:
    if event.size_bytes > limits.event_bytes:
        raise TooLarge(
            f"the event's data of {event.size_bytes} bytes is larger than the limit of {limits.event_bytes} bytes"
        )
    if len(event.attributes) > limits.attributes:
        raise BadEvent(f"{len(event.attributes)} extension attributes are more than the limit of {limits.attributes}")
    for name, value in (
        ("id", event.id),
        ("source", event.source),
        ("type", event.type),
        ("subject", event.subject or ""),
        *event.attributes.items(),
    ):
        if len(value.encode()) > limits.attribute_bytes:
            raise BadEvent(f"attribute {name} is longer than {limits.attribute_bytes} bytes")
