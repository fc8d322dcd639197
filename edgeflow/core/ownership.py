"""Who does the work of a function that is placed at several PoPs: a ranking of these PoPs for each event or key, the same wherever it is made.

What it is: `rank` (a PoP that stands in front takes the work before one behind it) and `owner`, the first that is not out.
What it is not: who is out: that is what each PoP sees of the others (edgeflow.cluster.takeover), or the step from one owner to the next
(`store/lua/66_owners.lua`, which chooses by the same rule; a test keeps both equal).
What must stay true: the ranking depends on nothing but its arguments, so that PoPs that see the same others choose the same owner; when one goes, only
what it owned moves, each piece to the next of its own ranking.
"""

import hashlib
from collections.abc import Collection, Sequence
from functools import lru_cache


@lru_cache(maxsize=65_536)
def rank(function: str, token: str, pops: Sequence[str], first: str = "") -> tuple[str, ...]:
    """The PoPs of `pops` in their order for `token` (the key, or where the event entered): `first` in front if it is among them, the others by
    rendezvous hashing (Thaler and Ravishankar, 1998)."""

    def weight(pop: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{function}|{token}|{pop}".encode()).digest(), pop

    ranked = sorted(pops, key=weight, reverse=True)
    return (first, *(pop for pop in ranked if pop != first)) if first in ranked else tuple(ranked)


def owner(ranked: Sequence[str], out: Collection[str]) -> str:
    """The first that is not out; the first of all when everybody is."""
    return next((pop for pop in ranked if pop not in out), ranked[0])
