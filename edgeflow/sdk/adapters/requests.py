"""An invocation as CloudEvents: what a program that is not written for edgeflow is given.

What it is: one event in the binary or the structured mode, several (a join, a window, side inputs) as a batch, whose events name their input.
What it is not: how it gets to the program (http.py, stdio.py), or what the program says (answers.py).
What must stay true: pure; the form of a function's requests depends on its manifest only, not on how many events have come this time.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeflow.core.ceheaders import BATCH, STRUCTURED, encode
from edgeflow.core.events import time_text
from edgeflow.sdk.context import Context
from edgeflow.sdk.inputs import Input

INPUT = "input"
"""Extension attribute of an event in a batch: the input that it came in by."""
INVOCATION, ATTEMPT, DEADLINE = "Edgeflow-Invocation", "Edgeflow-Attempt", "Edgeflow-Deadline"
KEY, WINDOW, CHANNEL = "Edgeflow-Key", "Edgeflow-Window", "Edgeflow-Channel"


@dataclass(frozen=True, slots=True)
class Content:
    """A body with what describes it: `attributes` are those of a single event in the binary mode, else empty."""

    attributes: Mapping[str, str]
    content_type: str | None
    body: bytes


def events_of(inputs: Mapping[str, Any]) -> list[Input]:
    """The events of the handler's arguments, in the order of the function's inputs."""
    found: list[Input] = []
    for given in inputs.values():
        if given is not None:
            found += given if isinstance(given, list) else [given]
    return found


def content(events: Sequence[Input], *, joined: bool, mode: Literal["binary", "structured"] = "binary") -> Content:
    """The events of an invocation. `joined`: its function may get several, so they come as a batch even when there is one. Raises EdgeflowError."""
    if joined:
        return Content({}, BATCH, _dump([{**_document(one), INPUT: one.name} for one in events]))
    (event,) = events
    if mode == "structured":
        return Content({}, STRUCTURED, _dump(_document(event)))
    attributes = {"specversion": "1.0", **event.event.wire_attributes(), "channel": event.channel}
    return Content(attributes, event.datacontenttype, event.data)


def headers(given: Content, ctx: Context) -> dict[str, str]:
    """The request headers of an invocation in HTTP."""
    found = {f"ce-{name}": encode(value) for name, value in given.attributes.items()}
    if given.content_type is not None:
        found["Content-Type"] = encode_type(given.content_type)
    for name in ("traceparent", "tracestate"):
        if name in given.attributes:
            found[name] = encode(given.attributes[name])
    found |= {INVOCATION: ctx.invocation_id, ATTEMPT: str(ctx.attempt), DEADLINE: deadline_text(ctx)}
    if ctx.key is not None:
        found[KEY] = encode(ctx.key)
    if ctx.window is not None:
        found[WINDOW] = window_text(ctx.window)
    return found


def variables(given: Content, ctx: Context) -> dict[str, str]:
    """The environment variables of an invocation that is a process: `CE_ID`, `CE_SUBJECT`, ..., and edgeflow's own."""
    found = {f"CE_{name.upper()}": value for name, value in given.attributes.items()}
    if given.content_type is not None:
        found["CE_DATACONTENTTYPE"] = given.content_type
    found |= {"EDGEFLOW_INVOCATION": ctx.invocation_id, "EDGEFLOW_ATTEMPT": str(ctx.attempt)}
    found["EDGEFLOW_DEADLINE"] = deadline_text(ctx)
    if ctx.key is not None:
        found["EDGEFLOW_KEY"] = ctx.key
    if ctx.window is not None:
        found["EDGEFLOW_WINDOW"] = window_text(ctx.window)
    # A variable cannot hold a zero byte.
    return {name: value.replace("\0", "") for name, value in found.items()}


def deadline_text(ctx: Context) -> str:
    """When the agent gives the attempt up, as RFC 3339."""
    return time_text(int(ctx.deadline * 1000))


def window_text(window: tuple[int, int]) -> str:
    """Start and end of a window, as an ISO 8601 interval."""
    return "/".join(time_text(end_ms) for end_ms in window)


def encode_type(content_type: str) -> str:
    """A media type as a header carries it: what is not latin-1 in one is nothing that a program could use."""
    return content_type.encode("latin-1", "replace").decode("latin-1")


def first_lines(body: bytes, lines: int = 5, most_bytes: int = 600) -> str:
    """The beginning of what a program said, for messages."""
    shown = body[:most_bytes].decode("utf-8", "replace").strip().splitlines()[:lines]
    return " / ".join(line.strip() for line in shown if line.strip())


def _document(event: Input) -> dict[str, Any]:
    return event.event.to_cloudevent(event.data)


def _dump(document: dict[str, Any] | Iterable[dict[str, Any]]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
