"""A PoP leaves its cluster for good.

What it is: drain, wait until the others have all that it has, record that it left at another PoP, end what runs of it on this machine.
What it is not: the removal of its links, which each PoP does when it reads the record.
What must stay true: without `force` nothing that only it has is lost: it stays while a PoP that can be heard lacks something of it.
"""

import shutil
import time
from dataclasses import replace
from typing import Any

import httpx

from edgeflow.core.membership import DOWN, SUSPECT
from edgeflow.errors import described
from edgeflow.host.discover import Cluster, PopAccess
from edgeflow.host.errors import BadClusterSpec, NoSuchPop, StartTimeout
from edgeflow.host.layout import Home, Identity
from edgeflow.host.lifecycle import Say, down, silent

ASK_S = 10.0
POLL_S = 0.2
WAIT_S = 60.0


def leave(cluster: Cluster, pop: str, *, timeout_s: float = WAIT_S, force: bool = False, say: Say = silent) -> None:
    """Take `pop` out of the cluster. Raises NoSuchPop, BadClusterSpec when nobody else is there, StartTimeout when it cannot go without loss."""
    other = next((one for one in cluster.pops.values() if one.id != pop and _answers(one)), None)
    if other is None:
        raise BadClusterSpec(f"No PoP but {pop} answers here.", hint="Somebody must stay, and tell the others.")
    members = {view["id"]: view for view in _call(other, "GET", "/v1/pops")["items"]}
    if pop not in members:
        raise NoSuchPop(f"There is no PoP {pop!r} in this cluster.", hint=f"PoPs: {', '.join(members)}.")
    own = cluster.pops.get(pop)
    is_here = own is not None and _answers(own)
    if not is_here and not force:
        raise BadClusterSpec(
            f"{pop} does not answer here, so it cannot be asked whether the others have all that it has.",
            hint="Run this on its machine, or say --force: what only it has is lost.",
        )
    if own is not None and is_here:
        _call(own, "POST", f"/v1/pops/{pop}/drain")
        try:
            _wait_handed_over(own, timeout_s, say)
        except StartTimeout:
            if not force:
                raise
    _call(other, "POST", f"/v1/pops/{pop}/leave")
    say(f"{pop} has left; {other.id} tells the others.")
    _end(cluster.home, pop, say)


def _wait_handed_over(own: PopAccess, timeout_s: float, say: Say) -> None:
    deadline_s = time.monotonic() + timeout_s
    shown = ""
    while True:
        missing = _missing(own)
        if not missing:
            return
        if missing != shown:
            shown = missing
            say(f"{own.id}: {missing}")
        if time.monotonic() > deadline_s:
            raise StartTimeout(
                f"{own.id} cannot leave yet: {missing}.",
                hint="It stays drained: try again later, `edgeflow pops undrain` to keep it, or --force: what only it has is lost.",
            )
        time.sleep(POLL_S)


def _missing(own: PopAccess) -> str:
    """What some other PoP lacks of what this one has; empty when nothing."""
    peers = [view for view in _call(own, "GET", "/v1/pops")["items"] if not view["self"]]
    heard = [view for view in peers if view["member"]["state"] not in (DOWN, SUSPECT)]
    if not heard:
        return "it hears no other PoP"
    for view in heard:
        link = view["link"] or {}
        if link.get("state") != "up":
            return f"its link to {view['id']} is {link.get('state', 'unknown')}"
        if link["entries_behind"] or link["bytes_behind"]:
            return f"{view['id']} lacks {link['entries_behind']} entries and {link['bytes_behind']} bytes of bodies"
    return ""


def _end(home: Home, pop: str, say: Say) -> None:
    """What is on this machine of it: a joined PoP ends with its folder; one of the folder's own cluster is not started any more."""
    if Identity.load(home.joined(pop)) is not None:
        down(home=home.joined(pop).root, purge=True, say=say)
        shutil.rmtree(home.joined(pop).root, ignore_errors=True)
        return
    known = Identity.load(home)
    if known is None or pop not in known.pops:
        return
    if known.pops == (pop,):
        down(home=home.root, purge=True, say=say)
        return
    replace(known, pops=tuple(one for one in known.pops if one != pop)).save(home)
    say(f"Its processes end with the next `edgeflow down`; its data stay in {home.pop_dir(pop)}.")


def _answers(access: PopAccess) -> bool:
    try:
        _call(access, "GET", "/v1/pops")
    except (httpx.HTTPError, OSError, ValueError):
        return False
    return True


def _call(access: PopAccess, method: str, path: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {access.token}"}
    with httpx.Client(base_url=access.api_url, headers=headers, timeout=ASK_S, trust_env=False) as client:
        answer = client.request(method, path)
        document: dict[str, Any] = answer.json()
    if answer.is_error:
        raise described({"code": document.get("code"), "message": document.get("detail"), "hint": document.get("hint")})
    return document
