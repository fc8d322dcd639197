"""Starts and ends a cluster, in either mode, from Python: what `edgeflow up` and `edgeflow down` do.

What must stay true: `up` on a running cluster is that cluster; a start that fails says which process and why, and leaves nothing running.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from edgeflow.host import compose, packages
from edgeflow.host.discover import Cluster, find_docker, read_embedded
from edgeflow.host.errors import AlreadyRunning, DockerFailed, HostError, ProcessFailing, StartTimeout
from edgeflow.host.files import ensure_dir, read_json, tail_lines, write_json
from edgeflow.host.layout import Home, Identity, check_host, check_pops, default_home, plan
from edgeflow.host.provision import embedded_spec, provision
from edgeflow.host.supervisor import Commands, HomeLock, stop_instances

Mode = Literal["auto", "embedded", "docker"]
Say = Callable[[str], None]

START_S = 90.0
"""How long an embedded cluster may take from start to ready."""
DOCKER_START_S = 300.0
"""The same for containers whose images are built already."""
STOP_S = 60.0
POLL_S = 0.1
SHOWN_LINES = 15


def silent(message: str) -> None:
    """For callers that show no progress."""


def choose_mode(
    mode: Mode, pops: Sequence[str] | None = None, host: str | None = None
) -> Literal["embedded", "docker"]:
    """What `auto` means here: Docker where engine, compose and a compose file with just these PoPs are there, else embedded.

    Raises DockerFailed for `host` with Docker mode.
    """
    if host is not None and mode == "docker":
        raise DockerFailed(
            "--host is for embedded mode: the PoPs of docker-compose.yml are on one machine.",
            hint="`edgeflow up --mode embedded --host ...`; docs/several-machines.md says how functions run as containers there.",
        )
    if host is not None:
        return "embedded"
    if mode != "auto":
        return mode
    fits = pops is None or set(pops) == set(_compose_pops())
    return "docker" if fits and compose.available() else "embedded"


def up(
    *,
    mode: Mode = "auto",
    pops: Sequence[str] | None = None,
    home: Path | None = None,
    say: Say = silent,
    yes: bool = False,
    ask: packages.Ask | None = None,
    any_ports: bool = False,
    commands: Commands | None = None,
    timeout_s: float | None = None,
    host: str | None = None,
) -> Cluster:
    """Start a cluster in the background and return it when all its PoPs are ready.

    `pops` None = those of the last start, else chicago, la and ny. `say` gets each step as a line. `yes` installs missing programs without a
    question, `ask` asks it. `any_ports` uses free ports instead of the documented ones. `host`: where other machines
    reach this one (None = as at the last start). Raises HostError and its kinds.
    """
    place = Home((home or default_home()).absolute())
    running = read_embedded(place) if HomeLock.is_held(place) else None
    if running is not None:
        up_joined(place, say=say)
        _same_pops(running, pops)
        _same_host(place, host)
        say(f"A cluster runs from {place.root} already.")
        return wait_ready(place, say=say, timeout_s=timeout_s or START_S)
    if choose_mode(mode, pops, host) == "docker":
        return _up_docker(place, pops, say=say, timeout_s=timeout_s or DOCKER_START_S)
    lock = HomeLock.take(place)
    try:
        identity = prepare_embedded(place, pops, say=say, yes=yes, ask=ask, any_ports=any_ports, host=host)
        pid = _spawn_supervisor(place, identity, lock, commands)
    finally:
        lock.release()  # from here on the supervisor alone holds it
    cluster = wait_ready(place, say=say, timeout_s=timeout_s or START_S, started_pid=pid)
    up_joined(place, say=say)
    return cluster


def up_joined(home: Home, *, say: Say = silent) -> None:
    """Start the PoPs that joined from folders below `home`. One that does not start is said, and stops nobody else."""
    for place in home.all_joined():
        if not HomeLock.is_held(place):
            try:
                up(mode="embedded", home=place.root, say=say)
            except HostError as error:
                say(f"{place.root.name} does not start: {error.message}")


def down_joined(home: Home, *, say: Say = silent) -> None:
    """End them."""
    for place in home.all_joined():
        _down_embedded(place, say=say)


def prepare_embedded(
    home: Home,
    pops: Sequence[str] | None,
    *,
    say: Say = silent,
    yes: bool = False,
    ask: packages.Ask | None = None,
    any_ports: bool = False,
    host: str | None = None,
) -> Identity:
    """Everything before the first process: programs, ports, files. The caller holds the HomeLock."""
    if sys.platform != "linux":
        raise HostError("Embedded mode needs Linux.", hint="Use Docker mode: `edgeflow up --mode docker`.")
    packages.ensure_programs(yes=yes, say=say, ask=ask)
    identity, moved = plan(home, tuple(pops) if pops else None, any_ports=any_ports, host=host)
    for move in moved:
        say(str(move))
    home.cluster_file.unlink(missing_ok=True)
    provision(embedded_spec(home, identity))
    return identity


def _spawn_supervisor(home: Home, identity: Identity, lock: HomeLock, commands: Commands | None) -> int:
    """Start the supervisor in the background, handing the lock over; its pid."""
    argv = [
        sys.executable,
        "-m",
        "edgeflow.host.supervisor",
        "--home",
        str(home.root),
        "--pops",
        ",".join(identity.pops),
    ]
    argv += ["--detach", "--lock-fd", str(lock.descriptor)]
    if commands:
        write_json(home.root / "commands.json", {name: list(command) for name, command in commands.items()})
        argv += ["--commands", str(home.root / "commands.json")]
    started = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, pass_fds=[lock.descriptor], check=False
    )
    if started.returncode != 0:
        raise ProcessFailing(f"The supervisor did not start: {started.stderr.strip()[-2000:]}")
    return int(started.stdout)


def wait_ready(home: Home, *, say: Say = silent, timeout_s: float = START_S, started_pid: int | None = None) -> Cluster:
    """The embedded cluster in `home` once all its PoPs are ready.

    Raises ProcessFailing with the last log lines when a process does not stay up (the cluster is stopped again if supervisor `started_pid` was
    started for this), StartTimeout naming what is missing.
    """
    deadline_s = time.monotonic() + timeout_s
    shown: dict[str, str] = {}
    cluster: Cluster | None = None
    while time.monotonic() < deadline_s:
        cluster = read_embedded(home)
        if cluster is not None:
            for pop in cluster.pops.values():
                line = f"{pop.id}: {pop.state}" + (f" ({pop.reason})" if pop.reason else "")
                if shown.get(pop.id) != line:
                    shown[pop.id] = line
                    say(line)
            failure = failing_process(home)
            if failure is not None:
                if started_pid is not None:
                    _end_supervisor(home, started_pid)
                raise failure
            if cluster.state == "ready":
                return cluster
        if not HomeLock.is_held(home):
            raise ProcessFailing(
                f"The supervisor of {home.root} ended.\n" + _indented(home.logs_dir / "supervisor.log")
            )
        time.sleep(POLL_S)
    ended = _last_words(home)
    if started_pid is not None:
        _end_supervisor(home, started_pid)
    missing = (
        [f"{pop.id}: {pop.reason}" for pop in cluster.pops.values() if pop.state != "ready"]
        if cluster
        else ["no PoP started"]
    )
    raise StartTimeout(f"Not ready after {timeout_s:.0f} s: {'; '.join(missing)}.{ended}")


def failing_process(home: Home) -> ProcessFailing | None:
    """A process of the cluster that is in a crash loop, as an error with its last log lines; None when all hold."""
    for label, entry in _processes(home):
        if entry["state"] == "failing":
            return ProcessFailing(
                f"{label} does not stay up ({entry['last_exit']}, started {entry['restarts'] + 1} times). Last lines of {entry['log']}:\n"
                + _indented(Path(entry["log"]))
            )
    return None


def _last_words(home: Home) -> str:
    """Why some process ended last and what it wrote, as the rest of a message; empty when none has."""
    for label, entry in _processes(home):
        if entry["last_exit"] is not None:
            return f" {label} had ended ({entry['last_exit']}). Last lines of {entry['log']}:\n{_indented(Path(entry['log']))}"
    return ""


def _processes(home: Home) -> list[tuple[str, dict[str, Any]]]:
    """Every process in cluster.json with its label."""
    document = read_json(home.cluster_file) or {}
    entries = [
        (f"{pop}/{name}", entry)
        for pop, info in document.get("pops", {}).items()
        for name, entry in info["processes"].items()
    ]
    if document.get("wan"):
        entries.append(("cluster/wan", document["wan"]))
    return entries


def _indented(log_file: Path) -> str:
    return "\n".join(f"    {line}" for line in tail_lines(log_file, SHOWN_LINES)) or "    (nothing was logged)"


def _same_pops(running: Cluster, pops: Sequence[str] | None) -> None:
    if pops and set(check_pops(tuple(pops))) != set(running.pops):
        raise AlreadyRunning(
            f"A cluster with the PoPs {', '.join(running.pops)} runs from {running.home.root}.",
            hint="`edgeflow down` first, then start with other PoPs.",
        )


def _same_host(place: Home, host: str | None) -> None:
    identity = Identity.load(place)
    if host is not None and identity is not None and check_host(host) != identity.host:
        raise AlreadyRunning(
            f"The cluster in {place.root} runs with the address {identity.host or '127.0.0.1'}.",
            hint="`edgeflow down` first, then start with another one.",
        )


def down(*, home: Path | None = None, purge: bool = False, say: Say = silent) -> bool:
    """End the cluster; True if one ran. `purge` also removes its data, secrets and certificates (Docker: its volumes)."""
    place = Home((home or default_home()).absolute())
    down_joined(place, say=say)
    ran = _down_embedded(place, say=say)
    if not ran and (place.root / "docker" / "cluster.json").exists():
        ran = _down_docker(place, purge=purge, say=say)
    if purge:
        _purge(place, say=say)
    return ran


def _down_embedded(home: Home, *, say: Say) -> bool:
    if not HomeLock.is_held(home):
        _end_leftovers(home)
        return False
    document = read_json(home.cluster_file) or {}
    pid = (document.get("supervisor") or {}).get("pid")
    if pid is None:
        raise HostError("A cluster is being started from this folder right now.", hint="Try again in a few seconds.")
    say("Ending control, data, broker and store of each PoP.")
    _end_supervisor(home, pid)
    return True


def _end_supervisor(home: Home, pid: int) -> None:
    """SIGTERM; SIGKILL after STOP_S, which ends its children too."""
    try:
        os.kill(pid, signal.SIGTERM)
        if not _wait_unlocked(home, STOP_S):
            os.kill(pid, signal.SIGKILL)
            _wait_unlocked(home, 5.0)
            _end_leftovers(home)
    except ProcessLookupError:
        pass


def _wait_unlocked(home: Home, timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while HomeLock.is_held(home):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _end_leftovers(home: Home) -> None:
    """After a supervisor that was killed: its processes ended with it, function instances did not. Also corrects cluster.json."""
    document = read_json(home.cluster_file)
    if document is None or document.get("mode") != "embedded" or document.get("state") == "stopped":
        return
    for pop in document["pops"]:
        stop_instances(home.pop_dir(pop) / "state")
        document["pops"][pop]["state"] = "stopped"
    write_json(home.cluster_file, {**document, "state": "stopped", "supervisor": None})


PURGED = (
    "pops",
    "ca",
    "joined",
    "logs",
    "docker",
    "venvs",
    "cluster.json",
    "identity.json",
    "wan.json",
    "commands.json",
    "lock",
)


def _purge(home: Home, *, say: Say) -> None:
    """Remove what we made, and only that: the folder may be the user's own."""
    identity = Identity.load(home)
    if identity is not None and identity.run_root.name.startswith("ef-"):
        shutil.rmtree(identity.run_root, ignore_errors=True)
    for joined in home.all_joined():
        _purge(joined, say=say)
    for name in PURGED:
        path = home.root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if home.root.is_dir() and not any(home.root.iterdir()):
        home.root.rmdir()
    say(f"Removed the cluster's data and secrets from {home.root}.")


