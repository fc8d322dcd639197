"""The link protocol without I/O: order, blobs before and after entries, flow control, and anything a bad line or a bad peer may do."""

import random
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_fakes import Side, digest_of, run, same, settle

from edgeflow.cluster import linkproto
from edgeflow.cluster.linkproto import Ack, Blob, Entries, Hello, NoHave, Ping, Refuse, Rewind, Want, decode, encode
from edgeflow.cluster.session import SILENCE_S
from edgeflow.core.wire import FrameReader, encode_frame
from edgeflow.errors import EdgeflowError, LinkRefused, ProtocolError
from edgeflow.settings import Limits
from edgeflow.store.records import LogId

KIB = 1024


@pytest.fixture
def pair() -> tuple[Side, Side]:
    return Side("a"), Side("b")


def connect(a: Side, b: Side, now_s: float = 0.0) -> None:
    a.connect(b.pop, now_s)
    b.connect(a.pop, now_s)


def frames_of(data: bytes) -> list[linkproto.Message]:
    return [decode(frame) for frame in FrameReader().feed(data)]


MESSAGES = [
    Hello(1, "c1", "a", {"ns": [("a", 1, 5)]}),
    Entries("ns", "a", 1, 7, [b"x", b"y"], [digest_of(b"z")]),
    Blob("ns", digest_of(b"z"), 1, 0, b"z"),
    Want("ns", [digest_of(b"z")], [0]),
    NoHave("ns", [digest_of(b"z")]),
    Refuse("ns", digest_of(b"z"), "busy", "later"),
    Ack(17, [("ns", "a", 1, 8)], [("ns", digest_of(b"z"))]),
    Rewind("ns", "a", 1, 3),
    linkproto.Relay(["c"], [("ns", "c", 1, 7)]),
    linkproto.Offer("ns", [("a", 1, 100)]),
    linkproto.Take("ns", "busy", [("a", 1, 3)]),
    linkproto.Page("ns", "a", "b", b"items"),
    linkproto.Lanes("ns", [("a", 1, "ns/c", 17)]),
    linkproto.Complete("ns", [("a", 1, 99)]),
    linkproto.State(1, {"ns": ("0000000000001.00000@~", [("a", 1, 8)]), "new": ("", [])}),
    linkproto.Call(1, "has", "ns", 500, b"body"),
    linkproto.Answer(1, "not-found", b"body"),
    Ping(12, ["c"]),
    linkproto.Pong(12, 1, [("c", "ns", 40)]),
    linkproto.Error("link-refused", "no"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message: linkproto.Message) -> None:
    assert frames_of(encode(message)) == [message]


def test_every_kind_is_in_the_round_trip_test() -> None:
    assert {type(message) for message in MESSAGES} == set(linkproto.KINDS.values())


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"t": "nonsense"},
        {"t": ["entries"]},
        {"t": "ping"},
        {"t": "ping", "at": True},
        {"t": "ping", "at": -1},
        {"t": "ping", "at": 2**60},
        {"t": "want", "ns": "../x", "digests": []},
        {"t": "want", "ns": "ns", "digests": ["sha256:../../etc/passwd"]},
        {"t": "want", "ns": "ns", "digests": "sha256:" + "0" * 64},
        {"t": "entries", "ns": "ns", "origin": "a", "epoch": 1, "first": 1, "entries": ["text"], "coming": []},
        {"t": "hello", "v": 1, "cluster": "c", "pop": "a", "logs": [["ns"]]},
        {"t": "hello", "v": 1, "cluster": "c", "pop": "a", "logs": {"NS": []}},
        {"t": "ack", "bytes": 0, "logs": [["ns", "a", 1]], "blobs": []},
    ],
)
def test_malformed_messages_are_refused(frame: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        decode(frame)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.binary() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8), st.sampled_from(sorted(linkproto.KINDS)))  # fmt: skip
@settings(max_examples=200)
def test_any_field_value_is_taken_or_refused(value: object, kind: str) -> None:
    for message in MESSAGES:
        frame = msgpack.unpackb(encode(message)[4:])
        if frame["t"] != kind:
            continue
        for name in set(frame) - {"t"}:
            try:
                decode({**frame, name: value})
            except ProtocolError:
                pass


