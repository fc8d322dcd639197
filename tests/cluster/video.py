"""The three-PoP cluster with the real application, for the tests of this folder that hurt or watch it: what can be done with it and what it must keep."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeflow.host.local import LocalCluster
from edgeflow.sdk.client import Client, Gap, ReceivedEvent
from edgeflow.settings import PopSettings
from edgeflow.store import Store

ROOT = Path(__file__).parents[2]
FRAMES = 60
POPS = ("chicago", "la", "ny")


@dataclass
class Watch:
    """What a consumer saw, from a cursor on, until it is closed."""

    client: Client
    pattern: str
    events: list[ReceivedEvent] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    _stopping: bool = False

    def start(self) -> "Watch":
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """The stream ends when its client is closed."""
        self._stopping = True

    def _read(self) -> None:
        try:
            for one in self.client.subscribe(self.pattern, from_="start", reconnect_s=120.0):
                if isinstance(one, Gap):
                    self.gaps.append(one)
                else:
                    self.events.append(one)
        except Exception:
            if not self._stopping:
                raise

    def of_chunk(self, chunk: str, channel: str = "") -> list[ReceivedEvent]:
        return [
            event for event in self.events if event.attributes.get("chunk") == chunk and event.channel.endswith(channel)
        ]


def violations(ids: Sequence[tuple[str, str | None]], chunk: str, count: int) -> list[str]:
    """What is wrong with the claim that frames 0..count-1 of a chunk came out exactly once. `ids` are (event id, subject)."""
    problems = [f"id {id} came {times} times" for id, times in Counter(id for id, _ in ids).items() if times > 1]
    subjects = Counter(str(subject) for _, subject in ids)
    wanted = {f"{chunk}/{number}" for number in range(count)}
    problems += [f"frame {subject} is missing" for subject in sorted(wanted - set(subjects))]
    problems += [f"frame {subject} came {times} times" for subject, times in subjects.items() if times > 1]
    problems += [f"frame {subject} is not of this chunk" for subject in subjects if subject not in wanted]
    return problems


class Video:
    """The cluster with the video application on it."""

    def __init__(self, cluster: LocalCluster, clip: bytes) -> None:
        self.cluster = cluster
        self.clip = clip
        self._chunks = 0
        self._clients: dict[str, Client] = {}
        self._stores: dict[str, Store] = {}
        self.augmented = Watch(self.client("ny"), "vision/augmented").start()
        self.films = Watch(self.client("ny"), "vision/video").start()

    def client(self, pop: str) -> Client:
        """The client for a PoP; one for all, closed at the end."""
        if pop not in self._clients:
            access = self.cluster.pop(pop)
            self._clients[pop] = Client(access.api_url, access.token, retry_s=60.0)
        return self._clients[pop]

    def close(self) -> None:
        self.augmented.stop()
        self.films.stop()
        for thing in (*self._clients.values(), *self._stores.values()):
            thing.close()

    def settings(self, pop: str) -> PopSettings:
        return PopSettings.load(self.cluster.home.root / "pops" / pop / "pop.json")

    def store(self, pop: str) -> Store:
        """A door of the test's own to a PoP's store, closed at the end."""
        if pop not in self._stores:
            self._stores[pop] = Store.open(self.settings(pop))
        return self._stores[pop]

    def new_chunk(self) -> str:
        self._chunks += 1
        return f"c{self._chunks}-{time.monotonic_ns() % 1_000_000}"

    def send(self) -> str:
        """Publish the clip at chicago, durably; its chunk name."""
        chunk = self.new_chunk()
        receipt = self.client("chicago").publish("vision/chunks", self.clip, subject=chunk, datacontenttype="video/mp4")
        assert receipt.class_ == "durable"
        return chunk

    def expect_exactly_once(self, chunk: str, wait_until: Any, deadline_s: float = 90.0) -> None:
        """Wait for the chunk's film, then fail unless each frame and the film came exactly once and nothing was given up."""
        wait_until(lambda: self.films.of_chunk(chunk), f"the film of {chunk}", deadline_s)
        wait_until(lambda: all(self.idle(pop) for pop in POPS), "all PoPs to be idle", deadline_s)
        frames = [(event.id, event.subject) for event in self.augmented.of_chunk(chunk)]
        assert violations(frames, chunk, FRAMES) == []
        assert len(self.films.of_chunk(chunk)) == 1
        for pop in POPS:
            letters = [letter for letter in self.client(pop).dead_letters("vision") if chunk in str(letter)]
            assert letters == []

    def idle(self, pop: str) -> bool:
        """Nothing ready, claimed, delayed or joining at a PoP."""
        namespace = self.store(pop).namespace("vision")
        return namespace.in_flight() == 0 and not namespace.pending_joins()

    def in_flight(self, pop: str, function: str) -> int:
        """How many invocations instances of a function hold right now, as the store has it."""
        store = self.store(pop)
        instances = [id for id, document in store.local.docs("instance").items() if document["function"] == function]
        return sum(len(store.namespace("vision").holds(instance)) for instance in instances)


def make_clip(frames: int) -> bytes:
    """The first `frames` frames of the default video, as mp4."""
    import io

    from edgeflow.demo.extras import av
    from edgeflow.demo.video import DEFAULT, render

    out = io.BytesIO()
    with av().open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number, (picture, _) in enumerate(render(DEFAULT)):
            if number == frames:
                break
            container.mux(stream.encode(av().VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return out.getvalue()
