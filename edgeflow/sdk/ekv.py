"""The EKV as an attempt sees it: `ctx.ekv`.

What it is: reads of this PoP's store, as fresh as they are asked for; writes and increments that wait for the commit, and the conditions that it is
bound to.
What it is not: replication, or where a read is answered (the agent, flow/reads.py). Sessions, batches and watches are not here: see `_NOT_HERE`.
What must stay true: an attempt reads back the values it has written; a read that cannot be as fresh as was asked raises, and shows nothing less.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never

from edgeflow.core.channels import check_key
from edgeflow.core.events import check_text
from edgeflow.core.tokens import parse_session
from edgeflow.errors import BadOutput, BadRequest, EdgeflowError
from edgeflow.sdk.outcome import Outcome, Port, encode_body
from edgeflow.sdk.state import type_name
from edgeflow.sdk.stored import KeyInfo, Value, Version

LIST_MAX = 1000
MAX_COUNT = 2**53 - 1
"""Largest sum of increments, either sign: what every JSON parser reads exactly."""


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

    def has_seen(self, token: str) -> None:
        """The attempt has read, elsewhere, what this token names. Without a session nothing is kept."""
        if self._tokens and token:
            self._tokens.append(token)

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

    def get(
        self, key: str, *, version: str | None = None, strong: bool = False, max_staleness_s: float | None = None, wait_s: float | None = None
    ) -> Value | None:  # fmt: skip
        """The value of `key` (relative to the namespace), or None; a counter, a set or a map as JSON.

        `version`: exactly that one; with `wait_s` it may be still on its way. `strong`: what the key's home has now. `max_staleness_s`: rather fail than
        show what may be older. `wait_s` (5, at most 60): the longest wait for any of these. What this attempt has put or deleted is shown so whatever is
        asked for. Raises BadName, Behind, Stale, NoHome, HomeUnreachable, EdgeflowError.
        """
        written = self._outcome.values.get(check_key(key)) if version is None else None
        if written is not None:
            if written.get("delete"):
                return None
            return Value(key, None, data=written["_body"], content_type=written["content_type"])
        found = self._read("get", key, version, strong, max_staleness_s, wait_s)
        if found is None:
            return None
        digest = found.get("digest")
        data = found.get("data") or b"" if digest is None else None
        return Value(
            key, _shown_version(found), data=data, digest=digest, content_type=found.get("content_type"), bodies=self._port,
            kind=found.get("kind", "register"), expires_ms=found.get("expires_ms"),
        )  # fmt: skip

    def head(
        self, key: str, *, strong: bool = False, max_staleness_s: float | None = None, wait_s: float | None = None
    ) -> KeyInfo | None:
        """What is under `key`, without its body, or None. As `get` otherwise."""
        written = self._outcome.values.get(check_key(key))
        if written is not None:
            return None if written["delete"] else _written_info(written)
        found = self._read("head", key, None, strong, max_staleness_s, wait_s)
        return None if found is None else _info(found)

    def versions(self, key: str) -> Sequence[Version]:
        """The stored version of a value, and those that lost to a write that had not seen them, the latest first. `get(version=)` reads each."""
        check_key(key)
        self._before_read()
        names = ("version", "size", "content_type", "current", "origin")
        items = self._port.read({"t": "versions", "key": key})["items"]
        return [Version(**{name: one[name] for name in names}) for one in items]

    def put(
        self, key: str, data: Any, *, content_type: str | None = None, ttl_s: float | None = None, if_version: str | None = None,
        if_absent: bool = False,
    ) -> None:  # fmt: skip
        """Writes bytes, str or JSON-able data with the commit; `ttl_s`: it is gone after that time, everywhere.

        `if_version`: the commit happens only if the stored value has this version then; `if_absent`: only if nothing is stored. When that does not hold,
        nothing of the attempt is committed and it has failed, with the reason `precondition-failed`: the invocation is tried again as its `retry:` says,
        and reads what is there by then. A condition stays when the same attempt writes the key again. Raises BadName, BadOutput.
        """
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
            **self._condition(key, what, if_version, if_absent),
            **self._outcome.body(body),
            "content_type": content_type or guessed,
            "delete": False,
            "_body": body,
        }

    def delete(self, key: str, *, if_version: str | None = None) -> None:
        """Deletes what is under the key with the commit; `if_version`: as of `put`. Raises BadName, BadOutput."""
        self._check_value(key)
        condition = self._condition(key, f"function {self._function!r} deleted key {key!r}", if_version, False)
        self._outcome.values[key] = {"key": key, **condition, "content_type": None, "delete": True}

    def _condition(self, key: str, what: str, if_version: str | None, if_absent: bool) -> dict[str, Any]:
        """What the commit is bound to: as given now, or with an earlier write of the key in this attempt. Raises BadOutput."""
        if if_version is not None and not (type(if_version) is str and if_version):
            raise BadOutput(
                f"{what} with the if_version {if_version!r}",
                hint="It is `version` of a value that was read with `get` or `head`.",
            )
        if if_version is not None and if_absent:
            raise BadOutput(f"{what} with both if_version and if_absent", hint="One of them never holds.")
        given: dict[str, Any] = {"if_absent": True} if if_absent else {}
        if if_version is not None:
            given = {"if_version": if_version}
        before = self._outcome.values.get(key, {})
        kept: dict[str, Any] = {name: before[name] for name in ("if_version", "if_absent") if name in before}
        if given and kept and given != kept:
            raise BadOutput(
                f"{what} with another condition than before",
                hint="Both are about the stored value: one of them does not hold.",
            )
        return given or kept

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

    def _read(
        self,
        kind: str,
        key: str,
        version: str | None,
        strong: bool,
        max_staleness_s: float | None,
        wait_s: float | None,
    ) -> dict[str, Any] | None:
        request: dict[str, Any] = {"t": kind, "key": key}
        if version is not None:
            request["version"] = version
        if strong:
            if version is not None or max_staleness_s is not None:
                raise BadRequest(
                    "a strong read shows the current version, and is never stale", hint="Ask for one of them."
                )
            request["strong"] = True
        request |= _patience(max_staleness_s, wait_s)
        self._before_read()
        reply = self._port.read(request)
        if strong and self._session is not None:
            self._session.has_seen(reply.get("token", ""))
        found: dict[str, Any] | None = reply["value"]
        return found

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

    def list(
        self, prefix: str = "", *, after: str = "", limit: int = 100, max_staleness_s: float | None = None, wait_s: float | None = None
    ) -> Sequence[KeyInfo]:  # fmt: skip
        """Up to `limit` keys (1 to 1000) that begin with `prefix` and sort after `after`, in order, this attempt's own writes included.

        A page that is not full is the last one; `scan` goes through all of them.
        """
        limit = max(1, min(limit, LIST_MAX))
        writes = {key: one for key, one in self._outcome.values.items() if key.startswith(prefix) and key > after}
        self._before_read()
        while True:
            request = {
                "t": "list",
                "prefix": prefix,
                "after": after,
                "limit": limit,
                **_patience(max_staleness_s, wait_s),
            }
            items = self._port.read(request)["items"]
            found = {one["key"]: _info(one) for one in items}
            last = max(found) if len(found) >= limit else None
            for key, written in writes.items():
                if written["delete"]:
                    found.pop(key, None)
                elif last is None or key <= last:
                    found[key] = _written_info(written)
            if found or last is None:
                return [found[key] for key in sorted(found)][:limit]
            after = last  # the attempt has deleted this whole page; an empty answer would mean that there is no other

    def scan(self, prefix: str = "", *, page: int = LIST_MAX) -> Iterator[KeyInfo]:
        """All keys that begin with `prefix`, in order, `page` of them (at most 1000) at a time. Each page is one moment, two are two."""
        after = ""
        while found := self.list(prefix, after=after, limit=page):
            yield from found
            after = found[-1].key

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Never:
            if name in _NOT_HERE:
                raise AttributeError(f"ctx.ekv has no {name}: {_NOT_HERE[name]}")
            raise AttributeError(f"ctx.ekv has no {name!r}")


_NOT_HERE = {
    "watch": "an invocation ends; let the function subscribe to a channel on which the change is published",
    "session": "the session of the inputs is used (the attribute `ekvsession`), and goes on with the outputs",
    "batch": "all writes of an attempt are one step already, with its outputs",
    "counter": "use increment(key, by), and get(key).json()",
    "set": "use set_add(key, ...), set_remove(key, ...), and get(key).json()",
    "map": "use map_put(key, {...}), map_remove(key, ...), and get(key).json()",
    "change": "use increment, set_add, set_remove, map_put, map_remove",
    "has": "a commit has no receipt; Client.ekv asks for positions",
    "standing": "ask Client.ekv, or `edgeflow kv lag`",
}
"""What `Client.ekv` has and a handler has not, and what it does instead."""


def _patience(max_staleness_s: float | None, wait_s: float | None) -> dict[str, int]:
    """The fields of a request that may wait. Raises BadRequest."""
    fields = {}
    for name, seconds, least in (("max_staleness_ms", max_staleness_s, 0), ("wait_ms", wait_s, 1)):
        if seconds is None:
            continue
        if type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
            raise BadRequest(f"{name.removesuffix('_ms')}_s is {seconds!r}, not a number of seconds")
        fields[name] = max(least, round(seconds * 1000))
    return fields


def _shown_version(found: Mapping[str, Any]) -> str | None:
    """Of a counter there is none that a write could be bound to."""
    return "" if found.get("kind") == "counter" else found.get("version")


def _info(one: Mapping[str, Any]) -> KeyInfo:
    return KeyInfo(
        one["key"], _shown_version(one), int(one.get("size", 0)), one.get("content_type"), one.get("kind", "register"), one.get("expires_ms"),
        one.get("origin", ""),
    )  # fmt: skip


def _written_info(written: Mapping[str, Any]) -> KeyInfo:
    return KeyInfo(written["key"], None, len(written["_body"]), written["content_type"])


_ONE_KIND = "A key is a value, a counter, a set or a map: use two keys."


def _name(name: Any, key: str) -> str:
    if not isinstance(name, str):
        raise BadOutput(
            f"a {type_name(name)} is no element or field of {key!r}", hint="Elements and field names are texts."
        )
    return name
