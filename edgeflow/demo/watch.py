"""The consumer of the demo: follows all channels at one PoP and keeps what came out.

What it is: a thread that reads one event stream, sorts what belongs to this run by channel, and counts what must not happen (the same
frame under two ids, a gap in the stream).
What it is not: a player, or a judge of pictures.
What must stay true: a frame counts by its id and by its chunk and number, so that a duplicate under a new id is seen too.
"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from edgeflow.errors import Unavailable
from edgeflow.sdk.client import Client, Gap, ReceivedEvent

PROBE = "demo"
"""Channel of the event by which the stream is known to be open."""
STAGES = ("frames", "faces", "matches", "augmented")
"""Channels with one event per frame, in the order of the flow."""
FrameKey = tuple[str, int]


@dataclass(slots=True)
class Channel:
    """What came out on one channel."""

    ids: set[str] = field(default_factory=set)
    bodies: dict[FrameKey, bytes | None] = field(default_factory=dict)
    """By chunk and number; None where the body was not kept."""
    twice: list[FrameKey] = field(default_factory=list)
    """Frames that came again under another id."""
    newest_ms: int = 0
    """Time (ms since 1970) of the newest event."""


class Watch:
    """Follows `<namespace>/#` through `client` until closed. Counts only events whose chunk `is_ours`."""

    def __init__(self, client: Client, namespace: str, is_ours: Callable[[str], bool], kept_frames: int) -> None:
        self._client = client
        self._pattern = f"{namespace}/#"
        self._is_ours = is_ours
        self._kept_frames = kept_frames
        self._lock = threading.Lock()
        self._closed = False
        self.channels = {name: Channel() for name in STAGES}
        self.films: dict[str, bytes] = {}
        """The film of each chunk."""
        self.films_twice: list[str] = []
        self.counts: dict[str, int] = {}
        """Frames of each chunk, as the frames themselves say."""
        self.gaps: list[Gap] = []
        self.error: Exception | None = None
        self.is_open = threading.Event()
        """Set once the probe has come: from then on nothing is missed."""
        self.progress_s = time.monotonic()
        """When the last event of this run came (monotonic)."""
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def start(self, timeout_s: float) -> None:
        """Open the stream; returns when it is open. Raises Unavailable."""
        self._thread.start()
        deadline_s = time.monotonic() + timeout_s
        while not self.is_open.wait(0.2):
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline_s:
                raise Unavailable(f"the event stream of {self._client.url} does not open")
            self._client.publish(f"{self._pattern.removesuffix('/#')}/{PROBE}", "is the stream open?")

    def close(self) -> None:
        """Stop at the next event; the thread does not outlive the process."""
        self._closed = True

    def numbers(self) -> dict[str, int]:
        """Distinct frames per stage."""
        with self._lock:
            return {name: len(channel.bodies) for name, channel in self.channels.items()}

    def complete(self, chunks: Collection[str]) -> bool:
        """Whether every frame of these chunks is out on every channel, and every film."""
        with self._lock:
            if not all(chunk in self.films and chunk in self.counts for chunk in chunks):
                return False
            wanted = sum(self.counts[chunk] for chunk in chunks)
            return all(len(channel.bodies) >= wanted for channel in self.channels.values())

    def frames(self, chunk: str) -> int:
        """Frames of `chunk` that are out on the last stage."""
        with self._lock:
            return sum(1 for name, _ in self.channels[STAGES[-1]].bodies if name == chunk)

    def _follow(self) -> None:
        try:
            for event in self._client.subscribe(self._pattern, from_="now"):
                if self._closed:
                    return
                if isinstance(event, Gap):
                    self.gaps.append(event)
                else:
                    self._take(event)
        except Exception as error:  # shown by the demo, which would otherwise wait for ever
            self.error = error

    def _take(self, event: ReceivedEvent) -> None:
        name = event.channel.partition("/")[2]
        if name == PROBE:
            self.is_open.set()
            return
        chunk = event.attributes.get("chunk", "")
        if not self._is_ours(chunk):
            return
        self.progress_s = time.monotonic()
        if name == "video":
            film = event.data
            with self._lock:
                if chunk in self.films:
                    self.films_twice.append(chunk)
                self.films[chunk] = film
            return
        channel = self.channels.get(name)
        if channel is None:
            return
        key = (chunk, int(event.attributes["frame"]))
        with self._lock:
            self.counts[chunk] = int(event.attributes["count"])
            if event.id not in channel.ids and key in channel.bodies:
                channel.twice.append(key)
            channel.ids.add(event.id)
            channel.newest_ms = max(channel.newest_ms, event.time_ms)
            channel.bodies[key] = event.data if len(channel.bodies) < self._kept_frames else None
