"""Handovers to new namespaces' gateways: what is read from the broker for them, and what comes in which order."""

from typing import Any

import pytest

from edgeflow.core.mqttprops import PublishProperties
from edgeflow.core.routing import RouteTable
from edgeflow.flow.discovery import Discovery
from edgeflow.flow.gateway import PENDING, Gateway
from edgeflow.flow.pahofast import Message
from edgeflow.settings import Limits
from edgeflow.store import Receipt


class Session:
    """Keeps what is published, and whether it is read."""

    def __init__(self) -> None:
        self.reading = True
        self.published: list[str] = []

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def publish(self, topic: str, payload: bytes, properties: bytes) -> None:
        self.published.append(topic)

    def ack(self, message: Message) -> None: ...

    def flush(self) -> None: ...


class Routes:
    def __init__(self, name: str) -> None:
        self.name = name

    def routes(self) -> RouteTable:
        return RouteTable()


class World:
    def __init__(self) -> None:
        self.gateways: dict[str, Gateway] = {}
        self.discovery = Discovery(self.gateways.__contains__, self.serve)
        self.session = Session()
        made: Any = self.session
        self.discovery.session = made
        self.discovery.ready("boot")

    def is_read(self) -> bool:
        return self.session.reading

    def serve(self, name: str) -> None:
        gateway = Gateway(Routes(name), Limits(), "/s", None, lambda _name: False)  # type: ignore[arg-type]
        gateway.session = Session()  # type: ignore[assignment]
        self.discovery.expect(name, gateway)
        self.gateways[name] = gateway

    def bring(self, name: str, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.discovery.take(message(f"{name}/x", number))

    def drain(self, name: str) -> list[int]:
        gateway, taken = self.gateways[name], []
        while gateway.waiting:
            arrivals = gateway.collected(64)
            gateway.finish([Receipt("durable", "a", 1, 1, arrival.event.id) for arrival in arrivals])
            taken += [int(arrival.event.data or b"") for arrival in arrivals]
        return taken


def message(topic: str, number: int, mid: int = 0) -> Message:
    made = Message(mid, topic.encode())
    made.decoded = PublishProperties()
    made.qos, made.payload = int(mid > 0), b"%d" % number
    return made


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_read_while_one_of_the_gateways_has_enough(world: World) -> None:
    world.bring("one", 0, PENDING)
    world.bring("two", 0, PENDING)
    assert not world.is_read()
    assert world.drain("one") == list(range(PENDING))
    assert not world.is_read()
    assert world.drain("two") == list(range(PENDING))
    assert world.is_read()


def test_a_handover_that_ends_does_not_leave_the_session_unread(world: World) -> None:
    done: list[str] = []
    world.bring("one", 0, 10)
    world.discovery.gateway_ready("one", lambda: done.append("one"))
    (marker,) = world.session.published
    gateway = world.gateways["one"]
    gateway.take(message(marker, 0, 1))
    for number in range(PENDING):
        gateway.take(message("one/x", PENDING + number, 2 + number))
    world.bring("one", 10, PENDING - 10)
    assert not world.is_read() and not done
    world.discovery.take(message(marker, 0))
    assert done == ["one"] and world.is_read()
    # First what came before the marker over the covering session, then what the gateway held behind it.
    assert world.drain("one") == list(range(2 * PENDING))
    assert world.is_read()
