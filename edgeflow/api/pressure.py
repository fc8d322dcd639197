"""How much this PoP has to do and what follows for its clients: one thread that looks twice a second.

What it is: the load of both processes as one number, told to the other PoPs (`loads/<pop>` in the system namespace), and the decision to send clients
to another PoP.
What it is not: the rule (edgeflow.core.load), or the ranking of PoPs (edgeflow.core.ranking).
What must stay true: no request waits for it; it never raises; without another PoP that has room nobody is sent away.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.load import Parts, Shedding, Smoothed
from edgeflow.core.membership import Member
from edgeflow.core.nearest import Weights
from edgeflow.core.ranking import Candidate, Place, Ranked, rank
from edgeflow.errors import EdgeflowError
from edgeflow.settings import PopSettings
from edgeflow.store.client import Store
from edgeflow.store.members import MemberBook

log = structlog.get_logger(__name__)

LOADS = "loads/"
EVERY_S = 0.5
TELL_EVERY_S = 2.0
TELL_STEP = 0.1
"""Smaller changes of the load are not worth a value that goes to all PoPs."""
SILENT_MS = 15_000
"""A data process that has written nothing for so long does not run."""
STALE_S = 3.0
"""Without a look for so long (the store does not answer) this PoP cannot work."""
UP = "up"


@dataclass(frozen=True, slots=True)
class Target:
    """The PoP that clients are sent to."""

    pop: str
    url: str


class Pressure:
    """One per control process. Its attributes are read by any thread."""

    def __init__(
        self, settings: PopSettings, store: Store, members: MemberBook, streams: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._settings = settings
        self._store = store
        self._members = members
        self._streams = streams
        self._clock = clock
        self._smoothed = Smoothed()
        self._shedding = Shedding(settings.api.shed_load)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._cpu = (clock(), time.process_time())
        self._told: tuple[float, float] = (0.0, 0.0)
        self._looked_s: float | None = None
        self.load = 0.0
        self.reason = ""
        self.target: Target | None = None
        """Where clients are to go; None while none is sent away."""

    def start(self) -> None:
        """Look from now on."""
        self._looked_s = self._clock()
        self._thread = threading.Thread(target=self._run, name="pressure", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(5)

    @property
    def is_stuck(self) -> bool:
        """Whether the store has not answered for some time. False when nobody looks."""
        return self._looked_s is not None and self._clock() - self._looked_s > STALE_S

    def leaving(self) -> Target | None:
        """Where this one client is to be sent; None: it stays."""
        target = self.target
        if target is None:
            return None
        with self._lock:
            return target if self._shedding.take() else None

    @property
    def refuses_streams(self) -> bool:
        """Whether new streams go to the target."""
        return self.target is not None and self.load >= self._settings.api.refuse_load

    def ranking(self, client: Place | None, weights: Weights) -> list[Ranked]:
        """All PoPs, the best for a client at `client` first. Reads the store."""
        me, book = self._settings.pop, self._members.fresh()
        links, seen = self._store.local.docs("link_state"), self._store.local.docs("member_state")
        candidates = []
        for pop in book.pops():
            record, is_self = book.of(pop) or Member(pop), pop == me
            place = None if record.location is None else (record.location.lat, record.location.lon)
            load, sheds = self._load_of(pop)
            candidates.append(
                Candidate(
                    pop, _state(record, is_self, seen), is_self, place, links.get(pop, {}).get("rtt_ms"), load, record.cost, sheds
                )
            )  # fmt: skip
        return rank(candidates, client, weights)

    # -- looking -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            try:
                self.look(self._clock())
            except EdgeflowError as error:
                log.warning("pressure_not_known", error=error.message)
            except Exception:
                log.exception("pressure_failed")

    def look(self, now_s: float) -> None:
        """Measure, decide, tell the others. Raises StoreUnavailable."""
        parts, silent = self._measure(now_s)
        load = max(self._smoothed.add(parts.load, now_s), 1.0 if silent else 0.0)
        if self._is_drained():
            load = max(load, 1.0, self._settings.api.shed_load, self._settings.api.refuse_load)
            silent = "an operator drains it"
        # Whoever is better off is looked for only when that matters.
        target, best = None, None
        if self._settings.api.shed_load and load >= self._settings.api.shed_load * 0.5:
            target, best = self._next_best()
        with self._lock:
            is_on = self._shedding.look(load, best, self._streams(), now_s)
        if is_on != (self.target is not None):
            log.warning("sheds_clients" if is_on else "keeps_clients", load=round(load, 2), reason=parts.reason)
        self.load, self.reason, self.target = load, silent or parts.reason, target if is_on else None
        self._tell(load, is_on, now_s)
        if self._looked_s is not None:
            self._looked_s = now_s

    def _is_drained(self) -> bool:
        """Whether an operator wishes that this PoP takes no clients: those that are here go as if it had too much to do."""
        record = self._members.fresh().of(self._settings.pop)
        return record is not None and record.state != UP

    def _measure(self, now_s: float) -> tuple[Parts, str]:
        (before_s, cpu_s), self._cpu = self._cpu, (now_s, time.process_time())
        control = min(1.0, (self._cpu[1] - cpu_s) / max(1e-6, now_s - before_s))
        document = self._store.local.get_doc("pop_load", "self")
        if document is None:
            return Parts(control=control), ""
        age_ms = time.time_ns() // 1_000_000 - int(document["at_ms"])
        silent = f"the data process has said nothing for {age_ms / 1000:.0f} s" if age_ms > SILENT_MS else ""
        return Parts(document["loop"], control, document["backlog"], document["refused"]), silent

    def _next_best(self) -> tuple[Target | None, float | None]:
        for one in self.ranking(None, Weights()):
            record = self._members.of(one.candidate.pop)
            if one.candidate.is_self or not one.eligible or one.candidate.sheds or record is None or not record.url:
                continue
            return Target(one.candidate.pop, record.url), one.candidate.load or 0.0
        return None, None

    def _load_of(self, pop: str) -> tuple[float | None, bool]:
        if pop == self._settings.pop:
            return self.load, self.target is not None
        known = self._store.has_namespace(SYSTEM_NAMESPACE)
        value = self._store.namespace(SYSTEM_NAMESPACE).get(LOADS + pop) if known else None
        if value is None:
            return None, False
        try:
            document = json.loads(value.data)
            return float(document["load"]), bool(document["sheds"])
        except (ValueError, KeyError, TypeError):
            return None, False

    def _tell(self, load: float, sheds: bool, now_s: float) -> None:
        """What goes to the other PoPs: rarely, and nothing at all while this PoP has always been at rest."""
        told_s, told = self._told
        said = load + (10 if sheds else 0)
        if (
            now_s - told_s < TELL_EVERY_S
            or abs(said - told) < TELL_STEP
            or not self._store.has_namespace(SYSTEM_NAMESPACE)
        ):
            return
        document = json.dumps({"load": round(load, 2), "sheds": sheds}).encode()
        self._store.namespace(SYSTEM_NAMESPACE).put(
            LOADS + self._settings.pop, document, content_type="application/json"
        )
        self._told = (now_s, said)


def _state(record: Member, is_self: bool, seen: Mapping[str, Mapping[str, object]]) -> str:
    if record.is_left:
        return "left"
    return str(seen.get(record.pop, {}).get("state", UP if is_self else "unknown"))
