"""What a program's HTTP response means for its invocation.

What it is: a table from status, headers and body to outputs, to "later", to a failed attempt, or to a dead letter.
What it is not: the connection (http.py), or the rules for channels and attributes (`Context.emit`).
What must stay true: a response either publishes all that it says or nothing; ids, sources and times of outputs are edgeflow's, whatever the program says.

| response | means |
|---|---|
| 2xx with a body | one event on the function's channel; structured and batch bodies say each event's own |
| 204, 205, no body; or a function without `publish` | done, no event |
| 429, 503 | later: given back without blame, nothing is claimed before Retry-After |
| 408, 425, other 5xx | the attempt failed |
| everything else | a dead letter at once |
"""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from edgeflow.core.ceheaders import BATCH, STRUCTURED, decode, media_type
from edgeflow.core.events import ATTRIBUTE_NAME, CORE_ATTRIBUTES, LOG_ATTRIBUTES, from_cloudevent
from edgeflow.core.tokens import SESSION_ATTRIBUTE
from edgeflow.errors import BadOutput, EdgeflowError, Reject
from edgeflow.sdk.adapters.requests import CHANNEL, INPUT, first_lines
from edgeflow.sdk.context import Context
from edgeflow.sdk.outcome import Later

DEFAULT_LATER_S, LONGEST_LATER_S = 1.0, 60.0
_LATER = frozenset({429, 503})
_TRY_AGAIN = frozenset({408, 425})
_OURS = CORE_ATTRIBUTES | LOG_ATTRIBUTES | {SESSION_ATTRIBUTE, INPUT, "channel"}
"""Attributes of an answer that are edgeflow's, or that have an argument of their own."""
_ANY_CHANNEL = "answer/event"
"""Stands in while an event is read: which channel it goes to is decided afterwards."""


class ProgramFailed(Exception):
    """The program could not do this invocation: the attempt has failed, and is tried again as the manifest says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One event that a program publishes."""

    data: bytes
    content_type: str | None
    channel: str | None = None
    subject: str | None = None
    type: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


def settle(
    ctx: Context, publish: tuple[str, ...], heard: Collection[str], status: int, headers: Mapping[str, str], body: bytes
) -> None:
    """Carry out what a response says. `publish`: the function's channels; `heard`: the channels of its inputs. Header names are in lower case.

    Raises Later, ProgramFailed, Reject, BadOutput.
    """
    if 200 <= status < 300:
        if publish and body and status not in (204, 205):
            emit(ctx, publish, heard, answers(headers, body))
        return
    said = f"the program answered {status}: {first_lines(body)}" if body else f"the program answered {status}"
    if status in _LATER:
        raise Later(later_s(headers.get("retry-after")), said)
    if status in _TRY_AGAIN or status >= 500:
        raise ProgramFailed(said)
    where = headers.get("location")
    raise Reject(f"{said} (it leads to {where}; set `http: {{path: ...}}`)" if 300 <= status < 400 and where else said)


def emit(ctx: Context, publish: tuple[str, ...], heard: Collection[str], given: list[Answer]) -> None:
    """Publish events with the commit. Raises BadOutput."""
    for one in given:
        channel = one.channel
        # A program that answers with what it was sent repeats its input's channel.
        if channel in heard and channel not in publish:
            channel = None
        if channel is None:
            if len(publish) != 1 or "+" in publish[0]:
                raise BadOutput(
                    f"the program's answer names no channel, and the function publishes {', '.join(publish)}",
                    hint=f"Name one in the header `{CHANNEL}`, or in the attribute `channel` of a structured event.",
                )
            channel = publish[0]
        ctx.emit(
            channel, one.data, subject=one.subject, attributes=one.attributes, datacontenttype=one.content_type, type=one.type
        )  # fmt: skip


def answers(headers: Mapping[str, str], body: bytes) -> list[Answer]:
    """The events of a successful response. Raises BadOutput."""
    content_type = headers.get("content-type")
    kind = media_type(content_type)
    if kind not in (STRUCTURED, BATCH):
        try:
            said = {name[3:]: decode(name, value) for name, value in headers.items() if name.startswith("ce-")}
        except EdgeflowError as error:
            raise BadOutput(f"the program's answer: {error.message}") from None
        channel = headers.get(CHANNEL.lower())
        return [Answer(body, content_type, channel, said.get("subject"), said.get("type"), _extensions(said))]
    try:
        document = json.loads(body)
    except ValueError as error:
        raise BadOutput(f"the program's answer says {kind}, but is not JSON: {error}") from None
    documents = document if kind == BATCH else [document]
    if not isinstance(documents, list) or not all(isinstance(one, dict) for one in documents):
        raise BadOutput(f"the program's answer says {kind}, but is no {'list of events' if kind == BATCH else 'event'}")
    return [_structured(one) for one in documents]


def later_s(retry_after: str | None) -> float:
    """Seconds of a Retry-After header, within what makes sense; the default when there is none that can be read."""
    text = (retry_after or "").strip()
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError):
            wait_s = DEFAULT_LATER_S
    return min(max(wait_s, 0.0), LONGEST_LATER_S) if wait_s == wait_s else DEFAULT_LATER_S


def _structured(document: Mapping[str, Any]) -> Answer:
    stated = {name: value for name, value in document.items() if value is not None}
    channel = stated.get("channel")
    try:
        event, dataref = from_cloudevent(stated, _ANY_CHANNEL, id="answer", source="answer", now_ms=0)
    except EdgeflowError as error:
        raise BadOutput(f"the program's answer: {error.message}", hint=error.hint) from None
    if dataref is not None or not isinstance(channel, str | None):
        raise BadOutput(
            "the program's answer has a dataref, or a channel that is not text", hint="Send the data itself."
        )
    type_ = event.type if "type" in stated else None
    return Answer(
        event.data or b"", event.datacontenttype, channel, event.subject, type_, _extensions(event.attributes)
    )  # fmt: skip


def _extensions(said: Mapping[str, str]) -> dict[str, str]:
    """Extension attributes; names that CloudEvents does not allow come from frameworks that pass headers on, and are left out."""
    return {name: value for name, value in said.items() if name not in _OURS and ATTRIBUTE_NAME.fullmatch(name)}
