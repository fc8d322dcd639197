"""Run a handler without an agent: for users' unit tests.

What it is: `call(handle, frames=b"...")`, which gives the handler fake inputs, state and values, and returns what it would have committed.
What it is not: a cluster. Nothing is retried, joined or delivered; `attempt` is 1 unless given.
What must stay true: the handler sees the same Input, Context and checks as in an instance, and its exceptions reach the test unchanged.

    from edgeflow.sdk.testing import call, event
    from handler import handle

    def test_marks_faces():
        result = call(handle, frames=event(jpeg, subject="clip/1"), faces=[[1, 2, 30, 30]], publish=["annotated"])
        assert result.output.subject == "clip/1"

    def test_counts():
        result = call(handle, readings=events(3, 4, 5), state={"seen": 2}, window=(0, 10_000), key="room/7")
        assert result.state == {"seen": 5}
"""

import hashlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeflow.core.events import DEFAULT_TYPE, make_event
from edgeflow.errors import NotFound, VersionMismatch
from edgeflow.sdk.context import Context, FunctionInfo
from edgeflow.sdk.function import Handle, check_signature
from edgeflow.sdk.inputs import make_inputs
from edgeflow.sdk.log import Log
from edgeflow.sdk.outcome import JSON_TYPE, Outcome, encode_body
from edgeflow.sdk.stored import Value

NAMESPACE = "test"
RETURNED = "returned"
VERSION = "1"
"""The version of each value that `ekv` gives."""


@dataclass(frozen=True, slots=True)
class FakeEvent:
    """An input for `call`, made by `event`."""

    data: bytes
    subject: str | None
    attributes: Mapping[str, str]
    datacontenttype: str | None
    id: str | None
    type: str
    channel: str | None = None
    captures: Mapping[str, str] = field(default_factory=dict)


class FakeEvents(list[FakeEvent]):
    """A list input for `call`, made by `events`."""


def event(
    data: Any, *, subject: str | None = None, attributes: Mapping[str, str] | None = None, datacontenttype: str | None = None, id: str | None = None,
    type: str = DEFAULT_TYPE, channel: str | None = None, captures: Mapping[str, str] | None = None,
) -> FakeEvent:  # fmt: skip
    """An input with more than a body. `data` is bytes, str or JSON-able.

    `channel` is relative to the namespace, by default the input's name. `captures` are given as they are: `{"id": "7"}` for `cam/{id}/frames`.
    """
    body, guessed = encode_body(data, "the test's event is")
    return FakeEvent(
        body, subject, attributes or {}, datacontenttype or guessed, id, type, channel, {**captures} if captures else {}
    )


def events(*given: Any) -> FakeEvents:
    """A list input, of a collected join or a window: any number of events, each an `event(...)`, bytes, str or JSON-able."""
    return FakeEvents(one if isinstance(one, FakeEvent) else event(one) for one in given)


@dataclass(frozen=True, slots=True)
class Output:
    """An event that the handler emitted or returned. `channel` is relative to the namespace; `returned` when the test named no channels."""

    channel: str
    data: bytes
    subject: str | None
    attributes: Mapping[str, str]
    datacontenttype: str | None
    type: str | None

    def text(self) -> str:
        """The body as text."""
        return self.data.decode()

    def json(self) -> Any:
        """The body parsed as JSON."""
        return json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Result:
    """What the handler would have committed."""

    outputs: list[Output]
    values: dict[str, bytes | None]
    """The body written under each key; None for a deleted one."""
    increments: dict[str, int] = field(default_factory=dict)
    """What was added to each counter."""
    state: dict[str, Any] | None = None
    """The state of the key after the commit, as it was given when nothing changed; None when there is none, or none any more."""
    state_changed: bool = False
    """Whether the commit writes or deletes the state."""
    logs: list[dict[str, Any]] = field(default_factory=list)
    """Fields of each ctx.log line."""

    @property
    def output(self) -> Output:
        """The only output. Raises AssertionError when there is none or are several."""
        assert len(self.outputs) == 1, f"the handler published {len(self.outputs)} events"
        return self.outputs[0]