def test_entries_of_both_sides_arrive_in_order(pair: tuple[Side, Side]) -> None:
    a, b = pair
    for n in range(1000):
        a.store.namespace("ns").append(b"a%d" % n)
        b.store.namespace("ns").append(b"b%d" % n)
    connect(a, b)
    run(a, b)
    assert same(a, b)
    assert a.session is not None and a.session.sender is not None
    assert a.session.sender.acked["ns"][LogId("a", 1)] == 1000
    assert a.session.sender.bytes_behind == 0
    assert a.session.sender.staleness_ms(5.0) == 0
    assert b.session is not None and "ns" in b.session.receiver.released


def test_entries_are_batched(pair: tuple[Side, Side]) -> None:
    a, b = pair
    for n in range(6400):
        a.store.namespace("ns").append(b"%d" % n)
    connect(a, b)
    run(a, b)
    assert b.store.namespace("ns").mirror_calls == 100


def test_notify_sends_what_was_appended_since(pair: tuple[Side, Side]) -> None:
    a, b = pair
    connect(a, b)
    a.store.namespace("ns").append(b"before the hello")
    assert a.session is not None
    a.session.notify({"ns"}, 0.0)
    now_s = run(a, b)
    assert same(a, b)
    a.store.namespace("ns").append(b"1")
    a.session.notify({"ns"}, now_s)
    a.store.namespace("other").append(b"2")
    a.session.notify({"other"}, now_s)
    run(a, b, now_s)
    assert same(a, b)


def test_a_lost_notification_is_made_good_by_the_tick(pair: tuple[Side, Side]) -> None:
    a, b = pair
    connect(a, b)
    now_s = run(a, b)
    a.store.namespace("ns").append(b"1")
    a.store.namespace("ns").append(b"2", epoch=2)
    settle(a, b, now_s, ticks=1)


def test_small_blobs_come_before_their_entry_large_ones_after_it(pair: tuple[Side, Side]) -> None:
    a, b = pair
    small, large = b"s" * 100_000, b"l" * 700_000
    a.store.namespace("ns").append(b"1", [small, large])
    connect(a, b)
    run(a, b)
    assert b.store.namespace("ns").events == [f"blob {digest_of(small)}", "entry 1", f"blob {digest_of(large)}"]


def test_a_large_blob_does_not_hold_up_small_events(pair: tuple[Side, Side]) -> None:
    a, b = pair
    space = a.store.namespace("ns")
    space.append(b"1", [b"l" * (16 * KIB * KIB)])
    connect(a, b)
    assert a.session is not None and b.session is not None
    for _ in range(4):  # the transfer is under way
        b.session.receive(a.session.output(0.0), 0.0)
        a.session.receive(b.session.output(0.0), 0.0)
    space.append(b"2")
    a.session.notify({"ns"}, 0.0)
    messages = frames_of(a.session.output(0.0))
    assert isinstance(messages[0], Entries) or isinstance(messages[1], Entries)
    assert sum(isinstance(message, Blob) for message in messages) >= 1


def test_two_large_blobs_share_the_line(pair: tuple[Side, Side]) -> None:
    a, b = pair
    a.store.namespace("ns").append(b"1", [b"x" * (2 * KIB * KIB)])
    a.store.namespace("other").append(b"1", [b"y" * (KIB * KIB)])
    connect(a, b)
    run(a, b)
    assert same(a, b)
    assert any(event.startswith("blob") for event in b.store.namespace("other").events)


def test_a_blob_goes_once_over_a_connection(pair: tuple[Side, Side]) -> None:
    a, b = pair
    for n in range(10):
        a.store.namespace("ns").append(b"%d" % n, [b"s" * 10_000, b"l" * 500_000])
    connect(a, b)
    run(a, b)
    assert same(a, b)
    assert sum(event.startswith("blob") for event in b.store.namespace("ns").events) == 2


