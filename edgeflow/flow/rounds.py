"""The round: whatever gateways and instances collected goes to the store in one call per namespace, and the answers come back.

What it is: the one place that writes on behalf of MQTT clients and instances.
What must stay true: one round trip and one fsync carry arrivals, commits and the claims that they are likely to fill; nothing is answered before.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from edgeflow.core.failpoints import hit
from edgeflow.errors import StoreFull
from edgeflow.flow.commits import Collected
from edgeflow.flow.gateway import Gateway
from edgeflow.flow.handover import HandOver
from edgeflow.flow.instances import Instances
from edgeflow.store import OwnRelease, Store
from edgeflow.store.connection import Meanwhile

log = structlog.get_logger(__name__)

SHARE = 64
"""Most MQTT messages of one namespace in a round. A flood holds others up by so many only: the commits and claims of its own functions, which travel
in rounds too, and other namespaces; and so few are ingested and not yet acknowledged, which the ring must recognise if they come again."""
PAUSE_S = 0.5
"""How long nothing is tried after a round could not be carried out."""


class Rounds:
    """Runs rounds. `on_released(namespace, released)` is called when one appended something; `meanwhile` reads what comes while the store works."""

    def __init__(
        self, store: Store, gateways: Mapping[str, Gateway], instances: Instances, on_released: Callable[[str, Sequence[OwnRelease]], None],
        meanwhile: Meanwhile,
    ) -> None:  # fmt: skip
        self._store = store
        self._gateways = gateways
        self._instances = instances
        self._on_released = on_released
        self._meanwhile = meanwhile
        self._paused_until_s = 0.0

    def run(self) -> bool:
        """One round for each namespace that has something. True when another one may find work at once."""
        if time.monotonic() < self._paused_until_s:
            self._instances.flush_sockets()
            return False
        collected = self._instances.collected()
        arriving = [name for name, gateway in self._gateways.items() if gateway.waiting]
        names = {*collected, *arriving}
        for name in names:
            self._expect_work(name, collected.get(name))
        claiming = self._instances.claiming()
        for name in names.union(claiming):
            work = collected.get(name) or Collected([], [])
            wishes = claiming.get(name, [])
            gateway = self._gateways.get(name)
            arrivals = gateway.collected(SHARE) if gateway is not None else []
            hit("round-before-store")
            try:
                result = self._store.namespace(name).round(
                    arrivals=arrivals,
                    commits=[commit for _, commit, _ in work.commits],
                    claims=[HandOver.claim(wish) for wish in wishes],
                    blobs=work.blobs,
                    turned_away=gateway.turned_away if gateway is not None else {},
                    meanwhile=self._meanwhile,
                )
            except StoreFull as error:
                log.error("store_full", namespace=name, error=error.message, hint=error.hint)
                self._put_back(name, gateway, work)
                continue
            except Exception:
                # Nothing that was received may be forgotten over a fault of ours; it shows in the log until it is mended.
                log.exception("round_failed", namespace=name, arrivals=len(arrivals), commits=len(work.commits))
                self._put_back(name, gateway, work)
                continue
            hit("round-after-store")
            if gateway is not None:
                ended = (f"{session.spec.function}:{session.spec.revision}" for session, _, _ in work.commits)
                gateway.finish(result.receipts, ended)
            emptied = self._instances.finish(name, work, wishes, result)
            # An inbox that got work may have been emptied by the claims of this very round; asking once more is cheap.
            self._instances.notify(name, result.woken - emptied)
            if arrivals or work.commits:
                self._on_released(name, result.released)
        self._instances.flush_sockets()
        # What was read while the store worked has woken nobody.
        return self._instances.has_work or any(gateway.waiting for gateway in self._gateways.values())

    def _put_back(self, name: str, gateway: Gateway | None, work: Collected) -> None:
        # Nothing was answered: publishers have no acknowledgement, instances wait. The broker's window fills and stops the flow.
        if gateway is not None:
            gateway.put_back()
        self._instances.put_back(name, work)
        self._paused_until_s = time.monotonic() + PAUSE_S

    def _expect_work(self, name: str, work: Collected | None) -> None:
        """Claims of functions that this round's events go to travel behind them in the same call."""
        table = self._store.namespace(name).routes()
        channels = {event.channel for _, commit, _ in (work.commits if work else ()) for event in commit.events}
        gateway = self._gateways.get(name)
        if gateway is not None:
            channels |= gateway.channels(SHARE)
        for channel in channels:
            self._instances.notify(name, table.inboxes(channel))
