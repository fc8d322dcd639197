"""What a handler is given, and what its attempt sends: bodies, values, context, state, outputs."""

import hashlib
import itertools
import json
import os
import threading
from typing import Any

import pytest
from sdk_agent import (
    FakeAgent,
    Start,
    digest_of,
    give,
    item,
    referring,
    stored_event,
)

from edgeflow.errors import BadOutput, NotFound
from edgeflow.sdk.function import function


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


def test_function_decorated_here_runs_too(start: Start) -> None:
    peer, _ = start(function(echo_plain))
    give(peer, item("a", stored_event(b"z")))
    assert peer.expect("commit")["outputs"][0]["data"] == b"z"


def echo_plain(ctx: Any, frames: Any) -> bytes:
    return bytes(frames.data)
