"""`edgeflow logs`: what functions, and the processes of a PoP, wrote.

What it is: the last lines of each log and, with -f, the new ones, of all PoPs; lines of functions with the invocation they belong to.
What must stay true: what is kept is bounded where it is written (the runner, the engine), and -n bounds what is read of it; `-o json` gives the
lines as they were written.
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgeflow.cli import loglines
from edgeflow.cli.reach import Output, OutputOption, PopOption
from edgeflow.errors import BadRequest, NotFound
from edgeflow.host import compose
from edgeflow.host.discover import Cluster, find
from edgeflow.host.files import tail_lines
from edgeflow.host.supervisor import PROCESSES
from edgeflow.runner.process import log_files

POLL_S = 0.2
CONTAINERS_S = 2.0
"""Time between two looks for containers that have begun since."""
NEWEST = 3
"""Without -f, logs of so many instances of a function are shown at each PoP."""
LABEL = "edgeflow."
"""Docker mode: what the runner's labels start with."""

Source = tuple[str, Path]
"""(label, log file)."""
Show = Callable[[str, str], None]
"""Prints a line of a log with this label."""


def logs(
    function: Annotated[
        str | None, typer.Argument(help="<namespace>/<function>, or the function's name alone.", show_default=False)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from the end of each log.")] = 50,
    pop: PopOption = None,
    process: Annotated[
        str | None,
        typer.Option(
            help="Instead of a function: redis, broker, data, control, wan or supervisor.", show_default=False
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the log of a function's instances at all PoPs; without a function, those of the agent (data and control).

    Lines of functions are shown with their time, instance and invocation; -o json prints each as it was written, as JSON with `log` for where it is from.
    """
    cluster = find()
    if pop is not None:
        cluster.pop(pop)
    if output is Output.JSON and cluster.mode == "docker" and function is None:
        raise BadRequest(
            "The logs of a PoP's containers come from compose as they are.",
            hint="Leave -o json out, or name a function.",
        )
    show = _printer(output, readable=function is not None)
    if cluster.mode == "docker":
        _docker_logs(cluster, function, pop, process, follow=follow, lines=lines, show=show)
    elif function is not None:
        _show(lambda: _instance_logs(cluster, function, pop), f"instance of {function}", follow, lines, show)
    else:
        sources = _process_logs(cluster, pop, process)
        _show(lambda: sources, "process", follow, lines, show)


def _printer(output: Output, *, readable: bool) -> Show:
    if output is Output.JSON:
        return lambda label, line: typer.echo(json.dumps({"log": label, **loglines.read(line)}, ensure_ascii=False))
    if not readable:
        return lambda label, line: typer.echo(f"{label} | {line}" if label else line)
    console = Console(highlight=False, soft_wrap=True)
    return lambda label, line: console.print(loglines.render(loglines.read(line), label))


def _instance_logs(cluster: Cluster, function: str, pop: str | None) -> list[Source]:
    namespace, _, name = function.rpartition("/")
    found: list[Source] = []
    for access in cluster.pops.values():
        if pop not in (None, access.id):
            continue
        state_dir = cluster.home.pop_dir(access.id) / "state"
        if namespace:
            files = log_files(state_dir, namespace, name)[:NEWEST]
        else:
            logs_dir = cluster.home.instance_logs_dir(access.id)
            files = sorted(logs_dir.glob(f"*.{name[:20]}-*.log"), key=lambda file: file.stat().st_mtime, reverse=True)[
                :NEWEST
            ]
        found += [(_label(access.id, file.stem), file) for file in reversed(files)]
    return found


def _label(pop: str, instance: str) -> str:
    """`la detect-3fa2`: the PoP, and the instance without its namespace."""
    return f"{pop} {instance.partition('.')[2] or instance}"


def _process_logs(cluster: Cluster, pop: str | None, process: str | None) -> list[Source]:
    if process in ("wan", "supervisor"):
        return [(process, cluster.home.logs_dir / f"{process}.log")]
    if process is not None and "/" in process:
        pop, process = process.split("/", 1)
        cluster.pop(pop)
    if process is not None and process not in PROCESSES:
        raise BadRequest(
            f"There is no process {process!r}.", hint=f"It is one of {', '.join(PROCESSES)}, wan, supervisor."
        )
    names = ("data", "control") if process is None else (process,)
    pops = [access.id for access in cluster.pops.values() if pop in (None, access.id)]
    return [(f"{each}/{name}", cluster.home.pop_logs_dir(each) / f"{name}.log") for each in pops for name in names]


def _show(sources: Callable[[], list[Source]], what: str, follow: bool, lines: int, show: Show) -> None:
    current = sources()
    if not current and not follow:
        raise NotFound(f"No {what} has written a log here.", hint="`edgeflow get functions` lists what there is.")
    follower = loglines.Follower()
    follower.skip(file for _, file in current)
    labelled = len(current) > 1 or follow or what != "process"
    for label, file in current:
        for line in tail_lines(file, lines):
            show(label if labelled else "", line)
    while follow:
        time.sleep(POLL_S)
        labels = {file: label for label, file in sources()}
        for file, line in follower.lines(labels):
            show(labels[file], line)


def _docker_logs(
    cluster: Cluster, function: str | None, pop: str | None, process: str | None, *, follow: bool, lines: int, show: Show
) -> None:  # fmt: skip
    if function is None:
        service = {"redis": "store"}.get(process or "", process or "")
        names = ["data", "control"] if not service else [service]
        services = (
            ["wan"]
            if service == "wan"
            else [f"{each}-{name}" for each in cluster.pops if pop in (None, each) for name in names]
        )
        base, environment = compose.command(cluster.home)
        subprocess.run(
            [*base, "logs", "--tail", str(lines), *(["-f"] if follow else []), *services], env=environment, check=False
        )
        return
    containers = _containers(cluster, function, pop)
    if not containers and not follow:
        raise NotFound(f"No container of {function} is there.", hint="`edgeflow get functions` lists what there is.")
    if not follow:
        for identifier, label in reversed(containers[: NEWEST * len(cluster.pops)]):
            _read_container(["--tail", str(lines), identifier], label, show)
        return
    followed: set[str] = set()
    while True:
        for identifier, label in _containers(cluster, function, pop):
            if identifier not in followed:
                options = ["--tail", str(lines) if not followed else "all", "-f", identifier]
                followed.add(identifier)
                threading.Thread(target=_read_container, args=(options, label, show), daemon=True).start()
        time.sleep(CONTAINERS_S)


def _containers(cluster: Cluster, function: str, pop: str | None) -> list[tuple[str, str]]:
    """(id, label) of a function's containers, the newest first."""
    namespace, _, name = function.rpartition("/")
    labels = {"cluster": cluster.id, "function": name, "namespace": namespace, "pop": pop or ""}
    filters = [part for key, value in labels.items() if value for part in ("--filter", f"label={LABEL}{key}={value}")]
    form = f'{{{{.ID}}}} {{{{.Label "{LABEL}pop"}}}} {{{{.Label "{LABEL}instance"}}}}'
    listing = subprocess.run(["docker", "ps", "-a", *filters, "--format", form], capture_output=True, text=True, check=False)  # fmt: skip
    found = [line.split(" ", 2) for line in listing.stdout.splitlines()]
    return [(identifier, _label(at, instance)) for identifier, at, instance in found]


def _read_container(options: list[str], label: str, show: Show) -> None:
    with subprocess.Popen(
        ["docker", "logs", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as reader:  # fmt: skip
        assert reader.stdout is not None
        for line in reader.stdout:
            show(label, line.rstrip("\n"))
