"""When an instance claims, commits, parks, drains and gives back."""

import json
import threading
import time
from typing import Any

import pytest
from sdk_agent import Start, echo, give, item, quicken, stored_event

from edgeflow.sdk import runtime


def test_a_commit_and_the_next_claim_leave_in_one_send(start: Start) -> None:
    peer, _ = start(echo)
    give(peer, item("a", stored_event(b"picture", attributes={"traceparent": "00-1", "mine": "x"})))
    commit, claim = peer.batch()
    assert claim["t"] == "claim"
    assert commit["t"] == "commit"
    assert (commit["invocation"], commit["attempt"], commit["values"]) == ("a", 1, [])
    (output,) = commit["outputs"]
    assert output == {
        "channel": "vision/faces",
        "data": b"picture",
        "subject": "clip/1",
        "type": None,
        "datacontenttype": None,
        "attributes": {"traceparent": "00-1"},
    }
    assert set(commit["timing"]) == {"queued_us", "handler_us", "fetch_us"}


def test_the_next_invocation_starts_before_the_commit_is_confirmed(start: Start) -> None:
    peer, _ = start(echo)
    for invocation in "abc":
        give(peer, item(invocation))
        assert peer.expect("commit")["invocation"] == invocation  # never confirmed


def test_short_handlers_are_claimed_and_committed_in_batches(start: Start) -> None:
    peer, thread = start(echo)
    quicken(peer, thread)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item(f"i{n}") for n in range(2)]})
    peer.send(*[peer.committed(m) for m in (peer.expect("commit"), peer.expect("commit"))])
    assert peer.expect("claim")["max"] == 64
    peer.send({"t": "work", "items": [item(f"n{n}") for n in range(64)]})
    batches, seen = 0, []
    while len(seen) < 65:
        seen += peer.batch()
        batches += 1
    assert [m["invocation"] for m in seen[:64]] == [f"n{n}" for n in range(64)]
    assert seen[64]["t"] == "claim"
    assert batches <= 12  # 2 unless the machine stalls: a flush also comes 1 ms after the first held commit


def test_the_prefetch_follows_the_mean_handler_time() -> None:
    instance = runtime.Instance("unused", lambda: echo)
    assert instance.prefetch() == 1
    for seconds, claimed in ((1e-9, 64), (20e-6, 64), (100e-6, 64), (0.0005, 16), (0.001, 8), (0.01, 1), (30.0, 1)):
        for _ in range(100):
            instance.took(seconds)
        assert instance.prefetch() == pytest.approx(claimed, abs=1)


def test_unconfirmed_commits_are_bounded(start: Start) -> None:
    peer, thread = start(echo)
    quicken(peer, thread)
    peer.expect("claim")
    peer.send(
        {"t": "work", "items": [item(f"i{n}") for n in range(100)]}
    )  # more than was claimed, so that the bound shows
    commits = [peer.expect("commit") for _ in range(64)]
    assert peer.silent()
    peer.send(*[peer.committed(m) for m in commits[:10]])
    assert [peer.expect("commit")["invocation"] for _ in range(10)] == [f"i{n}" for n in range(64, 74)]
    assert peer.silent()


def test_a_slow_handler_gives_back_what_was_claimed_with_it(start: Start) -> None:
    def slow_once(ctx: Any, frames: Any) -> None:
        if ctx.invocation_id == "slow":
            threading.Event().wait(0.15)

    peer, thread = start(slow_once)
    quicken(peer, thread)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a"), item("slow"), item("b", attempt=3), item("c")]})
    assert peer.expect("commit")["invocation"] == "a"
    assert peer.expect("commit")["invocation"] == "slow"
    assert peer.expect("release")["invocations"] == [["b", 3], ["c", 1]]
    peer.expect("claim")


def test_a_stale_commit_is_logged_and_work_goes_on(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    peer, _ = start(echo)
    give(peer, item("a", attempt=2))
    peer.send(peer.committed(peer.expect("commit"), "stale"))
    give(peer, item("b"))
    peer.send(peer.committed(peer.expect("commit"), "refused", "too many outputs"))
    give(peer, item("c"))
    peer.expect("commit")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["event"], line["invocation"]) for line in lines if line["event"].startswith("commit_")] == [
        ("commit_stale", "a"),
        ("commit_refused", "b"),
    ]


def test_park_is_acknowledged_when_nothing_is_claimed(start: Start) -> None:
    go_on = threading.Event()

    def handle(ctx: Any, frames: Any) -> None:
        go_on.wait(10)

    peer, _ = start(handle)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a")]}, {"t": "park"})
    go_on.set()
    commit = peer.expect("commit")
    claim = peer.next() if not peer.silent(0.3) else None
    # The claim that left with the commit crossed `park` and is void; the instance parks after the confirmation, not before.
    assert claim is None or claim["t"] == "claim"
    peer.send(peer.committed(commit))
    peer.expect("parked")
    assert peer.silent()
    peer.send({"t": "unpark"})
    give(peer, item("b"))
    peer.expect("commit")


def test_park_while_idle_voids_the_claim(start: Start) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.send({"t": "park"})
    peer.expect("parked")
    peer.send({"t": "unpark"})
    give(peer, item("a"))
    peer.expect("commit")


def test_drain_finishes_what_is_claimed_and_exits(start: Start) -> None:
    peer, thread = start(echo)
    quicken(peer, thread)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a"), item("b")]}, {"t": "drain"})
    commits = [peer.expect("commit"), peer.expect("commit")]
    leftover = [] if peer.silent(0.1) else [peer.expect("claim")]
    peer.send(*[peer.committed(m) for m in commits])
    assert peer.ended() or leftover
    assert thread.join() == 0


def test_stop_finishes_the_current_invocation_and_returns_the_rest(start: Start) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def handle(ctx: Any, frames: Any) -> None:
        if ctx.invocation_id == "a":
            entered.set()
            go_on.wait(10)

    peer, thread = start(handle)
    quicken(peer, thread)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a"), item("b", attempt=2)]})
    assert entered.wait(10)
    thread.stop.request()
    go_on.set()
    commit = peer.expect("commit")
    assert commit["invocation"] == "a"
    assert peer.expect("release")["invocations"] == [["b", 2]]
    peer.expect("leave")
    peer.send({"t": "work", "items": [item("late")]}, peer.committed(commit))
    assert peer.expect("release")["invocations"] == [["late", 1]]
    assert peer.ended()
    assert thread.join() == 0


def test_stop_while_idle_ends_at_once(start: Start) -> None:
    peer, thread = start(echo)
    peer.expect("claim")
    started_s = time.monotonic()
    thread.end()
    assert thread.status == 0
    assert time.monotonic() - started_s < 2
    peer.expect("leave")
    assert peer.ended()
