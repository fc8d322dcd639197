"""Client: publish, follow, and use the EKV of a PoP over HTTP.

What it is: a synchronous client of the HTTP API (docs/api.md) with retries that cannot double anything.
What it is not: an MQTT client, or a part of the agent; it needs httpx, and the URL and token of one PoP or of several (`connect`).
What must stay true: a repeated publish carries the same id, so it stays one event; `subscribe` yields each event once over any number of reconnects
and says what is missing; a token is sent to its own PoP only.

    with Client.from_home("chicago") as client:
        client.publish("vision/chunks", Path("clip.mp4").read_bytes(), subject="clip")
        for event in client.subscribe("vision/augmented"):
            ...
"""

import base64
import hashlib
import json
import time
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

import httpx

from edgeflow.core.channels import check_channel, check_filter, namespace_of
from edgeflow.core.nearest import Weights as Weights
from edgeflow.core.tokens import SESSION_ATTRIBUTE
from edgeflow.errors import BadRequest, EdgeflowError, NotFound, Unavailable
from edgeflow.sdk import members
from edgeflow.sdk.calls import Calls
from edgeflow.sdk.finder import Finder
from edgeflow.sdk.pops import make_pop
from edgeflow.sdk.subscription import ApiError, Reader, Subscription, received
from edgeflow.sdk.subscription import Gap as Gap
from edgeflow.sdk.subscription import ReceivedEvent as ReceivedEvent
from edgeflow.sdk.subscription import parse_sse as parse_sse
from edgeflow.sdk.values import Receipt as Receipt
from edgeflow.sdk.values import Value as Value
from edgeflow.sdk.values import ValueInfo as ValueInfo
from edgeflow.sdk.values import Values, receipt_of

Data = bytes | bytearray | memoryview | str | int | float | bool | list[Any] | dict[str, Any] | None
"""Bytes are sent as they are, text as UTF-8, anything else as JSON."""

BATCH = "application/cloudevents-batch+json"
ANSWER_S = 15.0
"""How much longer (s) than its function the PoP may take to answer an invoke."""
Rows = list
"""`list` by another name: inside the class, `list` is the method."""
_PROBLEM = frozenset({"type", "title", "status", "detail", "code", "hint"})
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


