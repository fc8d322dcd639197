"""With 100 ms on the links nobody is told of an event whose data is not readable at their PoP; a watcher before the gate is told of many."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from video import POPS, ROOT, Video

from edgeflow.cli.apply import Target, apply_file
from edgeflow.core.cursors import parse_cursor
from edgeflow.core.events import Event
from edgeflow.sdk.client import Gap
from edgeflow.store import Store
from edgeflow.store.records import LogId, unpack_entry, unpack_event

pytestmark = [pytest.mark.timeout(180)]
Wait = Callable[..., Any]
EVENTS = 12
READER = """
from edgeflow import function

@function
def handle(ctx, inbox):
    # Reads its data at once: what is not readable here fails the attempt, and the count of attempts tells.
    return {"size": len(inbox.data), "attempt": ctx.attempt}
"""
MANIFEST = """
namespace: gate
functions:
  reader: {build: ./reader, subscribe: inbox, publish: outbox, place: {pops: [ny]}, retry: {attempts: 1}}
"""


@pytest.fixture
def slow(video: Video) -> Iterator[Video]:
    pairs = [("chicago", "la"), ("chicago", "ny"), ("la", "ny")]
    for pair in pairs:
        video.cluster.set_link(*pair, delay_ms=100)
    yield video
    for pair in pairs:
        video.cluster.set_link(*pair, delay_ms=0)


@pytest.fixture
def reader(video: Video, tmp_path: Path) -> None:
    (tmp_path / "reader").mkdir()
    (tmp_path / "reader" / "handler.py").write_text(READER)
    (tmp_path / "edgeflow.yaml").write_text(MANIFEST)
    access = video.cluster.pop("chicago")
    apply_file(tmp_path / "edgeflow.yaml", Target(access.api_url, access.token))


class Announced:
    """Everything that a watcher at ny was told, and what it could not read at that moment."""

    def __init__(self) -> None:
        self.events: set[str] = set()
        self.unreadable: list[str] = []

    def told(self, store: Store, event: Event) -> None:
        """Checks on the spot, in the PoP's own store, without fetching from elsewhere."""
        self.events.add(event.id)
        if event.ref is not None and store.namespace("gate").read_blob(event.ref.digest) is None:
            self.unreadable.append(event.id)


def watch_log(video: Video, announced: Announced, stop: threading.Event) -> None:
    """The cheat: announces entries as they are mirrored, past the gate."""
    store = video.store("ny")
    done: dict[LogId, int] = {}
    while not stop.is_set():
        namespace = store.namespace("gate")
        for log_id in namespace.logs():
            for seq, raw in namespace.read_log(log_id, done.get(log_id, 0)):
                done[log_id] = seq
                for index, fields in enumerate(unpack_entry(raw)[b"ev"]):
                    announced.told(store, unpack_event(fields, log_id.origin, log_id.epoch, seq, index))
        stop.wait(0.002)


def watch_stream(video: Video, announced: Announced, stop: threading.Event) -> None:
    """An SDK consumer (over SSE) at ny."""
    store = video.store("ny")
    for one in video.client("ny").subscribe("gate/#", from_="start"):
        assert not isinstance(one, Gap), one
        info = store.namespace("gate")
        event = next(item.event for item in info.read_release(parse_cursor(one.cursor).n - 1, 1))
        assert event is not None and event.id == one.id
        announced.told(store, event)
        if stop.is_set():
            break


def test_nobody_is_told_too_early(slow: Video, reader: None, wait_until: Wait) -> None:
    honest, cheat, stop = Announced(), Announced(), threading.Event()
    threads = [
        threading.Thread(target=watch, args=(slow, seen, stop), daemon=True)
        for watch, seen in ((watch_stream, honest), (watch_log, cheat))
    ]
    for thread in threads:
        thread.start()
    body = bytes(range(256)) * 2400  # 600 KiB: travels behind its entry
    for number in range(EVENTS):
        data = number.to_bytes(4, "big") + body
        if number % 2:
            slow.client("chicago").publish("gate/inbox", data, subject=str(number))
        else:
            # Two steps: announced at la, put at chicago.
            slow.client("la").publish("gate/inbox", {"dataref": f"ekv:gate/two-step/{number}"}, subject=str(number))
            slow.client("chicago").put(f"gate/two-step/{number}", data)
    wait_until(lambda: len(honest.events) >= 2 * EVENTS, "all inputs and outputs at ny", 60)
    stop.set()
    slow.client("ny").publish("gate/end", b"")  # the stream looks at `stop` when something comes
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert honest.unreadable == []
    assert list(slow.client("ny").dead_letters("gate")) == []
    assert cheat.unreadable, "the negative control saw nothing: this test could not see a violation"


def test_the_files_of_the_application_are_those_that_run(video: Video) -> None:
    assert (ROOT / "functions" / "edgeflow.yaml").exists()
    for pop in POPS:
        assert {one["function"] for one in video.client(pop).functions("vision")} == {
            "extract",
            "detect",
            "classify",
            "augment",
            "assemble",
        }
