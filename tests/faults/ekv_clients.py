"""Clients of an EKV cluster that is hurt: writers of values of every type, watchers, and what each was told.

What it is: `Clients` makes seeded operations against the HTTP API, each repeated until somebody says what became of it, and remembers them all (`done`).
What it is not: a user of the SDK or of the store's own code: it knows the documented HTTP API only, so that nothing the product believes of itself is
taken for granted. Nor the cluster and its troubles, or the judgement (ekv_world.py).
What must stay true: a write counts as acknowledged only by its answer; one without an answer is repeated under the same idempotency key until there is
one, unless its PoP was destroyed or set back meanwhile: then nobody knows.
"""

import base64
import contextlib
import http.client
import json
import random
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from histories import Outcome
from world import until

from edgeflow.host.local import LocalCluster

NAMESPACE = "proof"
KINDS = (
    "put",
    "once",
    "once",
    "delete",
    "cas",
    "big",
    "brief",
    "incr",
    "incr",
    "sadd",
    "srem",
    "mset",
    "munset",
    "batch",
)
"""`once` has a key of its own, which nothing overwrites: what is lost of it shows."""
LASTING = tuple(kind for kind in KINDS if kind != "brief")
"""Without those that a run has to wait for at its end."""
Class = Literal["durable", "replicated"]
SIZES = {
    "put": (30, 200),
    "cas": (30, 200),
    "once": (30, 200),
    "brief": (30, 60),
    "batch": (30, 60),
    "big": (300_000, 700_000),
}
MIDDLE = 0.1
"""Share of ordinary values that are too large for a log entry and too small for a file."""
BRIEF_S = (0.5, 6.0)
LONG_S = 3600.0
"""Times to live: of some values they pass within a run, of others they do not."""
WRONG_S = 5.0
"""How far off a clock may be made here: so much earlier or later a time to live may end."""
REGISTERS, COUNTERS, GROUPS, PAIRS, MEMBERS = 24, 4, 3, 4, 12
ANSWER_S = 30.0
RETRY_S = 0.1


class NoAnswer(Exception):
    """The request may or may not have been carried out."""