def test_the_window_holds_the_sender_back(pair: tuple[Side, Side]) -> None:
    a, b = pair
    for n in range(64):
        a.store.namespace("ns").append(b"%d" % n + b"." * 200_000, [b"%d" % n + b"l" * 600_000])
    connect(a, b)
    assert a.session is not None and b.session is not None
    b.session.receive(a.session.output(0.0), 0.0)
    a.session.receive(b.session.output(0.0), 0.0)
    unread = 0
    while data := a.session.output(0.0):
        unread += len(data)
    assert unread < linkproto.WINDOW_BYTES + 2 * linkproto.BATCH_BYTES
    assert a.session.sender is not None and a.session.sender.bytes_behind > linkproto.WINDOW_BYTES


def test_what_is_missing_at_the_start_is_asked_for(pair: tuple[Side, Side]) -> None:
    a, b = pair
    data = b"d" * 300_000
    raw = a.store.namespace("ns").append(b"1", [data])
    b.store.namespace("ns").mirror(LogId("a", 1), 1, [raw])
    connect(a, b)
    settle(a, b, 0.0)
    assert not b.store.namespace("ns").missing


def test_a_third_pop_relays_blobs() -> None:
    a, b, c = Side("a"), Side("b"), Side("c")
    data = b"d" * 300_000
    raw = a.store.namespace("ns").append(b"1", [data])
    c.store.namespace("ns").mirror(LogId("a", 1), 1, [raw])
    b.store.namespace("ns").mirror(LogId("a", 1), 1, [raw])
    b.store.namespace("ns").add_blob(digest_of(data), data)
    connect(b, c)
    settle(b, c, 0.0)


def test_who_has_not_says_so_and_another_is_asked() -> None:
    b, c, d = Side("b"), Side("c"), Side("d")
    data = b"d" * 300_000
    raw = Side("a").store.namespace("ns").append(b"1", [data])
    b.store.namespace("ns").mirror(LogId("a", 1), 1, [raw])
    now_s = 1.0
    connect(b, c)
    c_session = b.session
    assert c_session is not None
    b.tick(now_s)
    now_s = run(b, c, now_s)  # c has not got it
    d.store.namespace("ns").mirror(LogId("a", 1), 1, [raw])
    d.store.namespace("ns").add_blob(digest_of(data), data)
    b.connect("d", now_s)
    d.connect("b", now_s)
    b.tick(now_s)
    run(b, d, now_s)
    assert data == b.store.namespace("ns").blobs[digest_of(data)]
    assert len(b.wants) == 0


def test_what_nobody_has_is_asked_for_again_later(pair: tuple[Side, Side]) -> None:
    a, b = pair
    data = b"d" * 300_000
    raw = a.store.namespace("ns").append(b"1", [data])
    kept = a.store.namespace("ns").blobs.pop(digest_of(data))
    connect(a, b)
    now_s = 0.0
    for _ in range(3):
        now_s += 1
        a.tick(now_s)
        b.tick(now_s)
        now_s = run(a, b, now_s)
    assert b.store.namespace("ns").missing and raw in b.store.namespace("ns").entries[LogId("a", 1)]
    a.store.namespace("ns").add_blob(digest_of(data), kept)
    settle(a, b, now_s)


def test_a_blob_that_is_not_what_its_digest_says_is_asked_for_again(pair: tuple[Side, Side]) -> None:
    a, b = pair
    good = b"d" * 300_000
    a.store.namespace("ns").append(b"1", [good])
    a.store.namespace("ns").blobs[digest_of(good)] = b"e" * 300_000
    connect(a, b)
    now_s = run(a, b)
    assert b.session is not None and b.session.receiver.corrupt_blobs == 1
    a.store.namespace("ns").blobs[digest_of(good)] = good
    settle(a, b, now_s)


