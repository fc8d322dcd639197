"""`edgeflow status`: what runs, how it is, and how to reach it."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeflow.cli.console import out
from edgeflow.cli.reach import Output, OutputOption, print_json
from edgeflow.host.discover import Cluster, PopAccess, find
from edgeflow.sdk.trust import trusted

ASK_S = 3.0
SHOWN_MS = 3_600_000
COLOURS = {
    "ready": "green",
    "up": "green",
    "starting": "yellow",
    "degraded": "yellow",
    "connecting": "yellow",
    "joining": "yellow",
    "draining": "yellow",
    "suspect": "yellow",
    "building": "yellow",
}


def status(output: OutputOption = Output.TABLE) -> None:
    """Show each PoP: its state, its addresses and its functions; and how each PoP sees each other."""
    document = cluster_document(find())
    if output is Output.JSON:
        print_json(document)
    else:
        _print(document)


def cluster_document(cluster: Cluster) -> dict[str, Any]:
    """What `status -o json` prints: cluster, mode, state, home and a list of PoPs."""
    with ThreadPoolExecutor(max_workers=max(1, len(cluster.pops))) as pool:
        pops = list(pool.map(_pop_document, cluster.pops.values()))
    return {
        "cluster": cluster.id,
        "mode": cluster.mode,
        "state": cluster.state,
        "home": str(cluster.home.root),
        "pops": pops,
    }


def _pop_document(pop: PopAccess) -> dict[str, Any]:
    links, functions, members = _ask(pop)
    return {
        "id": pop.id,
        "state": pop.state,
        "reason": pop.reason or None,
        "api": {"url": pop.api_url, "token_file": str(pop.api_token_file)},
        "mqtt": {
            "host": pop.mqtt_host,
            "port": pop.mqtt_port,
            "ws_url": pop.mqtt_ws_url,
            "username": pop.mqtt_username,
            "password_file": str(pop.mqtt_password_file),
        },
        "processes": {
            name: {key: entry[key] for key in ("pid", "state", "restarts")} for name, entry in pop.processes.items()
        },
        "links": links,
        "members": members,
        "functions": functions,
        "drift": _drift(pop),
    }


def _drift(pop: PopAccess) -> list[dict[str, Any]]:
    """What the PoP found other than declared; empty while it does not answer."""
    try:
        headers = {"Authorization": f"Bearer {pop.token}"}
        with httpx.Client(
            base_url=pop.api_url, headers=headers, timeout=ASK_S, trust_env=False, verify=trusted(pop.api_url)
        ) as client:
            return list(client.get("/v1/drift").raise_for_status().json()["items"])
    except (httpx.HTTPError, OSError, ValueError, KeyError):
        return []


def _ask(pop: PopAccess) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Links and functions of a PoP, and how it sees the members, by its API; empty while it does not answer (its state says so)."""
    try:
        headers = {"Authorization": f"Bearer {pop.token}"}
        with httpx.Client(
            base_url=pop.api_url, headers=headers, timeout=ASK_S, trust_env=False, verify=trusted(pop.api_url)
        ) as client:
            peers = client.get("/v1/pops").raise_for_status().json()["items"]
            functions = client.get("/v1/functions").raise_for_status().json()["items"]
    except (httpx.HTTPError, OSError, ValueError, KeyError):
        return [], [], {}
    links = [
        {"peer": peer["id"], **(peer.get("link") or {"state": peer["state"]})} for peer in peers if not peer.get("self")
    ]
    here = [
        {
            "namespace": function["namespace"],
            "function": function["function"],
            "state": function["state"],
            "reason": function["reason"],
            "revision": function["revision"],
            "instances": len(function["instances"]),
        }
        for function in functions
        if function["at"] == pop.id
    ]
    return links, here, {peer["id"]: peer["member"]["state"] for peer in peers}


def _print(document: dict[str, Any]) -> None:
    out.print(
        f"cluster {document['cluster']}  mode {document['mode']}  {_coloured(document['state'])}  home {escape(document['home'])}"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("PoP", "state", "API", "MQTT", "restarts", "functions"):
        table.add_column(column, overflow="fold", no_wrap=column in ("PoP", "state", "API", "MQTT"))
    for pop in document["pops"]:
        restarts = [f"{name} {entry['restarts']}" for name, entry in pop["processes"].items() if entry["restarts"]]
        table.add_row(
            pop["id"],
            _coloured(pop["state"]),
            pop["api"]["url"],
            f"{pop['mqtt']['host']}:{pop['mqtt']['port']}",
            ", ".join(restarts) or "-",
            "\n".join(
                f"{entry['namespace']}/{entry['function']} {_coloured(entry['state'])}" for entry in pop["functions"]
            )
            or "-",
        )
    console = out if out.is_terminal else Console(width=200)
    console.print(table)
    if any(pop["members"] for pop in document["pops"]):
        console.print()
        console.print(_matrix(document["pops"]))
    for pop in document["pops"]:
        if pop["reason"] and pop["state"] != "ready":
            out.print(f"{pop['id']}: {escape(pop['reason'])}")
        for entry in pop["functions"]:
            if entry["reason"]:
                out.print(f"{entry['namespace']}/{entry['function']}: {escape(entry['reason'])}")
    _print_drift(document["pops"])


def _print_drift(pops: list[dict[str, Any]]) -> None:
    """What is not as declared, and what was healed within the last hour."""
    now_ms = time.time() * 1000
    for pop in pops:
        for one in pop["drift"]:
            if one["healed_ms"] is None:
                out.print(f"[red]drift[/] at {pop['id']}: {escape(one['detail'])}")
            elif now_ms - one["healed_ms"] < SHOWN_MS:
                age_s = (now_ms - one["healed_ms"]) / 1000
                out.print(f"[yellow]drift[/] at {pop['id']}, healed {age_s:.0f} s ago: {escape(one['detail'])}")


def _matrix(pops: list[dict[str, Any]]) -> Table:
    """Per PoP a row: how it sees each member, how long a round trip takes, and how many of its entries the member has not got."""
    everyone = sorted({member for pop in pops for member in pop["members"]})
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("seen by", no_wrap=True)
    for member in everyone:
        table.add_column(member, no_wrap=True)
    for pop in pops:
        links = {link["peer"]: link for link in pop["links"]}
        cells = [
            "." if member == pop["id"] else _seen(pop["members"].get(member), links.get(member)) for member in everyone
        ]
        table.add_row(pop["id"], *cells)
    return table


def _seen(state: str | None, link: dict[str, Any] | None) -> str:
    if state is None:
        return "-"
    behind = (link or {}).get("entries_behind") or 0
    return f"{_coloured(state)}{_rtt(link or {})}" + (f" {behind} behind" if behind else "")


def _coloured(state: str) -> str:
    return f"[{COLOURS.get(state, 'red')}]{escape(state)}[/]"


def _rtt(link: dict[str, Any]) -> str:
    rtt_ms = link.get("rtt_p50_ms", link.get("rtt_ms"))
    return f" ({rtt_ms:.1f} ms)" if isinstance(rtt_ms, int | float) else ""