class NotSent(NoAnswer):
    """There was nobody to ask: it certainly was not carried out."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a PoP said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The problem's code; empty when all is well."""
        if self.status < 400:
            return ""
        try:
            return str(json.loads(self.body)["code"])
        except (ValueError, KeyError, TypeError):
            return f"http-{self.status}"

    @property
    def version(self) -> str | None:
        """Version in the ETag."""
        tag = self.headers.get("etag")
        return tag.strip('"') if tag else None

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Door:
    """One client's connection to one PoP's HTTP API."""

    def __init__(self, url: str, token: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        self._token = token
        self._connection: http.client.HTTPConnection | None = None

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float = ANSWER_S, headers: Mapping[str, str] | None = None, **params: Any
    ) -> Answer:  # fmt: skip
        """One request. Raises NoAnswer."""
        query = urllib.parse.urlencode({name: value for name, value in params.items() if value is not None})
        target = urllib.parse.quote(path) + (f"?{query}" if query else "")
        sent = {"Authorization": f"Bearer {self._token}", **(headers or {})}
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self._address, timeout=timeout_s)
                try:
                    self._connection.connect()
                except OSError as error:
                    self.close()
                    raise NotSent(repr(error)) from error
                self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.sock.settimeout(timeout_s)
            self._connection.request(method, target, body, sent)
            answer = self._connection.getresponse()
            said = answer.read()
            if answer.will_close:
                self.close()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, said)
        except (OSError, http.client.HTTPException, AttributeError) as error:
            self.close()
            raise NoAnswer(f"{method} {target}: {error!r}") from error

    def close(self) -> None:
        """Leave; the next request connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(slots=True)
class Done:
    """One operation of a writer, and what it was told."""

    number: int
    pop: str
    kind: str
    key: str
    member: str = ""
    value: str | None = None
    by: int = 0
    class_: Class = "durable"
    outcome: Outcome = "unknown"
    version: str | None = None
    code: str = ""
    ended_s: float = 0.0
    expires_s: float = float("inf")
    forgivable: bool = False
    tries: int = 0


def body_of(tag: str, size: int) -> bytes:
    """A body of about `size` bytes that says who wrote it, all through: a part of it cannot pass for the whole."""
    head = f"{tag} {size} ".encode()
    filler = random.Random(tag).randbytes(64)
    return head + (filler * (size // 64 + 1))[: max(0, size - len(head))]


def tag_of(body: bytes) -> str:
    """Who wrote a body. A body that nobody wrote is named as such."""
    try:
        tag, size, _ = body.split(b" ", 2)
        if body == body_of(tag.decode(), int(size)):
            return tag.decode()
    except ValueError:
        pass
    return f"torn: {body[:40]!r} of {len(body)} bytes"


class Clients:
    """The writers of a cluster, and what they were told."""

    def __init__(self, cluster: LocalCluster, seed: int, kinds: Sequence[str]) -> None:
        self.cluster = cluster
        self.seed = seed
        self.kinds = tuple(kinds)
        self.done: list[Done] = []
        self.retried = 0
        self.destroyed: set[str] = set()
        self.set_back: Counter[str] = Counter()
        """How often a PoP was destroyed or set back: what was under way then is not repeated."""
        self.replicate_share = 0.0
        """Share of the writes that ask for `replicated:1`."""
        self._safe = 0
        """Operations below this number were at all PoPs once."""
        self._lock = threading.Lock()
        self._access = {pop: cluster.pop(pop) for pop in cluster.pops}
        self._tokens = {pop: access.token for pop, access in self._access.items()}

    def door(self, pop: str) -> Door:
        """A connection of its own to a PoP."""
        return Door(self._access[pop].api_url, self._tokens[pop])

    def url(self, pop: str) -> str:
        """Where the PoP's API is."""
        return self._access[pop].api_url

    def token(self, pop: str) -> str:
        """The operator's token there."""
        return self._tokens[pop]

    @property
    def alive(self) -> list[str]:
        """PoPs that were not destroyed for good."""
        return [pop for pop in self.cluster.pops if pop not in self.destroyed]

    def work(
        self, count: int, *, writers_per_pop: int = 2, pause_s: float = 0.01, pops: Sequence[str] | None = None
    ) -> "Work":
        """Writers at all PoPs that make `count` operations together, in threads; see Work."""
        return Work(self, count, writers_per_pop, pause_s, pops or self.alive)

    def step(self, door: Door, pop: str, writer: str, chance: random.Random, mine: set[tuple[str, str]]) -> Done:
        """One random operation, repeated until its outcome is known. `mine`: the members that this writer has put somewhere."""
        kind = chance.choice(self.kinds)
        with self._lock:
            number = len(self.done)
            one = Done(
                number, pop, kind, "", class_="replicated" if chance.random() < self.replicate_share else "durable"
            )
            self.done.append(one)
        one.value = f"{self.seed}-{number}"
        headers: dict[str, str] = {"Idempotency-Key": f"{self.seed}-{number}"}
        params: dict[str, Any] = {"durability": "replicated:1"} if one.class_ == "replicated" else {}
        method, body = "PUT", b""
        if kind in ("put", "cas", "big", "delete"):
            one.key = f"r/{chance.randrange(REGISTERS)}"
        size = chance.randint(*SIZES[kind]) if kind in SIZES else 0
        if kind in ("put", "once", "cas") and chance.random() < MIDDLE:
            size = chance.randint(5_000, 40_000)
        if size:
            body = body_of(one.value, size)
        if kind == "cas":
            found = self._asked(door, pop, "HEAD", one.key)
            if found is None:
                one.outcome, one.code = "refused", "no-answer"
                return one
            headers |= {"If-Match": f'"{found.version}"'} if found.status == 200 else {"If-None-Match": "*"}
        elif kind == "delete":
            method, body, one.value = "DELETE", b"", None
        elif kind == "once":
            one.key = f"u/{number}"
        elif kind == "brief":
            one.key = f"t/{number}"
            ttl_s = chance.choice((LONG_S, chance.uniform(*BRIEF_S)))
            params["ttl"] = f"{ttl_s * 1000:.0f}ms"
        elif kind == "batch":
            pair = f"p/{chance.randrange(PAIRS)}"
            method, one.key, one.member = "POST", "", pair
            writes = [
                {"op": "put", "key": f"{pair}/{side}", "data_base64": base64.b64encode(body).decode()}
                for side in ("left", "right")
            ]
            body = json.dumps({"writes": writes}).encode()
        elif kind == "incr":
            one.by = chance.randint(-3, 9)
            method, one.key, body = "POST", f"c/{chance.randrange(COUNTERS)}", json.dumps({"by": one.by}).encode()
            params["op"] = "increment"
        elif kind in ("sadd", "srem", "mset", "munset"):
            group = "s" if kind in ("sadd", "srem") else "m"
            one.key, one.member = f"{group}/{chance.randrange(GROUPS)}", f"{writer}-{chance.randrange(MEMBERS)}"
            if group == "s":
                one.value = "1" if kind == "sadd" else None
                body = json.dumps({"elements": [one.member]}).encode()
            elif kind == "mset":
                body = json.dumps({"fields": {one.member: one.value}}).encode()
            else:
                one.value = None
                body = json.dumps({"fields": [one.member]}).encode()
            method = "POST"
            params["op"] = {"sadd": "add", "srem": "remove", "mset": "set", "munset": "unset"}[kind]
        if method == "POST":
            headers["Content-Type"] = "application/json"
        self._settle(one, door, method, body, headers, params)
        if kind == "brief":
            # One that may be gone by the end is gone by then: see converge.
            one.expires_s = (one.ended_s or time.monotonic()) + ttl_s + WRONG_S
        return one

    def _asked(self, door: Door, pop: str, method: str, key: str) -> Answer | None:
        with contextlib.suppress(NoAnswer):
            answer = door.ask(method, f"/v1/ekv/{NAMESPACE}/{key}")
            if answer.status in (200, 404):
                return answer
        return None

    def _settle(
        self, one: Done, door: Door, method: str, body: bytes, headers: dict[str, str], params: dict[str, Any]
    ) -> None:
        """Ask until somebody says what became of it."""
        began = self.set_back[one.pop]
        sure = True
        path = f"/v1/ekv/{NAMESPACE}/{one.key}".rstrip("/")
        while True:
            one.tries += 1
            try:
                answer = door.ask(method, path, body, headers=headers, **params)
            except NoAnswer as error:
                sure, one.code = sure and isinstance(error, NotSent), str(error)[:100]
            else:
                one.code = answer.code
                if answer.status < 300 or answer.code == "not-replicated":
                    one.outcome, one.ended_s = "ok", time.monotonic()
                    one.version = answer.version or _version_in(answer)
                    if answer.code:
                        one.class_ = "durable"
                    break
                if answer.status < 500 and answer.status not in (408, 421, 429):
                    # With its idempotency key this is about the first try as well.
                    one.outcome = "refused"
                    break
                sure = sure and answer.code in ("store-full", "stale-home")
            if self.set_back[one.pop] != began or one.pop in self.destroyed:
                one.outcome = "refused" if sure else "unknown"
                break
            time.sleep(RETRY_S)
            if self.set_back[one.pop] != began:
                one.outcome = "refused" if sure else "unknown"
                break
        with self._lock:
            self.retried += one.tries - 1

    def summary(self) -> str:
        """Numbers for the end of a run."""
        outcomes = Counter(one.outcome for one in self.done)
        classes = Counter(one.class_ for one in self.done if one.outcome == "ok")
        return (
            f"seed {self.seed}: {len(self.done)} operations, {outcomes['ok']} acknowledged ({classes['replicated']} as replicated), "
            f"{outcomes['refused']} refused, {outcomes['unknown']} unknown, {self.retried} repeated"
        )


