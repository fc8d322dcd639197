"""Links of a cluster whose members change, over real TLS: who comes, who has left, two PoPs with one id, neighbouring versions."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from link_fakes import MemoryStore
from link_pops import LinkPop, MemoryDocs, MemoryMail, free_port, make_settings

from edgeflow.cluster import linkproto
from edgeflow.core.membership import LEFT, UP, Address, Member

DEADLINE_S = 60.0


class Book:
    """Member records that all PoPs of a test read, without waiting for them to travel."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Member] = {}

    def put(self, member: Member) -> None:
        with self._lock:
            self._records[member.pop] = member

    def look(self) -> bool:
        return True

    def records(self) -> Mapping[str, Member]:
        with self._lock:
            return dict(self._records)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: dict[str, int] = {}
        self.book = Book()
        self.pops: list[LinkPop] = []

    def start(self, pop: str, *, port: int | None = None, folder: str = "") -> LinkPop:
        """A PoP that knows nobody by its settings."""
        self.ports[pop] = port or free_port()
        settings = make_settings(self.folder, pop, {pop: self.ports[pop]})
        store: Any = MemoryStore(pop)
        store.local, store.mailbox = MemoryDocs(), MemoryMail()
        made = LinkPop(settings, store)
        made.links = type(made.links)(settings, store, made.reactor, made.released.append, book=self.book)
        self.pops.append(made.start())
        return made

    def admit(self, pop: str, **facts: Any) -> None:
        self.book.put(Member(pop, link=Address("127.0.0.1", self.ports[pop]), admitted="x", joined_ms=1, **facts))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for pop in made.pops:
        pop.stop()


def until(condition: Callable[[], Any], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.05)


def links(pop: LinkPop) -> dict[str, str]:
    return {peer: document["state"] for peer, document in pop.call(pop.links.states).items()}


def reason(pop: LinkPop, peer: str) -> str:
    return str(pop.call(pop.links.states).get(peer, {}).get("last_error", ""))


def test_links_begin_and_end_with_the_records(world: World) -> None:
    a, b = world.start("a"), world.start("b")
    assert links(a) == {} and links(b) == {}
    world.admit("a")
    world.admit("b")
    until(lambda: links(a) == {"b": "up"} and links(b) == {"a": "up"}, "a and b are linked")
    until(lambda: a.call(lambda: a.links.membership.state("b")) == UP, "a hears b")
    c = world.start("c")
    world.admit("c")
    until(lambda: links(c) == {"a": "up", "b": "up"}, "c is linked with both")
    world.book.put(replace(world.book.records()["b"], state=LEFT))
    until(lambda: links(a) == {"c": "up"} and links(c) == {"a": "up"}, "b is gone for a and c")
    assert a.call(lambda: a.links.membership.state("b")) == LEFT
    assert "b" not in a.store.local.docs("link_state")


def test_floors_and_cursors_wait_for_nobody_who_left(world: World) -> None:
    a, b = world.start("a"), world.start("b")
    world.admit("a")
    world.admit("b")
    until(lambda: links(a) == {"b": "up"}, "a and b are linked")
    world.ports["c"] = free_port()  # c is a member that nobody can reach
    world.admit("c")
    a.call(lambda: a.store.namespace("ns").append(b"one"))
    a.call(lambda: a.links.notify({"ns"}))
    until(lambda: b.store.namespace("ns").logs(), "b has it")
    assert a.call(lambda: a.links.passed("ns")) == {}
    assert a.call(lambda: a.links.acknowledged("ns")) == {}
    world.book.put(replace(world.book.records()["c"], state=LEFT))
    until(lambda: list(a.call(lambda: a.links.passed("ns")).values()) == [1], "what all have that are there")
    until(lambda: list(a.call(lambda: a.links.acknowledged("ns")).values()) == [1], "and what need not be kept")


def test_one_that_left_is_refused_by_name(world: World) -> None:
    b = world.start("b")
    world.admit("b", certificate_ms=0)
    a = world.start("a")  # the smaller id dials
    a.links._roster._book = Book()  # a has not read that it left
    a.links._roster._book.put(world.book.records()["b"])
    world.admit("a", state=LEFT)
    until(lambda: "a has left this cluster" in reason(a, "b"), "b says why")
    assert links(b) == {}


def test_a_certificate_that_was_replaced_is_refused_by_name(world: World) -> None:
    world.start("b")
    world.admit("b")
    a = world.start("a")
    world.admit("a", certificate_ms=int((time.time() + 3600) * 1000))
    until(lambda: "admitted with a newer certificate" in reason(a, "b"), "b says why")


def test_of_two_pops_with_one_id_the_last_one_is_kept(world: World) -> None:
    b = world.start("b")
    world.admit("b")
    first = world.start("a")
    world.admit("a")
    until(lambda: links(b) == {"a": "up"}, "the first one is linked")
    second = world.start("a")  # the same certificate, as in a copied folder
    until(lambda: "two PoPs have the id a" in reason(first, "b"), "the first one is told why it is refused")
    until(lambda: links(second) == {"b": "up"}, "the second one is linked")


def test_a_neighbouring_version_is_understood_and_an_unknown_one_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = world.start("a"), world.start("b")
    told: list[linkproto.Message] = []
    encode = linkproto.encode

    def older(message: linkproto.Message) -> bytes:
        """As the version before this one: without what was added since."""
        if isinstance(message, linkproto.Hello):
            message = replace(message, minor=0, run="")
        if isinstance(message, linkproto.Pong):
            message = replace(message, heard=())
        told.append(message)
        return encode(message)

    monkeypatch.setattr("edgeflow.cluster.session.encode", older)
    world.admit("a")
    world.admit("b")
    until(lambda: links(a) == {"b": "up"} and links(b) == {"a": "up"}, "they understand each other")
    assert any(isinstance(message, linkproto.Hello) for message in told)

    def strange(message: linkproto.Message) -> bytes:
        return encode(replace(message, v=9) if isinstance(message, linkproto.Hello) else message)

    monkeypatch.setattr("edgeflow.cluster.session.encode", strange)
    c = world.start("c")
    world.admit("c")
    until(lambda: "speaks link version 9" in reason(c, "a") + reason(a, "c"), "an unknown version is refused by name")
    assert links(a)["b"] == "up", "and nothing stops that worked"
