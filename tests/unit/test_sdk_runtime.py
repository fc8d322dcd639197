"""The instance against an agent that does only what the test says."""

import hashlib
import itertools
import json
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sdk_agent import FakeAgent, InstanceThread, Peer, item, start_process, stored_event, welcome

from edgeflow.core.events import BlobRef
from edgeflow.errors import BadHandler, BadOutput, EdgeflowError, NotFound, Reject
from edgeflow.sdk import runtime
from edgeflow.sdk.failures import Failures
from edgeflow.sdk.function import function
from edgeflow.sdk.log import Log

Start = Callable[..., tuple[Peer, InstanceThread]]


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:  # pytest's own folders are too long for a socket's path
        made = FakeAgent(Path(folder))
        yield made
        made.close()


@pytest.fixture
def start(agent: FakeAgent) -> Iterator[Start]:
    threads: list[InstanceThread] = []

    def begin(handle: Callable[..., Any], **overrides: Any) -> tuple[Peer, InstanceThread]:
        thread = InstanceThread(agent.path, handle)
        threads.append(thread)
        peer = agent.accept()
        peer.welcome(**overrides)
        return peer, thread

    yield begin
    for thread in threads:
        thread.stop.request()
    agent.close()


def echo(ctx: Any, frames: Any) -> bytes:
    return bytes(frames.data)


def give(peer: Peer, *items: dict[str, Any]) -> None:
    peer.expect("claim")
    peer.send({"t": "work", "items": list(items)})


def quicken(peer: Peer, thread: InstanceThread) -> None:
    """Runs one invocation, so that the instance claims many at once."""
    give(peer, item("first"))
    peer.send(peer.committed(peer.expect("commit")))
    thread.instance.prefetch = lambda: 64  # type: ignore[method-assign]


def test_hello_names_protocol_and_sdk(agent: FakeAgent) -> None:
    thread = InstanceThread(agent.path, echo)
    peer = agent.accept()
    hello = peer.welcome()
    assert hello["protocol"] == 1
    assert hello["sdk"].startswith("python/")
    assert peer.expect("claim")["max"] == 1
    thread.end()
    assert thread.status == 0


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


def test_a_raising_handler_fails_with_its_traceback_and_the_next_runs(start: Start) -> None:
    def bad(ctx: Any, frames: Any) -> bytes:
        if ctx.invocation_id == "a":
            raise ValueError("no face here")
        return b"ok"

    peer, _ = start(bad)
    give(peer, item("a", attempt=4))
    failure = peer.expect("fail")
    assert (failure["invocation"], failure["attempt"], failure["retry"]) == ("a", 4, True)
    assert failure["error"] == "ValueError: no face here"
    assert 'raise ValueError("no face here")' in failure["traceback"]
    assert "sdk/runtime.py" not in failure["traceback"]
    give(peer, item("b"))
    assert peer.expect("commit")["invocation"] == "b"


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text", "retry"),
    [
        (Reject("not a video"), "Reject: not a video", False),
        (SystemExit(3), "SystemExit: 3", True),
        (BadText(), "BadText (its message cannot be shown)", True),
        (ValueError("x" * 100_000), "ValueError: " + "x" * 1009 + "...", True),
    ],
)
def test_what_a_handler_raises_becomes_a_bounded_failure(
    start: Start, error: BaseException, text: str, retry: bool
) -> None:
    def bad(ctx: Any, frames: Any) -> None:
        raise error

    peer, _ = start(bad)
    give(peer, item("a"))
    failure = peer.expect("fail")
    assert (failure["error"], failure["retry"]) == (text, retry)
    assert len(failure["traceback"].encode()) <= 8192


@pytest.mark.parametrize(
    ("publish", "result", "parts"),
    [
        (["vision/faces"], {1, 2}, ["detect", "vision/faces", "set"]),
        ([], b"x", ["detect", "bytes", "publishes nothing"]),
        (["vision/a", "vision/b"], [1], ["detect", "list", "vision/a, vision/b"]),
        (["vision/faces"], float("nan"), ["detect", "float"]),
    ],
)
def test_an_unpublishable_result_fails_at_once_and_says_why(
    start: Start, publish: list[str], result: Any, parts: list[str]
) -> None:
    peer, _ = start(lambda ctx, frames: result, publish=publish)
    give(peer, item("a"))
    failure = peer.expect("fail")
    assert failure["retry"] is False
    for part in parts:
        assert part in failure["error"]


