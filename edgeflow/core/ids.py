"""Deterministic ids, so that the same work has the same name at every PoP and after every crash.

The store's Lua library makes invocation ids by the same rule (`sha1hex` of the parts joined with `|`); a test keeps both equal.
"""

import hashlib


def invocation_id(function: str, origin: str, epoch: int, seq: int, index: int) -> str:
    """Id of the invocation that one input event causes: SHA-1 over function and log position, 40 hex digits."""
    return _digest(function, origin, epoch, seq, index)


def caused_invocation_id(function: str, cause: str, index: int) -> str:
    """Id of the invocation that the `index`-th output of invocation `cause` causes, when `cause` is one of a function at several PoPs: the same
    whichever of them put it out."""
    return _digest(function, cause, index)


def join_invocation_id(function: str, key: str, occurrence: int) -> str:
    """Id of the invocation that the `occurrence`-th complete join of `key` causes."""
    return _digest(function, "join", key, occurrence)


def direct_invocation_id(function: str, source: str, event_id: str) -> str:
    """Id of the invocation that an event causes which the instance itself heard (`qos: 0`): such an event has no log position yet."""
    return _digest(function, "direct", source, event_id)


def output_id(invocation: str, index: int) -> str:
    """Id of the `index`-th output event of an invocation."""
    return _digest(invocation, index)


def _digest(*parts: str | int) -> str:
    return hashlib.sha1("|".join(str(part) for part in parts).encode(), usedforsecurity=False).hexdigest()