def test_too_large_a_blob_is_refused_by_name_and_the_rest_goes_on(pair: tuple[Side, Side]) -> None:
    a, _ = pair
    b = Side("b", limits=Limits(value_bytes=400_000, event_bytes=400_000))
    huge = b"h" * 500_000
    a.store.namespace("ns").append(b"1", [huge])
    a.store.namespace("ns").append(b"2", [b"l" * 300_000])
    connect(a, b)
    now_s = run(a, b)
    for _ in range(5):
        now_s += 1
        b.tick(now_s)
        now_s = run(a, b, now_s)
    assert b.store.namespace("ns").logs()[LogId("a", 1)] == 2
    assert b.store.namespace("ns").missing == {digest_of(huge)}
    assert len(b.wants) == 0


def test_unfinished_blobs_are_bounded(pair: tuple[Side, Side]) -> None:
    a, _ = pair
    b = Side("b", limits=Limits(value_bytes=1_000_000, event_bytes=1_000_000))
    connect(a, b)
    run(a, b)
    assert b.session is not None
    for n in range(5):
        b.session.receive(encode(Blob("ns", digest_of(b"%d" % n), 900_000, 0, b"x")), 0.0)
    refused = [message for message in frames_of(b.session.output(0.0)) if isinstance(message, Refuse)]
    assert [message.code for message in refused] == ["busy"] * 3


def test_a_gap_sends_the_sender_back_once(pair: tuple[Side, Side]) -> None:
    a, b = pair
    for n in range(1000):
        a.store.namespace("ns").append(b"%d" % n)
    connect(a, b)
    assert a.session is not None and b.session is not None
    b.session.receive(a.session.output(0.0), 0.0)
    a.session.receive(b.session.output(0.0), 0.0)
    b.store.namespace("ns").entries.clear()
    messages = [message for message in frames_of(a.session.output(0.0)) if isinstance(message, Entries)]
    for message in messages[1:]:  # the first is lost
        b.session.receive(encode(message), 0.0)
    answers = frames_of(b.session.output(0.0))
    assert [message for message in answers if isinstance(message, Rewind)] == [Rewind("ns", "a", 1, 0)]


def test_a_damaged_entry_stops_its_log_only_and_is_asked_for_again(pair: tuple[Side, Side]) -> None:
    a, b = pair
    space = a.store.namespace("ns")
    good = [space.append(b"%d" % n) for n in range(10)]
    space.entries[LogId("a", 1)][5] = b"\xc1damaged"
    space.entry_blobs = lambda raw: []  # type: ignore[method-assign]
    connect(a, b)
    now_s = run(a, b)
    a.store.namespace("other").append(b"1")
    for _ in range(5):
        now_s += 1
        a.tick(now_s)
        b.tick(now_s)
        now_s = run(a, b, now_s)
    assert b.store.namespace("other").entries
    assert not b.store.namespace("ns").entries.get(LogId("a", 1))
    space.entries[LogId("a", 1)][5] = good[5]
    settle(a, b, now_s)


def test_a_log_that_cannot_be_read_stops_itself_only(pair: tuple[Side, Side]) -> None:
    a, b = pair
    space = a.store.namespace("ns")
    good = space.append(b"1")
    space.entries[LogId("a", 1)][0] = b"\xc1"  # entry_blobs fails on it
    a.store.namespace("other").append(b"1")
    connect(a, b)
    now_s = run(a, b)
    assert b.store.namespace("other").entries
    assert a.session is not None and a.session.sender is not None and "cannot be read" in a.session.sender.trouble
    space.entries[LogId("a", 1)][0] = good
    settle(a, b, now_s)
    assert a.session.sender.trouble == ""


def test_a_lost_tail_is_given_back_and_its_epoch_is_over(pair: tuple[Side, Side]) -> None:
    a, b = pair
    space = a.store.namespace("ns")
    raws = [space.append(b"%d" % n, [b"s" * 10_000, b"l" * 300_000]) for n in range(100)]
    b.store.namespace("ns").mirror(LogId("a", 1), 1, raws)
    for digest, data in space.blobs.items():
        b.store.namespace("ns").add_blob(digest, data)
    del space.entries[LogId("a", 1)][60:]
    space.blobs.clear()
    a.store.namespace("ns").append(b"after the loss", epoch=2)
    connect(a, b)
    settle(a, b, 0.0)
    assert a.store.lost_tails == [("ns", 1, 100)]
    assert space.entries[LogId("a", 1)] == raws
    assert len(space.blobs) == 2


