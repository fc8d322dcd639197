"""What a handler is given besides its inputs: `ctx`.

What it is: emit, the EKV view, the context values, the state, the log and the facts of one attempt; and the outcome they collect, ready to be
committed.
What it is not: the socket. Everything outside goes through `Port`, which connection.py implements on the instance protocol and testing.py in memory.
What must stay true: nothing a handler emits or writes is visible anywhere before the commit; only large bodies leave earlier, as blobs that
nobody refers to yet.
"""

import hashlib
import json
import operator
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO, TypeVar

from edgeflow.core.channels import check_channel, check_key, fill, is_reserved, matches, template_filter
from edgeflow.core.events import ATTRIBUTE_NAME, CORE_ATTRIBUTES, LOG_ATTRIBUTES, check_text
from edgeflow.errors import BadName, BadOutput, EdgeflowError
from edgeflow.sdk.inputs import MAX_BODY_BYTES, Bodies, Input
from edgeflow.sdk.state import State

INLINE_BYTES = 4096
LIST_MAX = 1000
MAX_COUNT = 2**53 - 1
"""Largest sum of increments, either sign: what every JSON parser reads exactly."""
TEXT_TYPE = "text/plain; charset=utf-8"
JSON_TYPE = "application/json"
_TRACE_ATTRIBUTES = ("traceparent", "tracestate")

_T = TypeVar("_T")
Frame = dict[str, Any]


class Port(Bodies, Protocol):
    """What an attempt may ask of the agent. Every method raises EdgeflowError when the agent refuses."""

    def get(self, key: str, version: str | None) -> Frame | None:
        """{"key", "version", "data", "content_type"} of a value, or None."""

    def list(self, prefix: str, after: str, limit: int) -> Sequence[Frame]:
        """{"key", "version", "size"} of values whose key begins with `prefix` and sorts after `after`, in key order."""

    def store_blob(self, digest: str, data: bytes) -> None:
        """Sends a body that the commit will refer to."""


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """What the agent says about this function when an instance connects."""

    namespace: str
    function: str
    revision: str = ""
    instance: str = ""
    pop: str = ""
    inputs: tuple[str, ...] = ()
    lists: frozenset[str] = frozenset()
    """Inputs whose parameter is a list of events."""
    captures: Mapping[str, int] = field(default_factory=dict)
    """Level of each capture of a `qos: 0` input; events of other functions come with theirs."""
    publish: tuple[str, ...] = ()
    """Full channel names and templates."""
    context: Mapping[str, str] = field(default_factory=dict)
    has_state: bool = False
    timeout_ms: int = 30_000
    any_channel: bool = False
    """Unit tests only: emit may use any channel."""

    def channel(self, name: str, captures: Callable[[], Mapping[str, str]] = dict) -> str:
        """The full name of a channel that may be published on: one of `publish`, or one that a template there can become.

        Levels like `{id}` are filled from `captures`. Raises BadOutput for any other name.
        """
        full = name if name.startswith(self.namespace + "/") else f"{self.namespace}/{name}"
        if full in self.publish and not is_template(full):
            return full
        what = f"function {self.function!r} emitted on channel {name!r}"
        try:
            if "{" in full:
                full = fill(full, captures())
            if self.any_channel or full in self.publish or self._is_of_a_template(full):
                if is_reserved(check_channel(full)):
                    raise BadName(f"{full!r} is reserved", hint="Levels that begin with _ belong to edgeflow.")
                return full
        except BadName as error:
            raise BadOutput(f"{what}: {error.message}", hint=error.hint) from None
        listed = ", ".join(self.publish) or "nothing"
        raise BadOutput(f"{what}, but it publishes {listed}", hint="Add the channel to `publish:` in the manifest.")

    def _is_of_a_template(self, full: str) -> bool:
        return any(is_template(one) and matches(template_filter(one), full) for one in self.publish)


def is_template(channel: str) -> bool:
    """Whether an item of `publish` stands for more than one channel."""
    return "{" in channel or "+" in channel


