"""`edgeflow pops`: the members of the cluster.

What it is: who is there, how each PoP sees the others, and what is recorded of each.
What it is not: the processes of a PoP (`status`, `up`, `down`).
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from edgeflow.cli.console import out, say
from edgeflow.cli.reach import Output, OutputOption, PopOption, client_of, confirm, errors, find, print_json, show
from edgeflow.host import departing, joining
from edgeflow.host.layout import default_home

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


@app.command()
def token(
    for_pop: Annotated[
        str | None,
        typer.Option("--for", help="Id that the new PoP must take; any that is free if not given.", metavar="NAME"),
    ] = None,
    ttl_s: Annotated[int, typer.Option("--ttl", help="Seconds that the token holds.", min=1)] = 3600,
    url: Annotated[
        str | None, typer.Option(help="Where the new PoP reaches this one's API, if that is not its own address.")
    ] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a token with which one new PoP joins, once: address and secret of this PoP, and the fingerprint of the cluster's CA. Keep it as a password."""
    with client_of(pop) as client:
        made = client.make_join_token({"pop": for_pop, "ttl_s": ttl_s, "url": url})
    if output is Output.JSON:
        print_json(made)
        return
    typer.echo(made["token"])
    errors.print(
        f"holds until {_time(made['expires_ms'])}, once; on the new machine: edgeflow pops join TOKEN"
        + ("" if for_pop else " --pop NAME")
    )


@app.command()
def tokens(pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The tokens that a PoP has made, without their secrets."""
    with client_of(pop) as client:
        items = client.join_tokens()
    columns = {
        "ID": lambda item: item["id"],
        "FOR": lambda item: item["pop"],
        "UNTIL": lambda item: _time(item["expires_ms"]),
        "USED BY": lambda item: item["used_by"],
    }
    show(output, items, columns, empty="no tokens")


@app.command()
def join(
    text: Annotated[
        str, typer.Argument(help="What `edgeflow pops token` printed.", metavar="TOKEN", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option("--pop", help="Id of the new PoP, unless the token says it.", metavar="NAME")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address of this machine at which other PoPs and clients reach it.")
    ] = "127.0.0.1",
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait until it has all that the others have.", min=0)
    ] = 600.0,
) -> None:
    """Start a new PoP of the token's cluster here, in the background, and wait until it has all that the others have.

    Its key is made here. Where a cluster lives in $EDGEFLOW_HOME already, the new PoP gets a folder below it, and comes and goes with `up` and `down`.
    """
    joined = joining.join(text, pop=name, home=default_home(), host=host, timeout_s=timeout_s, say=say)
    for access in joined.pops.values():
        out.print(f"[green]{access.id}[/green]  api {access.api_url}  mqtt {access.mqtt_host}:{access.mqtt_port}")


@app.command()
def drain(name: NameArgument, pop: PopOption = None) -> None:
    """Let a PoP take no new clients and hand over its functions, until `undrain`."""
    with client_of(pop) as client:
        client.wish_of_pop(name, "drain")
    errors.print(f"{name}: draining")


@app.command()
def undrain(name: NameArgument, pop: PopOption = None) -> None:
    """End a drain."""
    with client_of(pop) as client:
        client.wish_of_pop(name, "undrain")
    errors.print(f"{name}: up")


@app.command()
def leave(
    name: NameArgument,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait until the others have all that it has.", min=0)
    ] = 60.0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also when it does not answer, or is not ready to go: what only it has is lost."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a PoP out of the cluster for good: it is drained, waits until the others have all that it has, and leaves; nothing waits for it any more.

    A PoP that joined on this machine is ended and its data removed.
    """
    confirm(f"{name} leaves the cluster for good, and its data go.", yes=yes)
    departing.leave(find(), name, timeout_s=timeout_s, force=force, say=say)
    errors.print(f"{name}: left")


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
