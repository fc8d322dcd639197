"""The work of functions at several PoPs, as this PoP's store has it: which PoPs are out, what is kept for others, and its distribution anew.

What it is: the calls of `store/lua/66_owners.lua`, and what can be asked about standby.
What it is not: the decision who is out (edgeflow.cluster.takeover), or the ranking (edgeflow.core.ownership).
What must stay true: setting the same PoPs again, and repeating a piece of the distribution, change nothing.
"""

from collections.abc import Collection

import msgpack

from edgeflow.store.oversight import OverseenNamespace


class OwnedNamespace(OverseenNamespace):
    """A namespace whose functions may run at several PoPs."""

    def set_out(self, pops: Collection[str], *, again: bool = False) -> bool:
        """These PoPs are given no work from now on; whether there is something to `sweep`. `again`: also when nothing has changed."""
        return bool(self._call("ef_out", out=sorted(pops), again=again))

    def sweep(self) -> tuple[bool, list[str]]:
        """Distribute a piece of the work anew: whether there is more to do, and which inboxes ("function:revision") got work here."""
        more, inboxes = msgpack.unpackb(self._call("ef_sweep"))
        return bool(more), list(inboxes)

    def standby_count(self) -> int:
        """Arrivals that are kept here and that another PoP has to handle."""
        return int(self._connection.one("HLEN", self.prefix + "standby"))

    def has_shared(self) -> bool:
        """Whether any function here is at other PoPs as well, each event handled once."""
        return any(route.is_shared for route in self.routes().functions)
