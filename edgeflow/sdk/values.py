"""`Client.ekv`: the edge key-value store as a program sees it.

What it is: values, counters, sets, maps, batches, watches, and sessions whose token is kept for the caller; over the HTTP API of one PoP.
What it is not: the values of an invocation (`ctx.ekv`, edgeflow.sdk.ekv), or a cache.
What must stay true: every write carries an id, so that it is done once however often the call is repeated; a session's token only grows; a watch
yields no older state of a key after a newer one, and says when it has to begin anew.

    with Client.from_home("chicago") as client:
        session = client.ekv.session()
        session.put("vision/models/person", model, durability="replicated:1")
        session.counter("vision/seen").add(3)
"""

import base64
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from urllib.parse import quote

import httpx

from edgeflow.core.tokens import parse_session
from edgeflow.errors import BadRequest, EdgeflowError, NotFound, NotReplicated, Unavailable
from edgeflow.sdk.stored import Version
from edgeflow.sdk.subscription import FIRST_WAIT_S, LONGEST_WAIT_S, SILENCE_S, parse_sse

SESSION_HEADER = "edgeflow-session"
ANSWER_S = 15.0
"""How much longer (s) than it was told to wait a PoP may take to answer."""
_chance = random.Random()

Data = bytes | bytearray | memoryview | str | int | float | bool | list[Any] | dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the PoP acknowledged.

    `class_`: `durable` (in its log, on disk), `replicated:<k>` (at k other PoPs too), or, of an event, `waiting` (kept until the value it refers to is
    readable there). `origin`, `epoch`, `seq` is its place; `duplicate`: this was done before, by a call with the same id.
    """

    class_: str
    origin: str
    epoch: int
    seq: int
    id: str
    version: str | None = None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """One key without its body. `key` is the full name, <namespace>/<key>; `size` is in bytes, of a set or a map how many it holds."""

    key: str
    version: str
    size: int
    content_type: str | None
    kind: str = field(default="register", kw_only=True)
    """"register" (a plain value), "counter", "set" or "map"."""
    expires_ms: int | None = field(default=None, kw_only=True)
    """When (ms since 1970) it is no more."""
    origin: str = field(default="", kw_only=True)
    """The PoP that wrote it; "" where several may have."""


@dataclass(frozen=True, slots=True)
class Value(ValueInfo):
    """One value with its body."""

    data: bytes = b""
    age_s: int | None = field(default=None, kw_only=True)
    """Of a copy: for so many seconds the PoP may have missed something; None: it was written there, or nothing is known."""

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.data)

    def text(self) -> str:
        """The body as UTF-8 text. Raises UnicodeDecodeError."""
        return self.data.decode()


@dataclass(frozen=True, slots=True)
class Change:
    """The latest state of a key. `info` None: it is gone."""

    key: str
    info: ValueInfo | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A watch begins anew (`reason`): keys that are not told before `Listed` are gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Listed:
    """All that was there has been told; from here on it is what changes."""

    keys: int


class Caller(Protocol):
    """One repeated call of the HTTP API; see `Client`."""

    def __call__(
        self, method: str, path: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None, timeout_s: float | None = None,
    ) -> httpx.Response: ...  # fmt: skip


class Values:
    """The values of all namespaces through one PoP. Keys are full names, <namespace>/<key>. Thread-safe. Raises EdgeflowError and its subclasses only."""

    def __init__(
        self, call: Caller, stream: Callable[..., Any], encode: Callable[[Any], tuple[bytes, str | None]],
        error_of: Callable[[httpx.Response], EdgeflowError], tokens: "Tokens | None" = None,
    ) -> None:  # fmt: skip
        """`stream` opens a response that is read while it comes; `encode` makes bytes of what a user gives."""
        self._call = call
        self._open = stream
        self._encode = encode
        self._error_of = error_of
        self._tokens = tokens

    def session(self, tokens: Mapping[str, str] | None = None) -> "Values":
        """The same with a session: what it reads has its own writes, and nothing older than it was shown before, at whatever PoP it goes on.

        `tokens`: those of a session that goes on here, by namespace (`session.tokens`).
        """
        return Values(self._call, self._open, self._encode, self._error_of, Tokens(tokens or {}))

    @property
    def tokens(self) -> dict[str, str]:
        """The session's tokens by namespace, for going on elsewhere; empty without a session."""
        return {} if self._tokens is None else self._tokens.all()

    # -- plain values --------------------------------------------------------------------------------------------------

    def put(
        self, key: str, data: Data, *, content_type: str | None = None, ttl_s: float | None = None, if_version: str | None = None,
        if_absent: bool = False, durability: str | None = None, strong: bool = False, wait_s: float | None = None, id: str | None = None,
    ) -> Receipt:  # fmt: skip
        """Put a value: bytes as they are, text as UTF-8, anything else as JSON.

        `ttl_s`: it is gone after that time, everywhere. `if_version`, `if_absent`: only then. `durability`: "durable" or "replicated:<k>". `strong`: decided at
        the key's home. `id`: a call with the same id is the same write (one is made if not given). Raises VersionMismatch, NotReplicated, NoHome,
        HomeUnreachable, WrongType, TooLarge.
        """
        body, default_type = self._encode(data)
        headers = {"content-type": content_type or default_type or ""}
        if if_version is not None:
            headers["if-match"] = f'"{if_version}"'
        if if_absent:
            headers["if-none-match"] = "*"
        params = {} if ttl_s is None else {"ttl": f"{max(1, round(ttl_s * 1000))}ms"}
        return self._write("PUT", key, body, headers, params, durability, strong, wait_s, id)

    def get(
        self, key: str, *, version: str | None = None, offset: int | None = None, length: int | None = None, strong: bool = False,
        max_staleness_s: float | None = None, wait_s: float | None = None,
    ) -> Value | None:  # fmt: skip
        """A value, or None when there is none; a counter, a set or a map as JSON.

        `version`: exactly that one; with `wait_s` it may be still on its way. `offset`, `length`: only these bytes. `strong`: what the key's home has.
        `max_staleness_s`: rather fail than be older. Raises Behind, Stale, NoHome, HomeUnreachable.
        """
        headers = {}
        if offset is not None or length is not None:
            first = offset or 0
            headers["range"] = f"bytes={first}-{'' if length is None else first + max(1, length) - 1}"
        params = {} if version is None else {"version": version}
        try:
            answer = self._read("GET", key, headers, params, strong, max_staleness_s, wait_s)
        except NotFound:
            return None
        info = _info(key, answer, len(answer.content))
        age = answer.headers.get("age")
        return Value(
            info.key, info.version, info.size, info.content_type, answer.content, kind=info.kind, expires_ms=info.expires_ms,
            age_s=None if age is None else int(age),
        )  # fmt: skip

    def head(
        self, key: str, *, strong: bool = False, max_staleness_s: float | None = None, wait_s: float | None = None
    ) -> ValueInfo | None:
        """What is under a key, without its body, or None."""
        try:
            answer = self._read("HEAD", key, {}, {}, strong, max_staleness_s, wait_s)
        except NotFound:
            return None
        return _info(key, answer, int(answer.headers["content-length"]))

    def delete(
        self, key: str, *, if_version: str | None = None, durability: str | None = None, strong: bool = False, wait_s: float | None = None,
        id: str | None = None,
    ) -> bool:  # fmt: skip
        """Delete what is under a key, of any type; False when there was nothing. Raises as `put`."""
        headers = {} if if_version is None else {"if-match": f'"{if_version}"'}
        try:
            self._send("DELETE", key_path(key), key, None, headers, {}, durability, strong, wait_s, id)
        except NotFound:
            return False
        return True

    def versions(self, key: str) -> list[Version]:
        """The current version of a value, and those that lost to a write that had not seen them. `get(version=)` reads each."""
        try:
            answer = self._read("GET", key, {}, {"versions": "1"}, False, None, None)
        except NotFound:
            return []
        return [Version(**item) for item in answer.json()["items"]]

    def list(
        self, prefix: str, *, max_staleness_s: float | None = None, wait_s: float | None = None
    ) -> Iterator[ValueInfo]:
        """What is under keys whose full name begins with `prefix` (`<namespace>/` for all of a namespace), in order."""
        namespace, _, inner = prefix.partition("/")
        after: str | None = ""
        while after is not None:
            params = {"prefix": inner, "after": after}
            answer = self._ask(
                "GET", f"/v1/ekv/{path_of(namespace)}/", namespace, {}, params, False, max_staleness_s, wait_s
            )  # fmt: skip
            page = answer.json()
            for item in page["items"]:
                yield _listed(namespace, item)
            after = page["next"]

    # -- counters, sets, maps, batches ---------------------------------------------------------------------------------

    def counter(self, key: str) -> "Counter":
        """The counter under a key; its first `add` makes it."""
        return Counter(self, key)

    def set(self, key: str) -> "Set":
        """The set under a key; its first `add` makes it."""
        return Set(self, key)

    def map(self, key: str) -> "Map":
        """The map under a key; its first `put` makes it."""
        return Map(self, key)

    def change(
        self, key: str, op: str, body: Mapping[str, Any], *, durability: str | None = None, strong: bool = False, wait_s: float | None = None,
        id: str | None = None,
    ) -> Receipt:  # fmt: skip
        """One operation on a counter, a set or a map, as docs/api.md has it. Raises WrongType."""
        content = json.dumps(dict(body)).encode()
        headers = {"content-type": "application/json"}
        return self._write("POST", key, content, headers, {"op": op}, durability, strong, wait_s, id)

    def batch(
        self, namespace: str, *, durability: str | None = None, strong: bool = False, wait_s: float | None = None, id: str | None = None
    ) -> "Batch":  # fmt: skip
        """Several writes of one namespace that happen together or not at all, when the `with` block ends without an exception."""

        def commit(writes: Sequence[Mapping[str, Any]]) -> Receipt:
            content = json.dumps({"writes": list(writes)}).encode()
            headers = {"content-type": "application/json"}
            answer = self._send(
                "POST", f"/v1/ekv/{path_of(namespace)}", namespace, content, headers, {}, durability, strong, wait_s, id
            )  # fmt: skip
            return receipt_of(answer.json())

        return Batch(namespace, commit, self._encode)

    # -- changes -------------------------------------------------------------------------------------------------------

    def watch(
        self, prefix: str, *, from_version: str | None = None, reconnect_s: float | None = None
    ) -> Generator[Change | Listing | Listed, None, None]:
        """What is under a prefix, then every later state of each key, for ever; `Listed` comes between the two.

        `from_version`: leave out of the first listing what is not newer; "now": all of it. It goes on by itself where it was; where that is not possible,
        `Listing` says that all comes anew. Gives up after `reconnect_s` without a connection (None: never). Raises Unavailable then, NotFound.
        """
        namespace, _, inner = prefix.partition("/")
        params = {"watch": "1", "prefix": inner}
        if from_version is not None:
            params["from_version"] = from_version
        last_id: str | None = None
        lost_at_s = time.monotonic()
        wait_s = FIRST_WAIT_S
        while True:
            headers = {} if last_id is None else {"last-event-id": last_id}
            try:
                with self._open(f"/v1/ekv/{path_of(namespace)}", params, headers, SILENCE_S) as answer:
                    if not answer.is_success:
                        answer.read()
                        raise self._error_of(answer)
                    for frame_id, kind, text in parse_sse(answer.iter_raw()):
                        wait_s, lost_at_s = FIRST_WAIT_S, time.monotonic()
                        if text:
                            yield _told(namespace, kind, json.loads(text))
                        last_id = frame_id if frame_id is not None else last_id
                trouble: EdgeflowError = Unavailable("the stream ended")
            except httpx.TransportError as error:
                trouble = Unavailable(f"the PoP cannot be reached: {error!r}")
            except Unavailable as error:
                trouble = error
            if reconnect_s is not None and time.monotonic() - lost_at_s > reconnect_s:
                raise trouble
            time.sleep(wait_s * _chance.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    # -- positions -----------------------------------------------------------------------------------------------------

    def has(self, key: str, receipt: Receipt, *, pop: str | None = None) -> bool:
        """Whether the write of this receipt is applied at the client's PoP, or at `pop`. `key`: of the write, or just its namespace."""
        namespace = key.partition("/")[0]
        path = f"/v1/receipts/{path_of(namespace)}/{path_of(receipt.origin)}/{receipt.epoch}/{receipt.seq}"
        return bool(self._call("GET", path, params={} if pop is None else {"pop": pop}).json()["applied"])

    def standing(self, namespace: str, *, hash: bool = False) -> dict[str, Any]:
        """Where the PoP stands in a namespace (docs/api.md); with `hash`, of all that is visible there."""
        document: dict[str, Any] = self._call(
            "GET", f"/v1/standing/{path_of(namespace)}", params={"hash": "1"} if hash else None
        ).json()
        return document

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _write(
        self, method: str, key: str, content: bytes, headers: dict[str, str], params: dict[str, str], durability: str | None,
        strong: bool, wait_s: float | None, id: str | None,
    ) -> Receipt:  # fmt: skip
        answer = self._send(method, key_path(key), key, content, headers, params, durability, strong, wait_s, id)
        return receipt_of(answer.json())

    def _send(
        self, method: str, path: str, key: str, content: bytes | None, headers: dict[str, str], params: dict[str, str],
        durability: str | None, strong: bool, wait_s: float | None, id: str | None,
    ) -> httpx.Response:  # fmt: skip
        params = {**params}
        if durability is not None:
            params["durability"] = durability
        headers = {**headers, "idempotency-key": id or uuid.uuid4().hex}
        return self._ask(method, path, key, headers, params, strong, None, wait_s, content)

    def _read(
        self, method: str, key: str, headers: dict[str, str], params: dict[str, str], strong: bool, max_staleness_s: float | None,
        wait_s: float | None,
    ) -> httpx.Response:  # fmt: skip
        return self._ask(method, key_path(key), key, headers, params, strong, max_staleness_s, wait_s)

    def _ask(
        self, method: str, path: str, key: str, headers: dict[str, str], params: dict[str, str], strong: bool,
        max_staleness_s: float | None, wait_s: float | None, content: bytes | None = None,
    ) -> httpx.Response:  # fmt: skip
        namespace = key.partition("/")[0]
        params = {**params}
        if strong:
            params["consistency"] = "strong"
        elif self._tokens is not None and method in ("GET", "HEAD"):
            params["consistency"] = "session"
        if max_staleness_s is not None:
            params["max_staleness"] = f"{round(max_staleness_s * 1000)}ms"
        if wait_s is not None:
            params["wait"] = f"{max(1, round(wait_s * 1000))}ms"
        sent = None if self._tokens is None else self._tokens.of(namespace)
        if sent:
            headers = {**headers, SESSION_HEADER: sent}
        timeout_s = None if wait_s is None else wait_s + ANSWER_S
        try:
            answer = self._call(method, path, content=content, headers=headers, params=params, timeout_s=timeout_s)
        except NotReplicated as error:
            if self._tokens is not None and "session" in error.details:
                self._tokens.learn(namespace, sent, str(error.details["session"]))
            raise
        if self._tokens is not None and SESSION_HEADER in answer.headers:
            self._tokens.learn(namespace, sent, answer.headers[SESSION_HEADER])
        return answer


class Counter:
    """A counter: every increment counts once, whichever PoP takes it."""

    def __init__(self, values: Values, key: str) -> None:
        self._values = values
        self.key = key

    def add(self, by: int = 1, **how: Any) -> Receipt:
        """Add `by`, which may be negative. `how`: as of `Values.put` (durability, strong, wait_s, id). Raises WrongType."""
        return self._values.change(self.key, "increment", {"by": by}, **how)

    def value(self, **how: Any) -> int:
        """The sum of what has arrived at the PoP; 0 before the first. `how`: as of `Values.get`."""
        return int(_typed(self._values, self.key, "counter", how) or 0)


class Set:
    """A set of texts. An element that is added here and removed elsewhere at the same time stays."""

    def __init__(self, values: Values, key: str) -> None:
        self._values = values
        self.key = key

    def add(self, *elements: str, **how: Any) -> Receipt:
        """Add elements. Raises WrongType, TooLarge."""
        return self._values.change(self.key, "add", {"elements": list(elements)}, **how)

    def remove(self, *elements: str, **how: Any) -> Receipt:
        """Remove elements, as far as the PoP has seen them."""
        return self._values.change(self.key, "remove", {"elements": list(elements)}, **how)

    def members(self, **how: Any) -> frozenset[str]:
        """The elements."""
        return frozenset(_typed(self._values, self.key, "set", how) or ())


class Map:
    """A map of named fields, each a value of its own: writes of different fields never hurt each other."""

    def __init__(self, values: Values, key: str) -> None:
        self._values = values
        self.key = key

    def put(self, fields: Mapping[str, bytes | str], *, content_type: str | None = None, **how: Any) -> Receipt:
        """Write fields. Raises WrongType, TooLarge."""
        body: dict[str, Any] = {"fields": {name: _field(data) for name, data in fields.items()}}
        if content_type is not None:
            body["content_type"] = content_type
        return self._values.change(self.key, "set", body, **how)

    def remove(self, *fields: str, **how: Any) -> Receipt:
        """Remove fields."""
        return self._values.change(self.key, "unset", {"fields": list(fields)}, **how)

    def fields(self, **how: Any) -> dict[str, bytes]:
        """All fields."""
        document = _typed(self._values, self.key, "map", how) or {}
        return {
            name: base64.b64decode(data["data_base64"]) if isinstance(data, dict) else data.encode()
            for name, data in document.items()
        }


class Batch:
    """Writes that happen together: collected in a `with` block, sent at its end. Keys are relative to the batch's namespace."""

    def __init__(
        self, namespace: str, commit: Callable[[Sequence[Mapping[str, Any]]], Receipt], encode: Callable[[Any], tuple[bytes, str | None]]
    ) -> None:  # fmt: skip
        self._namespace = namespace
        self._commit = commit
        self._encode = encode
        self._writes: list[dict[str, Any]] = []
        self.receipt: Receipt | None = None
        """Behind the block: of the one log entry that all of it is."""

    def put(
        self, key: str, data: Data, *, content_type: str | None = None, ttl_s: float | None = None, if_version: str | None = None,
        if_absent: bool = False,
    ) -> Self:  # fmt: skip
        """Put a value."""
        body, default_type = self._encode(data)
        write: dict[str, Any] = {"op": "put", "key": key, "data_base64": base64.b64encode(body).decode()}
        given = {
            "content_type": content_type or default_type, "ttl": None if ttl_s is None else f"{max(1, round(ttl_s * 1000))}ms",
            "if_version": if_version, "if_absent": if_absent or None,
        }  # fmt: skip
        return self._add({**write, **{name: value for name, value in given.items() if value is not None}})

    def delete(self, key: str, *, if_version: str | None = None, missing_ok: bool = False) -> Self:
        """Delete what is under a key."""
        write: dict[str, Any] = {"op": "delete", "key": key, "missing_ok": missing_ok}
        return self._add(write if if_version is None else {**write, "if_version": if_version})

    def increment(self, key: str, by: int = 1) -> Self:
        """Add to a counter."""
        return self._add({"op": "increment", "key": key, "by": by})

    def add(self, key: str, *elements: str) -> Self:
        """Add elements to a set."""
        return self._add({"op": "add", "key": key, "elements": list(elements)})

    def remove(self, key: str, *elements: str) -> Self:
        """Remove elements from a set."""
        return self._add({"op": "remove", "key": key, "elements": list(elements)})

    def set(self, key: str, fields: Mapping[str, bytes | str]) -> Self:
        """Write fields of a map."""
        return self._add({"op": "set", "key": key, "fields": {name: _field(data) for name, data in fields.items()}})

    def unset(self, key: str, *fields: str) -> Self:
        """Remove fields of a map."""
        return self._add({"op": "unset", "key": key, "fields": list(fields)})

    def commit(self) -> Receipt | None:
        """Send it now; None when there is nothing in it. Raises what a single write raises, and nothing was written then."""
        if self._writes:
            self.receipt = self._commit(self._writes)
            self._writes = []
        return self.receipt

    def _add(self, write: dict[str, Any]) -> Self:
        self._writes.append(write)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.commit()


class Tokens:
    """The tokens of a session, by namespace. Answers may come in any order."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = dict(tokens)
        self._lock = threading.Lock()

    def of(self, namespace: str) -> str | None:
        """The token for a request."""
        with self._lock:
            return self._tokens.get(namespace)

    def all(self) -> dict[str, str]:
        """All of them."""
        with self._lock:
            return dict(self._tokens)

    def learn(self, namespace: str, sent: str | None, token: str) -> None:
        """The token of an answer to a request with `sent`."""
        with self._lock:
            known = self._tokens.get(namespace)
            if known not in (None, sent):
                # Another answer came meanwhile: what either has seen. What all members have passed by now the next answer leaves out.
                token = parse_session(token, namespace).merged(parse_session(str(known), namespace)).text()
            self._tokens[namespace] = token


def receipt_of(document: Mapping[str, Any]) -> Receipt:
    """A receipt as the API sends it."""
    return Receipt(
        class_=document["class"], origin=document["origin"], epoch=document["epoch"], seq=document["seq"], id=document["id"],
        version=document.get("version"), duplicate=bool(document.get("duplicate")),
    )  # fmt: skip


def path_of(name: str) -> str:
    """A name as part of a path."""
    return quote(name, safe="/")


def key_path(key: str) -> str:
    """The resource of a full key. Raises BadRequest."""
    namespace, slash, inner = key.partition("/")
    if not slash or not inner:
        raise BadRequest(f"{key!r} is not a full key", hint="A key is <namespace>/<key>, as in vision/models/person.")
    return f"/v1/ekv/{path_of(namespace)}/{path_of(inner)}"


def _info(key: str, answer: httpx.Response, size: int) -> ValueInfo:
    headers = answer.headers
    expires = headers.get("edgeflow-expires")
    return ValueInfo(
        key, str(headers["etag"].strip('"')), size, headers.get("content-type"), kind=headers.get("edgeflow-kind", "register"),
        expires_ms=None if expires is None else int(expires),
    )  # fmt: skip


def _listed(namespace: str, item: Mapping[str, Any]) -> ValueInfo:
    return ValueInfo(
        f"{namespace}/{item['key']}", item["version"], item["size"], item["content_type"], kind=item.get("kind", "register"),
        expires_ms=item.get("expires_ms"), origin=item.get("origin", ""),
    )  # fmt: skip


def _told(namespace: str, kind: str, document: Mapping[str, Any]) -> Change | Listing | Listed:
    if kind == "listing":
        return Listing(document["reason"])
    if kind == "listed":
        return Listed(document["keys"])
    gone = document["deleted"]
    return Change(f"{namespace}/{document['key']}", None if gone else _listed(namespace, document))


def _typed(values: Values, key: str, kind: str, how: Mapping[str, Any]) -> Any:
    value = values.get(key, **how)
    if value is None:
        return None
    if value.kind != kind:
        raise BadRequest(f"{key!r} is a {value.kind}, not a {kind}")
    return value.json()


def _field(data: bytes | str) -> Any:
    if isinstance(data, str):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(data).decode()}
