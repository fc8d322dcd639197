"""The gateway's bookkeeping: what is acknowledged to the broker, and in which order."""

from collections.abc import Callable
from typing import Any

import pytest

from edgeflow.core.mqttprops import PublishProperties
from edgeflow.core.routing import RouteTable
from edgeflow.flow.gateway import Gateway
from edgeflow.flow.pahofast import Message
from edgeflow.settings import Limits
from edgeflow.store import Arrival, Receipt


class Session:
    """Keeps what is acknowledged; a QoS 0 message has nothing to acknowledge."""

    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, message: Message) -> None:
        if message.qos:
            self.acked.append(message.mid)

    def flush(self) -> None: ...

    def publish(self, topic: str, payload: bytes, properties: bytes) -> None: ...


class NoFunctions:
    name = "n"

    def routes(self) -> RouteTable:
        return RouteTable()


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


def round_of(gateway: Gateway, limit: int | None = None) -> list[Arrival]:
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
    gateway.cover(lambda topic: topic == "n/_gateway/marker")
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
    gateway.cover(lambda topic: False)
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
    gateway.collected()
    gateway.lost()
    gateway.take(message(2))
    gateway.put_back()
    assert [arrival.event.data for arrival in round_of(gateway)] == [b"2"]
    assert acked() == [2]