def test_an_empty_pop_gets_its_own_logs_back(pair: tuple[Side, Side]) -> None:
    a, b = pair
    raws = [Side("a").store.namespace("ns").append(b"%d" % n) for n in range(100)]
    b.store.namespace("ns").mirror(LogId("a", 1), 1, raws)
    connect(a, b)
    settle(a, b, 0.0)
    assert a.store.namespace("ns").entries[LogId("a", 1)] == raws


def test_what_was_never_lost_is_not_taken_back(pair: tuple[Side, Side]) -> None:
    a, b = pair
    raw = a.store.namespace("ns").append(b"1")
    b.store.namespace("ns").mirror(LogId("a", 1), 1, [raw])
    connect(a, b)
    run(a, b)
    assert a.session is not None
    a.session.receive(encode(Entries("ns", "a", 1, 1, [raw], [])), 0.0)
    assert a.store.namespace("ns").mirror_calls == 0
    assert [message.logs for message in frames_of(a.session.output(0.0)) if isinstance(message, Ack)] == [
        [("ns", "a", 1, 1)]
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hello: {**hello, "v": 9}, "version 9"),
        (lambda hello: {**hello, "cluster": "other"}, "cluster 'other'"),
        (lambda hello: {**hello, "pop": "c"}, "the hello says 'c'"),
        (lambda hello: {"t": "ping", "at": 1, "about": []}, "ping before hello"),
        (lambda hello: {"t": "error", "code": "x", "message": "go away"}, "go away"),
    ],
)
def test_the_wrong_peer_is_refused_by_name(
    pair: tuple[Side, Side], change: Callable[[dict[str, object]], dict[str, object]], words: str
) -> None:
    a, b = pair
    connect(a, b)
    assert a.session is not None and b.session is not None
    hello = msgpack.unpackb(a.session.output(0.0)[4:])
    with pytest.raises(EdgeflowError, match=words):
        b.session.receive(encode_frame(change(hello)), 0.0)


def test_a_namespace_that_is_not_known_is_refused_until_it_is(pair: tuple[Side, Side]) -> None:
    a, b = pair
    b.store.strange = {"new"}
    space = a.store.namespace("new")
    body = random.randbytes(300_000)
    space.append(b"1", [body, b"small"])
    connect(a, b)
    now_s = run(a, b)
    assert b.session is not None and "there is no namespace 'new'" in b.session.receiver.trouble
    assert b.store.spaces.get("new") is None or not b.store.namespace("new").blobs
    b.store.strange = set()
    a.store.namespace("system").append(b"the namespace is made known")
    a.session.notify({"system"}, now_s) if a.session is not None else None
    now_s = run(a, b, now_s)
    assert b.store.namespace("new").logs() == {LogId("a", 1): 1}, "at once, not at the next try"
    settle(a, b, now_s)
    assert b.session.receiver.trouble == ""


def test_entries_of_no_member_are_refused(pair: tuple[Side, Side]) -> None:
    a, b = pair
    connect(a, b)
    run(a, b)
    assert b.session is not None
    with pytest.raises(ProtocolError, match="'z', which is no PoP of this cluster"):
        b.session.receive(encode(Entries("ns", "z", 1, 1, [b"x"], [])), 0.0)