class Client:
    """One PoP's API. Thread-safe except that each `subscribe` iterator belongs to one thread. Raises EdgeflowError and its subclasses only;
    their `retry_after_s` is what the PoP said about when to try again (429: always, 503: mostly), else None.
    """

    def __init__(
        self, url: str, token: str, *, timeout_s: float = 30.0, retry_s: float = 30.0, transport: httpx.BaseTransport | None = None,
        others: Sequence[tuple[str, str]] = (), nearest: Weights | None = None,
    ) -> None:  # fmt: skip
        """`timeout_s`: longest silence of one request. `retry_s`: how long a call is repeated while the PoP cannot take it.

        `others`: (url, token) of other PoPs of the cluster. Durable subscriptions go on there when their PoP is away, and bodies of events are
        fetched there then; nothing else is asked of them. `nearest`: all PoPs are measured, and everything goes to the best one (see `connect`). Raises
        Unavailable then when none answers.
        """
        self._source = f"urn:edgeflow:client:{uuid.uuid4().hex[:12]}"
        self._readers: weakref.WeakSet[Reader] = weakref.WeakSet()
        self._pops = [
            make_pop(address, secret, timeout_s, transport, is_watched=nearest is not None)
            for address, secret in ((url, token), *others)
        ]
        self._finder = None if nearest is None else Finder(self._pops, nearest)
        if self._finder is not None and not self._finder.start(min(timeout_s, retry_s)):
            why = ", ".join(pop.url for pop in self._pops)
            self.close()
            raise Unavailable(f"no PoP answers, of {why}")
        self._call = Calls(self._pops, retry_s, _error, self._finder)
        self.ekv = Values(self._call, self._stream, encode_data, _error)
        """The key-value store: values with conditions, time to live and consistency, counters, sets, maps, batches, watches, sessions."""

    @classmethod
    def from_home(cls, pop: str | None = None, *, home: Path | None = None, **options: Any) -> Self:
        """A client of a running local cluster: of `pop`, else of the first one. `home` defaults to $EDGEFLOW_HOME, else `.edgeflow`.

        The other PoPs are those that durable subscriptions can go on at.
        Finds local processes and containers. Raises NotFound when nothing was started there or it has no such PoP.
        """
        (url, token), *others = members.of_home(pop, home)
        return cls(url, token, **{"others": others, **options})

    @classmethod
    def connect(
        cls, cluster: str | Path | Sequence[str | tuple[str, str]] | None = None, *, token: str | None = None,
        tokens: Mapping[str, str] | None = None, weights: Weights | None = None, **options: Any,
    ) -> Self:  # fmt: skip
        """A client of a cluster: of whichever PoP is best for it, measured all the time.

        `cluster`: a cluster.json or the home folder with it (None: as `from_home`); URLs of PoPs, or (url, token) of each; or one URL, which is asked for
        the others. `token` is sent to each of them, `tokens` (by PoP id or URL) to its own. Best is the least of latency, load and cost, by `weights`.

        It moves when its PoP fails, slows down, or asks it to, and takes along what it has: a publish or an invoke without an answer is sent again with its
        id, a subscription goes on behind what it has yielded, sessions keep their tokens. Raises Unavailable when no PoP answers.
        """
        options.setdefault("retry_s", 30.0)
        (url, secret), *others = members.of(cluster, token, tokens or {})
        return cls(url, secret, **{"others": others, "nearest": weights or Weights(), **options})

    @property
    def url(self) -> str:
        """The PoP that is asked now."""
        return self._call.pop.url

    def known_pops(self) -> Rows[dict[str, Any]]:
        """What a connected client has measured: {url, current, latency_ms, jitter_ms, load, cost, state, score}, the best first."""
        return [] if self._finder is None else self._finder.table()

    def close(self) -> None:
        """Send the last acknowledgements of durable subscriptions, and close the connections."""
        for reader in list(self._readers):
            reader.close(wait=True)
        if self._finder is not None:
            self._finder.close()
        for pop in self._pops:
            pop.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- events --------------------------------------------------------------------------------------------------------

    def publish(
        self, channel: str, data: Data = None, *, subject: str | None = None, attributes: Mapping[str, str] | None = None,
        datacontenttype: str | None = None, type: str | None = None, id: str | None = None, source: str | None = None,
        dataref: str | None = None, put: str | None = None, durability: str | None = None, wait_s: float | None = None,
        session: Values | None = None,
    ) -> Receipt:  # fmt: skip
        """Publish one event durably; the receipt says where it entered the log.

        `dataref`: `ekv:<namespace>/<key>` in place of data. `put`: also put the data into the EKV under this key (without the namespace), atomically.
        `durability`: "durable" or "replicated:<k>" (NotReplicated after `wait_s`). `session`: of `ekv`; functions that get the event read what it has seen.
        Raises BadName, BadEvent, TooLarge, Unavailable (after `retry_s`; publishing again with the same `id` and `source` is safe).
        """
        check_channel(channel)
        if session is not None and (token := session.tokens.get(namespace_of(channel))):
            attributes = {**(attributes or {}), SESSION_ATTRIBUTE: token}
        body, headers = self._event(data, subject, attributes, datacontenttype, type, id, source, dataref)
        params = {
            "put": put,
            "ack": durability,
            "wait": None if wait_s is None else f"{max(1, round(wait_s * 1000))}ms",
        }
        answer = self._call(
            "POST", f"/v1/channels/{_path(channel)}", content=body, headers=headers,
            params={name: value for name, value in params.items() if value is not None} or None,
            timeout_s=None if wait_s is None else wait_s + ANSWER_S,
        )  # fmt: skip
        return receipt_of(answer.json())

    def invoke(
        self, function: str, data: Data = None, *, subject: str | None = None, attributes: Mapping[str, str] | None = None,
        datacontenttype: str | None = None, type: str | None = None, id: str | None = None, source: str | None = None,
        dataref: str | None = None, timeout_s: float = 30.0,
    ) -> Rows[ReceivedEvent]:  # fmt: skip
        """Call the function `<namespace>/<name>` with one event, wherever it runs, and wait for its outputs (none, one, or several).

        Calling again with the same `id` and `source` is the same invocation. Raises InvocationDead when it was given up (`details`: its reason and
        dead letter), InvocationDropped when it was not carried out, InvocationPending after `timeout_s` (at most 300; it goes on), Throttled when
        nothing was taken, and what `publish` raises.
        """
        namespace, slash, name = function.partition("/")
        if not slash or not name or "/" in name:
            raise BadRequest(
                f"{function!r} is not a function", hint="A function is <namespace>/<name>, as in vision/detect."
            )
        body, headers = self._event(data, subject, attributes, datacontenttype, type, id, source, dataref)
        answer = self._call(
            "POST", f"/v1/functions/{_path(namespace)}/{_path(name)}/invoke", content=body, headers=headers,
            params={"timeout": f"{max(1, int(timeout_s * 1000))}ms"}, timeout_s=timeout_s + ANSWER_S,
        )  # fmt: skip
        if answer.status_code == 204:
            return []
        if answer.headers.get("content-type", "").startswith(BATCH):
            return [received(document, "", lambda path: self._fetch(path, 0)) for document in answer.json()]
        return [_output(answer)]

    def _event(
        self, data: Data, subject: str | None, attributes: Mapping[str, str] | None, datacontenttype: str | None,
        type: str | None, id: str | None, source: str | None, dataref: str | None,
    ) -> tuple[bytes, dict[str, str]]:  # fmt: skip
        """Body and headers of one event in the binary mode."""
        body, content_type = encode_data(data)
        headers = {"ce-id": _header(id or uuid.uuid4().hex), "ce-source": _header(source or self._source)}
        if dataref is not None:
            if data is not None:
                raise BadRequest("an event has data or a dataref, not both")
            body, content_type, datacontenttype = json.dumps({"dataref": dataref}).encode(), "application/json", None
        for name, value in (("subject", subject), ("type", type), *(attributes or {}).items()):
            if value is not None:
                headers[name if name in ("traceparent", "tracestate") else f"ce-{name}"] = _header(value)
        if datacontenttype or content_type:
            headers["content-type"] = datacontenttype or content_type or ""
        return body, headers

    def subscribe(
        self, pattern: str, *, from_: str | int = "now", durable: str | None = None, reconnect_s: float | None = None
    ) -> Subscription:
        """Events on a channel or MQTT filter (`vision/+/left`, `vision/#`), for ever, each once; gaps as `Gap`.

        `from_`: "now", "start", or a cursor of any PoP (everything behind it). Reconnects by itself; gives up after `reconnect_s` without a connection
        (None = never). Raises Unavailable then, and BadName for a bad filter.

        `durable`: the name of a consumer whose place the cluster keeps. It goes on where it stopped (`from_` counts for a new one only), here or at any
        PoP; when its PoP is away it goes on at the next one that this client knows. Acknowledged is what the caller is done with: an event when the
        next is asked for, or by `close()` or the end of a `with` block, at most every 0.5 s. What was not acknowledged comes again.
        """
        check_filter(pattern)
        reader = Reader(
            self._pops,
            pattern,
            str(from_),
            durable=durable,
            reconnect_s=reconnect_s,
            fetch=self._fetch,
            error_of=_error,
            finder=self._finder,
        )
        self._readers.add(reader)
        return Subscription(reader)

    def consumers(self, namespace: str) -> Rows[dict[str, Any]]:
        """The durable consumers of a namespace as this PoP knows them: {name, filter, cursor, acked_ms, behind}. Raises NotFound."""
        items: Rows[dict[str, Any]] = self._call("GET", f"/v1/consumers/{_path(namespace)}").json()["items"]
        return items

    def delete_consumer(self, namespace: str, name: str) -> bool:
        """Forget a durable consumer at every PoP; False when there was none."""
        try:
            self._call("DELETE", f"/v1/consumers/{_path(namespace)}/{_path(name)}")
        except NotFound:
            return False
        return True

    def channels(self, namespace: str | None = None) -> Rows[dict[str, Any]]:
        """Channels with their number of events at this PoP: {channel, events}."""
        return self._items("/v1/channels", namespace)

    # -- values --------------------------------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        data: Data,
        *,
        content_type: str | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> Receipt:
        """Put a value under the full key <namespace>/<key>, durably. Raises VersionMismatch when a condition does not hold. `ekv` can do more."""
        return self.ekv.put(key, data, content_type=content_type, if_version=if_version, if_absent=if_absent)

    def get(self, key: str, *, version: str | None = None) -> Value | None:
        """A value, or None when this PoP has none (or not in that version). `ekv` can do more."""
        return self.ekv.get(key, version=version)

    def head(self, key: str) -> ValueInfo | None:
        """A value without its body, or None."""
        return self.ekv.head(key)

    def delete(self, key: str, *, if_version: str | None = None) -> bool:
        """Delete a value; False when there was none. Raises VersionMismatch when `if_version` does not hold."""
        return self.ekv.delete(key, if_version=if_version)

    def list(self, prefix: str) -> Iterator[ValueInfo]:
        """Values whose full key starts with `prefix` (`<namespace>/` for all of a namespace), in order."""
        return self.ekv.list(prefix)

    # -- the application -----------------------------------------------------------------------------------------------

    def apply_manifest(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a resolved manifest: {namespace, status: created | updated | unchanged, version, revisions}. Raises BadManifest."""
        answer = self._call(
            "PUT",
            f"/v1/functions/{_path(manifest['namespace'])}",
            content=json.dumps(manifest).encode(),
            headers={"content-type": "application/json"},
        )
        return _document(answer)

    def manifest(self, namespace: str) -> dict[str, Any] | None:
        """The resolved manifest of a namespace, or None."""
        try:
            return _document(self._call("GET", f"/v1/functions/{_path(namespace)}"))
        except NotFound:
            return None

    def delete_manifest(self, namespace: str) -> bool:
        """Stop all functions of a namespace; False when it had no manifest."""
        try:
            self._call("DELETE", f"/v1/functions/{_path(namespace)}")
        except NotFound:
            return False
        return True

    def put_bundle(self, archive: bytes) -> str:
        """Store the tar.gz of a function folder; its SHA-256 in hex, as manifests name it. One that is there is not sent again."""
        digest = hashlib.sha256(archive).hexdigest()
        if self.head(f"system/bundles/{digest}") is None:
            self._call("PUT", f"/v1/bundles/{digest}", content=archive, headers={"content-type": "application/gzip"})
        return digest

    def functions(self, namespace: str | None = None) -> Rows[dict[str, Any]]:
        """Functions with their status as this PoP knows it (docs/api.md, FunctionView)."""
        return self._items("/v1/functions", namespace)

    def function(self, namespace: str, name: str) -> dict[str, Any]:
        """The status of one function. Raises NotFound."""
        return _document(self._call("GET", f"/v1/functions/{_path(namespace)}/{_path(name)}"))

    def joins(self, namespace: str | None = None) -> Rows[dict[str, Any]]:
        """Joins that wait at this PoP."""
        return self._items("/v1/joins", namespace)

    def pops(self) -> Rows[dict[str, Any]]:
        """The PoPs of the cluster as this one sees them, itself first."""
        return self._items("/v1/pops", None)

    def namespaces(self) -> Rows[dict[str, Any]]:
        """The namespaces of this PoP with their counters."""
        return self._items("/v1/namespaces", None)

    def dead_letters(self, namespace: str) -> Iterator[dict[str, Any]]:
        """Invocations given up at this PoP, oldest first, without their inputs."""
        after: str | None = ""
        while after is not None:
            page = self._call("GET", "/v1/dead-letters", params={"namespace": namespace, "after": after}).json()
            yield from page["items"]
            after = page["next"]

    def dead_letter(self, namespace: str, id: str) -> dict[str, Any] | None:
        """One of them with its inputs, or None."""
        try:
            return _document(self._call("GET", f"/v1/dead-letters/{_path(namespace)}/{_path(id)}"))
        except NotFound:
            return None

    def redrive_dead_letter(self, namespace: str, id: str) -> str:
        """Try a dead letter again, at the PoP that has it: "invocation" (it is in the inbox again) or "arrivals" (its inputs go through the join
        once more). Raises NotFound, Throttled.
        """
        answer = self._call("POST", f"/v1/dead-letters/{_path(namespace)}/{_path(id)}/redrive", is_repeatable=False)
        return str(answer.json()["as"])

    def delete_dead_letter(self, namespace: str, id: str) -> bool:
        """Forget a dead letter, at the PoP that has it; False when there was none."""
        try:
            self._call("DELETE", f"/v1/dead-letters/{_path(namespace)}/{_path(id)}")
        except NotFound:
            return False
        return True

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _items(self, path: str, namespace: str | None) -> Rows[dict[str, Any]]:
        items: Rows[dict[str, Any]] = self._call(
            "GET", path, params={"namespace": namespace} if namespace else None
        ).json()["items"]
        return items

    def _stream(self, path: str, params: Mapping[str, str], headers: Mapping[str, str], silence_s: float) -> Any:
        """A response of the PoP that is read while it comes; for a `with` block."""
        timeout = httpx.Timeout(silence_s)
        if self._finder is not None:
            self._finder.order()
        return self._call.pop.http.stream("GET", path, params=params, headers=headers, timeout=timeout)

    def _fetch(self, path: str, at: int) -> bytes:
        """A body that PoP `at` offers; from the others when it is away."""
        return self._call("GET", path, pops=[*self._pops[at:], *self._pops[:at]]).content


def encode_data(data: Data) -> tuple[bytes, str | None]:
    """(bytes, content type) of what a user gives: bytes as they are, text as UTF-8, None as nothing, the rest as JSON. Raises BadRequest."""
    if data is None:
        return b"", None
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), None
    if isinstance(data, str):
        return data.encode(), "text/plain; charset=utf-8"
    try:
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(), "application/json"
    except (TypeError, ValueError) as error:
        raise BadRequest(
            f"a {type(data).__name__} cannot be sent: {error}", hint="Give bytes, text, or what JSON can hold."
        ) from None


def _error(response: httpx.Response) -> EdgeflowError:
    """The error that a problem document describes, as a member of the tree when it is known there."""
    problem: dict[str, Any] = {}
    try:
        problem = dict(response.json())
        code, detail, hint = str(problem["code"]), str(problem["detail"]), str(problem["hint"])
    except (ValueError, KeyError, TypeError):
        known = {401: "unauthorized", 404: "not-found", 412: "version-mismatch", 413: "too-large", 503: "unavailable"}
        code, detail, hint = (
            response.headers.get("edgeflow-code") or known.get(response.status_code, "internal"),
            f"HTTP {response.status_code} from {response.request.url}",
            EdgeflowError.hint,
        )
    kind = _known_errors().get(code)
    error: EdgeflowError
    if kind is not None:
        error = kind(detail, hint=hint)
    elif response.status_code == 503:
        error = Unavailable(detail, hint=hint)
    else:
        error = ApiError(detail, hint=hint)
    error.code, error.status = code, response.status_code
    error.details = {name: value for name, value in problem.items() if name not in _PROBLEM}
    wait_s = _retry_after_s(response)
    if wait_s is not None:
        error.retry_after_s = wait_s
    return error


def _retry_after_s(response: httpx.Response) -> float | None:
    """What Retry-After says: whole seconds, or the time of day that a proxy may write; None when it says nothing that can be."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    with suppress(ValueError):
        at = parsedate_to_datetime(text)
        return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - time.time())
    return None


def _known_errors() -> dict[str, type[EdgeflowError]]:
    known: dict[str, type[EdgeflowError]] = {}
    pending: Rows[type[EdgeflowError]] = [EdgeflowError]
    while pending:
        kind = pending.pop()
        if kind.__module__ == EdgeflowError.__module__:
            known.setdefault(kind.code, kind)
        pending += kind.__subclasses__()
    return known


def _output(answer: httpx.Response) -> ReceivedEvent:
    """The event that an answer in the binary mode is."""
    attributes = {
        name.removeprefix("ce-"): unquote(value) for name, value in answer.headers.items() if name.startswith("ce-")
    }
    body = base64.b64encode(answer.content).decode()
    document = {**attributes, "datacontenttype": answer.headers.get("content-type"), "data_base64": body}
    return received(document, "", lambda _path: answer.content)


def _document(response: httpx.Response) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    return document


def _path(name: str) -> str:
    return quote(name, safe="/")


def _header(value: str) -> str:
    """A header value as the CloudEvents HTTP binding writes it: everything but printable ASCII is percent-encoded."""
    return quote(value, safe=_HEADER_SAFE)