def call(
    handle: Handle, named: Mapping[str, Any] | None = None, /, *, publish: Sequence[str] | None = None, context: Mapping[str, Any] | None = None, ekv: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None, key: str | None = None, window: tuple[int, int] | None = None, replay: str | None = None,
    shadow: bool = False, attempt: int = 1, timeout_s: float = 30.0, namespace: str = NAMESPACE, **inputs: Any,
) -> Result:  # fmt: skip
    """Calls `handle(ctx, **inputs)` and returns its outputs, written values, counters, state and log lines.

    Each input is bytes, str, JSON-able data or an `event(...)`; `events(...)`, or a list of `event(...)`, is a list input (a collected join, a
    window); None is an input that this invocation has not (`on_timeout: partial`, `any`, `k`, a side input). `context` and `ekv` hold the values
    that the handler can read, `state` what `ctx.state` holds. `key`, `window` (ms), `replay` and `shadow` are what `ctx` says of itself.
    `named` holds inputs whose names are taken by arguments of this function: `call(handle, {"state": b"..."})`.
    Without `publish` (channels and templates as in the manifest), every channel is allowed and a returned value shows up on channel `returned`.
    All values of `ekv` have the version VERSION; no other PoP is there to be asked, so strong and fresh reads show them too.
    Raises what the handler raises, BadHandler when its parameters are not the inputs, BadOutput for what cannot be published or kept, VersionMismatch when
    an `if_version` or `if_absent` does not hold: at a PoP the attempt has failed then, and is made again.
    """
    inputs |= named or {}
    check_signature(handle, list(inputs))
    port = _MemoryPort({key: encode_body(value, f"ekv value {key!r} is") for key, value in (ekv or {}).items()})
    lists = frozenset(name for name, given in inputs.items() if _is_list(given))
    items: list[dict[str, Any]] = []
    for name, given in inputs.items():
        for one in given if name in lists else [given]:
            if one is not None:
                fake = one if isinstance(one, FakeEvent) else event(one)
                items.append(
                    {"name": name, "event": port.stored(namespace, name, fake, len(items)), "captures": fake.captures}
                )
    names = {name: name for name in context or {}}
    info = FunctionInfo(
        namespace=namespace, function=handle.__name__, instance="test", pop="test", inputs=tuple(inputs), lists=lists,
        publish=tuple(f"{namespace}/{name}" for name in ([RETURNED] if publish is None else publish)), context=names, has_state=True,
        any_channel=publish is None,
    )  # fmt: skip
    values: dict[str, Value | None] = {}
    for name, given in (context or {}).items():
        body, content_type = encode_body(given, f"context value {name!r} is") if given is not None else (b"", None)
        values[name] = None if given is None else Value(name, VERSION, data=body, content_type=content_type)
    lines = io.StringIO()
    outcome = Outcome(port)
    arguments, made = make_inputs(items, info.inputs, port, lists=lists)
    ctx = Context(
        info, port, outcome, invocation_id="test", attempt=attempt, deadline_ms=int((time.time() + timeout_s) * 1000), inputs=made, context=values,
        log=Log({}, lines), state=_stored_state(state), key=key, window=window, replay=replay, shadow=shadow,
    )  # fmt: skip
    ctx.end(handle(ctx, **arguments))
    port.check(outcome.values.values())
    after, is_changed = _state_after(state, outcome.state, port)
    return Result(
        outputs=[port.output(namespace, stored) for stored in outcome.outputs],
        values={key: None if stored["delete"] else stored["_body"] for key, stored in outcome.values.items()},
        increments={key: by for key, by in outcome.increments.items() if by},
        state=after,
        state_changed=is_changed,
        logs=[json.loads(line) for line in lines.getvalue().splitlines()],
    )


def _is_list(given: Any) -> bool:
    if isinstance(given, FakeEvents):
        return True
    return isinstance(given, list) and bool(given) and all(isinstance(one, FakeEvent) for one in given)