class Work:
    """Writers in threads. As a context manager: waits for them, and passes on what went wrong in them."""

    def __init__(self, clients: Clients, count: int, writers_per_pop: int, pause_s: float, pops: Sequence[str]) -> None:
        self._clients = clients
        self._left = count
        self._count = count
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._stopping = False
        names = [(pop, f"{pop}{number}") for pop in pops for number in range(writers_per_pop)]
        self._threads = [threading.Thread(target=self._run, args=name, daemon=True) for name in names]

    def __enter__(self) -> "Work":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            self.stop()
        deadline_s = time.monotonic() + 180
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if kind is None:
            assert not self._failures, self._failures
            assert not any(thread.is_alive() for thread in self._threads), "writers wait for an answer"

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return 1 - self._left / self._count

    def reach(self, share: float, deadline_s: float = 120.0) -> None:
        """Wait until so much of it is done."""
        until(lambda: self._failures or self.share >= share, f"{share:.0%} of the work", deadline_s)
        assert not self._failures, self._failures

    def stop(self) -> None:
        """No further operations."""
        self._stopping = True

    def _run(self, pop: str, name: str) -> None:
        clients = self._clients
        chance = random.Random(f"{clients.seed} {name} {len(clients.done)}")
        mine: set[tuple[str, str]] = set()
        with contextlib.closing(clients.door(pop)) as door:
            try:
                while not self._stopping and pop not in clients.destroyed:
                    with self._lock:
                        if self._left <= 0:
                            return
                        self._left -= 1
                    clients.step(door, pop, name, chance, mine)
                    time.sleep(self._pause_s)
            except BaseException as error:
                self._failures.append(error)


