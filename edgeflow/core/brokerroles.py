"""What the broker accounts of a PoP itself may do.

What it is: the roles of `admin`, `gateway` and `operator`, as the dynamic-security plugin takes them.
What it is not: their passwords (edgeflow.host), or the accounts of functions (edgeflow.flow.accounts).
What must stay true: whatever is not granted is denied, and no account of a PoP's namespaces reaches `$CONTROL`.
"""

from typing import Any

ADMIN = "admin"
GATEWAY = "gateway"
OPERATOR = "operator"

ACCESS = {
    "publishClientSend": False,
    "publishClientReceive": False,  # a revoked right also ends deliveries to what was subscribed before
    "subscribe": False,
    "unsubscribe": False,
}
"""What an account may do that no role says anything about."""


def roles() -> dict[str, list[dict[str, Any]]]:
    """The rights of each account; its role has its name."""
    everything = [_acl("publishClientSend", "#"), _acl("publishClientReceive", "#"), _acl("subscribePattern", "#")]
    watching = [_acl("publishClientReceive", "$SYS/#"), _acl("subscribePattern", "$SYS/#")]
    no_control = [
        _acl(kind, "$CONTROL/#", allow=False, priority=10)
        for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
    ]
    leaving = [_acl("unsubscribePattern", "#")]
    control = [
        _acl(kind, "$CONTROL/dynamic-security/#")
        for kind in ("publishClientSend", "publishClientReceive", "subscribePattern")
    ]
    return {
        ADMIN: control + leaving,
        GATEWAY: no_control + everything + watching + leaving,
        OPERATOR: no_control + everything + watching + leaving,
    }


def _acl(kind: str, topic: str, *, allow: bool = True, priority: int = 0) -> dict[str, Any]:
    return {"acltype": kind, "topic": topic, "priority": priority, "allow": allow}
