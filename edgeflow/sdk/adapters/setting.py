"""What the runner tells an adapter: the contract of its function.

What it is: the JSON of EDGEFLOW_ADAPTER, read once.
What it is not: checked like a manifest: it comes from the runner, which has checked it.
"""

import json
from dataclasses import dataclass
from typing import Literal

VARIABLE = "EDGEFLOW_ADAPTER"


@dataclass(frozen=True, slots=True)
class Setting:
    """The contract of one function, as an adapter needs it."""

    contract: Literal["http", "stdio", "mqtt"]
    command: tuple[str, ...] = ()
    """Program and arguments; empty where the program is a container of its own, which somebody else starts."""
    http_port: int = 0
    """Where the program listens; 0: it is told a free port."""
    http_path: str = "/"
    http_format: Literal["binary", "structured"] = "binary"
    http_ready: str | None = None
    """Path that answers 2xx when the program is ready; None: it is ready when it accepts connections."""
    stdio_content_type: str | None = None
    effects_port: int = 0
    """Where the program finds the store; 0: any free port."""
    launcher_port: int = 0
    """`stdio`: where the launcher in the program's container connects; 0: the adapter starts the program itself."""
    broker_port: int = 0
    """`mqtt`: where the program finds the broker; 0: any free port."""

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """From EDGEFLOW_ADAPTER. Raises ValueError when it is none."""
        try:
            document = json.loads(text)
            known = {name: document[name] for name in cls.__slots__ if name in document}
            return cls(**{**known, "command": tuple(document.get("command") or ())})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{VARIABLE} is not what the runner writes: {error}") from None
