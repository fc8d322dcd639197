"""Hints of changes, with a real Redis: what is heard, by whom, and what a restart of Redis does."""

import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from link_pops import RedisServer, make_settings

from edgeflow.store import Store, Wakeups

DEADLINE_S = 20.0


class Pop:
    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder, "a", {"a": 1})
        self.redis = RedisServer(folder / "a" / "redis", self.settings.store.redis_socket).start()
        self.own = Store.open(self.settings)
        self.other = Store.open(self.settings)
        self.own.create_namespace("app")
        self.wakeups = self.own.wakeups()

    def close(self) -> None:
        self.wakeups.close()
        for store in (self.own, self.other):
            store.close()
        self.redis.kill()


@pytest.fixture
def pop(tmp_path: Path) -> Iterator[Pop]:
    one = Pop(tmp_path)
    yield one
    one.close()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def ready(wakeups: Wakeups) -> bool:
    return wakeups.fileno() >= 0 and bool(select.select([wakeups.fileno()], [], [], 0)[0])


def test_what_another_process_changes_is_heard_once(pop: Pop) -> None:
    pop.other.namespace("app").put("a", b"1")
    pop.other.local.put_doc("instance", "one", {})
    wait_until(lambda: ready(pop.wakeups), "a hint")
    heard: dict[str, set[str]] = {}
    wait_until(lambda: heard.update(pop.wakeups.drain()) or len(heard) == 2, "both hints")
    assert heard == {"app": set(), "local": set()}
    assert not ready(pop.wakeups)
    assert pop.wakeups.drain() == {}


def test_more_hints_than_one_read_takes_are_all_heard(pop: Pop) -> None:
    names = [f"n{i}" for i in range(300)]
    for name in names:
        pop.other.local.put_doc("k", name, {"name": name})
        pop.other.create_namespace(name)
    heard: set[str] = set()
    wait_until(lambda: heard.update(pop.wakeups.drain()) or {*names, "local"} <= heard, "all hints")


def test_a_thread_that_waits_is_woken(pop: Pop) -> None:
    assert pop.wakeups.wait(0) == set()  # listens anew: what was before is not known
    threading.Timer(0.1, lambda: pop.other.namespace("app").put("a", b"1")).start()
    began = time.monotonic()
    assert pop.wakeups.wait(DEADLINE_S) == {"app"}
    assert time.monotonic() - began < DEADLINE_S / 2


def test_it_comes_back_when_redis_does(pop: Pop) -> None:
    pop.redis.kill()
    wait_until(lambda: pop.wakeups.drain() == {} and pop.wakeups.fileno() == -1, "Redis is seen to be away")
    assert pop.wakeups.wait(0.01) == set()
    pop.redis.start()
    wait_until(lambda: pop.wakeups.drain() == {} and pop.wakeups.fileno() >= 0, "it listens again")
    pop.other.namespace("app").put("a", b"1")
    heard: set[str] = set()
    wait_until(lambda: heard.update(pop.wakeups.drain()) or "app" in heard, "a hint")
