"""The publisher: what is released here goes out to the broker's subscribers.

What it is: for one namespace, a reader of the release stream that publishes each event once per broker life, at least.
What must stay true: an event that this broker has shown already (it came in over it) is not shown again; the cursor is stored after the PUBACK, so a
crash repeats and never skips; after the broker lost its state, the last `rewind_events` are shown again.
"""

from collections import deque
from collections.abc import Sequence

import structlog

from edgeflow.core.events import Event
from edgeflow.core.failpoints import hit
from edgeflow.errors import BodyMissing, CorruptBlob, EdgeflowError
from edgeflow.flow.broker import BrokerSession
from edgeflow.flow.outgoing import BlobUrl, outgoing
from edgeflow.settings import PopSettings
from edgeflow.store import LocalState, Namespace, OwnRelease
from edgeflow.store.patience import Patience

log = structlog.get_logger(__name__)

WINDOW = 1000
"""Most events that the broker has not confirmed."""
_BOOT_DOCS = "publisher_boot"


class Publisher:
    """One namespace's way out. `pump` publishes what is new, as far as the window allows."""

    def __init__(self, namespace: Namespace, local: LocalState, settings: PopSettings, blob_url: BlobUrl) -> None:
        self._namespace = namespace
        self._local = local
        self._settings = settings
        self._blob_url = blob_url
        self._next = 0
        self._confirmed = 0
        self._stored = 0
        self._waiting: dict[int, int] = {}
        self._order: deque[tuple[int, int]] = deque()
        self._ready = False
        self._dirty = False
        self._boot = ""
        self._patience = Patience()
        self.session: BrokerSession | None = None

    def ready(self, boot: str) -> None:
        """The session is connected to the broker life `boot`: find out where to go on."""
        self._ready = self._dirty = True
        if boot == self._boot:
            return  # the session goes on: paho sends again what was not confirmed
        self._boot = boot
        cursor = self._namespace.publisher_cursor()
        if cursor is None:
            cursor = 0
        known = self._local.get_doc(_BOOT_DOCS, self._namespace.name)
        if known is not None and known.get("boot") != boot:
            rewound = max(0, cursor - self._settings.mqtt.rewind_events)
            log.info("publisher_rewinds", namespace=self._namespace.name, cursor=cursor, rewound_to=rewound)
            cursor = rewound
        self._next = self._confirmed = self._stored = cursor
        self._waiting.clear()
        self._order.clear()
        self._local.put_doc(_BOOT_DOCS, self._namespace.name, {"boot": boot})

    def lost(self) -> None:
        """The session is gone for now."""
        self._ready = False

    def notify(self) -> None:
        """Something may have been released."""
        self._dirty = True

    def pump(self) -> bool:
        """Publish new releases; True when there is more to do at once."""
        if not self._dirty or not self._ready or self.session is None:
            return False
        room = WINDOW - len(self._waiting)
        if room <= 0:
            return False
        batch = self._namespace.read_release(self._next, min(room, 64))
        self._dirty = len(batch) == min(room, 64)
        for released in batch:
            if not self._take(released.n, None if released.via == "mqtt" or released.is_repeated else released.event):
                self._advance()
                return False  # `notify` comes at least once a second
        self._advance()
        return self._dirty

    def offer(self, released: Sequence[OwnRelease]) -> None:
        """What a round has just released: published without reading it back, if nothing else is to be published before it."""
        if self._dirty or not self._ready or self.session is None or len(released) > WINDOW - len(self._waiting):
            self._dirty = True
            return
        for n, event in released:
            if n != self._next + 1:
                self._dirty = True
                break
            if not self._take(n, event):
                break
        self._advance()

    def _take(self, n: int, event: Event | None) -> bool:
        """False: its data was damaged and is on its way; what is behind it waits, too."""
        mid = 0
        if event is not None:
            try:
                mid = self._publish(event)
                self._waiting[mid] = n
                if self.session is not None:
                    hit("publisher-published", self.session.flush)
            except EdgeflowError as error:
                if isinstance(error, CorruptBlob | BodyMissing) and self._patience.waits(n):
                    return False
                log.error("publish_failed", namespace=self._namespace.name, n=n, code=error.code, error=error.message)
        self._next = n
        self._order.append((n, mid))
        return True

    def confirmed(self, mid: int) -> None:
        """The broker has confirmed message `mid`."""
        if self._waiting.pop(mid, None) is not None:
            hit("publisher-confirmed")
            self._advance()

    def store_cursor(self) -> None:
        """Write the cursor down; called now and then, since a crash before only repeats."""
        if self._confirmed > self._stored:
            self._namespace.set_publisher_cursor(self._confirmed)
            self._stored = self._confirmed
            hit("publisher-cursor")

    def _advance(self) -> None:
        while self._order and self._order[0][1] not in self._waiting:
            self._confirmed = self._order.popleft()[0]

    def _publish(self, event: Event) -> int:
        assert self.session is not None
        payload, properties = outgoing(event, self._namespace, self._settings.limits, self._blob_url)
        return self.session.publish(event.channel, payload, properties)
