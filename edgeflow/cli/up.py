"""`edgeflow up`: start a cluster, in front of the user's eyes or in the background."""

import asyncio
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edgeflow.cli.console import ask, err, out, say
from edgeflow.cli.reach import Output, OutputOption, print_json
from edgeflow.cli.status import cluster_document
from edgeflow.errors import EdgeflowError
from edgeflow.host import lifecycle
from edgeflow.host.discover import Cluster, find
from edgeflow.host.files import ensure_dir
from edgeflow.host.layout import Home, default_home
from edgeflow.host.supervisor import HomeLock, Supervisor, configure_logging, supervise

COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "degraded": "yellow",
    "failing": "red",
    "stopped": "dim",
    "stopping": "dim",
}


class Mode(StrEnum):
    AUTO = "auto"
    EMBEDDED = "embedded"
    DOCKER = "docker"


def up(
    pops: Annotated[
        str | None,
        typer.Option(help="PoP ids, comma-separated (default: those of the last start, else chicago,la,ny)."),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="embedded: local processes; docker: containers; auto: docker if an engine answers.")
    ] = Mode.AUTO,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when all PoPs are ready; they go on in the background.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Install missing programs without a question.")] = False,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address at which other machines reach this one: links and API listen for them (default: as at the last start, else loopback only)."
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a cluster and keep its processes running.

    In the foreground it shows the state of each PoP; what dies is started again with backoff, and Ctrl-C ends all. Secrets, ports and data
    are those of the last start from the same $EDGEFLOW_HOME.
    """
    chosen = [pop.strip() for pop in pops.split(",") if pop.strip()] if pops else None
    home = Home(default_home())
    here = lifecycle.choose_mode(mode.value, chosen, host) == "embedded"
    if detach or not here or HomeLock.is_held(home):
        cluster = lifecycle.up(mode=mode.value, pops=chosen, home=home.root, say=say, yes=yes, ask=ask, host=host)
        _introduce(cluster, output)
        return
    lock = HomeLock.take(home)
    try:
        identity = lifecycle.prepare_embedded(home, chosen, say=say, yes=yes, ask=ask, host=host)
        _run_in_foreground(home, identity.pops, output)
    finally:
        lock.release()


def _introduce(cluster: Cluster, output: Output) -> None:
    if output is Output.JSON:
        print_json(cluster_document(cluster))
        return
    for pop in cluster.pops.values():
        out.print(f"[green]{pop.id}[/green]  api {pop.api_url}  mqtt {pop.mqtt_host}:{pop.mqtt_port}")
    out.print("`edgeflow env` prints what to paste, `edgeflow down` ends it.", markup=False)


def _run_in_foreground(home: Home, pops: tuple[str, ...], output: Output) -> None:
    interactive = err.is_terminal and output is Output.TABLE
    failures: list[EdgeflowError] = []
    shown: dict[str, str] = {}
    introduced = False

    ensure_dir(home.logs_dir)
    with ExitStack() as stack:
        log_file = stack.enter_context((home.logs_dir / "supervisor.log").open("a"))
        configure_logging(log_file)
        live = stack.enter_context(Live(console=err, auto_refresh=False)) if interactive else None

        def changed(supervisor: Supervisor) -> None:
            nonlocal introduced
            if live is not None:
                live.update(_table(supervisor), refresh=True)
            else:
                _print_changes(supervisor, shown)
            if not introduced and not supervisor.stopping:
                if supervisor.state == "ready":
                    introduced = True
                    supervisor.write_now()
                    if not interactive:
                        _introduce(find(home.root), output)
                elif supervisor.state == "failing":
                    # It never worked, so waiting will not help: say why and give up. Once it worked, it goes on trying.
                    supervisor.write_now()
                    failure = lifecycle.failing_process(home)
                    if failure is not None:
                        failures.append(failure)
                        supervisor.request_stop()

        asyncio.run(supervise(home, pops, changed=changed))
    if failures:
        raise failures[0]


def _print_changes(supervisor: Supervisor, shown: dict[str, str]) -> None:
    for pop in supervisor.pops.values():
        line = f"{pop.pop}: {pop.state}" + (f" ({pop.reason})" if pop.reason and pop.state != "ready" else "")
        if shown.get(pop.pop) != line:
            shown[pop.pop] = line
            say(line)


def _table(supervisor: Supervisor) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", show_header=True, header_style="dim")
    for column in ("PoP", "state", "API", "MQTT", "restarts", ""):
        table.add_column(column)
    for pop in supervisor.pops.values():
        state = "stopping" if supervisor.stopping and pop.state != "stopped" else pop.state
        restarts = {name: child.restarts for name, child in pop.children.items() if child.restarts}
        public = pop.settings["public"]
        table.add_row(
            pop.pop,
            f"[{COLOURS[state]}]{state}[/]",
            public["api_url"],
            f"{public['mqtt_host']}:{public['mqtt_port']}",
            ", ".join(f"{name} {count}" for name, count in restarts.items()) or "-",
            "" if pop.ready or supervisor.stopping else escape(pop.reason),
        )
    ended = all(pop.state == "stopped" for pop in supervisor.pops.values())
    if supervisor.stopping:
        table.caption = (
            "ended; data stays (edgeflow down --purge removes it)" if ended else "ending … (Ctrl-C again: at once)"
        )
    else:
        table.caption = "Ctrl-C ends all. In another terminal: edgeflow env, edgeflow status"
    table.caption_justify = "left"
    return table
