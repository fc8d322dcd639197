"""Three PoPs whose store is hurt on purpose, clients that write values of every type at all of them, and everything to see what came of it.

What it is: `EkvWorld` starts the cluster behind the link proxy, with a Redis whose every end is a power cut, runs seeded writers against the HTTP API, hurts, heals, waits until
all PoPs hold the same, and says with `problems()` whether each acknowledged write is where it must be.
What it is not: a user of the SDK or of the store's own code: it knows the documented HTTP API only, so that nothing the product believes of itself is taken for granted.
What must stay true: a write counts as acknowledged only by its answer; one without an answer is repeated under the same idempotency key until there is one, unless its PoP was
destroyed or set back meanwhile: then nobody knows.
"""

import base64
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import redis
from histories import Added, Kept, Member, Outcome, Written, kept, miscounted, misplaced
from needs import missing
from world import HERE, NotInTime, until

from edgeflow.host import wan
from edgeflow.host.local import LocalCluster, ProcessName
from edgeflow.host.supervisor import default_commands
from edgeflow.settings import PopSettings

NAMESPACE = "proof"
POPS = ("la", "ny", "sf")
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
SETTLE_S = 90.0
PAGE = 1000


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


@dataclass
class Seen:
    """Everything a PoP shows to a client."""

    registers: dict[str, tuple[str, str]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    members: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of sets and maps."""


class EkvWorld:
    """The cluster and its writers. Use `EkvWorld.running()`."""

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

    @classmethod
    @contextlib.contextmanager
    def running(
        cls, folder: Path, *, seed: int, pops: Sequence[str] = POPS, kinds: Sequence[str] = KINDS, settings: dict[str, Any] | None = None,
        redis_options: Sequence[str] = (), power: bool = True,
    ) -> "Iterator[EkvWorld]":  # fmt: skip
        """Start the cluster and end it. `power`: each end of a Redis is a power cut."""
        libraries = {name: library(folder, name) for name in ("clockskew", "powercut")}
        held = [sys.executable, str(HERE / "held.py"), "{dir}"]
        usual = default_commands()
        cut = [sys.executable, str(HERE / "powercut.py"), str(libraries["powercut"]), "{dir}/power"] if power else []
        commands = {
            "redis": [*held, "-", *cut, *usual["redis"], *redis_options],
            "data": [*held, str(libraries["clockskew"]), *usual["data"]],
            "control": [*held, str(libraries["clockskew"]), *usual["control"]],
        }
        with LocalCluster(pops, commands=commands, settings=settings) as cluster:
            world = cls(cluster, seed, kinds)
            with contextlib.closing(world.door(pops[0])) as door:
                until(
                    lambda: door.ask("PUT", f"/v1/ekv/{NAMESPACE}/r/first", body_of("first", 40)).status < 300,
                    "the first value",
                    30,
                )
            world.done.append(Done(-1, pops[0], "put", "r/first", value="first", outcome="ok", version=""))
            for pop in pops:
                with contextlib.closing(world.door(pop)) as door:
                    until(
                        lambda door=door: door.ask("GET", f"/v1/ekv/{NAMESPACE}/r/first").status == 200,
                        f"the first value at {pop}",
                        60,
                    )
            yield world

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

    # -- writers -------------------------------------------------------------------------------------------------------

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

    # -- what PoPs show ------------------------------------------------------------------------------------------------

    def listing(self, door: Door) -> list[dict[str, Any]]:
        """All keys of a PoP with kind, version and size. Raises NoAnswer."""
        items: list[dict[str, Any]] = []
        after = ""
        while True:
            answer = door.ask("GET", f"/v1/ekv/{NAMESPACE}", limit=PAGE, after=after or None)
            if answer.status == 404:
                return items
            if answer.status != 200:
                raise NoAnswer(f"listing: {answer.status} {answer.code}")
            page = answer.json()
            items += page["items"]
            if not page["next"]:
                return items
            after = page["next"]

    def look(self, pop: str) -> Seen:
        """Read everything at a PoP, as a client does. Raises NoAnswer."""
        seen = Seen()
        with contextlib.closing(self.door(pop)) as door:
            for item in self.listing(door):
                key, kind = item["key"].removeprefix(f"{NAMESPACE}/"), item.get("kind", "register")
                answer = door.ask("GET", f"/v1/ekv/{NAMESPACE}/{key}", headers={"Accept": "*/*"})
                if answer.status == 404:
                    continue
                if answer.status != 200:
                    raise NoAnswer(f"{key}: {answer.status} {answer.code}")
                if kind == "counter":
                    seen.counters[key] = int(answer.body)
                elif kind == "set":
                    seen.members[key] = dict.fromkeys(answer.json(), "1")
                elif kind == "map":
                    seen.members[key] = answer.json()
                else:
                    seen.registers[key] = (answer.version or "", tag_of(answer.body))
        return seen

    def hashes(self) -> dict[str, str]:
        """What each PoP that is left calls the hash of its content. Raises NoAnswer."""
        found = {}
        for pop in self.alive:
            with contextlib.closing(self.door(pop)) as door:
                answer = door.ask("GET", f"/v1/standing/{NAMESPACE}", hash="true")
                if answer.status != 200:
                    raise NoAnswer(f"hash: {answer.status} {answer.code}")
                found[pop] = str(answer.json()["hash"])
        return found

    def converge(self, deadline_s: float = SETTLE_S) -> float:
        """Wait until all PoPs that are left show the same, by their hashes and to a client; seconds it took. Before that, until each short time to live is over."""
        brief_s = max(
            (one.expires_s for one in self.done if one.expires_s < time.monotonic() + LONG_S / 2), default=0.0
        )
        time.sleep(max(0.0, brief_s - time.monotonic()))
        began_s = time.monotonic()
        begun = len(self.done)

        def same() -> bool:
            # By their hashes often, since that is cheap; to a client, who reads every key, only then.
            with contextlib.suppress(NoAnswer):
                return len(set(self.hashes().values())) == 1 and not self.differences()
            return False

        try:
            until(same, "the same content everywhere", deadline_s, every_s=0.1)
        except NotInTime:
            with contextlib.suppress(NoAnswer):
                raise NotInTime(
                    f"PoPs still differ {deadline_s:g} s after all was healed: {self.hashes()}, {self.differences()}"
                ) from None
            raise
        took_s = time.monotonic() - began_s
        self._safe = begun
        return took_s

    def differences(self, most: int = 10) -> list[str]:
        """Where PoPs differ, to a client. Nothing to compare is a difference too."""
        try:
            seen = {pop: self.look(pop) for pop in self.alive}
        except NoAnswer as error:
            return [str(error)]
        found = []
        for what in ("registers", "counters", "members"):
            tables = {pop: getattr(one, what) for pop, one in seen.items()}
            for key in sorted(set().union(*tables.values())):
                values = {pop: table.get(key) for pop, table in tables.items()}
                if len({repr(value) for value in values.values()}) > 1:
                    found.append(f"{key}: {values}")
        return found[:most]

    def problems(self) -> list[str]:
        """What of the acknowledged writes is not where it must be, at each PoP that is left. All must be healed and the same."""
        found = self.internal_errors()
        now_s = time.monotonic()
        for pop in self.alive:
            seen = self.look(pop)
            verdict = self.registers_at(seen, now_s)
            found += [f"{pop}: lost: {line}" for line in verdict.lost] + [
                f"{pop}: strange: {line}" for line in verdict.strange
            ]
            adds = [Added(one.key, one.by, one.outcome, one.forgivable) for one in self.done if one.kind == "incr"]
            found += [f"{pop}: counter {line}" for line in miscounted(adds, seen.counters)]
            placed = [
                Member(one.key, one.member, one.value, one.outcome, one.forgivable)
                for one in self.done
                if one.kind in ("sadd", "srem", "mset", "munset")
            ]
            found += [f"{pop}: member {line}" for line in misplaced(placed, seen.members)]
            for pair in sorted({key.rpartition("/")[0] for key in seen.registers if key.startswith("p/")}):
                left, right = (seen.registers.get(f"{pair}/{side}", ("", ""))[1] for side in ("left", "right"))
                if left != right:
                    found.append(f"{pop}: a batch was torn: {pair}: {left!r} and {right!r}")
        return found

    def internal_errors(self) -> list[str]:
        """Requests that ended in an error nobody has thought of, with the end of their traceback."""
        found = []
        for pop in self.cluster.pops:
            for line in (self.cluster.home.pop_logs_dir(pop) / "control.log").read_text(errors="replace").splitlines():
                if '"request_failed"' in line:
                    entry = json.loads(line)
                    found.append(f"{pop}: {entry['method']} {entry['path']}: {entry['traceback'].strip()[-600:]}")
        return found

    def registers_at(self, seen: Seen, now_s: float) -> Kept:
        """What became of registers at a PoP that shows `seen`."""
        registers = {key: shown for key, shown in seen.registers.items() if key != "r/first"}
        writes = []
        for one in self.done:
            made = Written(one.key, one.value, one.version, one.outcome, one.forgivable, one.expires_s)
            if one.kind in ("put", "once", "cas", "big", "delete", "brief") and one.number >= 0:
                writes.append(made)
            elif one.kind == "batch":
                # The answer names the version of the last of its writes only.
                writes += [replace(made, key=f"{one.member}/{side}", version=one.version if side == "right" else None,
                                   outcome=one.outcome if side == "right" else "unknown" if one.outcome == "ok" else one.outcome)
                           for side in ("left", "right")]  # fmt: skip
        return kept(writes, registers, now_s)

    def summary(self) -> str:
        """Numbers for the end of a run."""
        outcomes = Counter(one.outcome for one in self.done)
        classes = Counter(one.class_ for one in self.done if one.outcome == "ok")
        return (
            f"seed {self.seed}: {len(self.done)} operations, {outcomes['ok']} acknowledged ({classes['replicated']} as replicated), "
            f"{outcomes['refused']} refused, {outcomes['unknown']} unknown, {self.retried} repeated"
        )

    # -- hurting -------------------------------------------------------------------------------------------------------

    def cut(self, a: str, b: str) -> None:
        """Nothing passes between two PoPs any more."""
        self.cluster.set_link(a, b, cut=True)
        time.sleep(2 * wan.POLL_S)

    def isolate(self, pop: str) -> None:
        """Nothing passes between a PoP and the others."""
        for other in self.cluster.pops:
            if other != pop:
                self.cut(pop, other)

    def heal(self) -> None:
        """All links are quick and whole, all clocks right, all disks have room."""
        for index, a in enumerate(self.cluster.pops):
            for b in self.cluster.pops[index + 1 :]:
                self.cluster.set_link(a, b, cut=False, delay_ms=0, kbit_s=0)
        for pop in self.alive:
            self.skew(pop, 0)
            (self.folder(pop) / "power" / "full").unlink(missing_ok=True)
            self.on(pop)

    def kill(self, pop: str, name: ProcessName) -> None:
        """`kill -9`; the supervisor starts it again. A Redis loses what no fsync has covered."""
        with contextlib.suppress(ProcessLookupError):
            self.cluster.kill(pop, name)

    def stand(self, pop: str, name: ProcessName, seconds: float) -> None:
        """Stop a process for a while, with all its open connections."""
        pid = self.cluster.kill(pop, name, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def skew(self, pop: str, off_ms: int) -> None:
        """The wall clock of a PoP is off by so much from now on."""
        new = self.folder(pop) / "skew.new"
        new.write_text(str(off_ms))
        new.replace(self.folder(pop) / "skew")

    def fill(self, pop: str) -> None:
        """The disk of a PoP's Redis is full to the last byte."""
        (self.folder(pop) / "power" / "full").touch()

    def off(self, pop: str) -> None:
        """The machine is off: all processes of the PoP end at once and none comes back before `on`."""
        (self.folder(pop) / "hold").touch()
        for name in ("control", "data", "redis"):
            pid = self.cluster.pid(pop, name)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                until(lambda name=name, pid=pid: self.cluster.pid(pop, name) != pid, f"{pop}/{name} to end", 20)

    def on(self, pop: str) -> None:
        """The machine is on again, if it was off."""
        (self.folder(pop) / "hold").unlink(missing_ok=True)

    def backup(self, pop: str, where: Path) -> None:
        """Copy what the PoP has on its disk: Redis and the agent's folder."""
        pid = self.cluster.kill(pop, "redis", signal.SIGSTOP)
        shutil.rmtree(where, ignore_errors=True)
        try:
            for name in ("redis", "state"):
                shutil.copytree(self._disk(pop, name), where / name, symlinks=True)
        finally:
            os.kill(pid, signal.SIGCONT)

    def restore(self, pop: str, where: Path) -> None:
        """The PoP's disk is what it was at the backup. What was under way there has an unknown outcome."""
        self.off(pop)
        self.set_back[pop] += 1
        for name in ("redis", "state"):
            shutil.rmtree(self._disk(pop, name))
            shutil.copytree(where / name, self._disk(pop, name), symlinks=True)
        (self.folder(pop) / "power" / "journal").unlink(missing_ok=True)
        self.on(pop)

    def destroy(self, pop: str, *, returns: bool) -> None:
        """Everything on the PoP's disk is gone: with it, perhaps, what was acknowledged as durable there since all PoPs were the same. `returns`: the empty machine is started again."""
        self.off(pop)
        self.set_back[pop] += 1
        for one in self.done:
            if one.pop == pop and one.class_ == "durable" and one.number >= self._safe:
                one.forgivable = True
        for name in ("redis", "state"):
            for path in self._disk(pop, name).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder(pop) / "power" / "journal").unlink(missing_ok=True)
        if returns:
            self.on(pop)
        else:
            self.destroyed.add(pop)

    def blob_files(self, pop: str) -> list[Path]:
        """The files of large bodies at a PoP, largest first."""
        folder = self._disk(pop, "state") / "blobs" / NAMESPACE
        found = [path for path in folder.rglob("*") if path.is_file() and len(path.name) == 64]
        return sorted(found, key=lambda path: (-path.stat().st_size, path.name))

    def trimmed(self, pop: str, origin: str) -> bool:
        """Whether the beginning of an origin's log is gone at a PoP."""
        settings = PopSettings.load(self.cluster.home.config_file(pop))
        with redis.Redis(unix_socket_path=str(settings.store.redis_socket), protocol=2, socket_timeout=20) as door:
            prefix = f"ef:{{{NAMESPACE}}}:"
            heads = {name.decode(): int(seq) for name, seq in door.hgetall(prefix + "heads").items()}
            logs = [name for name in heads if name.startswith(f"{origin}:")]
            return any(door.xlen(f"{prefix}log:{name}") < heads[name] for name in logs)

    def folder(self, pop: str) -> Path:
        """The PoP's folder."""
        return self.cluster.home.pop_dir(pop)

    def _disk(self, pop: str, name: str) -> Path:
        settings = PopSettings.load(self.cluster.home.config_file(pop))
        return settings.state_dir if name == "state" else self.folder(pop) / "redis"


