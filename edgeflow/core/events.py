"""The event: one message on a channel, and its CloudEvents 1.0 forms.

What it is: one frozen dataclass, its compact stored form, and the codecs between it and CloudEvents (binary attributes, structured JSON).
What it is not: transport. MQTT properties and HTTP headers are mapped at the edges.
What must stay true: an event refers to immutable data only, inline or by digest; the log position (origin, epoch, seq, index, prev) is set
by the log and never taken from a client.

Reference: CloudEvents 1.0.2, sections "Context Attributes" and "JSON Event Format"; the `dataref` extension (claim check pattern).
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from edgeflow.core.channels import check_channel
from edgeflow.errors import BadEvent

ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,20}")
LOG_ATTRIBUTES = frozenset({"origin", "epoch", "seq", "prev"})
CORE_ATTRIBUTES = frozenset(
    {"id", "source", "type", "subject", "time", "datacontenttype", "dataref", "specversion", "dataschema"}
)
DEFAULT_TYPE = "edgeflow.message"
MAX_DATAREF_BYTES = 2048
MAX_JSON_DEPTH = 100
"""Deepest JSON of a structured event; what is deeper as the data of an event is passed on as bytes."""
_BRACKETS = re.compile(rb"[][{}]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST_TIME_MS = 253_402_300_799_000  # the end of year 9999, the last that RFC 3339 can say


@dataclass(frozen=True, slots=True)
class BlobRef:
    """An immutable body: `sha256:<64 hex>` and its size in bytes."""

    digest: str
    size: int


@dataclass(slots=True)
class Event:
    """One message on a channel. Exactly one of `data` and `ref` is set.

    Nobody changes one after it is made. It is not frozen because a frozen dataclass with slots pays a call for each of its sixteen fields, and each
    event is made several times on its way.
    """

    channel: str
    id: str
    source: str
    type: str
    time_ms: int
    data: bytes | None = None
    ref: BlobRef | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    hop: int = 0
    origin: str = ""
    epoch: int = 0
    seq: int = 0
    index: int = 0
    prev: int = 0

    @property
    def size_bytes(self) -> int:
        """Size of the body."""
        return self.ref.size if self.ref else len(self.data or b"")

    def encode(self) -> dict[str, Any]:
        """The stored form: a map with short keys, without what is empty and without the log position."""
        stored: dict[str, Any] = {"c": self.channel, "i": self.id, "s": self.source, "y": self.type, "t": self.time_ms}
        if self.ref is not None:
            stored["r"] = [self.ref.digest, self.ref.size]
        else:
            stored["d"] = self.data or b""
        if self.subject is not None:
            stored["u"] = self.subject
        if self.datacontenttype is not None:
            stored["m"] = self.datacontenttype
        if self.attributes:
            stored["a"] = dict(self.attributes)
        if self.hop:
            stored["h"] = self.hop
        return stored

    def encode_positioned(self) -> dict[str, Any]:
        """The stored form with the log position, for the instance protocol."""
        stored = self.encode()
        stored["p"] = [self.origin, self.epoch, self.seq, self.index, self.prev]
        return stored

    @classmethod
    def decode(cls, stored: Mapping[str, Any]) -> "Event":
        """From the stored form, with or without a log position. Raises BadEvent when a part is missing or of the wrong type."""
        try:
            ref = stored.get("r")
            origin, epoch, seq, index, prev = stored.get("p") or ("", 0, 0, 0, 0)
            return cls(
                channel=stored["c"], id=stored["i"], source=stored["s"], type=stored["y"], time_ms=int(stored["t"]),
                data=None if ref else stored.get("d", b""), ref=BlobRef(ref[0], int(ref[1])) if ref else None,
                subject=stored.get("u"), datacontenttype=stored.get("m"), attributes=stored.get("a") or {}, hop=int(stored.get("h", 0)),
                origin=origin, epoch=int(epoch), seq=int(seq), index=int(index), prev=int(prev),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadEvent(f"a stored event is damaged: {error!r}") from None

    def at(self, origin: str, epoch: int, seq: int, index: int, prev: int) -> "Event":
        """The same event with its log position."""
        return Event(
            self.channel, self.id, self.source, self.type, self.time_ms, self.data, self.ref, self.subject, self.datacontenttype, self.attributes,
            self.hop, origin, epoch, seq, index, prev,
        )  # fmt: skip

    def wire_attributes(self) -> dict[str, str]:
        """All CloudEvents attributes except `specversion`, `datacontenttype` and `dataref`, as text, for MQTT user properties and HTTP headers."""
        attributes = {"id": self.id, "source": self.source, "type": self.type, "time": time_text(self.time_ms)}
        if self.subject is not None:
            attributes["subject"] = self.subject
        if self.origin:
            attributes["origin"] = self.origin
            attributes["epoch"] = str(self.epoch)
            attributes["seq"] = str(self.seq)
            attributes["prev"] = str(self.prev)
        attributes.update(self.attributes)
        return attributes

    def to_cloudevent(self, data: bytes | None, *, url: str | None = None) -> dict[str, Any]:
        """Structured JSON form. With `data`, the body goes inside (text and JSON as they are, anything else base64); else `dataref` is `url`."""
        document: dict[str, Any] = {"specversion": "1.0", **self.wire_attributes(), "channel": self.channel}
        if self.origin:
            document.update(epoch=self.epoch, seq=self.seq, prev=self.prev)
        if self.datacontenttype is not None:
            document["datacontenttype"] = self.datacontenttype
        if data is None:
            document["dataref"] = url
            document["size"] = self.size_bytes
            return document
        kind = (self.datacontenttype or "").partition(";")[0].strip().lower()
        if (kind == "application/json" or kind.endswith("+json")) and not is_too_deep(data):
            try:
                document["data"] = json.loads(data)
                return document
            except ValueError:
                pass
        elif kind.startswith("text/"):
            try:
                document["data"] = data.decode()
                return document
            except UnicodeDecodeError:
                pass
        document["data_base64"] = base64.b64encode(data).decode()
        return document


def make_event(
    channel: str, data: bytes, *, id: str, source: str, now_ms: int, type: str | None = None, subject: str | None = None, time: str | None = None,
    datacontenttype: str | None = None, attributes: Mapping[str, str] | None = None, hop: int = 0,
) -> Event:  # fmt: skip
    """A checked event from what a client said. Attributes of the log (origin, epoch, seq, prev) are stripped.

    Raises BadName for the channel, BadEvent for anything else that is not valid.
    """
    check_channel(channel)
    for name, value in (("id", id), ("source", source), ("type", type or DEFAULT_TYPE)):
        check_text(name, value)
        if not value:
            raise BadEvent(f"attribute {name} is empty")
    if subject is not None:
        check_text("subject", subject)
    if datacontenttype is not None:
        check_text("datacontenttype", datacontenttype)
    extensions: dict[str, str] = {}
    for name, value in (attributes or {}).items():
        if name in LOG_ATTRIBUTES or name in CORE_ATTRIBUTES:
            continue
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise BadEvent(f"attribute name {name!r} is not [a-z0-9]{{1,20}}")
        extensions[name] = check_text(name, value)
    return Event(
        channel=channel, id=id, source=source, type=type or DEFAULT_TYPE, time_ms=now_ms if time is None else parse_time(time), data=data,
        subject=subject or None, datacontenttype=datacontenttype or None, attributes=extensions, hop=hop,
    )  # fmt: skip


def from_cloudevent(document: Any, channel: str, *, id: str, source: str, now_ms: int) -> tuple[Event, str | None]:
    """An event, and its `dataref` if it has one, from CloudEvents structured JSON; `id` and `source` fill what is missing.

    Raises BadEvent when the document is not a CloudEvent.
    """
    if not isinstance(document, dict):
        raise BadEvent("a structured CloudEvent is a JSON object")
    if document.get("specversion") != "1.0":
        raise BadEvent(
            f"specversion {document.get('specversion')!r} is not supported", hint='Send "specversion": "1.0".'
        )
    if "data" in document and "data_base64" in document:
        raise BadEvent("a CloudEvent has data or data_base64, not both")
    content_type = document.get("datacontenttype")
    if "data_base64" in document:
        try:
            data = base64.b64decode(document["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise BadEvent("data_base64 is not base64") from None
    elif "data" in document:
        value = document["data"]
        is_text = isinstance(value, str) and content_type is not None and "json" not in content_type
        data = value.encode() if is_text else json.dumps(value, separators=(",", ":")).encode()
        content_type = content_type or "application/json"
    else:
        data = b""
    texts = {}
    for name, value in document.items():
        if name in ("data", "data_base64", "channel"):
            continue
        if isinstance(value, bool):
            value = "true" if value else "false"
        if not isinstance(value, str | int):
            raise BadEvent(f"attribute {name} is a {type(value).__name__}, not text")
        texts[name] = str(value)
    event = make_event(
        channel, data, id=texts.get("id", id), source=texts.get("source", source), now_ms=now_ms, type=texts.get("type"),
        subject=texts.get("subject"), time=texts.get("time"), datacontenttype=content_type, attributes=texts,
    )  # fmt: skip
    return event, texts.get("dataref")


def parse_cloudevent(payload: bytes) -> Any:
    """The document of a structured CloudEvent. Raises BadEvent when it is not JSON, or nested too deeply to be handled everywhere."""
    if is_too_deep(payload):
        raise BadEvent(
            f"a structured CloudEvent has lists and objects inside each other more than {MAX_JSON_DEPTH} times"
        )
    try:
        return json.loads(payload)
    except ValueError:
        raise BadEvent("the body is not JSON, but its content type says CloudEvents JSON") from None


def is_too_deep(text: bytes) -> bool:
    """Whether JSON may be nested more than MAX_JSON_DEPTH times (brackets inside of strings count as well)."""
    if text.count(b"[") + text.count(b"{") <= MAX_JSON_DEPTH:
        return False
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            return True
    return False


def dataref_of(payload: bytes) -> str | None:
    """The reference of a payload that is nothing but `{"dataref": "..."}`; None for any other payload."""
    if len(payload) > MAX_DATAREF_BYTES or not payload.lstrip().startswith(b"{") or is_too_deep(payload):
        return None
    try:
        document = json.loads(payload)
    except ValueError:
        return None
    if isinstance(document, dict) and set(document) == {"dataref"} and isinstance(document["dataref"], str):
        return str(document["dataref"])
    return None


def parse_ekv_ref(dataref: str, namespace: str) -> tuple[str, str | None]:
    """(key, version or None) of `ekv:<namespace>/<key>[@<version>]`. Raises BadEvent for another scheme or namespace."""
    if not dataref.startswith("ekv:"):
        raise BadEvent(
            f"dataref {dataref[:80]!r} is not of the form ekv:<namespace>/<key>",
            hint="PUT the data into the EKV first.",
        )
    owner, _, key = dataref[4:].partition("/")
    if owner != namespace:
        raise BadEvent(f"dataref {dataref[:80]!r} is outside the channel's namespace {namespace!r}")
    key, at, version = key.partition("@")
    if not key:
        raise BadEvent(f"dataref {dataref[:80]!r} names no key")
    return key, version if at else None


def check_text(name: str, value: str) -> str:
    """`value` itself. Raises BadEvent when it holds control characters or lone surrogates (CloudEvents type system, String)."""
    if value.isprintable():
        return value
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in value):
        raise BadEvent(f"attribute {name} holds a control character")
    return value


def time_text(time_ms: int) -> str:
    """RFC 3339 text of a time in ms since the epoch, UTC, with milliseconds."""
    seconds, ms = divmod(max(0, min(time_ms, _LATEST_TIME_MS)), 1000)
    return f"{_second_text(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_time(text: str) -> int:
    """Milliseconds since the epoch of an RFC 3339 time. Raises BadEvent when it is none."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise BadEvent(f"time {text[:40]!r} is not an RFC 3339 time") from None
    if parsed.tzinfo is None:
        raise BadEvent(f"time {text[:40]!r} has no offset", hint="End it with Z for UTC.")
    return max(0, (parsed - _EPOCH) // timedelta(milliseconds=1))
