"""One way to load anything: keep so many messages under way, count every answer by the number it carries.

What it is: the loop of every measurement under load, the same for edgeflow, a bare echo, NATS and HTTP; and its generator for MQTT.
What it is not: an opinion about what is loaded; a `Generator` knows how a message gets there and how its answers come back.
What must stay true: all time stamps come from this one process; an answer that is lost, or that comes twice, is in the result.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.machine import Usage, usage, used
from bench.packets import Attributes, Broker, Peer, Template

Answer = tuple[int, int]
"""The number of a message, and which of its answers this is: any value that differs among them."""
OWN_ID: Mapping[str, int | None] = {"id": None}
"""Attributes that are numbered (see Template): here only the id."""
DRAIN_S = 10.0
FILL_S = 5.0
"""How long the warm-up may last while the first messages have not all been answered."""
LISTEN_S = 0.15
"""How long is listened for answers that come twice, when all have come."""


class Generator(Protocol):
    """A client that sends messages and hears their answers."""

    def start(self, number: int) -> None:
        """Queue message `number`; `answered` sends it."""

    def answered(self, timeout_s: float) -> list[Answer]:
        """Send what is queued, wait at most `timeout_s` for something to arrive; the answers in it."""

    def close(self) -> None:
        """End the connections."""


@dataclass(frozen=True, slots=True)
class Flood:
    """One round with so many messages under way."""

    events_per_s: float
    p50_ms: float
    p99_ms: float
    events: int
    lost: int
    twice: int
    processor_us: Mapping[str, float]
    """Processor time per event by process (microseconds)."""


def quantile(samples: Sequence[float], share: float) -> float:
    """The sample below which `share` of them lie."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class MqttGenerator:
    """A QoS 1 client: each message is one publish on each of `requests`; its answers come on `answers`, told apart by the last character of their channel."""

    def __init__(
        self,
        broker: Broker,
        requests: Sequence[str],
        answers: str,
        attributes: Attributes,
        content_type: str | None,
        payload_bytes: int,
        *,
        numbered: Mapping[str, int | None] = OWN_ID,
        qos: int = 1,
    ) -> None:
        self._templates = [
            Template(topic, with_source(attributes, index), content_type, payload_bytes, numbered=numbered, qos=qos)
            for index, topic in enumerate(requests)
        ]
        self._peer = Peer(broker, f"bench-flood-{secrets.token_hex(16)}", answers, qos=qos)
        self._packets: list[bytes] = []

    def start(self, number: int) -> None:
        """Queue it."""
        for template in self._templates:
            self._packets.append(template.packet(number, self._peer.next_message_id()))

    def answered(self, timeout_s: float) -> list[Answer]:
        """The answers that arrived."""
        if self._packets:
            self._peer.send(b"".join(self._packets))
            self._packets.clear()
        return self._peer.receive(timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._peer.close()


def with_source(attributes: Attributes, index: int) -> Attributes:
    """The same from another source, the one with that `index`: the publishes of one message are events of their own."""
    return [(name, f"{value}/{index}" if name == "source" and index else value) for name, value in attributes]


def drive(
    generator: Generator,
    seconds: float,
    window: int,
    *,
    answers: int = 1,
    pids: Mapping[str, int],
) -> Flood:
    """Keep `window` messages under way for `seconds`. Rate and times are of the messages whose last answer came in those seconds.

    Before that comes a warm-up of a fifth of `seconds`, or until as many messages as are under way have been answered.
    """
    # The id of an event is its number: it must be new in every round.
    first = sent = secrets.randbits(47) << 16
    under_way: dict[int, float] = {}
    parts: dict[int, set[int]] = {}
    times_s: list[float] = []
    done = twice = 0
    started_s = time.perf_counter()
    began_s = started_s
    before: Usage | None = None

    def finished(found: Sequence[Answer]) -> list[float]:
        """When those were started whose last answer is among these."""
        nonlocal twice
        starts_s = []
        for number, part in found:
            if number not in under_way:
                twice += first <= number < sent
                continue
            if answers > 1:
                have = parts.setdefault(number, set())
                twice += part in have
                have.add(part)
                if len(have) < answers:
                    continue
                del parts[number]
            starts_s.append(under_way.pop(number))
        return starts_s

    last_s = started_s
    while (now_s := time.perf_counter()) < began_s + seconds:
        if before is None:
            if now_s >= started_s + seconds / 5 and (done >= window or now_s >= started_s + FILL_S):
                before, done, times_s = usage(pids), 0, []
            began_s = now_s = time.perf_counter()
        while len(under_way) < window:
            under_way[sent] = now_s
            generator.start(sent)
            sent += 1
        found = generator.answered(1.0)
        now_s = time.perf_counter()
        if found:
            last_s = now_s
        elif now_s - last_s > DRAIN_S:
            break
        for since_s in finished(found):
            done += 1
            times_s.append(now_s - since_s)
    ended_s = time.perf_counter()
    after = usage(pids)
    events = done
    while under_way and time.perf_counter() < ended_s + DRAIN_S:
        finished(generator.answered(0.5))
    until_s = time.perf_counter() + LISTEN_S
    while (now_s := time.perf_counter()) < until_s:
        finished(generator.answered(until_s - now_s))
    spent = used(before, after) if before is not None else {}
    times_s = times_s or [0.0]
    return Flood(
        events / (ended_s - began_s) if before is not None else 0.0, quantile(times_s, 0.5) * 1000, quantile(times_s, 0.99) * 1000, events,
        len(under_way), twice, {name: seconds * 1e6 / max(1, events) for name, seconds in spent.items()},
    )  # fmt: skip