def _up_docker(home: Home, pops: Sequence[str] | None, *, say: Say, timeout_s: float) -> Cluster:
    if pops and set(pops) != set(_compose_pops()):
        raise DockerFailed(
            f"The compose file has the PoPs {', '.join(_compose_pops())}.",
            hint="Leave --pops out, or use --mode embedded, which takes any PoPs.",
        )
    ensure_dir(home.root)
    say("Building images and starting containers (docker compose up -d --build).")
    # Without the compose file's own application: as in embedded mode, what runs on the cluster is applied by whoever starts it.
    compose.run(home, ["up", "-d", "--build", "--scale", "app=0"])
    deadline_s = time.monotonic() + timeout_s
    shown: dict[str, str] = {}
    while time.monotonic() < deadline_s:
        cluster = find_docker(home)
        for pop in cluster.pops.values() if cluster else ():
            if shown.get(pop.id) != pop.state:
                shown[pop.id] = pop.state
                say(f"{pop.id}: {pop.state}")
        if cluster is not None and all(pop.state == "ready" for pop in cluster.pops.values()):
            return cluster
        time.sleep(0.5)
    states = ", ".join(f"{pop} is {state}" for pop, state in shown.items()) or "no PoP answers"
    raise StartTimeout(
        f"Not ready after {timeout_s:.0f} s: {states}.",
        hint="`docker compose ps` and `docker compose logs` show which container is in trouble.",
    )