def test_large_outputs_leave_as_blobs_before_the_commit_once_per_body(start: Start) -> None:
    big, other = b"b" * 5000, b"o" * 300_000

    def emits(ctx: Any, frames: Any) -> None:
        ctx.emit("faces", big, subject="1")
        ctx.emit("faces", other, subject="2")
        ctx.emit("faces", big, subject="3")
        ctx.emit("faces", b"small", subject="4")
        ctx.ekv.put("models/a", other)

    peer, _ = start(emits)
    give(peer, item("a"))
    blobs = [peer.expect("blob"), peer.expect("blob")]
    assert [blob["data"] for blob in blobs] == [big, other]
    assert [blob["digest"] for blob in blobs] == ["sha256:" + hashlib.sha256(body).hexdigest() for body in (big, other)]
    commit = peer.expect("commit")
    assert [(o["subject"], o.get("digest"), o.get("size"), o.get("data")) for o in commit["outputs"]] == [
        ("1", blobs[0]["digest"], 5000, None),
        ("2", blobs[1]["digest"], 300_000, None),
        ("3", blobs[0]["digest"], 5000, None),
        ("4", None, None, b"small"),
    ]
    (value,) = commit["values"]
    assert value == {
        "key": "models/a",
        "digest": blobs[1]["digest"],
        "size": 300_000,
        "content_type": None,
        "delete": False,
    }


def test_blobs_leave_while_the_handler_still_runs(start: Start) -> None:
    go_on = threading.Event()

    def emits(ctx: Any, frames: Any) -> None:
        ctx.emit("faces", os.urandom(1_000_000))
        go_on.wait(10)

    peer, _ = start(emits)
    give(peer, item("a"))
    assert len(peer.expect("blob")["data"]) == 1_000_000
    go_on.set()
    assert peer.expect("commit")["outputs"][0]["size"] == 1_000_000


