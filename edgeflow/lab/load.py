"""What a scenario's clients do: publish numbered inputs at several PoPs, and watch the results at all of them.

What it is: `Load`, publishers that repeat an input under its id until somebody acknowledges it, and `Watcher`, which notes when each result was shown at a PoP, and whether what it
refers to could be read there at that moment.
What must stay true: an input that is in `acked` is owed one result; one that was begun and never acknowledged may have one or none; nothing here asks the agents whether they did right.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from edgeflow.errors import EdgeflowError
from edgeflow.host.discover import PopAccess
from edgeflow.lab.errors import NotInTime
from edgeflow.lab.scenario import Load as Wish
from edgeflow.sdk.client import Client, Gap, ReceivedEvent

PUBLISHERS = 2
"""At each PoP."""
TRY_S = 2.0
"""How long one call of a publisher is repeated; then it looks whether it is still wanted."""
REST_S = 0.05
SOURCE = "lab"


@dataclass(frozen=True)
class Acked:
    """An input that a PoP has acknowledged."""

    pop: str
    at_s: float


class Load:
    """Publishers of one scenario."""

    def __init__(self, pops: Mapping[str, PopAccess], namespace: str, wish: Wish) -> None:
        """`pops`: those that inputs enter at."""
        self.acked: dict[int, Acked] = {}
        self.begun: dict[int, str] = {}
        self._channel, self._wish = f"{namespace}/start", wish
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._enough = threading.Event()
        self._given_up = threading.Event()
        self._threads = [
            threading.Thread(target=self._publish, args=(access,), daemon=True)
            for access in pops.values()
            for _ in range(PUBLISHERS)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self, deadline_s: float) -> None:
        """No new inputs; wait until each that was begun is acknowledged. Raises NotInTime."""
        self._enough.set()
        end_s = time.monotonic() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        missing = sorted(self.begun.keys() - self.acked.keys())
        if missing:
            where = Counter(self.begun[number] for number in missing)
            raise NotInTime(f"Not within {deadline_s:g} s: inputs are acknowledged ({dict(where)} are not).")

    def close(self) -> None:
        """Nobody waits any more for what is not acknowledged."""
        self._enough.set()
        self._given_up.set()
        for thread in self._threads:
            thread.join(3 * TRY_S)

    def _publish(self, access: PopAccess) -> None:
        with Client(access.api_url, access.token, retry_s=TRY_S) as client:
            while (number := self._next(access.id)) is not None:
                while not self._given_up.is_set() and not self._accepted(client, number):
                    time.sleep(REST_S)

    def _next(self, pop: str) -> int | None:
        """The number of the next input, when it is due; None when there are enough."""
        with self._lock:
            number = len(self.begun)
            due_s = self._began_s + number / self._wish.per_s
            if self._enough.wait(max(0.0, due_s - time.monotonic())):
                return None
            self.begun[number] = pop
        return number

    def _accepted(self, client: Client, number: int) -> bool:
        try:
            client.publish(
                self._channel, {"n": number}, id=f"{SOURCE}-{number}", source=SOURCE, subject=subject_of(number),
                durability=None if self._wish.ack == "durable" else self._wish.ack,
            )  # fmt: skip
        except EdgeflowError:
            return False
        self.acked[number] = Acked(self.begun[number], time.monotonic())
        return True


class Watcher:
    """A consumer of the results at one PoP."""

    def __init__(self, access: PopAccess, namespace: str, *, looks_up: bool = True) -> None:
        """`looks_up`: whether values that came with a result must be there by name when it is shown. They need not be where clocks are wrong by more than `limits.skew_ms`."""
        self.shown_s: dict[str, float] = {}
        """Subject -> when its first result was shown."""
        self.subjects: list[str] = []
        self.ids: list[str] = []
        self.gaps: list[str] = []
        self.unreadable: list[str] = []
        """Results that were shown before what they refer to could be read here."""
        self.failure: str | None = None
        self._namespace, self._looks_up = namespace, looks_up
        self._client = Client(access.api_url, access.token)
        self._reads = Client(access.api_url, access.token, retry_s=TRY_S)
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping = True
        self._client.close()
        self._thread.join(5.0)
        self._reads.close()

    def _watch(self) -> None:
        try:
            for one in self._client.subscribe(f"{self._namespace}/done", from_="start"):
                if isinstance(one, Gap):
                    self.gaps.append(str(one))
                else:
                    self._note(one)
        except Exception as error:
            if not self._stopping:
                self.failure = repr(error)

    def _note(self, event: ReceivedEvent) -> None:
        subject = str(event.subject)
        self.shown_s.setdefault(subject, time.monotonic())
        self.ids.append(event.id)
        self.subjects.append(subject)
        document = event.json()
        if not (document["pad"] and self._looks_up):
            return  # every fourth is looked into: its body is a blob, its value came with the same commit
        try:
            if self._reads.get(f"{self._namespace}/{document['effect']}") is None:
                self.unreadable.append(subject)
        except EdgeflowError:
            return  # the PoP was hurt meanwhile: nothing is known


def subject_of(number: int) -> str:
    """The subject of an input, and of its result."""
    return f"s{number}"
