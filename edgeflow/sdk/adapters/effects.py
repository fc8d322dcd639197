"""The HTTP API through which a program uses the store while it handles an invocation.

What it is: a small server on loopback, EDGEFLOW_URL: values, state, context values and events of the running invocation.
What it is not: the HTTP API of a PoP: what is written here is part of the invocation's commit, and nothing else can be reached.
What must stay true: a request names the running invocation, or is refused; what it writes is taken while that runs, or not at all; nothing is visible
before the commit.

GET /ekv?prefix=&after=&limit=    GET, PUT, DELETE /ekv/<key>    GET, PUT, DELETE /state    GET /context/<name>    POST /emit/<channel>
"""

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from edgeflow.errors import BadRequest, EdgeflowError, NotFound, StaleAttempt, TooLarge, Unavailable
from edgeflow.sdk.adapters.answers import answers, emit
from edgeflow.sdk.adapters.requests import INVOCATION
from edgeflow.sdk.connection import Abandoned
from edgeflow.sdk.context import Context
from edgeflow.sdk.inputs import MAX_VALUE_BYTES
from edgeflow.sdk.stored import Value

HOST = "127.0.0.1"
_PROBLEM = "application/problem+json"
_JSON = "application/json"
_IDLE_S = 60.0


class Reply:
    """What a request is answered with."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self, status: int, body: bytes = b"", content_type: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = dict(headers or {})


class Effects:
    """The server, and the invocation that it serves."""

    def __init__(self, port: int = 0) -> None:
        """Listen. Raises OSError when the port is taken."""
        self._lock = threading.Lock()
        self._ctx: Context | None = None
        self._publish: tuple[str, ...] = ()
        self._server = _Server((HOST, port), self)
        self.port = int(self._server.server_address[1])
        self.url = f"http://{HOST}:{self.port}"
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="effects", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        # Wakes the thread that waits for a connection; `serve_forever` would look for its end twice a second instead.
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.server_close()

    def _serve(self) -> None:
        while not self._closed:
            self._server.handle_request()

    @contextmanager
    def of(self, ctx: Context, publish: tuple[str, ...]) -> Iterator[None]:
        """Serve this invocation, until the block ends."""
        with self._lock:
            self._ctx, self._publish = ctx, publish
        try:
            yield
        finally:
            with self._lock:  # what is under way is finished first
                self._ctx = None

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """One request. Raises EdgeflowError."""
        with self._lock:
            named, ctx = headers.get(INVOCATION.lower()), self._ctx
            if not named:
                raise BadRequest(
                    f"the header {INVOCATION} is missing",
                    hint="Send the one that came with the event (`stdio`: the variable EDGEFLOW_INVOCATION).",
                )
            if ctx is None or named != ctx.invocation_id:
                raise StaleAttempt(
                    f"the invocation {named[:64]!r} does not run here, or has ended",
                    hint="Use the store before the answer, with the invocation that is being handled.",
                )
            parts = urlsplit(target)
            collection, _, rest = parts.path.lstrip("/").partition("/")
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            name = unquote(rest)
            if collection == "ekv" and name:
                return _value(ctx, method, name, query, headers, body)
            if collection == "ekv" and method == "GET":
                return _listing(ctx, query)
            if collection == "state" and not name:
                return _state(ctx, method, body)
            if collection == "context" and name and method == "GET":
                return _context(ctx, name)
            if collection == "emit" and name and method == "POST":
                for one in answers({**headers, "edgeflow-channel": name}, body):
                    emit(ctx, self._publish, (), [one])
                return Reply(HTTPStatus.ACCEPTED)
            raise NotFound(
                f"there is no {method} {parts.path[:80]} here",
                hint="GET /ekv?prefix=, GET, PUT and DELETE /ekv/<key> and /state, GET /context/<name>, POST /emit/<channel>.",
            )


def _value(
    ctx: Context, method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
) -> Reply:
    if method == "GET":
        return _found(ctx.ekv.get(key, version=query.get("version")), f"there is no value {key!r}")
    if method == "PUT":
        ttl = query.get("ttl_s")
        try:
            ttl_s = None if ttl is None else float(ttl)
        except ValueError:
            raise BadRequest(f"ttl_s={ttl!r} is not a number of seconds") from None
        absent = headers.get("if-none-match") == "*"
        match = _version(headers)
        ctx.ekv.put(
            key, body, content_type=headers.get("content-type"), ttl_s=ttl_s, if_version=match, if_absent=absent
        )
        return Reply(HTTPStatus.NO_CONTENT)
    if method == "DELETE":
        ctx.ekv.delete(key, if_version=_version(headers))
        return Reply(HTTPStatus.NO_CONTENT)
    raise BadRequest(f"{method} is not for values", hint="GET, PUT and DELETE are.")


def _version(headers: Mapping[str, str]) -> str | None:
    match = headers.get("if-match")
    return None if match is None else match.strip().strip('"')


def _listing(ctx: Context, query: Mapping[str, str]) -> Reply:
    try:
        limit = int(query.get("limit", "100"))
    except ValueError:
        raise BadRequest(f"limit={query['limit']!r} is not a number") from None
    items = ctx.ekv.list(query.get("prefix", ""), after=query.get("after", ""), limit=limit)
    listed = [{"key": one.key, "version": one.version, "size": one.size} for one in items]
    return _json({"items": listed})


def _state(ctx: Context, method: str, body: bytes) -> Reply:
    state = ctx.state
    if method == "GET":
        return _json(dict(state))
    if method == "DELETE":
        state.clear()
    elif method == "PUT":
        try:
            document = json.loads(body)
        except ValueError as error:
            raise BadRequest(f"the state is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise BadRequest(f"the state is a JSON {type(document).__name__}", hint="A state is a JSON object.")
        state.clear()
        state.update(document)
    else:
        raise BadRequest(f"{method} is not for the state", hint="GET, PUT and DELETE are.")
    return Reply(HTTPStatus.NO_CONTENT)


def _context(ctx: Context, name: str) -> Reply:
    try:
        value = ctx.context[name]
    except AttributeError as error:
        raise NotFound(str(error), hint="Name it under `context:` in the manifest.") from None
    return _found(value, f"the context value {name!r} has not been written")


def _found(value: Value | None, problem: str) -> Reply:
    if value is None:
        raise NotFound(problem)
    tag = {} if value.version is None else {"ETag": f'"{value.version}"'}
    return Reply(HTTPStatus.OK, value.data, value.content_type or "application/octet-stream", tag)


def _json(document: Any) -> Reply:
    return Reply(HTTPStatus.OK, json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(), _JSON)


def _problem(error: EdgeflowError) -> Reply:
    document = {
        "title": type(error).__name__,
        "status": error.status,
        "code": error.code,
        "detail": error.message,
        "hint": error.hint,
    }
    return Reply(error.status, json.dumps(document, ensure_ascii=False).encode(), _PROBLEM)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A port that an earlier instance had may be in TIME_WAIT; two live servers never share one.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], effects: Effects) -> None:
        self.effects = effects
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_DELETE = do_POST = do_GET

    def _serve(self) -> None:
        try:
            reply = self.server.effects.answer(self.command, self.path, self._headers(), self._body())
        except EdgeflowError as error:
            reply = _problem(error)
        except Abandoned:
            reply = _problem(Unavailable("the agent was lost, so this attempt is void"))
        except Exception as error:  # whatever it is, the program gets an answer
            reply = _problem(EdgeflowError(f"{type(error).__name__}: {error}"))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.content_type is not None:
            self.send_header("Content-Type", reply.content_type)
        if reply.status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def _headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _body(self) -> bytes:
        if "transfer-encoding" in self.headers:
            self.close_connection = True
            raise BadRequest("a body needs a Content-Length here", hint="Send it whole, not in chunks.")
        try:
            size = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            size = -1
        if not 0 <= size <= MAX_VALUE_BYTES:
            self.close_connection = True
            if size > 0:
                raise TooLarge(f"a body of {size} bytes is larger than {MAX_VALUE_BYTES}")
            raise BadRequest("the Content-Length is no size")
        return self.rfile.read(size)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
