"""What instances read of the store: values of any type, heads, versions, lists; as fresh as they ask for.

What it is: the requests `get`, `head`, `versions` and `list` of the instance protocol, and what has to be waited for before one is answered: a version
that is on its way, the other PoPs saying how far they are, the home of a key.
What it is not: sessions (covering.py), bodies (bodies.py), or writes, which are part of the commit.
What must stay true: a read that cannot be as fresh as was asked is refused by name, never answered with less; it is answered behind the commits that
the instance has sent before it; nobody waits for longer than asked, and the loop never waits at all; what one instance asks costs bounded memory.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgeflow.core.channels import check_key
from edgeflow.core.cursors import Vector
from edgeflow.core.tokens import Session as Token
from edgeflow.core.typed import typed_json
from edgeflow.core.versions import is_version
from edgeflow.core.wire import Message
from edgeflow.errors import (
    BadRequest,
    Behind,
    EdgeflowError,
    HomeElsewhere,
    HomeUnreachable,
    ProtocolError,
    Stale,
    StaleHome,
    Throttled,
    Unavailable,
)
from edgeflow.flow.bodies import InstanceBodies, answer
from edgeflow.flow.sessions import Session
from edgeflow.settings import Limits
from edgeflow.store.client import Store
from edgeflow.store.decided import execute
from edgeflow.store.records import ValueInfo
from edgeflow.store.replica import ReplicatedNamespace

WAIT_S = 5.0
"""How long a read waits for what it asks for when it does not say."""
MAX_WAIT_S = 60.0
MAX_LIST = 1000
WAITING = 16
"""Most reads of one instance that are not answered yet because they ask for more than what is here."""
LOOK_S = 0.02
"""They are looked at this often at most: a busy namespace tells of something new thousands of times a second."""
JSON = "application/json"

_ABOUT = ("key", "version", "size", "content_type", "kind", "expires_ms", "origin")

Body = dict[str, Any]
Outcome = Body | EdgeflowError


class Elsewhere(Protocol):
    """The other PoPs, as a read needs them."""

    def call(
        self, peer: str, kind: str, ns: str, body: Mapping[str, Any], timeout_s: float, done: Callable[[Outcome], None]
    ) -> None: ...
    def sync(self, ns: str, within_s: float, done: Callable[[int | None], None]) -> None: ...
    def staleness_ms(self, namespace: str) -> int | None: ...


@dataclass(slots=True)
class _Read:
    """One request, and what is left of its time."""

    session: Session
    message: Message
    until_s: float
    wait_s: float
    on_end: Callable[[], None] | None = None
    """Of one that was not answered at once."""

    @property
    def ns(self) -> str:
        return self.session.spec.namespace

    @property
    def left_s(self) -> float:
        return max(0.0, self.until_s - time.monotonic())

    def reply(self, make: Callable[[], Body]) -> None:
        """The answer, or why there is none."""
        answer(self.session, self.message, make)
        if self.on_end is not None:
            self.session.flush()
            self.on_end()

    def refuse(self, error: EdgeflowError) -> None:
        def reason() -> Body:
            raise error

        self.reply(reason)


class Reads:
    """The reads of all instances of one PoP."""

    def __init__(self, store: Store, limits: Limits, bodies: InstanceBodies) -> None:
        self._store = store
        self._limits = limits
        self._bodies = bodies
        self._waiting: list[tuple[_Read, Callable[[bool], bool]]] = []
        self._looked_s = 0.0
        self._deferred: Counter[Session] = Counter()
        self.elsewhere: Elsewhere | None = None
        """None: this PoP has heard of no others, and cannot say how fresh it is."""
        self.passed: Callable[[str], Mapping[Any, int]] = lambda _namespace: {}
        """What every member has applied; left out of tokens."""

    # -- what comes in -------------------------------------------------------------------------------------------------

    def ask(self, session: Session, message: Message) -> None:
        """Answer now, or as soon as it may be answered."""
        wait_s = _wait_s(message)
        read = _Read(session, message, time.monotonic() + wait_s, wait_s)
        session.read(lambda: self._begin(read))

    def forget(self, session: Session) -> None:
        """The instance has gone."""
        self._deferred.pop(session, None)

    def look(self, namespace: str | None = None) -> None:
        """Something was applied in a namespace; None: time has passed."""
        now_s = time.monotonic()
        if not self._waiting or (namespace is not None and now_s - self._looked_s < LOOK_S):
            return
        self._looked_s = now_s
        looked_at, self._waiting = self._waiting, []
        for read, settle in looked_at:
            is_late = now_s >= read.until_s
            is_meant = namespace in (None, read.ns)
            if read.session.closed:
                continue
            try:
                is_settled = (is_meant or is_late) and settle(is_late)
            except EdgeflowError as error:
                read.refuse(error)
                is_settled = True
            if not is_settled:
                self._waiting.append((read, settle))

    def _begin(self, read: _Read) -> None:
        message = read.message
        try:
            if message["t"] != "list":
                check_key(str(message.get("key")))
            if "wait_ms" in message:
                _check_version(message.get("version"))
            if message.get("strong"):
                self._wait(read, lambda is_late: self._at_home(read, is_late))
                return
            max_ms = message.get("max_staleness_ms")
            if max_ms is not None:
                self._when_fresh(read, _whole(max_ms, "max_staleness_ms"))
            else:
                self._when_arrived(read)
        except EdgeflowError as error:
            read.refuse(error)

    def _wait(self, read: _Read, settle: Callable[[bool], bool]) -> None:
        """`settle` is called until it says that it has answered; with True when the time is over."""
        if not settle(False):
            self._defer(read)
            self._waiting.append((read, settle))

    def _defer(self, read: _Read) -> None:
        """This one is answered later. Raises Throttled."""
        session = read.session
        if read.on_end is not None:
            return
        if self._deferred[session] >= WAITING:
            raise Throttled(f"{WAITING} reads of this instance wait already")
        self._deferred[session] += 1

        def ended() -> None:
            # Of an instance that has gone nothing is counted any more.
            if session in self._deferred:
                self._deferred[session] -= 1

        read.on_end = ended

    # -- as fresh as was asked -----------------------------------------------------------------------------------------

    def _when_fresh(self, read: _Read, max_ms: int) -> None:
        elsewhere = self.elsewhere

        def told(staleness_ms: int | None) -> None:
            if staleness_ms is not None and staleness_ms <= max_ms:
                self._when_arrived(read)
                return
            age = "unknown" if staleness_ms is None else f"up to {staleness_ms} ms"
            read.refuse(
                Stale(f"the age of what PoP {self._store.pop} has of {read.ns!r} is {age}; {max_ms} ms are allowed")
            )

        known_ms = None if elsewhere is None else elsewhere.staleness_ms(read.ns)
        if elsewhere is None or (known_ms is not None and known_ms <= max_ms):
            told(known_ms)
        else:
            self._defer(read)
            elsewhere.sync(read.ns, read.left_s, told)

    def _when_arrived(self, read: _Read) -> None:
        """Answers; a version that is asked for with a wait may be still on its way."""
        version, key = read.message.get("version"), str(read.message.get("key"))
        if version is None or "wait_ms" not in read.message:
            read.reply(lambda: self._answer(read))
            return

        def settle(is_late: bool) -> bool:
            info = self._store.namespace(read.ns).head(key)
            if info is not None and (info.kind != "register" or info.version >= str(version)):
                read.reply(lambda: self._answer(read))
            elif is_late:
                read.refuse(Behind(f"{key!r} has not come in version {version} within {read.wait_s:g} s"))
            else:
                return False
            return True

        self._wait(read, settle)

    # -- at the home of a key ------------------------------------------------------------------------------------------

    def _at_home(self, read: _Read, is_late: bool) -> bool:
        """Asks the home of the key; whether that is on its way. While a home is handed over it is asked again."""
        question = {"op": "read", "key": str(read.message.get("key"))}
        try:
            self._found_at_home(read, execute(self._store.namespace(read.ns), "read", question))
            return True
        except (HomeElsewhere, StaleHome) as error:
            home, moving = str(error.details.get("home", "")), error
        except EdgeflowError as error:
            read.refuse(error)
            return True
        if is_late:
            read.refuse(moving)
            return True
        if not home or home in (self._store.pop, "-"):
            return False

        def told(outcome: Outcome) -> None:
            if isinstance(outcome, HomeElsewhere | StaleHome) and read.left_s:
                self._waiting.append((read, lambda is_late: self._at_home(read, is_late)))
            elif isinstance(outcome, Unavailable) and outcome.code == Unavailable.code:
                read.refuse(HomeUnreachable(f"PoP {home!r}, the home, cannot be reached: {outcome.message}"))
            elif isinstance(outcome, EdgeflowError):
                read.refuse(outcome)
            else:
                self._found_at_home(read, outcome)

        self._defer(read)
        if self.elsewhere is None:
            told(Unavailable("this PoP has no links"))
        else:
            self.elsewhere.call(home, "home", read.ns, question, max(0.1, read.left_s), told)
        return True

    def _found_at_home(self, read: _Read, found: Body) -> None:
        def make() -> Body:
            seen: Vector = {(origin, epoch): seq for origin, epoch, seq in found["seen"]}
            token = Token(read.ns).with_vector(seen).pruned(dict(self.passed(read.ns).items())).text()
            return {"value": self._shown(read, found["value"]), "token": token}

        read.reply(make)

    def _shown(self, read: _Read, value: Body | None) -> Body | None:
        if value is None:
            return None
        about = {name: value[name] for name in _ABOUT}
        if value["kind"] != "register":
            data = typed_json(value["kind"], value["content"])
            return {**about, **({"size": len(data), "content_type": JSON, "data": data} if not _is_head(read) else {})}
        if _is_head(read):
            return about
        if value["data"] is not None:
            return {**about, "data": value["data"]}
        # The entry that brought it may be not here yet: its body is asked of the other PoPs all the same.
        self._bodies.expect(read.ns, value["digest"])
        return {**about, "digest": value["digest"]}

    # -- as it is here -------------------------------------------------------------------------------------------------

    def _answer(self, read: _Read) -> Body:
        message, namespace = read.message, self._store.namespace(read.ns)
        kind, key = message["t"], str(message.get("key"))
        if kind == "get":
            return {"value": self._get(namespace, key, message.get("version"))}
        if kind == "head":
            info = namespace.head(key)
            return {"value": None if info is None else _about(info)}
        if kind == "versions":
            return {
                "items": [
                    {"version": one.version, "size": one.size, "content_type": one.content_type, "current": one.is_current, "origin": one.origin}
                    for one in namespace.versions(key)
                ]
            }  # fmt: skip
        limit = message.get("limit")
        infos = namespace.list(
            str(message.get("prefix") or ""), after=str(message.get("after") or ""), limit=min(limit, MAX_LIST) if isinstance(limit, int) and limit > 0 else 100
        )  # fmt: skip
        return {"items": [_about(info) for info in infos]}

    def _get(self, namespace: ReplicatedNamespace, key: str, version: str | None) -> Body | None:
        head = namespace.small_values([key])[0]
        if head is None and version is None:
            return _typed(namespace, key)
        if (
            head is not None
            and head.digest is not None
            and version in (None, head.version)
            and (head.size >= self._limits.redis_blob_bytes or not namespace.has_blob(head.digest))
        ):
            # It is fetched, in pieces, when the handler looks at it.
            return {**_about(head), "digest": head.digest}
        value = namespace.get(key, version=version)
        return None if value is None else {**_about(value), "data": value.data}


def _typed(namespace: ReplicatedNamespace, key: str) -> Body | None:
    """A counter, a set or a map as JSON."""
    info = namespace.head(key)
    content = None if info is None else namespace.typed_content(key, info.kind)
    if info is None or content is None:
        return None
    data = typed_json(info.kind, content)
    return {**_about(info), "size": len(data), "content_type": JSON, "data": data}


def _about(info: ValueInfo) -> Body:
    return {name: getattr(info, name) for name in _ABOUT}


def _is_head(read: _Read) -> bool:
    return bool(read.message["t"] == "head")


def _wait_s(message: Message) -> float:
    wait_ms = message.get("wait_ms")
    return WAIT_S if wait_ms is None else min(_whole(wait_ms, "wait_ms") / 1000, MAX_WAIT_S)


def _check_version(version: object) -> None:
    """Raises BadRequest for what is no version; nothing is asked for with None."""
    if version is not None and (not isinstance(version, str) or not is_version(version)):
        raise BadRequest(f"version: {str(version)[:80]!r} is not a version")


def _whole(value: object, name: str) -> int:
    if type(value) is not int or value < 0:
        raise ProtocolError(f"{name} is {str(value)[:40]!r}, not a whole number")
    return value
