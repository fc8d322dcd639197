"""What a handler is given besides its inputs: `ctx`.

What it is: emit, the EKV view, the context values, the log and the facts of one attempt; and the outcome they collect, ready to be committed.
What it is not: the socket. Everything outside goes through `Port`, which connection.py implements on the instance protocol and testing.py in memory.
What must stay true: nothing a handler emits or writes is visible anywhere before the commit; only large bodies leave earlier, as blobs that
nobody refers to yet.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO, TypeVar

from edgeflow.core.channels import check_key
from edgeflow.core.events import ATTRIBUTE_NAME, CORE_ATTRIBUTES, LOG_ATTRIBUTES, check_text
from edgeflow.core.wire import MAX_FRAME_BYTES
from edgeflow.errors import BadOutput, EdgeflowError
from edgeflow.sdk.inputs import Bodies, Input

INLINE_BYTES = 4096
LIST_MAX = 1000
MAX_BODY_BYTES = MAX_FRAME_BYTES - 4096  # a body travels in one frame with a few fields beside it
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
    collect: bool = False
    publish: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    timeout_ms: int = 30_000
    any_channel: bool = False
    """Unit tests only: emit may use any channel."""

    def channel(self, name: str) -> str:
        """The full name of a channel of the publish list. Raises BadOutput for any other."""
        full = name if name.startswith(self.namespace + "/") else f"{self.namespace}/{name}"
        if full in self.publish or self.any_channel:
            return full
        listed = ", ".join(self.publish) or "nothing"
        raise BadOutput(
            f"function {self.function!r} emitted on channel {name!r}, but it publishes {listed}",
            hint="Add the channel to `publish:` in the manifest.",
        )


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
                body, content_type = (
                    json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(),
                    JSON_TYPE,
                )
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


class Outcome:
    """What an attempt will commit: outputs in the order they were emitted, and the last write of each key."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._sent: set[str] = set()
        self.outputs: list[Frame] = []
        self.values: dict[str, Frame] = {}

    def check_write(self, key: str) -> None:
        """Whether this attempt may write values at all. Raises BadOutput when it may not."""

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
        self._outcome.check_write(check_key(key))
        body, guessed = encode_body(data, f"function {self._function!r} put under key {key!r}")
        self._outcome.values[key] = {
            "key": key,
            **self._outcome.body(body),
            "content_type": content_type or guessed,
            "delete": False,
            "_body": body,
        }

    def delete(self, key: str) -> None:
        """Deletes the value with the commit. Raises BadName, BadOutput."""
        self._outcome.check_write(check_key(key))
        self._outcome.values[key] = {"key": key, "content_type": None, "delete": True}

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
            if kept is None or kept.version != item["version"]:
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
        line = json.dumps(record, default=repr, ensure_ascii=False, skipkeys=True) + "\n"
        stream = self._stream if self._stream is not None else sys.stderr
        stream.write(line)
        stream.flush()


class Context:
    """`ctx`: what one attempt of an invocation may use. Valid until the handler has returned."""

    __slots__ = ("_info", "_outcome", "_parent", "attempt", "context", "deadline", "ekv", "invocation_id", "log")

    def __init__(
        self, info: FunctionInfo, port: Port, outcome: Outcome, *, invocation_id: str, attempt: int, deadline_ms: int, parent: Input | None,
        context: Mapping[str, Value | None], log: Log,
    ) -> None:  # fmt: skip
        self._info = info
        self._outcome: Outcome | None = outcome
        self._parent = parent
        self.invocation_id = invocation_id
        self.attempt = attempt
        self.deadline = deadline_ms / 1000
        """Unix time in seconds at which the agent gives this attempt up."""
        self.ekv = Ekv(info.function, port, outcome)
        self.context = ContextValues(info.function, info.context, context)
        self.log = log

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

        `subject` is the first input's unless given. Extension attributes are not inherited, except traceparent and tracestate.
        Raises BadOutput for another channel, for data that cannot be written, and for an attribute that CloudEvents does not allow.
        """
        outcome = self._outcome
        if outcome is None:
            raise BadOutput(
                "ctx was used after the handler had returned", hint="Join the handler's own threads before it returns."
            )
        what = f"function {self._info.function!r} emitted on channel {channel!r}"
        full = self._info.channel(channel)
        if data is None:
            raise BadOutput(f"{what} None", hint="Emit b'' for an event with an empty body.")
        body, guessed = encode_body(data, what)
        parent = self._parent
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
        except (EdgeflowError, TypeError) as error:
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
        if len(self._info.publish) != 1:
            listed = ", ".join(self._info.publish) or "nothing"
            raise BadOutput(
                f"function {self._info.function!r} returned a {_type_name(data)}, but it publishes {listed}: a returned value needs exactly one channel",
                hint="Call ctx.emit(channel, data), or name one channel under `publish:` in the manifest.",
            )
        self.emit(self._info.publish[0], data)

    def close(self) -> None:
        """The handler is done; later use is refused."""
        self._outcome = None


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
