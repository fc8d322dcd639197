"""`edgeflow top`: what functions and their instances are doing right now, at all PoPs.

What it is: two looks some time apart, and what lies between them: rates and processor shares.
What it is not: a monitor with a memory; /metrics feeds one.
What must stay true: a PoP that does not answer is named and left out; a counter that began again gives no rate.
"""

import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edgeflow.cli import reach
from edgeflow.cli.admin import Operator
from edgeflow.cli.reach import AnyPopOption, Output, OutputOption, errors, print_json, size_text
from edgeflow.errors import BadRequest, EdgeflowError, Unavailable

COLOURS = {"ready": "green", "failing": "red", "hung": "red", "lost": "yellow", "parked": "cyan"}
NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True)
class Look:
    """What the PoPs said at one moment."""

    at_s: float
    functions: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    """By PoP, namespace, function."""
    instances: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """By PoP and instance."""
    silent: list[str] = field(default_factory=list)


def top(
    function: Annotated[
        str | None, typer.Argument(help="Only <namespace>/<function>, or <namespace>.", show_default=False)
    ] = None,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks, from 0.2 on.")] = 1.0,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show functions and instances as they work: state, rate, in flight, handler times, backlog, memory, processor. Ctrl-C ends it.

    -o json, or no terminal: two looks, and the end. Handler times are of the newest 2000 invocations.
    """
    if not 0.2 <= every <= 3600:
        raise BadRequest(f"--every {every:g}: from 0.2 to 3600 seconds")
    cluster = reach.find()
    names = [cluster.pop(pop).id] if pop is not None else list(cluster.pops)
    clients = {name: Operator(cluster.pop(name).api_url, cluster.pop(name).token, retry_s=1.0) for name in names}
    namespace, _, name = (function or "").partition("/")
    try:
        before = look(clients, namespace, name)
        time.sleep(every)
        now = look(clients, namespace, name)
        if output is Output.JSON:
            print_json(rows(before, now))
        elif not sys.stdout.isatty():
            Console(width=200).print(table(before, now))
        else:
            with Live(table(before, now), screen=True, auto_refresh=False) as live:
                while True:
                    time.sleep(every)
                    before, now = now, look(clients, namespace, name)
                    live.update(table(before, now), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        for client in clients.values():
            client.close()
    if now.silent and output is Output.JSON:
        errors.print(f"[yellow]not there:[/yellow] {escape(', '.join(now.silent))}")


def look(clients: Mapping[str, Operator], namespace: str, name: str) -> Look:
    """Ask all PoPs. Raises Unavailable when none of them answers."""
    found = Look(time.monotonic())
    trouble: EdgeflowError | None = None
    for pop, client in clients.items():
        try:
            functions, instances = client.functions(namespace or None), client.instances(namespace or None)
        except EdgeflowError as error:
            found.silent.append(pop)
            trouble = error
            continue
        for one in functions:
            if one["at"] == pop and name in ("", one["function"]):
                found.functions[pop, one["namespace"], one["function"]] = one
        for one in instances:
            if name in ("", one["function"]):
                found.instances[pop, one["instance"]] = one
    if trouble is not None and len(found.silent) == len(clients):
        raise trouble if isinstance(trouble, Unavailable) else Unavailable(trouble.message)
    return found


def rows(before: Look, now: Look) -> list[dict[str, Any]]:
    """One row for each function, with its instances below it."""
    found = []
    for key, one in sorted(now.functions.items()):
        pop, namespace, name = key
        stats, inbox = one["stats"] or NOTHING, one["inbox"] or NOTHING
        earlier = (before.functions.get(key) or NOTHING).get("stats") or NOTHING
        handler = stats.get("handler_ms") or NOTHING
        instances = [
            _instance(instance, before.instances.get((at, id), NOTHING), now.at_s - before.at_s)
            for (at, id), instance in sorted(now.instances.items())
            if (at, instance["namespace"], instance["function"]) == key
        ]
        found.append(
            {
                "function": f"{namespace}/{name}", "pop": pop, "state": one["state"], "reason": one["reason"],
                "rate_per_s": _rate(earlier.get("invocations"), stats.get("invocations"), now.at_s - before.at_s),
                "failed": stats.get("failed"), "in_flight": sum(each["in_flight"] for each in instances),
                "handler_p50_ms": handler.get("p50"), "handler_p99_ms": handler.get("p99"),
                "backlog": sum(inbox.get(state) or 0 for state in ("ready", "delayed", "turn")), "oldest_ms": inbox.get("oldest_ms"),
                "memory_bytes": _total(each["memory_bytes"] for each in instances),
                "cpu_percent": _total(each["cpu_percent"] for each in instances), "instances": instances,
            }
        )  # fmt: skip
    return found


def _instance(now: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    share = _rate(before.get("cpu_s"), now["cpu_s"], seconds)
    return {
        "instance": now["instance"], "revision": now["revision"], "state": now["state"],
        "rate_per_s": _rate(before.get("committed"), now["committed"], seconds), "failed": now["failed"], "in_flight": now["in_flight"],
        "memory_bytes": now["memory_bytes"], "cpu_percent": None if share is None else round(share * 100, 1), "processes": now["processes"],
    }  # fmt: skip


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    if before is None or now is None or now < before:
        return None
    return round((now - before) / seconds, 3)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 1) if known else None


def table(before: Look, now: Look) -> Table:
    """The rows for people."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in (
        "FUNCTION",
        "POP",
        "STATE",
        "RATE/s",
        "IN FLIGHT",
        "p50/p99 ms",
        "BACKLOG",
        "FAILED",
        "MEMORY",
        "CPU %",
    ):
        shown.add_column(title, justify="left" if title in ("FUNCTION", "POP", "STATE") else "right", no_wrap=True)
    for row in rows(before, now):
        times = "-" if row["handler_p50_ms"] is None else f"{row['handler_p50_ms']:.1f}/{row['handler_p99_ms']:.1f}"
        _add(shown, row, row["function"], row["pop"], times, str(row["backlog"]))
        for instance in row["instances"]:
            _add(shown, instance, f"  {instance['instance'].rpartition('-')[2]}", "", "", "")
    if now.silent:
        shown.caption = f"not there: {escape(', '.join(now.silent))}"
    return shown


def _add(shown: Table, row: Mapping[str, Any], name: str, pop: str, times: str, backlog: str) -> None:
    state = f"[{COLOURS.get(row['state'], 'yellow')}]{escape(row['state'])}[/]"
    rate = "-" if row["rate_per_s"] is None else f"{row['rate_per_s']:.1f}"
    memory = "-" if row["memory_bytes"] is None else size_text(int(row["memory_bytes"]))
    share = "-" if row["cpu_percent"] is None else f"{row['cpu_percent']:.0f}"
    failed = "-" if row["failed"] is None else str(row["failed"])
    shown.add_row(escape(name), pop, state, rate, str(row["in_flight"]), times, backlog, failed, memory, share)