def _compose_pops() -> list[str]:
    """The PoPs of the compose file: those with a control service."""
    file = compose.find_compose_file()
    lines = file.read_text().splitlines() if file else []
    services = [
        line.strip().rstrip(":") for line in lines if line.startswith("  ") and line.rstrip().endswith("-control:")
    ]
    return [service.removesuffix("-control") for service in services]


def stop_containers(cluster: str) -> int:
    """End the function containers of a cluster whose control containers are gone; how many there were."""
    from edgeflow.runner.docker import stop_all  # loads the Docker library, which embedded mode does not need

    return stop_all(cluster)


def _down_docker(home: Home, *, purge: bool, say: Say) -> bool:
    say("Ending the containers (docker compose down).")
    cluster = (read_json(home.root / "docker" / "cluster.json") or {}).get("cluster")
    compose.run(home, ["stop", *(f"{pop}-control" for pop in _compose_pops())])
    if cluster:
        stop_containers(cluster)  # compose does not know the functions' containers
    compose.run(home, ["down", "--remove-orphans", *(["--volumes"] if purge else [])])
    document = read_json(home.cluster_file)
    if document is not None and document.get("mode") == "docker":
        home.cluster_file.unlink()
    (home.root / "docker" / "cluster.json").unlink(missing_ok=True)
    return True