def _stored_state(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {"version": "1", "digest": None, "data": json.dumps(state).encode(), "content_type": JSON_TYPE}


def _state_after(
    before: Mapping[str, Any] | None, change: Mapping[str, Any] | None, port: "_MemoryPort"
) -> tuple[dict[str, Any] | None, bool]:
    if change is None:
        return None if before is None else json.loads(json.dumps(before)), False
    return None if change["delete"] else json.loads(port.body(change)), True


class _MemoryPort:
    """A Port whose values and blobs are dictionaries."""

    def __init__(self, values: Mapping[str, tuple[bytes, str | None]]) -> None:
        self._values = values
        self._blobs: dict[str, bytes] = {}

    def fetch(self, digest: str, ahead: Sequence[str] = ()) -> bytes:
        if digest not in self._blobs:
            raise NotFound(f"there is no blob {digest}")
        return self._blobs[digest]

    def fetch_piece(self, digest: str, offset: int) -> bytes:
        return self.fetch(digest)[offset : offset + 1024 * 1024]

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["t"] == "list":
            prefix, after, limit = request["prefix"], request["after"], request["limit"]
            keys = sorted(key for key in self._values if key.startswith(prefix) and key > after)
            return {"items": [self._about(key) for key in keys[:limit]]}
        key = request["key"]
        is_there = key in self._values and request.get("version") in (None, VERSION)
        about = self._about(key) if is_there else None
        if request["t"] == "versions":
            return {"items": [] if about is None else [{**about, "current": True}]}
        if about is not None and request["t"] == "get":
            about["data"] = self._values[key][0]
        return {"value": about, "token": ""}

    def _about(self, key: str) -> dict[str, Any]:
        body, content_type = self._values[key]
        return {"key": key, "version": VERSION, "size": len(body), "content_type": content_type, "origin": "test"}

    def check(self, written: Iterable[Mapping[str, Any]]) -> None:
        """What the commit is bound to. Raises VersionMismatch when that does not hold."""
        for one in written:
            wanted, is_there = one.get("if_version"), one["key"] in self._values
            if (wanted is not None and (not is_there or wanted != VERSION)) or (one.get("if_absent") and is_there):
                raise VersionMismatch(
                    f"the commit is bound to what is under {one['key']!r}, and that {'has version ' + VERSION if is_there else 'is not there'}",
                    hint="At a PoP this attempt has failed (precondition-failed), and the next one reads the value again.",
                )

    def session(self, token: str) -> str:
        return token

    def store_blob(self, digest: str, data: bytes) -> None:
        self._blobs[digest] = data

    def body(self, stored: Mapping[str, Any]) -> bytes:
        """The body of an output or a state."""
        data: bytes = stored["data"] if "data" in stored else self._blobs[stored["digest"]]
        return data

    def stored(self, namespace: str, name: str, fake: FakeEvent, number: int) -> dict[str, Any]:
        """The stored form of an input, its body behind a reference when it would be behind one at a PoP."""
        made = make_event(
            f"{namespace}/{fake.channel or name}", fake.data, id=fake.id or f"{name}-{number}", source="test", now_ms=int(time.time() * 1000), type=fake.type,
            subject=fake.subject, datacontenttype=fake.datacontenttype, attributes=fake.attributes,
        )  # fmt: skip
        stored = made.encode()
        if len(fake.data) > 4096:
            digest = "sha256:" + hashlib.sha256(fake.data).hexdigest()
            self._blobs[digest] = fake.data
            del stored["d"]
            stored["r"] = [digest, len(fake.data)]
        return stored

    def output(self, namespace: str, stored: Mapping[str, Any]) -> Output:
        """What the test sees of a stored output."""
        return Output(
            stored["channel"].removeprefix(namespace + "/"),
            self.body(stored),
            stored["subject"],
            stored["attributes"],
            stored["datacontenttype"],
            stored["type"],
        )
