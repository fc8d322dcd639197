"""Durability classes: what an acknowledgement says.

What it is: the words `durable` (on disk at one PoP) and `replicated:<k>` (and at k others, bodies included), also written `replicated(<k>)`.
What it is not: the waiting for other PoPs (edgeflow.cluster.desk).
"""

import re

DURABLE = "durable"
_REPLICATED = re.compile(r"replicated(?::([1-9]\d?)|\(([1-9]\d?)\))")


def copies_of(text: str) -> int | None:
    """At how many other PoPs a class wants something to be; None for what is no class."""
    if text == DURABLE:
        return 0
    found = _REPLICATED.fullmatch(text)
    return int(found[1] or found[2]) if found else None


def replicated(copies: int) -> str:
    """The class of what that many other PoPs have."""
    return f"replicated:{copies}" if copies else DURABLE
