"""The EKV as an attempt sees it: `ctx.ekv` and `ctx.context`.

What it is: reads of this PoP's store, writes and increments that wait for the commit, and the context values with their cache.
What it is not: replication, or consistency beyond this PoP's (the store's).
What must stay true: an attempt reads back the values it has written; a context value is the same object until its version changes.
"""

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edgeflow.core.channels import check_key
from edgeflow.core.events import check_text
from edgeflow.core.tokens import parse_session
from edgeflow.errors import BadOutput, EdgeflowError
from edgeflow.sdk.inputs import Bodies, fetch_pieces
from edgeflow.sdk.outcome import Outcome, Port, encode_body
from edgeflow.sdk.state import type_name

LIST_MAX = 1000
MAX_COUNT = 2**53 - 1
"""Largest sum of increments, either sign: what every JSON parser reads exactly."""

_T = TypeVar("_T")


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

    def pieces(self) -> Iterator[bytes]:
        """The body piece by piece, a few MiB in memory at a time. Raises EdgeflowError when it cannot be fetched."""
        if self._digest is None or self._bodies is None:
            yield self._data or b""
        else:
            yield from fetch_pieces(self._bodies, self._digest)

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


class InputSession:
    """The session that the inputs of an attempt belong to, when they carry tokens: what it has seen is here before the attempt reads, and what the
    attempt has read goes on with its outputs.
    """

    __slots__ = ("_has_read", "_is_here", "_namespace", "_port", "_tokens")

    def __init__(self, namespace: str, tokens: Iterable[str | None], port: Port) -> None:
        self._namespace = namespace
        self._tokens = [token for token in tokens if token]
        self._port = port
        self._is_here = self._has_read = False

    def before_read(self) -> None:
        """Raises Behind when this PoP does not get in time what was seen elsewhere, BadSession when an input carries no token of this namespace."""
        if self._tokens and not self._is_here:
            self._port.session(self._merged())
            self._is_here = True
        self._has_read = True

    def for_output(self) -> str:
        """The token of an event that is emitted now; empty when no input has one. Raises BadSession."""
        if not self._tokens:
            return ""
        if self._has_read:
            self._tokens.append(self._port.session(""))
            self._has_read = False
        return self._merged()

    def _merged(self) -> str:
        token = parse_session(self._tokens[0], self._namespace)
        for other in self._tokens[1:]:
            token = token.merged(parse_session(other, self._namespace))
        self._tokens = [token.text()]
        return self._tokens[0]