def digest_of(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def referring(body: bytes) -> dict[str, Any]:
    return stored_event(ref=BlobRef(digest_of(body), len(body)))


def test_a_body_is_fetched_when_touched_and_kept_for_the_next_invocation(start: Start) -> None:
    body = b"p" * 10_000
    peer, _ = start(lambda ctx, frames: str(len(frames.data) + frames.size_bytes))
    give(peer, item("a", referring(body)))
    fetch = peer.expect("fetch")
    assert fetch["digest"] == digest_of(body)
    peer.send({"t": "reply", "r": fetch["r"], "ok": True, "data": body})
    commit = peer.expect("commit")
    assert commit["outputs"][0]["data"] == b"20000"
    assert commit["timing"]["fetch_us"] > 0
    give(peer, item("b", referring(body)))
    assert peer.expect("commit")["timing"]["fetch_us"] == 0


def test_a_body_that_is_not_touched_is_not_fetched(start: Start) -> None:
    peer, _ = start(lambda ctx, frames: frames.subject)
    give(peer, item("a", referring(b"p" * 10_000)))
    assert peer.expect("commit")["outputs"][0]["data"] == b"clip/1"


def test_a_refused_fetch_is_an_error_the_handler_may_catch(start: Start) -> None:
    def careful(ctx: Any, frames: Any) -> str:
        try:
            return str(frames.data)
        except NotFound as error:
            return f"caught {error}"

    peer, _ = start(careful)
    give(peer, item("a", referring(b"p" * 10_000)))
    peer.send({"t": "reply", "r": peer.expect("fetch")["r"], "ok": False, "error": "no such blob", "code": "not-found"})
    assert peer.expect("commit")["outputs"][0]["data"] == b"caught no such blob"


def test_walking_through_a_collected_group_asks_for_several_bodies_in_one_round_trip(start: Start) -> None:
    bodies = [bytes([n]) * 10_000 for n in range(20)]
    peer, _ = start(lambda ctx, frames: b"".join(one.data[:1] for one in frames), join="collect")
    give(peer, item("a", *[referring(body) for body in bodies]))
    by_digest = {digest_of(body): body for body in bodies}
    asked: list[int] = []
    while True:
        messages = peer.batch()
        if messages[0]["t"] == "commit":
            break
        asked.append(len(messages))
        peer.send(*[{"t": "reply", "r": m["r"], "ok": True, "data": by_digest[m["digest"]]} for m in messages])
    assert messages[0]["outputs"][0]["data"] == bytes(range(20))
    assert sum(asked) == 20
    assert max(asked) == 9


def test_ekv_reads_go_to_the_agent_and_writes_wait_for_the_commit(start: Start) -> None:
    def uses(ctx: Any, frames: Any) -> list[Any]:
        before = ctx.ekv.get("models/a")
        old = ctx.ekv.get("models/a", version="3")
        ctx.ekv.put("models/a", {"n": 1})
        ctx.ekv.put("models/new", b"x")
        ctx.ekv.delete("models/b")
        after = ctx.ekv.get("models/a")
        keys = [(one.key, one.size) for one in ctx.ekv.list("models/")]
        return [before.json(), before.version, old, after.json(), after.version, ctx.ekv.get("models/b"), keys]

    peer, _ = start(uses)
    give(peer, item("a"))
    get = peer.expect("get")
    assert get["key"] == "models/a"
    assert "version" not in get
    peer.send(
        {
            "t": "reply",
            "r": get["r"],
            "ok": True,
            "value": {"key": "models/a", "version": "7", "data": b"[0]", "content_type": None},
        }
    )
    get = peer.expect("get")
    assert get["version"] == "3"
    peer.send({"t": "reply", "r": get["r"], "ok": True, "value": None})
    listing = peer.expect("list")
    assert (listing["prefix"], listing["after"], listing["limit"]) == ("models/", "", 100)
    items = [{"key": "models/a", "version": "7", "size": 3}, {"key": "models/b", "version": "8", "size": 1}]
    peer.send({"t": "reply", "r": listing["r"], "ok": True, "items": items})
    commit = peer.expect("commit")
    assert json.loads(commit["outputs"][0]["data"]) == [
        [0],
        "7",
        None,
        {"n": 1},
        None,
        None,
        [["models/a", 7], ["models/new", 1]],
    ]
    assert commit["values"] == [
        {"key": "models/a", "data": b'{"n":1}', "content_type": "application/json", "delete": False},
        {"key": "models/new", "data": b"x", "content_type": None, "delete": False},
        {"key": "models/b", "content_type": None, "delete": True},
    ]


def test_a_context_value_is_fetched_once_per_version(start: Start) -> None:
    parses = itertools.count(1)
    parse = lambda data: (next(parses), data)  # noqa: E731

    def uses(ctx: Any, frames: Any) -> str:
        model = ctx.context.model
        return "none" if model is None else f"{model.version} {model.parsed(parse)[0]} {len(model.data)}"

    peer, _ = start(uses, context={"model": "models/poi"})
    first, second = b"1" * 10_000, b"2" * 20_000

    def value(version: str, body: bytes) -> dict[str, Any]:
        return {"model": {"version": version, "digest": digest_of(body), "data": None, "content_type": None}}

    give(peer, item("a", context=value("1", first)))
    peer.send({"t": "reply", "r": peer.expect("fetch")["r"], "ok": True, "data": first})
    assert peer.expect("commit")["outputs"][0]["data"] == b"1 1 10000"
    give(peer, item("b", context=value("1", first)))
    assert peer.expect("commit")["outputs"][0]["data"] == b"1 1 10000"
    give(peer, item("c", context=value("2", second)))
    peer.send({"t": "reply", "r": peer.expect("fetch")["r"], "ok": True, "data": second})
    assert peer.expect("commit")["outputs"][0]["data"] == b"2 2 20000"
    give(peer, item("d", context={"model": None}))
    assert peer.expect("commit")["outputs"][0]["data"] == b"none"


def test_the_agent_restarts_while_idle(agent: FakeAgent, start: Start) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.close()
    again = agent.accept()
    again.welcome()
    give(again, item("a"))
    again.expect("commit")


def test_claimed_work_is_discarded_with_the_lost_socket(agent: FakeAgent, start: Start) -> None:
    entered, go_on, ran = threading.Event(), threading.Event(), []

    def handle(ctx: Any, frames: Any) -> bytes:
        ran.append(ctx.invocation_id)
        end_s = time.monotonic() + 0.005  # long enough that its commit is not held back
        entered.set()
        go_on.wait(10)
        while time.monotonic() < end_s:
            pass
        return b"late"

    peer, _ = start(handle)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a"), item("b")]})
    assert entered.wait(10)
    peer.close()
    go_on.set()
    again = agent.accept()
    again.welcome()
    again.expect("claim")
    assert again.silent()
    assert ran == ["a"]


def test_a_handler_that_waits_for_the_agent_is_abandoned_when_the_agent_goes(agent: FakeAgent, start: Start) -> None:
    ends: list[str] = []

    def handle(ctx: Any, frames: Any) -> bytes:
        try:
            return bytes(frames.data)
        except Exception:
            ends.append("caught")
            raise
        finally:
            ends.append("finally")

    peer, _ = start(handle)
    give(peer, item("a", referring(b"p" * 10_000)))
    peer.expect("fetch")
    peer.close()
    again = agent.accept()
    again.welcome()
    again.expect("claim")
    assert ends == ["finally"]


def test_the_agent_may_come_late_and_the_handler_is_loaded_once(agent: FakeAgent) -> None:
    agent.close()
    thread = InstanceThread(agent.path, echo)
    loads: list[int] = []
    load = thread.instance._load
    thread.instance._load = lambda: (loads.append(1), load())[1]
    agent.listen()
    for _ in range(3):
        peer = agent.accept()
        peer.welcome()
        peer.expect("claim")
        peer.close()
    assert loads == [1]
    thread.end()


def test_no_agent_for_too_long_ends_the_instance(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "RECONNECT_S", 0.2)
    agent.close()
    assert InstanceThread(agent.path, echo).join() == 1


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


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\xff\xff\xff\xffxxxx",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x02\x91\x01",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_rubbish_from_the_agent_ends_the_connection_not_the_instance(
    agent: FakeAgent, start: Start, rubbish: bytes
) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.sock.sendall(rubbish)
    again = agent.accept()
    again.welcome()
    give(again, item("a"))
    again.expect("commit")


@pytest.mark.parametrize(
    "message",
    [
        {"t": "work"},
        {"t": "work", "items": [{"invocation": "a"}]},
        {"t": "work", "items": 5},
        {"t": "committed", "invocation": ["a"], "attempt": 1, "status": "committed"},
        {"t": "reply"},
    ],
)
def test_a_damaged_message_ends_the_connection_not_the_instance(
    agent: FakeAgent, start: Start, message: dict[str, Any]
) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.send(message)
    again = agent.accept()
    again.welcome()
    again.expect("claim")


def test_a_message_of_an_unknown_kind_is_ignored(start: Start) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.send({"t": "news", "from": "the future"}, {"no": "kind"}, {"t": "work", "items": [item("a")]})
    peer.expect("commit")


@pytest.mark.parametrize("answer", [welcome(protocol=2), {"t": "park"}, {"t": "welcome", "protocol": 1}])
def test_a_wrong_welcome_is_not_worked_with(agent: FakeAgent, answer: dict[str, Any]) -> None:
    thread = InstanceThread(agent.path, echo)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(answer)
    assert peer.ended()
    agent.accept().welcome()
    thread.end()


def test_work_in_pieces_and_in_one_read(start: Start) -> None:
    from edgeflow.core.wire import encode_frame

    peer, _ = start(echo)
    peer.expect("claim")
    frame = encode_frame({"t": "work", "items": [item("a", stored_event(b"y" * 300))]})
    for start_at in range(0, len(frame), 7):
        peer.sock.sendall(frame[start_at : start_at + 7])
    assert peer.expect("commit")["outputs"][0]["data"] == b"y" * 300


def test_kill_ends_the_process_while_the_handler_hangs(
    start: Start, wait_until: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hangs(ctx: Any, frames: Any) -> None:
        entered.set()
        go_on.wait(30)

    peer, thread = start(hangs)
    give(peer, item("a"))
    assert entered.wait(10)
    peer.send({"t": "kill"})
    wait_until(lambda: thread.exits, "the watchdog acts on kill")
    assert thread.exits[0] == 75
    go_on.set()
    assert "hangs" in capfd.readouterr().err  # where the handler was


def test_what_ran_too_long_is_saved_before_the_end_for_who_develops_it(
    start: Start, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hangs(ctx: Any, frames: Any) -> None:
        entered.set()
        go_on.wait(30)

    peer, thread = start(hangs)
    thread.instance.witness = Failures(tmp_path)
    give(peer, item("a", {**stored_event(b"long"), "p": ["la", 1, 1, 0, 0]}))
    assert entered.wait(10)
    peer.send({"t": "kill"})
    wait_until(lambda: thread.exits, "the watchdog acts on kill")
    go_on.set()
    (file,) = tmp_path.iterdir()
    saved = json.loads(file.read_text())
    assert saved["error"].startswith("TimeoutError: ") and "in hangs" in saved["traceback"]
    assert [one["input"] for one in saved["inputs"]] == ["frames"]


def test_held_commits_leave_although_the_next_handler_hangs(start: Start) -> None:
    go_on = threading.Event()

    def handle(ctx: Any, frames: Any) -> None:
        if ctx.invocation_id == "hangs":
            go_on.wait(30)

    peer, thread = start(handle)
    quicken(peer, thread)
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a"), item("hangs")]})
    assert peer.expect("commit")["invocation"] == "a"
    assert not go_on.is_set()
    go_on.set()


def test_an_error_of_the_agent_is_logged(agent: FakeAgent, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    peer, _ = start(echo)
    peer.expect("claim")
    peer.send({"t": "error", "code": "protocol-error", "error": "claim needs max >= 1"})
    agent.accept().welcome()
    assert "claim needs max >= 1 (protocol-error)" in capfd.readouterr().err


def test_a_handler_may_use_threads_of_its_own(start: Start) -> None:
    from concurrent.futures import ThreadPoolExecutor

    bodies = [bytes([n]) * 5000 for n in range(12)]

    def handle(ctx: Any, frames: Any) -> bytes:
        with ThreadPoolExecutor(6) as pool:
            return b"".join(pool.map(lambda one: one.data[:1], frames))

    peer, _ = start(handle, join="collect")
    give(peer, item("a", *[referring(body) for body in bodies]))
    by_digest = {digest_of(body): body for body in bodies}
    while (message := peer.next())["t"] == "fetch":
        peer.send({"t": "reply", "r": message["r"], "ok": True, "data": by_digest[message["digest"]]})
    assert message["outputs"][0]["data"] == bytes(range(12))


def test_a_handler_whose_parameters_are_not_the_inputs_is_refused(agent: FakeAgent) -> None:
    thread = InstanceThread(agent.path, lambda ctx, pictures: None)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(welcome())
    assert peer.ended()
    thread.join()
    assert isinstance(thread.error, BadHandler)
    assert "'frames'" in str(thread.error)


def test_an_input_that_did_not_arrive_is_none(start: Start) -> None:
    names = [{"name": "frames", "channel": "vision/frames"}, {"name": "clips", "channel": "vision/clips"}]
    peer, _ = start(lambda ctx, frames, clips: [frames is None, clips is None], inputs=names)
    give(peer, item("a", name="clips"))
    assert peer.expect("commit")["outputs"][0]["data"] == b"[true,false]"


def inputs_of(*names: str, lists: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [{"name": n, "channel": f"vision/{n}", "list": n in lists, "optional": True} for n in names]


def given_of(**events: bytes | list[bytes] | None) -> list[dict[str, Any]]:
    """The inputs of a work item; what is None is absent, as in a work item."""
    return [
        {"name": name, "event": stored_event(one, channel=f"vision/{name}")}
        for name, some in events.items()
        for one in (some if isinstance(some, list) else [] if some is None else [some])
    ]


def shown(given: Any) -> Any:
    return None if given is None else [one.text() for one in given] if isinstance(given, list) else given.text()


@pytest.mark.parametrize(
    ("join", "lists", "given", "expected"),
    [
        ("all", (), {"frames": b"f", "faces": b"a"}, {"frames": "f", "faces": "a"}),
        ("all", (), {"faces": b"a"}, {"frames": None, "faces": "a"}),  # on_timeout: partial
        ("k", (), {"faces": b"a"}, {"frames": None, "faces": "a"}),
        ("all", ("frames", "faces"), {"frames": [b"1", b"2"]}, {"frames": ["1", "2"], "faces": []}),  # duplicates: all
        ("collect", ("frames",), {"frames": [b"1", b"2"]}, {"frames": ["1", "2"], "faces": None}),
        ("collect", ("frames",), {"frames": [b"1"], "faces": b"side"}, {"frames": ["1"], "faces": "side"}),
        ("window", ("frames",), {"frames": [b"1"], "faces": None}, {"frames": ["1"], "faces": None}),
        ("window", ("frames",), {}, {"frames": [], "faces": None}),
        (None, (), {"frames": b"f"}, {"frames": "f", "faces": None}),  # a side input without an event yet
    ],
)
def test_arguments_of_every_kind_of_join(
    start: Start, join: str | None, lists: tuple[str, ...], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    def handle(ctx: Any, frames: Any, faces: Any) -> dict[str, Any]:
        return {"frames": shown(frames), "faces": shown(faces)}

    peer, _ = start(handle, inputs=inputs_of("frames", "faces", lists=lists), join=join)
    give(peer, item("a", inputs=given_of(**given)))
    assert json.loads(peer.expect("commit")["outputs"][0]["data"]) == expected


def test_what_is_said_of_an_invocation_reaches_the_handler(start: Start) -> None:
    def handle(ctx: Any, frames: Any) -> list[Any]:
        return [dict(frames.captures), ctx.key, ctx.window, ctx.replay, ctx.shadow]

    peer, _ = start(handle, publish=["vision/cam/{id}/faces"])
    inputs = [{"name": "frames", "event": stored_event(channel="vision/cam/7/frames"), "captures": {"id": "7"}}]
    give(peer, item("a", inputs=inputs, key="clip/1", window=[1000, 2000], replay="r1", shadow=True))
    (output,) = peer.expect("commit")["outputs"]
    assert output["channel"] == "vision/cam/7/faces"
    assert json.loads(output["data"]) == [{"id": "7"}, "clip/1", [1000, 2000], "r1", True]
    give(peer, item("b", inputs=inputs))
    (output,) = peer.expect("commit")["outputs"]
    assert json.loads(output["data"]) == [{"id": "7"}, None, None, None, False]


def state_of(data: bytes | None, **more: Any) -> dict[str, Any]:
    return {"version": "5", "digest": None, "data": data, "content_type": "application/json", **more}


def test_the_state_comes_with_the_work_and_goes_with_the_commit(start: Start) -> None:
    def handle(ctx: Any, frames: Any) -> str:
        step = frames.text()
        if step == "add":
            ctx.state["n"] = ctx.state.get("n", 0) + 1
        elif step == "clear":
            ctx.state.clear()
        elif step == "big":
            ctx.state["big"] = "x" * 10_000
        elif step == "fail":
            ctx.state["n"] = 99
            raise ValueError("no")
        return str(len(ctx.state)) if step != "ignore" else ""

    peer, _ = start(handle, state=True)

    def run(step: str, state: dict[str, Any] | None) -> dict[str, Any]:
        give(peer, item(step, stored_event(step.encode()), state=state))
        return peer.next()

    commit = run("add", None)
    assert commit["state"] == {"data": b'{"n":1}', "content_type": "application/json", "delete": False}
    assert run("add", state_of(b'{"n":1}'))["state"]["data"] == b'{"n":2}'
    assert "state" not in run("read", state_of(b'{"n":2}'))
    assert "state" not in run("ignore", state_of(None, digest="sha256:never-fetched"))
    assert run("clear", state_of(b'{"n":2}'))["state"] == {"content_type": None, "delete": True}
    assert "state" not in run("clear", None)
    failure = run("fail", state_of(b'{"n":2}'))
    assert (failure["t"], "state" in failure) == ("fail", False)
    blob = run("big", None)
    assert blob["t"] == "blob"
    commit = peer.expect("commit")
    assert commit["state"] == {
        "digest": blob["digest"],
        "size": len(blob["data"]),
        "content_type": "application/json",
        "delete": False,
    }
    give(peer, item("again", stored_event(b"add"), state=state_of(None, digest=blob["digest"])))
    peer.send({"t": "reply", "r": peer.expect("fetch")["r"], "ok": True, "data": blob["data"]})
    peer.expect("blob")
    assert peer.expect("commit")["state"]["size"] > 10_000


@pytest.mark.parametrize(
    ("stored", "part"),
    [(b"[]", "is a JSON list"), (b'{"a": NaN}', "is not JSON"), (b'{"a": 1}', "state['bad'] of function 'detect'")],
)
def test_a_bad_state_fails_at_once_and_says_why(start: Start, stored: bytes, part: str) -> None:
    def handle(ctx: Any, frames: Any) -> None:
        ctx.state["bad"] = {1, 2}

    peer, _ = start(handle, state=True)
    give(peer, item("a", state=state_of(stored), key="clip/1"))
    failure = peer.expect("fail")
    assert failure["retry"] is False
    assert part in failure["error"]
    assert "clip/1" in failure["error"]


def test_increments_go_with_the_commit(start: Start) -> None:
    def handle(ctx: Any, frames: Any) -> None:
        for _ in range(3):
            ctx.ekv.increment("faces/total", 2)
        ctx.ekv.increment("faces/open", -1)

    peer, _ = start(handle)
    give(peer, item("a"))
    commit = peer.expect("commit")
    assert commit["increments"] == [{"key": "faces/total", "by": 6}, {"key": "faces/open", "by": -1}]
    assert commit["values"] == []


def test_a_context_value_is_fetched_from_the_agent_that_is_there_now(agent: FakeAgent, start: Start) -> None:
    """Its version is the same as before the agent restarted, and its body was not touched until then."""
    peer, _ = start(
        lambda ctx, frames: ctx.context.model.data if frames.data == b"touch" else None, context={"model": "models/poi"}
    )
    body = b"m" * 10_000
    context = {"model": {"version": "1", "digest": digest_of(body), "data": None, "content_type": None}}
    give(peer, item("a", context=context))
    peer.expect("commit")
    peer.close()
    again = agent.accept()
    again.welcome(context={"model": "models/poi"})
    give(again, item("b", stored_event(b"touch"), context=context))
    again.send({"t": "reply", "r": again.expect("fetch")["r"], "ok": True, "data": body})
    assert again.expect("blob")["data"] == body
    again.expect("commit")


def test_what_comes_in_one_read_with_the_welcome_is_heard(agent: FakeAgent) -> None:
    thread = InstanceThread(agent.path, echo)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(welcome(), {"t": "drain"})
    peer.expect("ready")
    assert peer.ended()
    assert thread.join() == 0


def test_kill_ends_the_process_although_nobody_reads_its_log(
    start: Start, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "KILLED_S", 0.1)
    entered, go_on = threading.Event(), threading.Event()

    class Stuck:
        def write(self, _text: str) -> None:
            go_on.wait(30)

        def flush(self) -> None:
            pass

    def hangs(ctx: Any, frames: Any) -> None:
        entered.set()
        go_on.wait(30)

    peer, thread = start(hangs)
    give(peer, item("a"))
    assert entered.wait(10)
    thread.instance.log = Log({}, Stuck())  # type: ignore[arg-type]
    peer.send({"t": "kill"})
    wait_until(lambda: thread.exits, "the watchdog acts on kill")
    assert thread.exits == [75]
    assert not go_on.is_set()
    go_on.set()


def test_a_write_after_the_handler_has_returned_is_refused(start: Start) -> None:
    refused: list[BaseException] = []
    returned, done = threading.Event(), threading.Event()

    def late(ctx: Any) -> None:
        returned.wait(10)
        try:
            ctx.ekv.put("k", b"late")
        except BadOutput as error:
            refused.append(error)
        done.set()

    def handle(ctx: Any, frames: Any) -> None:
        threading.Thread(target=late, args=(ctx,), daemon=True).start()

    peer, _ = start(handle)
    give(peer, item("a"))
    assert peer.expect("commit")["values"] == []
    returned.set()
    assert done.wait(10)
    assert len(refused) == 1


@pytest.mark.parametrize(
    "damage",
    [
        {"window": 5},
        {"window": ["a", "b"]},
        {"window": [1]},
        {"inputs": 5},
        {"inputs": [{"name": "frames"}]},
        {"state": "x"},
    ],
)
def test_a_damaged_item_fails_or_ends_the_connection_and_the_instance_goes_on(
    agent: FakeAgent, start: Start, damage: dict[str, Any]
) -> None:
    peer, _ = start(lambda ctx, frames: str(ctx.state.get("n")), state=True)
    give(peer, {**item("a"), **damage})
    try:
        assert peer.next()["t"] == "fail"
    except (EOFError, ConnectionResetError):
        peer = agent.accept()
        peer.welcome(state=True)
    give(peer, item("b"))
    while (message := peer.next())["t"] != "commit":
        pass
    assert message["invocation"] == "b"


HANDLER = """
import os, time
from edgeflow import function

@function
def handle(ctx, frames):
    if frames.data == b"hang":
        ctx.emit("faces", bytes(5000))
        ctx.emit("faces", bytes(300_000))
        time.sleep(60)
    if frames.data == b"slow":
        time.sleep(0.5)
    if frames.data in (b"fork and return", b"fork and raise"):
        child = os.fork()
        if child == 0 and frames.data == b"fork and raise":
            raise RuntimeError("in the child")
        if child:
            os.waitpid(child, 0)
    if frames.data == b"fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        return str(child)
    return frames.data
"""


def test_process_sigterm_finishes_the_current_invocation_and_exits_0(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("a", stored_event(b"slow")), item("b")]})
    peer.silent(0.2)
    process.send_signal(signal.SIGTERM)
    messages = [peer.next(), peer.next()]
    assert [m["t"] for m in messages] == ["commit", "release"]
    peer.send(peer.committed(messages[0]))
    assert process.communicate(timeout=10)[1] is not None
    assert process.returncode == 0


def test_process_sigterm_while_idle_and_while_no_agent_is_there(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    peer.expect("claim")
    agent.close()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_process_kill_exits_75_and_says_where_the_handler_was(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    give(peer, item("a", stored_event(b"hang")))
    peer.expect("blob")
    peer.send({"t": "kill"})
    peer.close()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 75
    assert "time.sleep(60)" in errors


def test_process_hangs_past_its_timeout_after_the_agent_is_gone(agent: FakeAgent, tmp_path: Path) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome(timeout_ms=500)
    give(peer, item("a", stored_event(b"hang")))
    peer.expect("blob")
    peer.close()
    process.communicate(timeout=10)
    assert process.returncode == 75


def test_process_a_forked_child_neither_holds_the_socket_nor_stops_the_instance(
    agent: FakeAgent, tmp_path: Path
) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    give(peer, item("a", stored_event(b"fork")))
    child = int(peer.expect("commit")["outputs"][0]["data"])
    try:
        os.kill(child, signal.SIGTERM)
        give(peer, item("b", stored_event(b"fork")))
        second = int(peer.expect("commit")["outputs"][0]["data"])
        process.kill()
        process.wait(10)
        peer.expect("claim")
        assert peer.ended()  # though the second child lives
        os.kill(second, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate(timeout=10)  # ends when the last holder of its stderr does: both children are gone


@pytest.mark.parametrize("way", [b"fork and return", b"fork and raise"])
def test_process_a_forked_child_that_leaves_the_handler_is_no_second_instance(
    agent: FakeAgent, tmp_path: Path, way: bytes
) -> None:
    process = start_process(agent.path, tmp_path, HANDLER)
    peer = agent.accept()
    peer.welcome()
    try:
        for invocation in "ab":
            give(peer, item(invocation, stored_event(way)))
            commit = peer.expect("commit")  # once, although two processes came out of the handler
            assert (commit["invocation"], commit["outputs"][0]["data"]) == (invocation, way)
        peer.expect("claim")
        assert peer.silent()
        assert agent.nobody_comes()
    finally:
        process.kill()
        _, errors = process.communicate(timeout=10)
    assert ("forked_child_failed" in errors) == (way == b"fork and raise")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import nothing_of_that_name\n", ["cannot be imported", "nothing_of_that_name", "requirements.txt"]),
        ("x = \n", ["cannot be imported", "SyntaxError", "handler.py"]),
        ("def handle(ctx, frames): pass\n", ["marks no function with @function"]),
        (
            "from edgeflow import function\n@function\nasync def handle(ctx, frames): pass\n",
            ["is async", "plain functions"],
        ),
        (
            "from edgeflow import function\n@function\ndef handle(ctx, pics): pass\n",
            ["'frames'", "def handle(ctx, frames):"],
        ),
    ],
)
def test_process_an_unusable_handler_exits_78_and_says_why(
    agent: FakeAgent, tmp_path: Path, source: str, parts: list[str]
) -> None:
    process = start_process(agent.path, tmp_path, source)
    peer = agent.accept()
    peer.expect("hello")
    peer.send(welcome())
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 78
    for part in parts:
        assert part in errors


def test_process_without_its_environment_says_so(tmp_path: Path) -> None:
    process = start_process("", tmp_path, HANDLER)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 78
    assert "EDGEFLOW_SOCKET is not set" in errors


def test_errors_of_replies_are_of_the_tree() -> None:
    from edgeflow.sdk.connection import error_of

    assert type(error_of("not-found", "x")) is NotFound
    assert type(error_of("internal", "x")) is EdgeflowError
    assert "strange" in str(error_of("strange", "x"))


def test_a_slow_agent_does_not_lock_both_ends(start: Start) -> None:
    """Both send more than a socket holds; the instance reads while it writes."""

    def emits(ctx: Any, frames: Any) -> None:
        for _ in range(8):
            ctx.emit("faces", os.urandom(1_000_000))

    peer, _ = start(emits)
    give(peer, item("a"))
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
    peer.send(*[{"t": "noise", "data": bytes(1_000_000)} for _ in range(8)])
    assert [peer.next()["t"] for _ in range(9)] == ["blob"] * 8 + ["commit"]


def test_function_decorated_here_runs_too(start: Start) -> None:
    peer, _ = start(function(echo_plain))
    give(peer, item("a", stored_event(b"z")))
    assert peer.expect("commit")["outputs"][0]["data"] == b"z"


def echo_plain(ctx: Any, frames: Any) -> bytes:
    return bytes(frames.data)


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (OSError(28, "No space left on device"), "limits: {tmpfs: ...}"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "limits: {pids: ...}"),
        (RuntimeError("can't start new thread"), "limits: {pids: ...}"),
        (MemoryError(), "limits: {memory: ...}"),
    ],
)
def test_an_error_that_comes_from_a_limit_names_it(error: Exception, limit: str) -> None:
    text, _ = runtime.Instance.describe(error)
    assert limit in text
    assert "limits:" not in runtime.Instance.describe(RuntimeError("something else"))[0]
