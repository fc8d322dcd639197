"""Homes in the store: who decides the writes under a prefix is checked where nothing can change in between."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from link_pops import RedisServer, make_settings

from edgeflow.core.events import make_event
from edgeflow.core.policies import NONE, Home, Policies, parse_rules, revised
from edgeflow.errors import HomeElsewhere, StaleHome
from edgeflow.store import Arrival, Receipt, Refusal, Store
from edgeflow.store.replica import ReplicatedNamespace

NAME = "app"


@pytest.fixture
def ns(programs: None, tmp_path: Path) -> Iterator[ReplicatedNamespace]:
    settings = make_settings(tmp_path, "a", {"a": 1, "b": 2})
    redis = RedisServer(tmp_path / "a" / "redis", settings.store.redis_socket).start()
    store = Store.open(settings)
    store.create_namespace(NAME)
    yield store.namespace(NAME)
    store.close()
    redis.kill()


def policies(*rules: tuple[str, str | None], now: Policies = NONE) -> Policies:
    return revised(now, parse_rules([{"prefix": prefix, "home": home} for prefix, home in rules]))


def publish_and_put(ns: ReplicatedNamespace, key: str) -> Receipt | Refusal:
    event = make_event("app/c", b"x", id=key, source="test", now_ms=1)
    return ns.ingest([Arrival(event, put_key=key)])[0]


def test_what_has_its_home_elsewhere_is_not_written_here_by_any_way_in(ns: ReplicatedNamespace) -> None:
    ns.put("b/old", b"0")
    ns.install_homes(policies(("a/", "a"), ("b/", "b"), ("b/free/", None)))
    head = ns.logs()
    writes: list[Callable[[], object]] = [lambda: ns.put("b/k", b"1"), lambda: ns.delete("b/old")]
    for write in writes:
        with pytest.raises(HomeElsewhere, match="is 'b'") as refused:
            write()
        assert refused.value.details == {"home": "b"}
    result = publish_and_put(ns, "b/k")
    assert isinstance(result, Refusal)
    assert isinstance(result.error, HomeElsewhere)
    assert ns.logs() == head
    assert ns.get("b/k") is None
    for key in ("a/k", "b/free/k", "other", "_b/k"):
        assert ns.put(key, b"1").seq
    assert isinstance(publish_and_put(ns, "a/event"), Receipt)


def test_a_home_of_the_whole_namespace_leaves_edgeflows_own_keys_alone(ns: ReplicatedNamespace) -> None:
    ns.install_homes(policies(("", "b")))
    with pytest.raises(HomeElsewhere):
        ns.put("k", b"1")
    ns.put("_consumers/x", b"1")


def test_a_write_for_a_home_in_a_term_that_is_over_is_refused(ns: ReplicatedNamespace) -> None:
    first = policies(("a/", "a"))
    ns.install_homes(first)
    home = ns.home_of("a/k")
    assert home == Home("a/", "a", 1)
    ns.as_home(1).put("a/k", b"1")
    with pytest.raises(StaleHome):
        ns.as_home(2).put("a/k", b"2")
    with pytest.raises(StaleHome):
        ns.as_home(1).put("no/home", b"2")
    ns.set_home(Home("a/", "b", 2))
    with pytest.raises(StaleHome) as refused:
        ns.as_home(1).put("a/k", b"2")
    assert refused.value.details == {"home": "b"}
    value = ns.get("a/k")
    assert value is not None
    assert value.data == b"1"
    # The document that still says otherwise does not bring the old home back.
    ns.install_homes(first)
    assert ns.home_of("a/k") == Home("a/", "b", 2)


def test_handing_over_tells_how_far_the_log_was_and_no_write_comes_behind_it(ns: ReplicatedNamespace) -> None:
    ns.install_homes(policies(("a/", "a")))
    last = ns.put("a/k", b"1")
    held = ns.set_home(Home("a/", "b", 2))
    assert (held.epoch, held.seq) == (last.epoch, last.seq)
    # Again says the same: whoever asked may not have heard it.
    assert ns.set_home(Home("a/", "b", 2)).rules.home("a/k") == Home("a/", "b", 2)
    with pytest.raises(StaleHome, match="'b' in term 2"):
        ns.set_home(Home("a/", "c", 2))
    with pytest.raises(StaleHome):
        ns.set_home(Home("a/", "a", 1))


def test_of_two_homes_in_one_term_the_documents_holds(ns: ReplicatedNamespace) -> None:
    ns.install_homes(policies(("a/", "a")))
    ns.set_home(Home("a/", "b", 2))
    ns.install_homes(Policies(parse_rules([{"prefix": "a/", "home": "c", "term": 2}]), 2))
    assert ns.home_of("a/k") == Home("a/", "c", 2)


def test_a_rule_that_is_gone_leaves_no_home_but_a_later_term_is_kept(ns: ReplicatedNamespace) -> None:
    both = policies(("a/", "a"), ("b/", "b"))
    ns.install_homes(both)
    ns.set_home(Home("a/", "c", 3))
    ns.install_homes(Policies((), both.term))
    assert ns.home_of("b/k") is None
    assert ns.home_of("a/k") == Home("a/", "c", 3)
    ns.install_homes(Policies((), 3))
    assert ns.homes() == NONE
