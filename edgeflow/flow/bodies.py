"""Bodies on their way between instances and the store, in pieces.

What it is: the agent's side of `fetch` and `blob` (docs/protocol.md): large bodies piece by piece, and bodies that have to come from another PoP
first.
What it is not: small bodies on their way in, which travel with the round of the commit that refers to them (instances.py).
What must stay true: a body of any size takes a few MiB here; nobody waits for a body but the instance that asked for it; what an instance has
sent by half when it ends leaves nothing.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from edgeflow.core.wire import Message
from edgeflow.errors import BodyMissing, CorruptBlob, EdgeflowError, NotFound, ProtocolError
from edgeflow.flow.sessions import Session
from edgeflow.settings import Limits
from edgeflow.store import Store
from edgeflow.store.blobs import check_digest
from edgeflow.store.bodies import BodyWriter

PIECE_BYTES = 4 * 1024 * 1024
"""Most bytes of a body in one reply."""
FETCH_S = 30.0
"""Longest an instance waits for a body that comes from another PoP."""
EXPECTED = 1000
"""Bodies that only reads at the homes of keys have named, at most."""

WantBody = Callable[[str, str, float, Callable[[], None]], None]
"""Have a body come here: (namespace, digest, within seconds, called when it has come or the time is over)."""


class InstanceBodies:
    """The bodies that the instances of one PoP ask for and send."""

    def __init__(self, store: Store, limits: Limits, want: WantBody) -> None:
        self._store = store
        self._limits = limits
        self._want = want
        self._incoming: dict[Session, tuple[str, int, BodyWriter]] = {}
        self._expected: OrderedDict[tuple[str, str], None] = OrderedDict()

    def expect(self, namespace: str, digest: str) -> None:
        """Another PoP has named this body: it is looked for there although nothing here refers to it yet."""
        self._expected[namespace, digest] = None
        if len(self._expected) > EXPECTED:
            self._expected.popitem(last=False)

    def fetch(self, session: Session, message: Message) -> None:
        """Answer a `fetch`, now or when the body has come."""
        digest, offset = message.get("digest"), message.get("off", 0)
        if not isinstance(digest, str) or type(offset) is not int or offset < 0:
            raise ProtocolError("fetch needs a digest, and an offset that is not negative")
        namespace = self._store.namespace(session.spec.namespace)
        try:
            piece = self._piece(session, digest, offset, fetched=False)
        except CorruptBlob:
            piece = None
        if piece is not None:
            answer(session, message, lambda: piece)
        elif namespace.knows_blob(digest) or (namespace.name, digest) in self._expected:
            self._want(namespace.name, digest, FETCH_S, lambda: self._fetch_again(session, message, digest, offset))
        else:
            answer(session, message, lambda: _raise(NotFound(f"blob {digest[:80]} is not at {self._store.pop}")))

    def take(self, session: Session, message: Message) -> tuple[str, bytes] | None:
        """A `blob`: a whole one to go into the store with the round, or a piece of a large one, which goes there at once. Raises what is wrong with it."""
        digest, data = message.get("digest"), message.get("data")
        if not isinstance(digest, str) or not isinstance(data, bytes):
            raise ProtocolError("blob needs digest and data")
        if "size" in message:
            self._take_piece(session, digest, data, message.get("off"), message["size"])
            return None
        check_digest(digest, data)
        return digest, data

    def forget(self, session: Session) -> None:
        """The instance has gone."""
        incoming = self._incoming.pop(session, None)
        if incoming is not None:
            incoming[2].abort()

    def _piece(self, session: Session, digest: str, offset: int, *, fetched: bool) -> dict[str, Any] | None:
        namespace = self._store.namespace(session.spec.namespace)
        body = namespace.open_blob(digest)
        if body is None:
            return None
        try:
            if body.is_cached and offset == 0:
                namespace.note_read(digest, fetched=fetched)
            return {"data": body.read(offset, PIECE_BYTES), "size": body.size}
        finally:
            body.close()

    def _fetch_again(self, session: Session, message: Message, digest: str, offset: int) -> None:
        def piece() -> dict[str, Any]:
            found = self._piece(session, digest, offset, fetched=True)
            if found is None:
                raise BodyMissing(f"no PoP that can be reached has the body {digest}")
            return found

        answer(session, message, piece)
        session.flush()

    def _take_piece(self, session: Session, digest: str, data: bytes, off: object, size: object) -> None:
        if type(size) is not int or not 0 < size <= self._limits.value_bytes:
            raise ProtocolError(f"a blob of {size!r} bytes; at most {self._limits.value_bytes} are taken")
        if off == 0:
            self.forget(session)
            self._incoming[session] = (digest, size, self._store.namespace(session.spec.namespace).blob_writer())
        incoming = self._incoming.get(session)
        if incoming is None or incoming[:2] != (digest, size) or incoming[2].size != off or not data:
            raise ProtocolError(f"a piece of blob {digest[:80]} at {off!r} does not follow the one before")
        writer = incoming[2]
        if writer.size + len(data) > size:
            raise ProtocolError(f"blob {digest[:80]} is longer than it said")
        writer.write(data)
        if writer.size == size:
            del self._incoming[session]
            writer.finish(digest)


def answer(session: Session, message: Message, reply: Callable[[], dict[str, Any]]) -> None:
    """Send what `reply` returns as the reply to a request, or why it cannot."""
    try:
        session.send({"t": "reply", "r": message.get("r"), "ok": True, **reply()})
    except EdgeflowError as error:
        session.send({"t": "reply", "r": message.get("r"), "ok": False, "error": error.message, "code": error.code})


def _raise(error: EdgeflowError) -> dict[str, Any]:
    raise error
