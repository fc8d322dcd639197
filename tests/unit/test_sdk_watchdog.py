"""The watchdog of an instance whose handler hangs."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sdk_agent import Start, give, item, quicken, stored_event

from edgeflow.sdk import watchdog
from edgeflow.sdk.failures import Failures
from edgeflow.sdk.log import Log


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


def test_kill_ends_the_process_although_nobody_reads_its_log(
    start: Start, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "KILLED_S", 0.1)
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
