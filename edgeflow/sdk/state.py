"""`ctx.state`: the JSON object that belongs to the key of an invocation.

What it is: a mapping that is read when it is first touched, and what of it an attempt commits.
What it is not: where states are kept, or the order of a key's invocations (the agent's). An attempt that fails leaves the state as it was.
What must stay true: what is written can be read again as it was: text keys, no NaN, bounded depth and size; nothing is committed when nothing
has changed; an empty state and no state are the same.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Never

from edgeflow.errors import BadOutput
from edgeflow.sdk.inputs import MAX_BODY_BYTES, Bodies

STATE_DEPTH = 100
"""Objects and lists inside each other. Parsers of other languages refuse documents that are much deeper."""


class State(MutableMapping[str, Any]):
    """A JSON object: text keys; values are None, bool, int, float, str, and lists and dicts of them.

    Use it as a dict, nested values too (`ctx.state["seen"].append(id)`). What it is when the handler returns is committed with the outputs;
    emptied (`clear()`), it is deleted. Reading raises BadOutput when what is stored is not a JSON object.
    """

    __slots__ = ("_bodies", "_document", "_original", "_stored", "_suspect", "_what")

    def __init__(self, what: str, stored: Mapping[str, Any] | None, bodies: Bodies) -> None:
        """`what` begins the messages, e.g. "function 'count' (key 'clip/1')"; `stored`: `state` of the work item."""
        self._what = what
        self._stored = stored
        self._bodies = bodies
        self._document: dict[str, Any] | None = None
        self._original: bytes | None = None
        self._suspect = False
        """Whether something may have changed: a key was set, or a list or dict was handed out."""

    def __getitem__(self, key: str) -> Any:
        value = self._loaded()[key]
        if not self._suspect and isinstance(value, (dict, list)):
            self._suspect = True
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise BadOutput(f"the state of {self._what} got the key {key!r}, a {type_name(key)}, not text", hint=_PLAIN)
        document = self._loaded()
        self._suspect = True
        document[key] = value

    def __delitem__(self, key: str) -> None:
        del self._loaded()[key]
        self._suspect = True

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def clear(self) -> None:
        """Deletes the state, also one that cannot be read."""
        self._document = {}
        self._suspect = True

    def __repr__(self) -> str:
        return f"<State {self._loaded()!r}>"

    def change(self) -> bytes | None:
        """What to commit: the new document, b"" to delete the state, None when it is as it was. Raises BadOutput for what is not JSON."""
        if not self._suspect or self._document is None:
            return None
        stored = self._stored
        if not self._document:
            return None if stored is None or self._original == b"{}" else b""
        data = self._encode(self._document)
        return None if stored is not None and self._is_as_stored(stored, data) else data

    def _is_as_stored(self, stored: Mapping[str, Any], data: bytes) -> bool:
        original, digest = self._original, stored.get("digest")
        if original is None:  # cleared before it was read
            if digest is not None:
                return bool(digest == "sha256:" + hashlib.sha256(data).hexdigest())
            original = stored.get("data") or b""
        if data == original:
            return True
        try:
            # Another program may have written the same document in another way.
            return data == _dump(_parse(original))
        except (ValueError, RecursionError):
            return False

    def _loaded(self) -> dict[str, Any]:
        if self._document is None:
            self._document = {} if self._stored is None else self._load(self._stored)
        return self._document

    def _load(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        digest = stored.get("digest")
        data = stored.get("data") or b"" if digest is None else self._bodies.fetch(digest)
        self._original = data
        try:
            document = _parse(data)
        except (ValueError, RecursionError) as error:
            raise BadOutput(f"the state of {self._what} is not JSON: {error}", hint=_CLEAR) from None
        if not isinstance(document, dict):
            raise BadOutput(
                f"the state of {self._what} is a JSON {type(document).__name__}, not an object", hint=_CLEAR
            )
        return document

    def _encode(self, document: dict[str, Any]) -> bytes:
        try:
            data = _dump(document)
        except (TypeError, ValueError, RecursionError) as error:
            _check(document, self._what, once=True)
            raise BadOutput(f"the state of {self._what} is not JSON-able: {error}", hint=_PLAIN) from None
        if len(data) > MAX_BODY_BYTES:
            raise BadOutput(
                f"the state of {self._what} has {len(data)} bytes; the limit is {MAX_BODY_BYTES}",
                hint="Keep a summary in the state, and put the rest into the EKV or emit it.",
            )
        _check(document, self._what, once=False)
        return data


_CLEAR = "ctx.state.clear() deletes it."
_PLAIN = (
    "A state holds plain dicts with text keys, lists, text, numbers, booleans and None (.tolist(), float(), str(key))."
)


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _parse(data: bytes) -> Any:
    return json.loads(data, parse_constant=_no_constant)


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _check(document: dict[str, Any], what: str, *, once: bool) -> None:
    """Raises BadOutput that names a part which json refuses, or writes as something else.

    `once`: look at each object once only, because the document may hold itself.
    """
    waiting: list[tuple[str, Any]] = [("state", document)]
    seen: set[int] = set()
    for _level in range(STATE_DEPTH):
        inner: list[tuple[str, Any]] = []
        for path, container in waiting:
            is_dict = isinstance(container, dict)
            for name, value in container.items() if is_dict else enumerate(container):
                if is_dict and not isinstance(name, str):
                    raise BadOutput(
                        f"{path} of {what} has the key {name!r}, a {type_name(name)}, not text", hint=_PLAIN
                    )
                if value is None or isinstance(value, (str, int)):
                    continue
                if isinstance(value, float):
                    if not math.isfinite(value):
                        raise BadOutput(f"{path}[{name!r}] of {what} is {value!r}, which JSON has not", hint=_PLAIN)
                    continue
                if not isinstance(value, (dict, list, tuple)):
                    raise BadOutput(f"{path}[{name!r}] of {what} is a {type_name(value)}, not JSON-able", hint=_PLAIN)
                if not once:
                    inner.append((f"{path}[{name!r}]", value))
                elif id(value) not in seen:
                    seen.add(id(value))
                    inner.append((f"{path}[{name!r}]", value))
        if not inner:
            return
        waiting = inner
    raise BadOutput(
        f"the state of {what} is nested more than {STATE_DEPTH} levels deep, at {waiting[0][0][:60]}...",
        hint="Flatten it: one key per path.",
    )


def type_name(value: Any) -> str:
    """How messages name the type of a value."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
