"""What a PoP says of itself, and when: its member record, and that it has got all that the others have.

What it is: a look once a second until both are said.
What it is not: what others decide about it (drain, leave), or its states.
What must stay true: a PoP whose store is new says nothing before it has heard whether the others know it, or nobody could be heard for `down_ms`;
one that came with a token waits for the record that was made for it.
"""

import os
import time
from collections.abc import Callable
from typing import Protocol

from edgeflow.core.channels import SYSTEM_NAMESPACE
from edgeflow.core.membership import Address, Capacity, Location, Member
from edgeflow.settings import PopSettings


class OwnBook(Protocol):
    """The member records (edgeflow.store.members)."""

    def of(self, pop: str) -> Member | None: ...
    def introduce(self, own: Member, now_ms: int) -> bool: ...
    def joined(self, now_ms: int) -> bool: ...


class Around(Protocol):
    """What the links know (edgeflow.cluster.manager)."""

    def has_all(self) -> bool: ...
    def staleness_ms(self, namespace: str) -> int | None: ...


class Introduction:
    """One per PoP. `on_written()` is called when something was recorded, so that it goes to the others."""

    def __init__(
        self, settings: PopSettings, book: OwnBook, links: Around, on_written: Callable[[], None], version: str, *,
        clock: Callable[[], float] = time.monotonic, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._book = book
        self._links = links
        self._on_written = on_written
        self._version = version
        self._clock = clock
        self._clock_ms = clock_ms
        self._began_s = clock()
        self._is_introduced = False

    def look(self) -> None:
        """Says what can be said by now."""
        record = self._book.of(self._settings.pop)
        if not self._is_introduced and (record is not None or self._may_begin()):
            self._is_introduced = True
            if self._book.introduce(own_member(self._settings, self._version), self._clock_ms()):
                self._on_written()
        elif (
            record is not None
            and not record.joined_ms
            and self._links.has_all()
            and self._book.joined(self._clock_ms())
        ):
            self._on_written()

    def _may_begin(self) -> bool:
        if self._settings.membership.admitted:
            return False
        waited_s = self._clock() - self._began_s
        return (
            self._links.staleness_ms(SYSTEM_NAMESPACE) is not None
            or waited_s * 1000 > self._settings.membership.down_ms
        )


def own_member(settings: PopSettings, version: str) -> Member:
    """What a PoP says of itself."""
    link, place, runner = settings.link, settings.membership.location, settings.runner
    at = link.advertise
    return Member(
        pop=settings.pop,
        url=settings.public.api_url,
        mqtt=Address(settings.public.mqtt_host, settings.public.mqtt_port),
        link=Address(at.host, at.port) if at is not None else Address(link.host, link.port),
        location=Location(place.lat, place.lon, place.name) if place is not None else None,
        labels=dict(sorted(settings.membership.labels.items())),
        capacity=Capacity(
            float(runner.cpus or os.cpu_count() or 1),
            runner.memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        ),
        cost=settings.membership.cost,
        version=version,
    )
