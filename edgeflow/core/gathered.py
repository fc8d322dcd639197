"""Several inputs of one invocation in one event: a CloudEvents batch whose events say which input they are.

What it is: the form in which somebody who calls a function by name gives it more than one input (a join, a window), or an input with the channel it
came on; also what is kept of a failed invocation. The extension attribute `input` names the parameter of the handler.
What it is not: a batch of events to publish: what is in here is one invocation.
What must stay true: each event has its data inside; the position of its original in a log is not carried over, since this is another event.
"""

import json
from collections.abc import Iterable
from typing import Any

from edgeflow.core.channels import namespace_of
from edgeflow.core.events import Event, from_cloudevent, parse_cloudevent
from edgeflow.errors import BadEvent

BATCH = "application/cloudevents-batch+json"
ATTRIBUTE = "input"
MAX_INPUTS = 1000
_POSITION = ("origin", "epoch", "seq", "prev", "size", "cursor")


def is_batch(content_type: str | None) -> bool:
    """Whether a body of this media type is a batch."""
    return (content_type or "").partition(";")[0].strip().lower() == BATCH


def unpack(body: bytes, *, namespace: str, source: str, now_ms: int) -> list[tuple[str, Event]]:
    """(name of the input, event) of each event in a batch. Raises BadEvent, BadName that says which one is wrong."""
    documents = parse_cloudevent(body)
    if not isinstance(documents, list) or not documents:
        raise BadEvent("a batch is a JSON array of at least one CloudEvent")
    if len(documents) > MAX_INPUTS:
        raise BadEvent(f"a batch of {len(documents)} inputs is larger than the limit of {MAX_INPUTS}")
    return [_input(document, number, namespace, source, now_ms) for number, document in enumerate(documents)]


def pack(inputs: Iterable[tuple[str, Event, bytes]]) -> list[dict[str, Any]]:
    """The batch of inputs (name, event, its body) as documents."""
    return [{**_plain(event.to_cloudevent(data)), ATTRIBUTE: name} for name, event, data in inputs]


def dump(documents: list[dict[str, Any]]) -> bytes:
    """A batch as the body of an event."""
    return json.dumps(documents, separators=(",", ":")).encode()


def _input(document: Any, number: int, namespace: str, source: str, now_ms: int) -> tuple[str, Event]:
    if not isinstance(document, dict):
        raise BadEvent(f"event {number} of the batch is not a JSON object")
    name = document.get(ATTRIBUTE)
    if not isinstance(name, str) or not name:
        raise BadEvent(
            f"event {number} of the batch does not say which input it is", hint='Add "input": "<parameter>" to each.'
        )
    channel = document.get("channel") or f"{namespace}/{name}"
    if not isinstance(channel, str) or namespace_of(channel) != namespace:
        raise BadEvent(f"event {number} of the batch: channel {channel!r:.80} is not in the namespace {namespace!r}")
    plain = {key: value for key, value in _plain(document).items() if key != ATTRIBUTE and value is not None}
    if "data" in document:
        plain["data"] = document["data"]
    try:
        event, dataref = from_cloudevent(plain, channel, id=f"input-{number}", source=source, now_ms=now_ms)
    except BadEvent as error:
        raise BadEvent(f"event {number} of the batch: {error.message}", hint=error.hint) from None
    if dataref is not None:
        raise BadEvent(f"event {number} of the batch has a dataref", hint="Put the data itself into the batch.")
    return name, event


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in _POSITION}
