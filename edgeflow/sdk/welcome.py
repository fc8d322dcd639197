"""The first words on the instance protocol: `hello`, and what the agent's `welcome` says of the function.

What it is: pure: a message in, facts out.
What it is not: the waiting for it (runtime.py).
What must stay true: what is incomplete or of another protocol is not worked with; a field that is not known here is for newer SDKs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgeflow import __version__
from edgeflow.core.wire import Message
from edgeflow.sdk.connection import ConnectionLost
from edgeflow.sdk.context import FunctionInfo

PROTOCOL = 1
HELLO: Message = {"t": "hello", "protocol": PROTOCOL, "sdk": f"python/{__version__}"}


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the agent says when an instance connects."""

    info: FunctionInfo
    channel: str
    """Of the first input."""
    grant: Mapping[str, str] | None
    """Account at the broker of a function whose input has qos 0."""


def read_welcome(message: Message) -> Welcome:
    """The answer to hello. Raises ConnectionLost when it is no welcome."""
    if message.get("t") == "error":
        raise ConnectionLost(f"the agent refused hello: {message.get('error')} ({message.get('code')})")
    if message.get("t") != "welcome" or message.get("protocol") != PROTOCOL:
        raise ConnectionLost(
            f"the agent answered hello with {message.get('t')!r}, protocol {message.get('protocol')!r}; this SDK speaks {PROTOCOL}"
        )
    try:
        inputs = message["inputs"]
        all_lists = message["join"] == "collect"
        info = FunctionInfo(
            namespace=message["namespace"], function=message["function"], revision=message["revision"], instance=message["instance"],
            pop=message["pop"], inputs=tuple(item["name"] for item in inputs),
            lists=frozenset(item["name"] for item in inputs if item.get("list", all_lists)),
            joined=message["join"] is not None or any(item.get("optional") for item in inputs), captures=inputs[0].get("captures") or {},
            channels={item["name"]: item.get("captures") or {} for item in inputs},
            publish=tuple(message["publish"]), context=message["context"] or {}, has_state=bool(message.get("state")),
            timeout_ms=message["timeout_ms"],
        )  # fmt: skip
        return Welcome(info, inputs[0]["channel"], message.get("mqtt"))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConnectionLost(f"the agent's welcome is incomplete: {error!r}") from None