@pytest.mark.parametrize(
    "message",
    [
        Ack(10**9, [], []),
        Ack(0, [("ns", "a", 7, 1)], []),
        Rewind("ns", "a", 1, 10**6),
        Rewind("nowhere", "a", 1, 0),
        Blob("ns", digest_of(b""), 10, 5, b"x"),
        Blob("ns", digest_of(b""), 2, 0, b"xxx"),
        Hello(linkproto.VERSION, "c1", "a", {}),
        Entries("ns", "a", 1, 0, [b"x"], []),
        Entries("ns", "a", 1, 1, [], []),
    ],
)  # fmt: skip
def test_what_cannot_be_true_ends_the_connection(pair: tuple[Side, Side], message: linkproto.Message) -> None:
    a, b = pair
    b.store.namespace("ns").append(b"1")
    connect(a, b)
    run(a, b)
    assert b.session is not None
    with pytest.raises(ProtocolError):
        b.session.receive(encode(message), 0.0)


def test_silence_ends_the_connection_but_not_our_own_standstill(pair: tuple[Side, Side]) -> None:
    a, b = pair
    connect(a, b)
    now_s = run(a, b)
    a.tick(now_s + SILENCE_S + 1)  # this process stood still: not the peer's fault
    with pytest.raises(LinkRefused, match="said nothing"):
        for second in range(2 * int(SILENCE_S)):
            a.tick(now_s + SILENCE_S + 2 + second)


def test_round_trip_time_is_measured(pair: tuple[Side, Side]) -> None:
    a, b = pair
    connect(a, b)
    now_s = run(a, b)
    a.tick(now_s + 1)
    run(a, b, now_s + 1)
    assert a.session is not None and a.session.rtt_ms is not None and 0.5 < a.session.rtt_ms < 5


# What a bad line does: bytes are cut, altered, repeated, reordered. A connection that notices ends; the next one goes on from the cursors.


def spoil(data: bytes, how: random.Random) -> bytes:
    if len(data) < 2:
        return data
    start = how.randrange(len(data))
    end = min(len(data), start + how.randrange(1, 2000))
    match how.randrange(5):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + how.randbytes(end - start) + data[end:]
        case 2:
            return data[:end] + data[start:]
        case 3:
            return data[end:] + data[:end]
        case _:
            return how.randbytes(end - start) + data


def shuffle_frames(data: bytes, how: random.Random) -> bytes:
    try:
        frames = [encode_frame(frame) for frame in FrameReader().feed(data)]
    except ProtocolError:
        return data
    if how.random() < 0.5:
        how.shuffle(frames)
    return b"".join(frame for frame in frames for _ in range(how.choice([0, 1, 1, 1, 2])))


@pytest.mark.parametrize("seed", range(12))
def test_contents_are_equal_in_the_end_whatever_the_line_does(seed: int) -> None:
    how = random.Random(seed)
    a, b = Side("a"), Side("b")
    now_s = 0.0
    for _ in range(15):
        connect(a, b, now_s)
        assert a.session is not None and b.session is not None
        try:
            for _ in range(how.randrange(1, 20)):
                for side in (a, b):
                    assert side.session is not None
                    for _ in range(how.randrange(4)):
                        ns = how.choice(["one", "two"])
                        blobs = [
                            how.randbytes(how.choice([10, 5_000, 300_000, 700_000]))
                            for _ in range(how.choice([0, 0, 1, 2]))
                        ]
                        side.store.namespace(ns).append(how.randbytes(50), blobs, epoch=how.choice([1, 1, 1, 2]))
                        if how.random() < 0.8:
                            side.session.notify({ns}, now_s)
                    now_s += 0.3
                    side.tick(now_s)
                    data = side.session.output(now_s)
                    if how.random() < 0.03:
                        data = spoil(data, how)
                    elif how.random() < 0.05:
                        data = shuffle_frames(data, how)
                    other = b.session if side is a else a.session
                    cut = how.randrange(len(data) + 1) if data else 0
                    other.receive(data[:cut], now_s)
                    other.receive(data[cut:], now_s)
        except EdgeflowError:
            pass
    connect(a, b, now_s)
    settle(a, b, now_s)
    for side in (a, b):
        for space in side.store.spaces.values():
            assert not space.missing
            for digest, data in space.blobs.items():
                assert digest_of(data) == digest
