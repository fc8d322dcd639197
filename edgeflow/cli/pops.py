"""`edgeflow pops`: the members of the cluster.

What it is: who is there, how each PoP sees the others, and what is recorded of each.
What it is not: the processes of a PoP (`status`, `up`, `down`).
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from edgeflow.cli.reach import Output, OutputOption, PopOption, client_of, print_json, show

app = typer.Typer(no_args_is_help=True, help="The PoPs of the cluster: who is there, who comes, who goes.")

NameArgument = Annotated[str, typer.Argument(help="Id of the PoP.", metavar="POP", show_default=False)]


@app.command("list")
def list_pops(pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The members as one PoP sees them: state, round trips, how far they are behind, place, cost."""
    with client_of(pop) as client:
        views = client.pops()
    columns = {
        "POP": lambda view: view["id"],
        "STATE": lambda view: view["member"]["state"],
        "RTT": lambda view: _ms((view["link"] or {}).get("rtt_p50_ms")),
        "P99": lambda view: _ms((view["link"] or {}).get("rtt_p99_ms")),
        "BEHIND": lambda view: (view["link"] or {}).get("entries_behind"),
        "LINE": lambda view: _rate((view["link"] or {}).get("bandwidth_bytes_s")),
        "LOCATION": lambda view: _place(view["member"]["location"]),
        "COST": lambda view: f"{view['member']['cost']:g}",
        "VERSION": lambda view: view["member"]["version"],
        "API": lambda view: view["api_url"],
    }
    show(output, views, columns, empty="no PoP answers")


@app.command("show")
def show_pop(name: NameArgument, pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """What is recorded of one PoP, and how `--pop` sees it; also of one that left."""
    with client_of(pop) as client:
        view = client.pop(name)
    if output is Output.JSON:
        print_json(view)
        return
    member, link = view["member"], view["link"] or {}
    facts: dict[str, Any] = {
        "pop": view["id"],
        "state": member["state"],
        "wished": member["wished"],
        "api": member["url"],
        "mqtt": _address(member["mqtt"]),
        "link": _address(member["link"]),
        "location": _place(member["location"]),
        "labels": ", ".join(f"{name}={value}" for name, value in member["labels"].items()),
        "capacity": _capacity(member["capacity"]),
        "cost": f"{member['cost']:g}",
        "version": member["version"],
        "added": _time(member["added_ms"]) + (f", by a token of {member['admitted']}" if member["admitted"] else ""),
        "complete": _time(member["joined_ms"]),
        **{name: value for name, value in link.items() if value not in (None, "")},
    }
    rows = [{"what": name, "is": value} for name, value in facts.items()]
    show(output, rows, {"WHAT": lambda row: row["what"], "": lambda row: row["is"]}, empty="")


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:g} ms"


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value * 8 / 1e6:.3g} Mbit/s"


def _place(location: dict[str, Any] | None) -> str | None:
    if location is None:
        return None
    at = f"{location['lat']:g}, {location['lon']:g}"
    return f"{location['name']} ({at})" if location["name"] else at


def _address(address: dict[str, Any] | None) -> str | None:
    return None if address is None else f"{address['host']}:{address['port']}"


def _capacity(capacity: dict[str, Any] | None) -> str | None:
    return None if capacity is None else f"{capacity['cpus']:g} CPUs, {capacity['memory'] / 2**30:.1f} GiB"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at_ms else "not yet"
