"""The agent's side of `fetch` and `blob`: pieces, what does not fit, and bodies that have to come first."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgeflow.core.events import BlobRef
from edgeflow.errors import CorruptBlob, ProtocolError
from edgeflow.flow.bodies import PIECE_BYTES, InstanceBodies
from edgeflow.settings import Limits
from edgeflow.store.blobs import digest_of

LARGE = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"
DIGEST = digest_of(LARGE)


class Writer:
    def __init__(self, space: "Space") -> None:
        self._space = space
        self._data = bytearray()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._data += data
        self.size += len(data)

    def finish(self, digest: str) -> BlobRef:
        data = bytes(self._data)
        if digest_of(data) != digest:
            raise CorruptBlob()
        self._space.blobs[digest] = data
        return BlobRef(digest, len(data))

    def abort(self) -> None:
        self._space.aborted += 1


class Reader:
    is_cached = False

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def close(self) -> None:
        pass


class Space:
    name = "ns"

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.known: set[str] = set()
        self.damaged: set[str] = set()
        self.aborted = 0

    def open_blob(self, digest: str) -> Reader | None:
        if digest in self.damaged:
            self.damaged.discard(digest)
            self.blobs.pop(digest)
            raise CorruptBlob()
        return Reader(self.blobs[digest]) if digest in self.blobs else None

    def knows_blob(self, digest: str) -> bool:
        return digest in self.known

    def blob_writer(self) -> Writer:
        return Writer(self)


class Session:
    spec = SimpleNamespace(namespace="ns")

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.send = sent.append

    def flush(self) -> None:
        pass


class World:
    def __init__(self) -> None:
        self.space = Space()
        self.wanted: list[tuple[str, str, float, Callable[[], None]]] = []
        store: Any = SimpleNamespace(pop="a", namespace=lambda _name: self.space)
        self.bodies = InstanceBodies(store, Limits(), lambda *wish: self.wanted.append(wish))
        self.sent: list[dict[str, Any]] = []
        self.session: Any = Session(self.sent)

    def fetch(self, **message: Any) -> None:
        self.bodies.fetch(self.session, {"t": "fetch", "r": 1, **message})

    def put(self, **message: Any) -> Any:
        return self.bodies.take(self.session, {"t": "blob", **message})


@pytest.fixture
def world() -> World:
    return World()


class TestFetch:
    def test_a_large_body_is_given_in_pieces(self, world: World) -> None:
        world.space.blobs[DIGEST] = LARGE
        got = b""
        while len(got) < len(LARGE):
            world.fetch(digest=DIGEST, off=len(got))
            reply = world.sent.pop()
            assert reply["ok"] and reply["size"] == len(LARGE) and 0 < len(reply["data"]) <= PIECE_BYTES
            got += reply["data"]
        assert got == LARGE

    def test_what_nobody_knows_is_refused_at_once(self, world: World) -> None:
        world.fetch(digest=DIGEST)
        assert (world.sent[0]["ok"], world.sent[0]["code"]) == (False, "not-found")
        assert world.wanted == []

    @pytest.mark.parametrize("why", ["elsewhere", "damaged"])
    def test_what_is_not_here_comes_first(self, world: World, why: str) -> None:
        world.space.known.add(DIGEST)
        if why == "damaged":
            world.space.blobs[DIGEST] = LARGE
            world.space.damaged.add(DIGEST)
        world.fetch(digest=DIGEST)
        assert world.sent == []
        ((namespace, digest, _, done),) = world.wanted
        assert (namespace, digest) == ("ns", DIGEST)
        world.space.blobs[DIGEST] = LARGE
        done()
        assert world.sent[0]["ok"] and world.sent[0]["data"] == LARGE[:PIECE_BYTES]

    def test_what_nobody_has_is_said_when_the_time_is_over(self, world: World) -> None:
        world.space.known.add(DIGEST)
        world.fetch(digest=DIGEST)
        world.wanted[0][3]()
        assert (world.sent[0]["ok"], world.sent[0]["code"]) == (False, "body-missing")

    @pytest.mark.parametrize(
        "message", [{}, {"digest": 5}, {"digest": DIGEST, "off": -1}, {"digest": DIGEST, "off": "0"}]
    )
    def test_rubbish_ends_the_connection(self, world: World, message: dict[str, Any]) -> None:
        with pytest.raises(ProtocolError):
            world.fetch(**message)


class TestPut:
    def test_a_small_one_goes_with_the_round(self, world: World) -> None:
        assert world.put(digest=digest_of(b"x"), data=b"x") == (digest_of(b"x"), b"x")
        with pytest.raises(CorruptBlob):
            world.put(digest=digest_of(b"x"), data=b"y")

    def test_a_large_one_is_stored_when_its_last_piece_is_there(self, world: World) -> None:
        for off in range(0, len(LARGE), PIECE_BYTES):
            assert world.space.blobs == {}
            piece = LARGE[off : off + PIECE_BYTES]
            assert world.put(digest=DIGEST, data=piece, off=off, size=len(LARGE)) is None
        assert world.space.blobs == {DIGEST: LARGE}
        assert world.bodies._incoming == {}

    @pytest.mark.parametrize(
        "second",
        [
            {"off": 5}, {"off": 20}, {"off": None}, {"off": 10, "size": 31}, {"off": 10, "data": b""}, {"off": 10, "data": b"x" * 21},
            {"off": 10, "digest": digest_of(b"other")}, {"off": 10, "size": 0}, {"off": 10, "size": "30"}, {"off": 10, "size": 10**12},
        ],
    )  # fmt: skip
    def test_a_piece_that_does_not_follow_ends_the_connection(self, world: World, second: dict[str, Any]) -> None:
        first = {"digest": DIGEST, "data": b"x" * 10, "off": 0, "size": 30}
        world.put(**first)
        with pytest.raises(ProtocolError):
            world.put(**{**first, **second})
        assert world.space.blobs == {}

    def test_what_is_not_what_it_said_is_not_stored(self, world: World) -> None:
        world.put(digest=DIGEST, data=b"x" * 10, off=0, size=20)
        with pytest.raises(CorruptBlob):
            world.put(digest=DIGEST, data=b"x" * 10, off=10, size=20)
        assert world.space.blobs == {} and world.bodies._incoming == {}

    def test_an_instance_that_goes_or_begins_another_leaves_nothing(self, world: World) -> None:
        world.put(digest=DIGEST, data=b"x" * 10, off=0, size=20)
        world.put(digest=digest_of(b"y"), data=b"y", off=0, size=20)
        assert world.space.aborted == 1
        world.bodies.forget(world.session)
        assert world.space.aborted == 2 and world.bodies._incoming == {}
