"""edgeflow: a CDN-style pub/sub edge compute runtime.

What it is: the two names a user imports, `function` (to write one) and `Client` (to talk to a PoP), found when they are first touched.
What must stay true: importing this package imports nothing else, because functions do it in virtual environments of their own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeflow.sdk.client import Client as Client
    from edgeflow.sdk.function import function as function

__version__ = "0.1.0"
__all__ = ["Client", "__version__", "function"]


def __getattr__(name: str) -> Any:
    if name == "function":
        from edgeflow.sdk.function import function

        return function
    if name == "Client":
        from edgeflow.sdk.client import Client

        return Client
    raise AttributeError(f"module 'edgeflow' has no attribute {name!r}")