class Ekv:
    """The namespace's values: reads go to this PoP's store, writes are part of the commit and read back within the attempt."""

    __slots__ = ("_function", "_outcome", "_port", "_session")

    def __init__(self, function: str, port: Port, outcome: Outcome, session: InputSession | None = None) -> None:
        self._function = function
        self._port = port
        self._outcome = outcome
        self._session = session

    def get(self, key: str, *, version: str | None = None) -> Value | None:
        """The value of `key` (relative to the namespace), or None. With `version`, that stored version. Raises BadName, EdgeflowError."""
        written = self._outcome.values.get(check_key(key)) if version is None else None
        if written is not None:
            if written.get("delete"):
                return None
            return Value(key, None, data=written["_body"], content_type=written["content_type"])
        self._before_read()
        found = self._port.get(key, version)
        if found is None:
            return None
        digest = found.get("digest")
        data = found.get("data") or b"" if digest is None else None
        return Value(
            key,
            found.get("version"),
            data=data,
            digest=digest,
            content_type=found.get("content_type"),
            bodies=self._port,
        )

    def put(self, key: str, data: Any, *, content_type: str | None = None, ttl_s: float | None = None) -> None:
        """Writes bytes, str or JSON-able data with the commit; `ttl_s`: it is gone after that time, everywhere. Raises BadName, BadOutput."""
        what = f"function {self._function!r} put under key {key!r}"
        self._check_value(key)
        body, guessed = encode_body(data, what)
        try:
            if content_type is not None:
                check_text("content_type", content_type)
        except (EdgeflowError, AttributeError) as error:
            raise BadOutput(f"{what}: {error}", hint="content_type is a media type as text.") from None
        if ttl_s is not None and not 0.001 <= ttl_s < 1e10:
            raise BadOutput(f"{what} with a ttl_s of {ttl_s!r}", hint="A value lives for 1 ms at least.")
        self._outcome.values[key] = {
            "key": key,
            **({} if ttl_s is None else {"ttl_ms": round(ttl_s * 1000)}),
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
            raise BadOutput(f"{what} by a {type_name(by)}", hint="Counters count in integers.")
        if key in outcome.values or key in outcome.ops:
            raise BadOutput(f"{what}, which it also wrote in this attempt", hint=_ONE_KIND)
        total = outcome.increments.get(key, 0) + step
        if abs(total) > MAX_COUNT:
            raise BadOutput(f"{what} by more than {MAX_COUNT} in one attempt", hint="Count in a larger unit.")
        outcome.increments[key] = total

    def set_add(self, key: str, *elements: str) -> None:
        """Adds texts to the set `key` with the commit: one that is removed elsewhere at the same time stays. `get` shows the set without them."""
        self._change(key, {"op": "add", "elements": [_name(one, key) for one in elements]})

    def set_remove(self, key: str, *elements: str) -> None:
        """Removes texts from the set `key` with the commit, as far as this PoP has seen them by then."""
        self._change(key, {"op": "remove", "elements": [_name(one, key) for one in elements]})

    def map_put(self, key: str, fields: Mapping[str, bytes | str]) -> None:
        """Writes fields of the map `key` with the commit; writes of different fields never hurt each other. `get` shows the map without them."""
        written = {_name(name, key): data.encode() if isinstance(data, str) else data for name, data in fields.items()}
        for name, data in written.items():
            if not isinstance(data, bytes):
                raise BadOutput(
                    f"function {self._function!r} put a {type_name(data)} into field {name!r} of {key!r}",
                    hint="A field is bytes or text.",
                )
        self._change(key, {"op": "set", "fields": written})

    def map_remove(self, key: str, *fields: str) -> None:
        """Removes fields of the map `key` with the commit."""
        self._change(key, {"op": "unset", "fields": [_name(one, key) for one in fields]})

    def _change(self, key: str, op: dict[str, Any]) -> None:
        """Raises BadName, and BadOutput for a key that this attempt has used as something else."""
        outcome = self._outcome
        outcome.check_write(key)
        kinds = ("add", "remove") if op["op"] in ("add", "remove") else ("set", "unset")
        known = outcome.ops.get(key, [])
        if key in outcome.values or key in outcome.increments or any(one["op"] not in kinds for one in known):
            raise BadOutput(
                f"function {self._function!r} used key {key!r} as two kinds of value in one attempt", hint=_ONE_KIND
            )
        outcome.ops[key] = [*known, {**op, "key": key}]

    def _before_read(self) -> None:
        if self._session is not None:
            self._session.before_read()

    def _check_value(self, key: str) -> None:
        self._outcome.check_write(key)
        if key in self._outcome.ops:
            raise BadOutput(
                f"function {self._function!r} wrote key {key!r}, which it also changed as a set or a map in this attempt",
                hint=_ONE_KIND,
            )
        if key in self._outcome.increments:
            raise BadOutput(
                f"function {self._function!r} wrote key {key!r}, which it also incremented in this attempt",
                hint=_ONE_KIND,
            )

    def list(self, prefix: str = "", *, after: str = "", limit: int = 100) -> Sequence[KeyInfo]:
        """Up to `limit` keys (1 to 1000) that begin with `prefix` and sort after `after`, in order, this attempt's own writes included."""
        limit = max(1, min(limit, LIST_MAX))
        writes = {key: one for key, one in self._outcome.values.items() if key.startswith(prefix) and key > after}
        self._before_read()
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


_ONE_KIND = "A key is a value, a counter, a set or a map: use two keys."


def _name(name: Any, key: str) -> str:
    if not isinstance(name, str):
        raise BadOutput(
            f"a {type_name(name)} is no element or field of {key!r}", hint="Elements and field names are texts."
        )
    return name


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
