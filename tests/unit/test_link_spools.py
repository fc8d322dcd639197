"""Blobs on their way over a link: what has come is never asked for again, one peer sends at a time, memory and number are bounded."""

import pytest
from link_fakes import Side, digest_of, run, settle

from edgeflow.cluster.linkproto import CHUNK_BYTES, Blob, Entries, Refuse, Want, decode, encode
from edgeflow.cluster.spools import KEPT_S, MAX_SPOOLS, Spools
from edgeflow.core.wire import FrameReader
from edgeflow.errors import ProtocolError

SIZE = 20 * CHUNK_BYTES
BODY = bytes(range(256)) * (SIZE // 256)
DIGEST = digest_of(BODY)


def connect(a: Side, b: Side, now_s: float = 0.0) -> None:
    a.connect(b.pop, now_s)
    b.connect(a.pop, now_s)


def chunks_of(data: bytes) -> list[Blob]:
    return [one for one in (decode(frame) for frame in FrameReader().feed(data)) if isinstance(one, Blob)]


def chunk(off: int, length: int = CHUNK_BYTES) -> Blob:
    return Blob("ns", DIGEST, SIZE, off, BODY[off : off + length])


def begin(*, upto: int) -> tuple[Side, Side]:
    """Two sides; of a blob that b misses, what comes before `upto` has arrived when the link ends."""
    a, b = Side("a"), Side("b")
    a.store.namespace("ns").append(b"1", [BODY])
    connect(a, b)
    assert a.session is not None and b.session is not None
    for _ in range(100):
        b.session.receive(a.session.output(0.0), 0.0)
        a.session.receive(b.session.output(0.0), 0.0)
        if b.wants.spools.here(("ns", DIGEST)) >= upto:
            return a, b
    raise AssertionError("nothing comes")


class TestResuming:
    def test_what_has_come_is_not_sent_again(self) -> None:
        a, b = begin(upto=4 * CHUNK_BYTES)
        here = b.wants.spools.here(("ns", DIGEST))
        assert 0 < here < SIZE
        connect(a, b, 1.0)
        assert a.session is not None and b.session is not None
        b.tick(1.0)
        sent: list[Blob] = []
        for _ in range(200):
            out = a.session.output(1.0)
            sent += chunks_of(out)
            b.session.receive(out, 1.0)
            a.session.receive(b.session.output(1.0), 1.0)
            if b.store.namespace("ns").blobs:
                break
        assert b.store.namespace("ns").blobs == {DIGEST: BODY}
        assert sent[0].off == here
        assert sum(len(one.data) for one in sent) == SIZE - here

    def test_another_peer_goes_on_where_the_first_stopped(self) -> None:
        _, b = begin(upto=4 * CHUNK_BYTES)
        here = b.wants.spools.here(("ns", DIGEST))
        c = Side("c")
        c.store.namespace("ns").blobs[DIGEST] = BODY
        b.wants.peer_lost("a", 1.0)
        connect(c, b, 1.0)
        assert b.session is not None and c.session is not None
        b.session.receive(c.session.output(1.0), 1.0)
        wants = [one for one in map(decode, FrameReader().feed(b.session.output(1.0))) if isinstance(one, Want)]
        assert wants == [Want("ns", [DIGEST], [here])]
        connect(c, b, 2.0)
        b.tick(2.0)
        run(c, b, 2.0)
        assert b.store.namespace("ns").blobs == {DIGEST: BODY}

    def test_what_comes_twice_is_passed_over(self) -> None:
        _, b = begin(upto=4 * CHUNK_BYTES)
        b.wants.peer_lost("a", 0.0)
        assert b.session is not None
        for off in range(0, SIZE, 3 * CHUNK_BYTES):
            b.session.receive(encode(chunk(off, 3 * CHUNK_BYTES)), 1.0)
        assert b.store.namespace("ns").blobs == {DIGEST: BODY}

    def test_a_chunk_that_leaves_something_out_ends_the_link(self) -> None:
        _, b = begin(upto=4 * CHUNK_BYTES)
        assert b.session is not None
        with pytest.raises(ProtocolError):
            b.session.receive(encode(chunk(15 * CHUNK_BYTES)), 1.0)

    def test_a_body_that_turns_out_wrong_begins_anew(self) -> None:
        a, b = begin(upto=4 * CHUNK_BYTES)
        here = b.wants.spools.here(("ns", DIGEST))
        a.store.namespace("ns").blobs[DIGEST] = BODY[:-1] + b"!"
        connect(a, b, 1.0)
        b.tick(1.0)
        run(a, b, 1.0)
        assert b.session is not None and b.session.receiver.corrupt_blobs == 1
        assert b.wants.spools.here(("ns", DIGEST)) < here or DIGEST not in b.store.namespace("ns").blobs
        a.store.namespace("ns").blobs[DIGEST] = BODY
        settle(a, b, 2.0)

    def test_offsets_that_do_not_fit_end_the_link(self) -> None:
        a, b = Side("a"), Side("b")
        connect(a, b)
        run(a, b)
        assert a.session is not None
        with pytest.raises(ProtocolError):
            a.session.receive(encode(Want("ns", [DIGEST], [])), 1.0)


class TestTwoPeers:
    def test_the_second_is_told_that_it_is_coming_already(self) -> None:
        _, b = begin(upto=CHUNK_BYTES)
        first = b.session
        here = b.wants.spools.here(("ns", DIGEST))
        c = Side("c")
        b.connect("c", 0.0)
        b.wants.spools._spools["ns", DIGEST].peer = "a"  # the link to a goes on
        second = c.connect("b", 0.0)
        assert b.session is not None and first is not None
        run(c, b)
        b.session.receive(encode(chunk(0)), 1.0)
        answers = list(map(decode, FrameReader().feed(b.session.output(1.0))))
        assert [one.code for one in answers if isinstance(one, Refuse)] == ["busy"]
        assert b.wants.spools.here(("ns", DIGEST)) == here
        assert second is not None


class _Writer:
    def __init__(self) -> None:
        self.is_open = True

    def write(self, data: bytes) -> None:
        pass

    def finish(self, digest: str | None = None) -> None:
        pass

    def abort(self) -> None:
        self.is_open = False


class TestBounds:
    def test_their_number_is_bounded_and_what_nobody_sends_goes_first(self) -> None:
        spools, writers = Spools(), []

        def open_writer() -> _Writer:
            writers.append(_Writer())
            return writers[-1]

        for n in range(MAX_SPOOLS):
            assert spools.has_room("a", 10, 10_000)
            spools.begin(("ns", str(n)), 10, "a", float(n), open_writer)  # type: ignore[arg-type]
        assert not spools.has_room("b", 10, 10_000)
        spools.peer_lost("a", 100.0)
        assert spools.has_room("b", 10, 10_000)
        assert len(spools) == MAX_SPOOLS - 1
        assert sum(not writer.is_open for writer in writers) == 1

    def test_bytes_are_bounded_per_peer(self) -> None:
        spools = Spools()
        spools.begin(("ns", "1"), 700, "a", 0.0, _Writer)  # type: ignore[arg-type]
        assert not spools.has_room("a", 301, 1000)
        assert spools.has_room("a", 300, 1000)
        assert spools.has_room("b", 1000, 1000)

    def test_what_nobody_goes_on_with_is_forgotten(self) -> None:
        spools = Spools()
        spools.begin(("ns", "1"), 700, "a", 0.0, _Writer)  # type: ignore[arg-type]
        spools.tick(KEPT_S * 2)
        assert len(spools) == 1
        spools.peer_lost("a", KEPT_S * 2)
        spools.tick(KEPT_S * 3 - 1)
        assert len(spools) == 1
        spools.tick(KEPT_S * 3 + 1)
        assert len(spools) == 0


class TestPlaces:
    @pytest.mark.parametrize("size", [10_000, SIZE])
    def test_what_a_peer_does_not_keep_is_not_sent_until_it_asks(self, size: int) -> None:
        a, b = Side("a"), Side("b")
        body = BODY[:size]
        space = a.store.namespace("ns")
        space.elsewhere["b"] = {digest_of(body)}
        space.append(b"1", [body])
        connect(a, b)
        assert a.session is not None and b.session is not None
        a.session.receive(b.session.output(0.0), 0.0)
        sent = list(map(decode, FrameReader().feed(a.session.output(0.0))))
        assert [one.coming for one in sent if isinstance(one, Entries)] == [[]]
        assert not [one for one in sent if isinstance(one, Blob)]
        connect(a, b)
        # The memory store counts it as missing, so it is asked for by name.
        settle(a, b, run(a, b))
        assert b.store.namespace("ns").blobs == {digest_of(body): body}
