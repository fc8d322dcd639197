"""Who the peers of this PoP are, and where they are dialled: the settings and the member records together.

What it is: the set of links there should be, looked up again whenever somebody asks.
What it is not: the links (manager), or whether a peer is there (membership).
What must stay true: a record that says `left` ends a member whatever the settings say; the address of the settings, which may be that of a proxy,
comes before the one that a peer gives itself, unless the peer joined after the settings were written.
"""

from collections.abc import Mapping
from typing import Protocol

from edgeflow.core.membership import Member
from edgeflow.errors import Replaced
from edgeflow.settings import Peer, PopSettings


class Book(Protocol):
    """The member records (edgeflow.store.members)."""

    def look(self) -> bool: ...
    def records(self) -> Mapping[str, Member]: ...


class Roster:
    """One per PoP."""

    def __init__(self, settings: PopSettings, book: Book | None) -> None:
        self._me = settings.pop
        self._configured = {peer: address for peer, address in settings.link.peers.items() if peer != settings.pop}
        self._book = book

    def look(self) -> dict[str, Peer]:
        """The peers as they are now, with the records read again."""
        if self._book is not None:
            self._book.look()
        return self.peers()

    def records(self) -> Mapping[str, Member]:
        """The record of each member that has one."""
        return self._book.records() if self._book is not None else {}

    def peers(self) -> dict[str, Peer]:
        """Per peer where it is dialled."""
        found = dict(self._configured)
        for pop, member in self.records().items():
            if member.is_left:
                found.pop(pop, None)
            elif pop != self._me and member.link is not None and (pop not in found or member.admitted):
                found[pop] = Peer(host=member.link.host, port=member.link.port)
        return found

    def left(self) -> set[str]:
        """The PoPs that left."""
        return {pop for pop, member in self.records().items() if member.is_left and pop != self._me}

    def check_certificate(self, peer: str, valid_ms: int) -> None:
        """Raises Replaced for a certificate of a PoP that left before the present one of that id was admitted."""
        record = self.records().get(peer)
        if record is not None and valid_ms < record.certificate_ms:
            raise Replaced(f"{peer} was replaced: the PoP that has this id now was admitted with a newer certificate")
