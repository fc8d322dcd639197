"""`edgeflow logs`: what functions, and the processes of a PoP, wrote."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edgeflow.cli.console import err
from edgeflow.cli.reach import PopOption
from edgeflow.errors import BadRequest, NotFound
from edgeflow.host import compose
from edgeflow.host.discover import Cluster, find
from edgeflow.host.files import tail_lines
from edgeflow.host.supervisor import PROCESSES
from edgeflow.runner.process import log_files

POLL_S = 0.2
NEWEST = 3
"""Without -f, logs of so many instances of a function are shown at each PoP."""
LABEL = "edgeflow."
"""Docker mode: what the runner's labels start with."""

Source = tuple[str, Path]
"""(label, log file)."""


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
) -> None:
    """Show the log of a function's instances; without a function, those of the agent (data and control)."""
    cluster = find()
    if pop is not None:
        cluster.pop(pop)
    if cluster.mode == "docker":
        _docker_logs(cluster, function, pop, process, follow=follow, lines=lines)
    elif function is not None:
        _show(lambda: _instance_logs(cluster, function, pop), f"instance of {function}", follow=follow, lines=lines)
    else:
        sources = _process_logs(cluster, pop, process)
        _show(lambda: sources, "process", follow=follow, lines=lines)


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
        found += [(f"{access.id} {file.stem}", file) for file in reversed(files)]
    return found


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


def _show(sources: Callable[[], list[Source]], what: str, *, follow: bool, lines: int) -> None:
    offsets: dict[Path, int] = {}
    current = sources()
    if not current and not follow:
        raise NotFound(f"No {what} has written a log here.", hint="`edgeflow get functions` lists what there is.")
    labelled = len(current) > 1 or follow
    for label, file in current:
        offsets[file] = file.stat().st_size if file.exists() else 0
        for line in tail_lines(file, lines):
            _print(label, line, labelled)
    rest: dict[Path, bytes] = {}
    while follow:
        time.sleep(POLL_S)
        for label, file in sources():
            try:
                size = file.stat().st_size
                start = offsets.get(file, 0)
                if size < start:
                    start = 0  # it was cut
                if size == start:
                    continue
                with file.open("rb") as handle:
                    handle.seek(start)
                    data = rest.pop(file, b"") + handle.read(size - start)
            except OSError:
                continue
            offsets[file] = size
            complete, newline, unfinished = data.rpartition(b"\n")
            rest[file] = unfinished
            for line in complete.decode(errors="replace").split("\n") if newline else []:
                _print(label, line, labelled)


def _print(label: str, line: str, labelled: bool) -> None:
    typer.echo(f"{label} | {line}" if labelled else line)


def _docker_logs(
    cluster: Cluster, function: str | None, pop: str | None, process: str | None, *, follow: bool, lines: int
) -> None:
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
    namespace, _, name = function.rpartition("/")
    labels = {"cluster": cluster.id, "function": name, "namespace": namespace, "pop": pop or ""}
    filters = [part for key, value in labels.items() if value for part in ("--filter", f"label={LABEL}{key}={value}")]
    listing = subprocess.run(
        ["docker", "ps", "-a", *filters, "--format", "{{.ID}} {{.Names}}"], capture_output=True, text=True, check=False
    )
    containers = [line.split(" ", 1) for line in listing.stdout.splitlines()]
    if not containers:
        raise NotFound(f"No container of {function} is there.", hint="`edgeflow get functions` lists what there is.")
    if follow:
        readers = [
            subprocess.Popen(["docker", "logs", "--tail", str(lines), "-f", identifier]) for identifier, _ in containers
        ]
        for reader in readers:
            reader.wait()
        return
    for identifier, label in reversed(containers[:NEWEST]):
        err.print(f"--- {label}")
        subprocess.run(["docker", "logs", "--tail", str(lines), identifier], check=False)
