"""Reading this PoP's own logs once for all links.

What it is: the last piece read of each log, kept for a moment, since links to several peers are mostly at the same place.
What it is not: a copy of the log. `forget` drops everything once a second.
What must stay true: entries never change, so a kept piece is never wrong, only short; "nothing new" is believed only until the next `changed`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from edgeflow.cluster.linkproto import BATCH_BYTES
from edgeflow.cluster.ports import LinkStore
from edgeflow.core.events import BlobRef
from edgeflow.errors import CorruptEntry
from edgeflow.store.records import LogId

READ_ENTRIES = 256


class Item(NamedTuple):
    """One entry, and the blobs it refers to."""

    seq: int
    raw: bytes
    blobs: Sequence[BlobRef]


class Tail:
    """Shared by the links of a PoP."""

    def __init__(self, store: LinkStore) -> None:
        self._store = store
        self._pieces: dict[tuple[str, LogId], list[Item]] = {}
        self._ends: dict[tuple[str, LogId], int] = {}

    def changed(self, namespace: str) -> None:
        """Something may have been appended to the logs of a namespace."""
        for key in [key for key in self._ends if key[0] == namespace]:
            del self._ends[key]

    def forget(self) -> None:
        """Drop what is kept."""
        self._pieces.clear()
        self._ends.clear()

    def read(self, namespace: str, log: LogId, after: int) -> Sequence[Item]:
        """Entries behind `after`, in order; empty when there are none. Raises CorruptEntry, and what the store raises."""
        key = (namespace, log)
        piece = self._pieces.get(key)
        if piece and piece[0].seq <= after + 1 <= piece[-1].seq:
            return piece[after + 1 - piece[0].seq :]
        if self._ends.get(key) == after:
            return ()
        handle = self._store.namespace(namespace)
        found = handle.read_log(log, after, count=READ_ENTRIES, max_bytes=BATCH_BYTES)
        if not found:
            self._ends[key] = after
            return ()
        piece = []
        for seq, raw in found:
            try:
                piece.append(Item(seq, raw, handle.entry_blobs(raw)))
            except CorruptEntry:
                if not piece:
                    raise
                break  # what is in front of it goes out first
            if seq != found[0][0] + len(piece) - 1:
                piece.pop()  # a hole that a snapshot has left; what is in front of it goes out first
                break
        self._pieces[key] = piece
        return piece
