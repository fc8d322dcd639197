"""One attempt at an invocation, as the agent hands it out: `Work`; and `Witness`, who wants to know how it ended.

What it is not: what the handler sees of it (context.py, inputs.py).
What must stay true: nothing here changes once the agent has said it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgeflow.core.wire import Message
from edgeflow.sdk.context import FunctionInfo
from edgeflow.sdk.inputs import Bodies
from edgeflow.sdk.log import Log


class Work:
    """One claimed invocation."""

    __slots__ = (
        "arrived_s", "attempt", "context", "deadline_ms", "inputs", "invocation", "key", "replay", "shadow", "state", "window",
    )  # fmt: skip

    def __init__(self, item: Mapping[str, Any], arrived_s: float) -> None:
        self.invocation: str = item["invocation"]
        self.attempt: int = item["attempt"]
        self.deadline_ms: int = item["deadline_ms"]
        self.inputs: Sequence[Mapping[str, Any]] = item["inputs"]
        self.context: Mapping[str, Any] = item.get("context") or {}
        self.state: Mapping[str, Any] | None = item.get("state")
        self.key: str | None = item.get("key")
        self.replay: str | None = item.get("replay")
        self.shadow = bool(item.get("shadow"))
        window = item.get("window")
        self.window = None if window is None else (int(window[0]), int(window[1]))
        self.arrived_s = arrived_s


class Witness(Protocol):
    """Who wants to know how each attempt ended."""

    def ended(
        self,
        info: FunctionInfo,
        log: Log,
        items: Sequence[Mapping[str, Any]],
        message: Message,
        took_s: float,
        bodies: Bodies,
    ) -> None:
        """`message` is the commit or the fail that is about to be sent, `items` are the inputs of the attempt."""