class Work:
    """Writers in threads. As a context manager: waits for them, and passes on what went wrong in them."""

    def __init__(self, world: EkvWorld, count: int, writers_per_pop: int, pause_s: float, pops: Sequence[str]) -> None:
        self._world = world
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
        world = self._world
        chance = random.Random(f"{world.seed} {name} {len(world.done)}")
        mine: set[tuple[str, str]] = set()
        with contextlib.closing(world.door(pop)) as door:
            try:
                while not self._stopping and pop not in world.destroyed:
                    with self._lock:
                        if self._left <= 0:
                            return
                        self._left -= 1
                    world.step(door, pop, name, chance, mine)
                    time.sleep(self._pause_s)
            except BaseException as error:
                self._failures.append(error)


class Watching:
    """A client that follows all changes at one PoP, over any number of reconnects: what it holds must be what is there, and no key ever goes back."""

    def __init__(self, world: EkvWorld, pop: str) -> None:
        self.pop = pop
        self.held: dict[str, str] = {}
        """Registers it was told of, and their versions."""
        self.told: list[tuple[str, str]] = []
        """(key, version) in the order in which they were told."""
        self.connects = 0
        self.listings = 0
        self._world = world
        self._place = ""
        self._stopping = False
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave."""
        self._stopping = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)

    def _run(self) -> None:
        access = urllib.parse.urlsplit(self._world.url(self.pop))
        while not self._stopping:
            headers = {"Authorization": f"Bearer {self._world.token(self.pop)}", "Accept": "text/event-stream"}
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


def library(folder: Path, name: str) -> Path:
    """The compiled <name>.c."""
    if shutil.which("cc") is None:
        missing("cc", "scripts/test-faults installs it")
    target = folder / f"{name}.so"
    if not target.exists():
        command = [
            "cc",
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Werror",
            "-o",
            str(target),
            str(HERE / f"{name}.c"),
            "-ldl",
        ]
        subprocess.run(command, check=True, timeout=60)
    return target


def seed_of_the_run() -> int:
    """EDGEFLOW_FAULTS_SEED, or a new one; printed."""
    seed = int(os.environ.get("EDGEFLOW_FAULTS_SEED") or time.time_ns() % 1_000_000)
    print(f"\nEDGEFLOW_FAULTS_SEED={seed}")
    return seed


Figure = Callable[[str], None]
