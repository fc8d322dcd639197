"""How instances of each contract are started: what runs, and what it is told.

What it is: the adapter's setting from a resolved function, for either driver.
What it is not: the adapter (edgeflow/sdk/adapters), which runs beside the function and not in the agent.
"""

from typing import Any

from edgeflow.core.manifest import ResolvedFunction

RUNTIME = "edgeflow.sdk.runtime"
ADAPTERS = "edgeflow.sdk.adapters"
SETTING = "EDGEFLOW_ADAPTER"


def module_of(contract: str) -> str:
    """The module that an instance of this contract runs."""
    return RUNTIME if contract == "sdk" else ADAPTERS


def setting_of(function: ResolvedFunction) -> dict[str, Any]:
    """What the adapter of a function is told; empty for `sdk`. A driver adds where things are."""
    if function.contract == "sdk":
        return {}
    setting: dict[str, Any] = {"contract": function.contract, "command": list(function.command or ())}
    if function.http is not None:
        http = function.http
        setting |= {
            "http_port": http.port, "http_path": http.path, "http_format": http.format, "http_ready": http.ready,
        }  # fmt: skip
    if function.stdio is not None:
        setting["stdio_content_type"] = function.stdio.content_type
    return setting