def encode_body(data: Any, what: str) -> tuple[bytes, str | None]:
    """(body, media type or None) of bytes, str, or anything the json module can write. Raises BadOutput that begins with `what`."""
    content_type: str | None = None
    if isinstance(data, bytes):
        body = data
    elif isinstance(data, (bytearray, memoryview)):
        body = bytes(data)
    else:
        try:
            if isinstance(data, str):
                body, content_type = data.encode(), TEXT_TYPE
            else:
                text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
                body, content_type = text.encode(), JSON_TYPE
        except (TypeError, ValueError, RecursionError) as error:
            raise BadOutput(
                f"{what} a {_type_name(data)}, which is neither bytes nor str nor JSON-able: {error}",
                hint="Return bytes (for arrays: array.tobytes() or an encoded picture), str, or plain dicts, lists and numbers (.tolist(), float()).",
            ) from None
    if len(body) > MAX_BODY_BYTES:
        raise BadOutput(
            f"{what} {len(body)} bytes; the limit is {MAX_BODY_BYTES}", hint="Split the data into several events."
        )
    return body, content_type


def _plain(value: Any) -> Any:
    if isinstance(value, State):
        return dict(value)
    raise TypeError(f"a {_type_name(value)} is not JSON-able")


class Outcome:
    """What an attempt will commit: outputs in the order they were emitted, the last write of each key, the sum of each counter, the state."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._sent: set[str] = set()
        self.closed = False
        self.outputs: list[Frame] = []
        self.values: dict[str, Frame] = {}
        self.increments: dict[str, int] = {}
        self.state: Frame | None = None

    def check_write(self, key: str) -> None:
        """Whether this attempt may write this key now. Raises BadName for a reserved key, BadOutput when the handler has returned."""
        if self.closed:
            raise _too_late()
        if check_key(key).startswith("_"):
            raise BadName(f"key {key!r} is reserved", hint="Keys that begin with _ belong to edgeflow.")

    def commit_fields(self) -> Frame:
        """The parts of a `commit`; what is as it was is left out."""
        fields: Frame = {
            "outputs": self.outputs,
            "values": [{name: part for name, part in one.items() if name != "_body"} for one in self.values.values()],
        }
        if self.state is not None:
            fields["state"] = self.state
        if self.increments:
            fields["increments"] = [{"key": key, "by": by} for key, by in self.increments.items() if by]
        return fields

    def body(self, data: bytes) -> Frame:
        """The fields that carry a body: inline, or as a reference to a blob that is sent now."""
        if len(data) <= INLINE_BYTES:
            return {"data": data}
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if digest not in self._sent:
            self._port.store_blob(digest, data)
            self._sent.add(digest)
        return {"digest": digest, "size": len(data)}


class Value:
    """A value of the EKV as this attempt sees it. `version` is None for one that this attempt has put itself."""

    __slots__ = ("_bodies", "_data", "_digest", "_parsed", "content_type", "key", "version")

    def __init__(
        self,
        key: str,
        version: str | None,
        *,
        data: bytes | None = None,
        digest: str | None = None,
        content_type: str | None = None,
        bodies: Bodies | None = None,
    ) -> None:
        self.key = key
        self.version = version
        self.content_type = content_type
        self._data = data
        self._digest = digest
        self._bodies = bodies
        self._parsed: dict[Any, Any] = {}

    @property
    def data(self) -> bytes:
        """The body. Raises EdgeflowError when it cannot be fetched."""
        if self._data is not None:
            return self._data
        if self._digest is None or self._bodies is None:
            return b""
        return self._bodies.fetch(self._digest)

    def text(self) -> str:
        """The body as UTF-8 text."""
        return self.data.decode()

    def json(self) -> Any:
        """The body parsed as JSON, afresh at each call."""
        return json.loads(self.data)

    def parsed(self, parse: Callable[[bytes], _T]) -> _T:
        """`parse(data)`, computed once per version: a context value is the same object in each invocation until it changes.

        `parse` should be a module-level function; the result is shared by later invocations, so do not change it.
        """
        if parse not in self._parsed:
            self._parsed[parse] = parse(self.data)
        result: _T = self._parsed[parse]
        return result

    def __repr__(self) -> str:
        return f"<Value {self.key} version={self.version}>"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One line of a listing. `version` is None for a value that this attempt has put itself."""

    key: str
    version: str | None
    size: int


