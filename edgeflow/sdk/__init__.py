"""What a user imports: `function` and `Reject` to write a function, `Client` to talk to a PoP, `edgeflow.sdk.testing` to test a handler.

What it is not: the agent. Nothing here imports the store, the broker or the settings.
What must stay true: a function's virtual environment needs msgpack only; `Client` (which needs httpx) is imported when it is first touched.
"""

from typing import TYPE_CHECKING, Any

from edgeflow.errors import Reject
from edgeflow.sdk.function import function

if TYPE_CHECKING:
    from edgeflow.sdk.client import Client as Client
    from edgeflow.sdk.context import Context as Context
    from edgeflow.sdk.inputs import Input as Input

__all__ = ["Client", "Context", "Input", "Reject", "function"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from edgeflow.sdk.client import Client

        return Client
    if name == "Context":
        from edgeflow.sdk.context import Context

        return Context
    if name == "Input":
        from edgeflow.sdk.inputs import Input

        return Input
    raise AttributeError(f"module 'edgeflow.sdk' has no attribute {name!r}")
