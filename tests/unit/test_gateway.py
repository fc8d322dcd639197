"""The gateway's bookkeeping: what is acknowledged to the broker, and in which order."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from edgeflow.core.mqttprops import PublishProperties
from edgeflow.core.retries import RetryPolicy
from edgeflow.core.routing import FunctionRoute, InputRoute, RouteTable
from edgeflow.errors import QueueFull
from edgeflow.flow import refusals
from edgeflow.flow.gateway import PENDING, PENDING_BYTES, Gateway
from edgeflow.flow.pahofast import Message
from edgeflow.settings import Limits
from edgeflow.store import Arrival, Receipt, Refusal


class Session:
    """Keeps what is acknowledged; a QoS 0 message has nothing to acknowledge."""

    def __init__(self) -> None:
        self.acked: list[int] = []
        self.reading = True

    def ack(self, message: Message) -> None:
        if message.qos:
            self.acked.append(message.mid)

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def flush(self) -> None: ...

    def publish(self, topic: str, payload: bytes, properties: bytes) -> None: ...


class NoFunctions:
    name = "n"

    def routes(self) -> RouteTable:
        return RouteTable()


class OneFunction(NoFunctions):
    def routes(self) -> RouteTable:
        route = FunctionRoute("f", "1", (InputRoute("lines", "n/lines"),), None, (), None, (), {}, RetryPolicy())
        return RouteTable("1", (route,))


class NoTime:
    def monotonic(self) -> float:
        return 1.0


@pytest.fixture
def full(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """A gateway with a function; what is refused stays so."""
    monkeypatch.setattr(refusals, "time", NoTime())
    gateway._namespace = OneFunction()  # type: ignore[assignment]
    return gateway


@pytest.fixture
def gateway() -> Gateway:
    made: Any = Gateway(NoFunctions(), Limits(), "/pops/a/mqtt", None, lambda _name: False)  # type: ignore[arg-type]
    made.session = Session()
    return made


def message(mid: int, topic: bytes = b"n/lines") -> Message:
    made = Message(mid, topic)
    made.decoded = PublishProperties()
    made.qos = 1 if mid else 0
    made.payload = b"%d" % mid
    return made


def round_of(gateway: Gateway, limit: int = 64) -> list[Arrival]:
    arrivals = gateway.collected(limit)
    gateway.finish([Receipt("durable", "a", 1, 1, arrival.event.id) for arrival in arrivals])
    return arrivals


@pytest.fixture
def acked(gateway: Gateway) -> Callable[[], list[int]]:
    session: Any = gateway.session
    return lambda: list(session.acked)


def test_a_handover_acknowledges_in_the_order_in_which_the_broker_sent(
    gateway: Gateway, acked: Callable[[], list[int]]
) -> None:
    # An acknowledgement out of order makes Mosquitto let new messages past those that wait at the broker.
    gateway.cover(lambda topic: topic == "n/_gateway/marker", lambda _wanted: None)
    for mid in (1, 2, 3):
        gateway.take(message(mid))
    gateway.take(message(4, b"n/_gateway/marker"))
    for mid in (5, 6):
        gateway.take(message(mid))
    for _ in (1, 2, 3):
        gateway.collect(message(0))
    gateway.uncover()
    gateway.take(message(7))
    assert len(round_of(gateway, 4)) + len(round_of(gateway, 4)) + len(round_of(gateway, 4)) == 6
    assert acked() == [1, 2, 3, 4, 5, 6, 7]


def test_copies_are_acknowledged_while_the_handover_lasts(gateway: Gateway, acked: Callable[[], list[int]]) -> None:
    # Otherwise a marker behind a full window would never come.
    gateway.cover(lambda topic: False, lambda _wanted: None)
    gateway.take(message(1))
    assert round_of(gateway) == []
    assert acked() == [1]


def test_what_could_not_be_taken_keeps_its_place(gateway: Gateway, acked: Callable[[], list[int]]) -> None:
    for mid in (1, 2, 3):
        gateway.take(message(mid))
    gateway.collected(2)
    gateway.put_back()
    assert [arrival.event.data for arrival in round_of(gateway)] == [b"1", b"2", b"3"]
    assert acked() == [1, 2, 3]


def test_what_a_lost_connection_brought_is_neither_taken_nor_acknowledged(
    gateway: Gateway, acked: Callable[[], list[int]]
) -> None:
    gateway.take(message(1))
    gateway.collected(64)
    gateway.lost()
    gateway.take(message(2))
    gateway.put_back()
    assert [arrival.event.data for arrival in round_of(gateway)] == [b"2"]
    assert acked() == [2]


@pytest.mark.parametrize("large", [False, True])
def test_what_waits_is_bounded_in_number_and_bytes(gateway: Gateway, large: bool) -> None:
    session: Any = gateway.session
    payload = bytes(PENDING_BYTES // 128) if large else b"small"
    came = taken = most = 0
    while taken < 5 * PENDING:
        while session.reading:
            came += 1
            one = message(came)
            one.payload = payload
            gateway.take(one)
        most = max(most, came - taken)
        taken += len(round_of(gateway))
    assert most == (128 if large else PENDING)
    assert session.acked == list(range(1, taken + 1))


def test_the_covering_session_waits_for_what_it_brought_and_not_for_what_is_held_behind_the_marker(
    gateway: Gateway,
) -> None:
    # The marker comes over the covering session: if that were not read for what waits for the marker, nothing would ever go on.
    session: Any = gateway.session
    covering: list[bool] = []
    gateway.cover(lambda topic: topic == "n/_gateway/marker", covering.append)
    for _ in range(PENDING):
        gateway.collect(message(0))
    assert covering == [False] and not session.reading
    while gateway.waiting:
        round_of(gateway)
    assert covering == [False, True] and session.reading
    gateway.take(message(1, b"n/_gateway/marker"))
    for mid in range(2, PENDING + 2):
        gateway.take(message(mid))
    round_of(gateway)
    assert covering == [False, True] and not session.reading
    gateway.uncover()
    while gateway.waiting:
        round_of(gateway)
    assert session.reading
    assert session.acked == list(range(1, PENDING + 2))


def test_a_lost_connection_leaves_nothing_that_holds_up_the_next(gateway: Gateway) -> None:
    session: Any = gateway.session
    for mid in range(1, PENDING + 1):
        gateway.take(message(mid))
    assert not session.reading
    gateway.collected(64)
    gateway.lost()
    gateway.put_back()
    assert session.reading
    gateway.take(message(1))
    assert len(round_of(gateway)) == 1


def refuse(gateway: Gateway, error: QueueFull, ended: Sequence[str] = ()) -> list[Arrival]:
    arrivals = gateway.collected(64)
    gateway.finish([Refusal(arrival.event.id, error) for arrival in arrivals], ended)
    return arrivals


def test_what_follows_a_refusal_is_refused_without_the_store_in_order_and_counted(
    full: Gateway, acked: Callable[[], list[int]]
) -> None:
    full.take(message(1))
    full.take(message(2))
    full.collected(1)
    full.take(message(3))
    full.finish([Refusal("1", QueueFull("full"))])
    full.take(message(4))
    # 2 and 3 were understood before it was known, 4 after; a redelivery may be in the log already, and the store knows.
    again = message(5)
    again.dup = True
    full.take(again)
    full.take(message(6, b"n/other"))
    arrivals = full.collected(64)
    assert [arrival.event.data for arrival in arrivals] == [b"5", b"6"]
    assert full.turned_away == {"events_refused:full": 3}
    full.finish([Receipt("durable", "a", 1, 1, arrival.event.id) for arrival in arrivals])
    assert acked() == [1, 2, 3, 4, 5, 6]


def test_what_has_ended_is_room(full: Gateway) -> None:
    full.take(message(1))
    full.collected(64)
    for mid in (2, 3):
        full.take(message(mid))
    full.finish([Refusal("1", QueueFull("full"))], ["f:1", "other:1", "f:1"])
    for mid in (4, 5):
        full.take(message(mid))
    # Two have ended. 2 was there already when that was known.
    assert [arrival.event.data for arrival in refuse(full, QueueFull("full"))] == [b"2", b"3"]
    full.take(message(6))
    assert refuse(full, QueueFull("full"), ["f:1"]) == []
    full.take(message(7))
    assert [arrival.event.data for arrival in refuse(full, QueueFull("full"))] == [b"7"]


def test_refusals_that_could_not_be_counted_come_with_the_next_round(full: Gateway) -> None:
    full.take(message(1))
    refuse(full, QueueFull("full"))
    full.take(message(2))
    assert full.collected(64) == [] and full.turned_away == {"events_refused:full": 1}
    full.put_back()
    assert full.collected(64) == [] and full.turned_away == {"events_refused:full": 1}
    full.finish([])
    assert full.collected(64) == [] and full.turned_away == {}


def test_refusals_take_no_place_in_a_round(full: Gateway, acked: Callable[[], list[int]]) -> None:
    full.take(message(1))
    refuse(full, QueueFull("full"))
    for mid in range(2, 100):
        full.take(message(mid))
    full.take(message(100, b"n/other"))
    assert len(round_of(full, 1)) == 1
    assert acked() == list(range(1, 101))
