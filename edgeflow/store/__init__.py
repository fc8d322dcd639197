"""The store: one PoP's Redis and blob files behind a typed client. Everything else (values, invocations, joins, notifications) follows from its log."""

from edgeflow.store.client import LocalState, Store, Wakeups
from edgeflow.store.namespace import Namespace
from edgeflow.store.records import (
    Arrival,
    ChannelInfo,
    Claim,
    Claimed,
    Commit,
    DeadLetter,
    Ended,
    Expired,
    InboxStats,
    Input,
    LogId,
    MirrorResult,
    OwnRelease,
    PendingJoin,
    Receipt,
    Refusal,
    Released,
    Result,
    RoundResult,
    Value,
    ValueInfo,
    ValueWrite,
)

__all__ = [
    "Arrival", "ChannelInfo", "Claim", "Claimed", "Commit", "DeadLetter", "Ended", "Expired", "InboxStats", "Input", "LocalState", "LogId", "MirrorResult",
    "Namespace", "OwnRelease", "PendingJoin", "Receipt", "Refusal", "Released", "Result", "RoundResult", "Store", "Value", "ValueInfo", "ValueWrite", "Wakeups",
]  # fmt: skip