class Ekv:
    """The namespace's values: reads go to this PoP's store, writes are part of the commit and read back within the attempt."""

    __slots__ = ("_function", "_outcome", "_port")

    def __init__(self, function: str, port: Port, outcome: Outcome) -> None:
        self._function = function
        self._port = port
        self._outcome = outcome

    def get(self, key: str, *, version: str | None = None) -> Value | None:
        """The value of `key` (relative to the namespace), or None. With `version`, that stored version. Raises BadName, EdgeflowError."""
        written = self._outcome.values.get(check_key(key)) if version is None else None
        if written is not None:
            if written.get("delete"):
                return None
            return Value(key, None, data=written["_body"], content_type=written["content_type"])
        found = self._port.get(key, version)
        if found is None:
            return None
        return Value(key, found.get("version"), data=found.get("data") or b"", content_type=found.get("content_type"))

    def put(self, key: str, data: Any, *, content_type: str | None = None) -> None:
        """Writes bytes, str or JSON-able data with the commit. Raises BadName, BadOutput."""
        what = f"function {self._function!r} put under key {key!r}"
        self._check_value(key)
        body, guessed = encode_body(data, what)
        try:
            if content_type is not None:
                check_text("content_type", content_type)
        except (EdgeflowError, AttributeError) as error:
            raise BadOutput(f"{what}: {error}", hint="content_type is a media type as text.") from None
        self._outcome.values[key] = {
            "key": key,
            **self._outcome.body(body),
            "content_type": content_type or guessed,
            "delete": False,
            "_body": body,
        }

    def delete(self, key: str) -> None:
        """Deletes the value with the commit. Raises BadName, BadOutput."""
        self._check_value(key)
        self._outcome.values[key] = {"key": key, "content_type": None, "delete": True}

    def increment(self, key: str, by: int = 1) -> None:
        """Adds `by`, which may be negative, to the counter `key`: once, with the commit, whatever other attempts and PoPs add meanwhile.

        Several calls in one attempt add up; `get` shows the counter without them. Raises BadName, and BadOutput for what is not an integer,
        for a sum beyond 2**53 - 1 either way, and for a key that this attempt has put or deleted.
        """
        outcome = self._outcome
        outcome.check_write(key)
        what = f"function {self._function!r} incremented key {key!r}"
        try:
            step = operator.index(by)
        except TypeError:
            step = None
        if step is None or isinstance(by, bool):
            raise BadOutput(f"{what} by a {_type_name(by)}", hint="Counters count in integers.")
        if key in outcome.values:
            raise BadOutput(f"{what}, which it also wrote in this attempt", hint=_ONE_KIND)
        total = outcome.increments.get(key, 0) + step
        if abs(total) > MAX_COUNT:
            raise BadOutput(f"{what} by more than {MAX_COUNT} in one attempt", hint="Count in a larger unit.")
        outcome.increments[key] = total

    def _check_value(self, key: str) -> None:
        self._outcome.check_write(key)
        if key in self._outcome.increments:
            raise BadOutput(
                f"function {self._function!r} wrote key {key!r}, which it also incremented in this attempt",
                hint=_ONE_KIND,
            )

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> Sequence[KeyInfo]:
        """Up to `limit` keys (1 to 1000) that begin with `prefix` and sort after `after`, in order, this attempt's own writes included."""
        limit = max(1, min(limit, LIST_MAX))
        writes = {key: one for key, one in self._outcome.values.items() if key.startswith(prefix) and key > after}
        while True:
            items = self._port.list(prefix, after, limit)
            found = {one["key"]: KeyInfo(one["key"], one.get("version"), int(one.get("size", 0))) for one in items}
            last = max(found) if len(found) >= limit else None
            for key, written in writes.items():
                if written["delete"]:
                    found.pop(key, None)
                elif last is None or key <= last:
                    found[key] = KeyInfo(key, None, len(written["_body"]))
            if found or last is None:
                return [found[key] for key in sorted(found)][:limit]
            after = last  # the attempt has deleted this whole page; an empty answer would mean that there is no other


_ONE_KIND = "A key is a value or a counter: use two keys."


class ContextValues:
    """`ctx.context.<name>`: the values named under `context:` in the manifest, latest version at this PoP, None when a key has no value."""

    __slots__ = ("_function", "_keys", "_values")

    def __init__(self, function: str, keys: Mapping[str, str], values: Mapping[str, Value | None]) -> None:
        self._function = function
        self._keys = keys
        self._values = values

    def __getattr__(self, name: str) -> Value | None:
        return self[name] if not name.startswith("__") else object.__getattribute__(self, name)

    def __getitem__(self, name: str) -> Value | None:
        if name not in self._keys:
            named = ", ".join(self._keys) or "nothing"
            raise AttributeError(
                f"function {self._function!r} has no context value {name!r}; its manifest names {named}"
            )
        return self._values.get(name)


