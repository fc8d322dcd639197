"""The mailbox on a real Redis: questions and answers between two processes' stores."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from link_pops import RedisServer, make_settings

from edgeflow.errors import NotFound, Unavailable
from edgeflow.store.client import Store
from edgeflow.store.mailbox import MAIL, QUESTIONS, Asked

pytestmark = pytest.mark.usefixtures("programs")
Wait = Callable[..., Any]


@pytest.fixture
def stores() -> Iterator[tuple[Store, Store, RedisServer]]:
    folder = Path(tempfile.mkdtemp(prefix="efm-"))
    settings = make_settings(folder, "a", {"a": 1})
    redis = RedisServer(folder / "redis", settings.store.redis_socket).start()
    control, data = Store.open(settings), Store.open(settings, patient=True)
    yield control, data, redis
    control.close()
    data.close()
    redis.kill()
    shutil.rmtree(folder)


def serving(store: Store, answer: Callable[[Asked], None]) -> Callable[[], None]:
    """Answers questions in a thread, woken by hints, until the result is called."""
    ended = threading.Event()
    wakeups = store.wakeups()

    def run() -> None:
        while not ended.is_set():
            if MAIL in wakeups.wait(0.1):
                for asked in store.mailbox.take():
                    answer(asked)

    thread = threading.Thread(target=run)
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join()
        wakeups.close()

    return stop


def test_a_question_is_answered_or_refused(stores: tuple[Store, Store, RedisServer]) -> None:
    control, data, _ = stores

    def answer(asked: Asked) -> None:
        if asked.kind == "bad":
            asked.refuse(NotFound("no such thing", details={"what": "it"}))
        else:
            asked.answer({"twice": asked.args["n"] * 2, "raw": b"\x00\xff"})

    stop = serving(data, answer)
    try:
        assert control.mailbox.ask("double", {"n": 21}, 5.0) == {"twice": 42, "raw": b"\x00\xff"}
        with pytest.raises(NotFound, match="no such thing") as caught:
            control.mailbox.ask("bad", {}, 5.0)
        assert caught.value.details == {"what": "it"}
        futures = [control.mailbox.submit("double", {"n": n}, 5.0) for n in range(50)]
        assert [future.result(5.0)["twice"] for future in futures] == [2 * n for n in range(50)]
    finally:
        stop()


def test_nobody_answers(stores: tuple[Store, Store, RedisServer]) -> None:
    control, data, _ = stores
    began_s = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer 'double'"):
        control.mailbox.ask("double", {}, 0.3)
    assert time.monotonic() - began_s < 3
    assert data.mailbox.take() == [], "nobody waits for it any more"


def test_questions_that_wait_are_bounded(stores: tuple[Store, Store, RedisServer]) -> None:
    control, data, _ = stores
    futures = [control.mailbox.submit("double", {}, 60.0) for _ in range(QUESTIONS + 5)]
    with pytest.raises(Unavailable, match="too many questions"):
        futures[-1].result(1.0)
    taken = 0
    while asked := data.mailbox.take():
        taken += len(asked)
    assert taken == QUESTIONS


def test_what_is_too_long_is_refused(stores: tuple[Store, Store, RedisServer]) -> None:
    control, data, _ = stores
    with pytest.raises(Unavailable, match="fit into the mailbox"):
        control.mailbox.ask("double", {"x": b"0" * 3_000_000}, 5.0)
    stop = serving(data, lambda asked: asked.answer({"x": b"0" * 3_000_000}))
    try:
        with pytest.raises(Unavailable, match="the answer has"):
            control.mailbox.ask("double", {}, 5.0)
    finally:
        stop()


def test_the_store_may_die_in_between(stores: tuple[Store, Store, RedisServer], wait_until: Wait) -> None:
    control, data, redis = stores
    future = control.mailbox.submit("double", {"n": 2}, 30.0)
    redis.kill()
    redis.start()
    asked = wait_until(data.mailbox.take, "the question is still there")
    asked[0].answer({"twice": 4})
    assert future.result(20.0) == {"twice": 4}
