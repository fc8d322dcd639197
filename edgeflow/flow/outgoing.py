"""How an event looks on MQTT: the payload and properties that subscribers get."""

import json
from collections.abc import Callable

from edgeflow.core.events import Event
from edgeflow.core.mqttprops import encode_properties
from edgeflow.settings import Limits
from edgeflow.store import Namespace

BlobUrl = Callable[[str, str], str]
"""(namespace, digest) -> URL of a body at this PoP."""


def outgoing(
    event: Event, namespace: Namespace, limits: Limits, blob_url: BlobUrl, *, correlation: bytes | None = None, more: dict[str, str] | None = None
) -> tuple[bytes, bytes]:  # fmt: skip
    """(payload, encoded properties) of an event: CloudEvents binary mode, or above `mqtt_inline_bytes` structured JSON with a URL as its dataref.

    `more`: further user properties. Raises EdgeflowError when the body cannot be read.
    """
    user = list((more or {}).items())
    if event.size_bytes <= limits.mqtt_inline_bytes:
        attributes = [("specversion", "1.0"), *event.wire_attributes().items(), *user]
        properties = encode_properties(attributes, content_type=event.datacontenttype, correlation=correlation)
        return namespace.data_of(event), properties
    assert event.ref is not None
    document = event.to_cloudevent(None, url=blob_url(namespace.name, event.ref.digest))
    properties = encode_properties(user, content_type="application/cloudevents+json", correlation=correlation)
    return json.dumps(document).encode(), properties
