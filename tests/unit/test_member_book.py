"""Member records: who is a member, what a PoP says of itself and when, and what an operator may wish."""

from typing import Any

import pytest
from value_fakes import FakeValues

from edgeflow.cluster.introduction import Introduction, own_member
from edgeflow.cluster.roster import Roster
from edgeflow.core.membership import DRAINING, LEFT, UP, Address, Member
from edgeflow.errors import BadRequest, NotFound
from edgeflow.settings import PopSettings
from edgeflow.store.members import MemberBook


class System:
    """A store whose system namespace is in memory."""

    def __init__(self) -> None:
        self.values = FakeValues()
        self.values.pop = "a"

    def namespace(self, name: str) -> FakeValues:
        assert name == "system"
        return self.values


def settings(**over: Any) -> PopSettings:
    return PopSettings.model_validate({
        "pop": "a", "cluster": "c", "mode": "embedded", "state_dir": "s", "run_dir": "r", "store": {"redis_socket": "r"},
        "mqtt": {"password_file": "x"}, "api": {"port": 1, "token_file": "x"},
        "link": {"port": 7, "ca": "x", "cert": "x", "key": "x", "peers": {"b": {"host": "proxy", "port": 1}}},
        "public": {
            "api_url": "http://a", "api_token_file": "x", "mqtt_host": "m", "mqtt_port": 1, "mqtt_ws_url": "x", "mqtt_password_file": "x"
        },
        **over,
    })  # fmt: skip


class Around:
    """What the links know."""

    def __init__(self) -> None:
        self.stale: int | None = None
        self.whole = False

    def has_all(self) -> bool:
        return self.whole

    def staleness_ms(self, namespace: str) -> int | None:
        return self.stale


class Pop:
    def __init__(self, **over: Any) -> None:
        self.store = System()
        self.settings = settings(**over)
        self.book = MemberBook(self.store, "a", self.settings.link.peers)
        self.around = Around()
        self.now_s = 0.0
        self.written = 0
        self.introduction = Introduction(
            self.settings, self.book, self.around, self.count, "1.2", clock=lambda: self.now_s, clock_ms=lambda: 1000
        )

    def count(self) -> None:
        self.written += 1

    def look(self) -> Member | None:
        self.book.look()
        self.introduction.look()
        return self.book.of("a")


def test_a_pop_of_the_settings_is_a_member_until_it_left() -> None:
    pop = Pop()
    assert pop.book.pops() == ["a", "b"]
    pop.book.admit(Member("d", link=Address("d", 9), admitted="a"))
    assert pop.book.pops() == ["a", "b", "d"]
    pop.book.wish("b", LEFT)
    assert (pop.book.others(), pop.book.of("b")) == (["d"], Member("b", LEFT))
    with pytest.raises(BadRequest, match="b has left"):
        pop.book.wish("b", UP)
    with pytest.raises(BadRequest, match="'gone' cannot be wished"):
        pop.book.wish("d", "gone")
    with pytest.raises(NotFound, match="no PoP 'x'"):
        pop.book.wish("x", DRAINING)
    assert pop.book.wish("d", DRAINING).state == DRAINING


def test_whom_there_are_links_to() -> None:
    pop = Pop()
    roster = Roster(pop.settings, pop.book)
    pop.book.admit(Member("b", link=Address("b-itself", 2)))
    pop.book.admit(Member("d", link=Address("d", 9), admitted="a"))
    pop.book.admit(Member("e"))  # it has not said where it is
    assert {peer: at.host for peer, at in roster.look().items()} == {"b": "proxy", "d": "d"}
    pop.book.wish("b", LEFT)
    assert (set(roster.look()), roster.left()) == ({"d"}, {"b"})
    pop.book.admit(Member("b", link=Address("b-anew", 3), admitted="a"))
    assert (roster.look()["b"].host, roster.left()) == ("b-anew", set()), "the settings' address is of the old one"


def test_a_pop_speaks_when_it_knows_what_others_say_of_it() -> None:
    pop = Pop()
    assert pop.look() is None
    pop.around.stale = 3
    said = pop.look()
    assert said is not None and (said.url, said.joined_ms, said.link) == ("http://a", 1000, Address("127.0.0.1", 7))
    assert pop.written == 1
    assert pop.look() == said and pop.written == 1


def test_a_pop_that_hears_nobody_speaks_after_a_while() -> None:
    pop = Pop()
    pop.now_s = 5.9
    assert pop.look() is None
    pop.now_s = 6.1
    assert pop.look() is not None


def test_a_pop_that_others_know_keeps_what_they_decided() -> None:
    pop = Pop(membership={"cost": 2, "labels": {"z": "1", "a": "2"}, "location": {"lat": 1, "lon": 2}})
    pop.book.admit(Member("a", DRAINING, joined_ms=4, added_ms=3))
    said = pop.look()
    assert said is not None and (said.state, said.joined_ms, said.cost, pop.written) == (DRAINING, 4, 2.0, 1)
    again = Introduction(pop.settings, pop.book, pop.around, pop.count, "1.2")
    again.look()
    assert pop.written == 1, "nothing of it changed"


def test_a_pop_that_joined_waits_for_its_record_and_says_when_it_has_all() -> None:
    pop = Pop(membership={"admitted": True})
    pop.around.stale, pop.now_s = 0, 100.0
    assert pop.look() is None
    pop.book.admit(Member("a", admitted="b", added_ms=7, certificate_ms=9))
    said = pop.look()
    assert said is not None and (said.joined_ms, said.added_ms, said.certificate_ms) == (0, 7, 9)
    pop.look()
    assert pop.book.of("a") == said
    pop.around.whole = True
    said = pop.look()
    assert said is not None and (said.joined_ms, pop.written) == (1000, 2)


def test_a_pop_that_left_says_nothing_any_more() -> None:
    pop = Pop()
    pop.book.admit(Member("a", LEFT))
    assert pop.look() == Member("a", LEFT) and pop.written == 0


def test_a_damaged_record_changes_nothing() -> None:
    pop = Pop()
    pop.book.admit(Member("d", link=Address("d", 9)))
    pop.store.values.put("members/d", b"rubbish")
    pop.book.look()
    assert pop.book.of("d") == Member("d", link=Address("d", 9))


def test_the_advertised_address_is_the_one_that_others_get() -> None:
    over = settings().model_dump()
    over["link"]["advertise"] = {"host": "edge.example", "port": 99}
    assert own_member(PopSettings.model_validate(over), "1.2").link == Address("edge.example", 99)