class ContextCache:
    """Keeps the Value objects of context values across invocations, as long as their version stays the same."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}

    def values(self, stored: Mapping[str, Any], keys: Mapping[str, str], bodies: Bodies) -> dict[str, Value | None]:
        """The Value of each name in a work item's `context`."""
        values: dict[str, Value | None] = {}
        for name, item in stored.items():
            if item is None:
                values[name] = None
                continue
            kept = self._values.get(name)
            if kept is not None and kept.version == item["version"]:
                # Its body may be asked for through a later connection than the one that brought it.
                kept._bodies = bodies
            else:
                kept = Value(
                    keys.get(name, name),
                    item["version"],
                    data=item.get("data"),
                    digest=item.get("digest"),
                    content_type=item.get("content_type"),
                    bodies=bodies,
                )
                self._values[name] = kept
            values[name] = kept
        return values


class Log:
    """JSON lines with the same fields as the agent's log: `ctx.log.info("face_found", score=0.9)`."""

    __slots__ = ("_bound", "_stream")

    def __init__(self, bound: Mapping[str, Any], stream: TextIO | None = None) -> None:
        self._bound = bound
        self._stream = stream

    def debug(self, event: str, **fields: Any) -> None:
        """Details for whoever debugs."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something worth knowing happened."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something is odd, and the work goes on."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something failed."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Something failed: with the traceback of the exception being handled."""
        import traceback

        self._write("error", event, {**fields, "exception": traceback.format_exc()})

    def _write(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"event": event, "level": level, "timestamp": timestamp, **self._bound, **fields}
        stream = self._stream if self._stream is not None else sys.stderr
        try:
            stream.write(_line(record))
            stream.flush()
        except (OSError, ValueError):
            # Nobody reads it, or the disk is full: a line that is lost does not fail the work it tells of.
            pass


def _line(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, default=repr, ensure_ascii=False, skipkeys=True) + "\n"
    except Exception:  # a value that holds itself, or whose repr fails
        shown = {name: value if isinstance(value, (str, int)) else _shown(value) for name, value in record.items()}
        return json.dumps(shown, ensure_ascii=False) + "\n"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:1000]
    except Exception:
        return f"<a {_type_name(value)} that cannot be shown>"