class Watching:
    """A client that follows all changes at one PoP, over any number of reconnects: what it holds must be what is there, and no key ever goes back."""

    def __init__(self, clients: Clients, pop: str) -> None:
        self.pop = pop
        self.held: dict[str, str] = {}
        """Registers it was told of, and their versions."""
        self.told: list[tuple[str, str]] = []
        """(key, version) in the order in which they were told."""
        self.connects = 0
        self.listings = 0
        self._clients = clients
        self._place = ""
        self._stopping = False
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def missing(self, there: dict[str, str]) -> str:
        """How what it holds differs from what is `there`, and where it is."""
        differ = {
            key: (self.held.get(key), there.get(key))
            for key in self.held.keys() | there.keys()
            if self.held.get(key) != there.get(key)
        }
        return f"(held, there) {differ}; behind {self._place or 'nothing'}, {self.connects} connections, {self.listings} listings"

    def stop(self) -> None:
        """Leave."""
        self._stopping = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)

    def _run(self) -> None:
        access = urllib.parse.urlsplit(self._clients.url(self.pop))
        while not self._stopping:
            headers = {"Authorization": f"Bearer {self._clients.token(self.pop)}", "Accept": "text/event-stream"}
            if self._place:
                headers["Last-Event-ID"] = self._place
            self._connection = http.client.HTTPConnection(str(access.hostname), int(access.port or 80), timeout=30)
            try:
                self._connection.request("GET", f"/v1/ekv/{NAMESPACE}?watch=1", headers=headers)
                answer = self._connection.getresponse()
                if answer.status == 200:
                    self.connects += 1
                    self._follow(answer)
            except (OSError, http.client.HTTPException, ValueError, AttributeError):
                pass
            finally:
                self._connection.close()
            time.sleep(RETRY_S)

    def _follow(self, answer: http.client.HTTPResponse) -> None:
        listed: set[str] | None = set() if not self._place else None
        place = kind = data = ""
        while not self._stopping and (line := answer.readline()):
            text = line.decode().rstrip("\n").rstrip("\r")
            name, _, value = text.partition(": ")
            if name == "id":
                place = value
            elif name == "event":
                kind = value
            elif name == "data":
                data = value
            elif not text:
                # An event counts when it is whole, and its place with it.
                if kind == "listing":
                    listed = set()
                elif kind == "listed":
                    self.listings += 1
                    for key in self.held.keys() - (listed or set()) if listed is not None else ():
                        del self.held[key]
                    listed = None
                elif kind == "change":
                    self._take(json.loads(data), listed)
                self._place = place or self._place
                place = kind = data = ""

    def _take(self, change: dict[str, Any], listed: set[str] | None) -> None:
        key = change["key"].removeprefix(f"{NAMESPACE}/")
        if change["deleted"]:
            self.held.pop(key, None)
        elif change.get("kind", "register") == "register":
            self.told.append((key, change["version"]))
            self.held[key] = change["version"]
            if listed is not None:
                listed.add(key)


def _version_in(answer: Answer) -> str | None:
    """Version in the receipt, which an answer about copies that are missing has inside."""
    with contextlib.suppress(ValueError, AttributeError):
        document = answer.json()
        version = document.get("receipt", document).get("version")
        return str(version) if version else None
    return None
