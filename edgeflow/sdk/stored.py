"""Stored values as an attempt is given them: `Value`, what listings tell, and `ctx.context`.

What it is: a value with its body, which is fetched when it is first touched; the context values with their cache.
What it is not: how they are read (ekv.py).
What must stay true: a context value is the same object until its version changes.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from edgeflow.sdk.inputs import Bodies, fetch_pieces

_T = TypeVar("_T")


class Value:
    """A value of the EKV as this attempt sees it. `version` is None for one that this attempt has put itself.

    `kind` is "register" (a plain value), "counter", "set" or "map", of which `data` is JSON; `expires_ms` (ms since 1970): then it is no more.
    """

    __slots__ = ("_bodies", "_data", "_digest", "_parsed", "content_type", "expires_ms", "key", "kind", "version")

    def __init__(
        self,
        key: str,
        version: str | None,
        *,
        data: bytes | None = None,
        digest: str | None = None,
        content_type: str | None = None,
        bodies: Bodies | None = None,
        kind: str = "register",
        expires_ms: int | None = None,
    ) -> None:
        self.key = key
        self.kind = kind
        self.expires_ms = expires_ms
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
    """One key without its body. `version` is None for a value that this attempt has put itself; `size` is in bytes, of a set or a map how many it holds."""

    key: str
    version: str | None
    size: int
    content_type: str | None = None
    kind: str = "register"
    """"register" (a plain value), "counter", "set" or "map"."""
    expires_ms: int | None = None
    """When (ms since 1970) it is no more."""
    origin: str = ""
    """The PoP that wrote it; "" where several may have."""


@dataclass(frozen=True, slots=True)
class Version:
    """One write of a value that is kept; not `current`: it lost to a write that had not seen it."""

    version: str
    size: int
    content_type: str | None
    current: bool
    origin: str


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