class Context:
    """`ctx`: what one attempt of an invocation may use. Valid until the handler has returned."""

    __slots__ = (
        "_info", "_inputs", "_outcome", "_port", "_state", "_stored_state", "attempt", "context", "deadline", "ekv", "invocation_id", "key", "log",
        "replay", "shadow", "window",
    )  # fmt: skip

    def __init__(
        self, info: FunctionInfo, port: Port, outcome: Outcome, *, invocation_id: str, attempt: int, deadline_ms: int, inputs: Sequence[Input],
        context: Mapping[str, Value | None], log: Log, state: Mapping[str, Any] | None = None, key: str | None = None,
        window: tuple[int, int] | None = None, replay: str | None = None, shadow: bool = False,
    ) -> None:  # fmt: skip
        self._info = info
        self._port = port
        self._outcome: Outcome | None = outcome
        self._inputs = inputs
        self._state: State | None = None
        self._stored_state = state
        self.invocation_id = invocation_id
        self.attempt = attempt
        self.deadline = deadline_ms / 1000
        """Unix time in seconds at which the agent gives this attempt up."""
        self.ekv = Ekv(info.function, port, outcome)
        self.context = ContextValues(info.function, info.context, context)
        self.log = log
        self.key = key
        """The key of this invocation: what `by:` says of a join, a window, keyed state or an order; None for a function without one."""
        self.window = window
        """(start, end) of this invocation's window in ms since 1970, the end not included; None for a function without windows."""
        self.replay = replay
        """Id of the replay that this invocation belongs to, or None."""
        self.shadow = shadow
        """Whether what this invocation puts out is only compared with what was recorded, and seen by nobody."""

    @property
    def state(self) -> State:
        """The JSON object of this invocation's key: a dict that is committed with the outputs when it has changed; `clear()` deletes it.

        Raises BadOutput for a function without `state:` in its manifest, and when what is stored is not a JSON object.
        """
        if self._state is None:
            name = self._info.function
            if not self._info.has_state:
                raise BadOutput(
                    f"function {name!r} used ctx.state, but it has none",
                    hint="Add `state: {by: subject}` to the function in the manifest.",
                )
            self._state = State(f"function {name!r} (key {self.key!r})", self._stored_state, self._port)
        return self._state

    @property
    def namespace(self) -> str:
        """Namespace of the function."""
        return self._info.namespace

    @property
    def function(self) -> str:
        """Name of the function."""
        return self._info.function

    @property
    def pop(self) -> str:
        """Id of the PoP where this runs."""
        return self._info.pop

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.time()

    def emit(
        self, channel: str, data: Any, *, subject: str | None = None, attributes: Mapping[str, str | int | float] | None = None,
        datacontenttype: str | None = None, type: str | None = None,
    ) -> None:  # fmt: skip
        """Adds an event to the commit: `data` (bytes, str or JSON-able) on one of the function's publish channels.

        Where `publish:` has a template, any channel that it can become may be named; levels like `{id}` are filled from the captures of the
        inputs, the first that has one. `subject` is the first input's unless given. Extension attributes are not inherited, except traceparent and tracestate.
        Raises BadOutput for another channel, for data that cannot be written, and for an attribute that CloudEvents does not allow.
        """
        outcome = self._outcome
        if outcome is None:
            raise _too_late()
        what = f"function {self._info.function!r} emitted on channel {channel!r}"
        full = self._info.channel(channel, self._captures)
        if data is None:
            raise BadOutput(f"{what} None", hint="Emit b'' for an event with an empty body.")
        body, guessed = encode_body(data, what)
        parent = self._inputs[0] if self._inputs else None
        extensions: dict[str, str] = {}
        if parent is not None:
            inherited = parent.attributes
            if inherited:
                extensions = {name: inherited[name] for name in _TRACE_ATTRIBUTES if name in inherited}
            if subject is None:
                subject = parent.subject
        try:
            if attributes:
                extensions.update(_check_attributes(attributes))
            if subject:
                check_text("subject", subject)
            if type:
                check_text("type", type)
            if datacontenttype:
                check_text("datacontenttype", datacontenttype)
        except (EdgeflowError, TypeError, AttributeError) as error:
            raise BadOutput(
                f"{what}: {error}", hint="Attribute names are [a-z0-9]{1,20}; values are text or numbers."
            ) from None
        output = outcome.body(body)
        output.update(
            channel=full,
            subject=subject or None,
            type=type,
            datacontenttype=datacontenttype or guessed,
            attributes=extensions,
        )
        outcome.outputs.append(output)

    def publish_returned(self, data: Any) -> None:
        """Emits what the handler returned on its only publish channel; None publishes nothing. Raises BadOutput."""
        if data is None:
            return
        publish = self._info.publish
        if len(publish) != 1 or "+" in publish[0]:
            listed = ", ".join(publish) or "nothing"
            problem = "which leaves a level open" if len(publish) == 1 else "a returned value needs exactly one channel"
            raise BadOutput(
                f"function {self._info.function!r} returned a {_type_name(data)}, but it publishes {listed}: {problem}",
                hint="Call ctx.emit(channel, data), or name one channel under `publish:` in the manifest.",
            )
        self.emit(publish[0], data)

    def end(self, returned: Any) -> None:
        """The handler has returned: publishes what it returned, settles the state, and closes. Raises BadOutput."""
        self.publish_returned(returned)
        change = self._state.change() if self._state is not None else None
        if change is not None and self._outcome is not None:
            what = {"delete": False, "content_type": JSON_TYPE} if change else {"delete": True, "content_type": None}
            self._outcome.state = {**(self._outcome.body(change) if change else {}), **what}
        self.close()

    def close(self) -> None:
        """Later use is refused."""
        if self._outcome is not None:
            self._outcome.closed = True
            self._outcome = None

    def _captures(self) -> Mapping[str, str]:
        """The captures of all inputs; of two with the same name the earlier input's."""
        merged: dict[str, str] = {}
        for one in reversed(self._inputs):
            merged |= one.captures
        return merged


def _too_late() -> BadOutput:
    return BadOutput(
        "ctx was used after the handler had returned", hint="Join the handler's own threads before it returns."
    )


def _check_attributes(attributes: Mapping[str, Any]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in attributes.items():
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise TypeError(f"attribute name {name!r} is not [a-z0-9]{{1,20}}")
        if name in CORE_ATTRIBUTES or name in LOG_ATTRIBUTES:
            raise TypeError(f"attribute {name!r} is set by edgeflow or has an argument of its own")
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, (int, float)):
            value = str(value)
        elif not isinstance(value, str):
            raise TypeError(f"attribute {name!r} has a {_type_name(value)} as its value")
        checked[name] = check_text(name, value)
    return checked


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
