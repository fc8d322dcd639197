"""`edgeflow get`: what the cluster has: functions, channels, PoPs, pending joins."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from edgeflow.cli.reach import AnyPopOption, Output, OutputOption, clients_of, show
from edgeflow.core.events import time_text
from edgeflow.errors import NotFound

app = typer.Typer(help="Show functions, channels, PoPs and pending joins.", no_args_is_help=True)

NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")]


@app.command("functions")
def functions(namespace: NamespaceOption = None, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The functions with their state, instances, inbox and times. Each is described by the PoP that runs it, if that PoP answers."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name, client in clients_of(pop):
        for item in client.functions(namespace):
            key = (item["namespace"], item["function"])
            if key not in found or item["at"] == name:
                found[key] = item
    columns = {
        "FUNCTION": lambda item: f"{item['namespace']}/{item['function']}",
        "AT": lambda item: item["at"],
        "STATE": lambda item: item["state"],
        "INSTANCES": lambda item: len(item["instances"]),
        "WAITING": lambda item: item["inbox"]["ready"] + item["inbox"]["delayed"] if item["inbox"] else None,
        "CLAIMED": lambda item: item["inbox"]["claimed"] if item["inbox"] else None,
        "DONE": lambda item: _stat(item, "invocations"),
        "FAILED": lambda item: _stat(item, "failed"),
        "PLATFORM p50/p99 ms": lambda item: _times(item, "platform_ms"),
        "HANDLER p50/p99 ms": lambda item: _times(item, "handler_ms"),
        "REVISION": lambda item: item["revision"],
        "REASON": lambda item: item["reason"],
    }
    show(
        output,
        [found[key] for key in sorted(found)],
        columns,
        empty="no functions; apply a manifest with `edgeflow apply -f edgeflow.yaml`",
    )


@app.command("channels")
def channels(namespace: NamespaceOption = None, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The channels that have had an event, with how many each PoP has released."""
    counts: dict[str, dict[str, int]] = {}
    for name, client in clients_of(pop):
        try:
            for item in client.channels(namespace):
                counts.setdefault(item["channel"], {})[name] = item["events"]
        except NotFound:
            continue  # this PoP has nothing of that namespace
    items = [{"channel": channel, "events": events} for channel, events in sorted(counts.items())]
    pops = sorted({name for events in counts.values() for name in events})
    columns: dict[str, Any] = {"CHANNEL": lambda item: item["channel"]}
    for name in pops:
        columns[name.upper()] = lambda item, name=name: item["events"].get(name, 0)
    show(output, items, columns, empty="no channels have had an event yet")


@app.command("pops")
def pops(pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The PoPs that answer, with their links."""
    items = []
    for _, client in clients_of(pop):
        views = client.pops()
        links = {view["id"]: {"state": view["state"], **(view["link"] or {})} for view in views[1:]}
        items.append({**views[0], "links": links})
    columns = {
        "POP": lambda item: item["id"],
        "STATE": lambda item: item["state"],
        "NAMESPACES": lambda item: ", ".join(
            view["namespace"] for view in item["namespaces"] if view["namespace"] != "system"
        ),
        "LINKS": lambda item: ", ".join(_link(name, link) for name, link in item["links"].items()),
        "API": lambda item: item["api_url"],
    }
    show(output, items, columns, empty="no PoP answers")


@app.command("joins")
def joins(namespace: NamespaceOption = None, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """Joins that wait for their other inputs, the first to be given up first."""
    items: list[dict[str, Any]] = []
    for name, client in clients_of(pop):
        try:
            items += [{"pop": name, **item} for item in client.joins(namespace)]
        except NotFound:
            continue  # this PoP has nothing of that namespace
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    columns = {
        "POP": lambda item: item["pop"],
        "FUNCTION": lambda item: f"{item['namespace']}/{item['function']}",
        "KEY": lambda item: item["key"],
        "HAVE": lambda item: ", ".join(item["have"]),
        "NEEDED": lambda item: item["needed"],
        "SINCE": lambda item: time_text(item["since_ms"]),
        "LEFT": lambda item: f"{max(0, item['due_ms'] - now_ms) / 1000:.1f} s",
    }
    show(output, sorted(items, key=lambda item: item["due_ms"]), columns, empty="no joins wait")


def _stat(item: dict[str, Any], name: str) -> Any:
    return (item["stats"] or {}).get(name)


def _times(item: dict[str, Any], name: str) -> str | None:
    times = (item["stats"] or {}).get(name) or {}
    return (
        f"{times['p50']:.1f} / {times['p99']:.1f}"
        if times.get("p50") is not None and times.get("p99") is not None
        else None
    )


def _link(name: str, link: dict[str, Any]) -> str:
    rtt_ms = link.get("rtt_ms")
    return f"{name} {link['state']}" + (
        f" {rtt_ms:.1f} ms" if isinstance(rtt_ms, int | float) and link["state"] == "up" else ""
    )
