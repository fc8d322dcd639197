"""What this machine needs for a cluster, checked: `edgeflow doctor`.

What must stay true: every finding that is not `ok` says how to mend it; checking changes nothing.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeflow.host import compose, packages, programs
from edgeflow.host.layout import DEFAULT_POPS, Home, Identity
from edgeflow.host.ports import FIRST, is_free
from edgeflow.host.supervisor import HomeLock
from edgeflow.settings import Limits

Level = Literal["ok", "warning", "problem"]
FREE_BYTES = 2 << 30
"""Below it there is no room for a demo's data and environments."""
MEMORY_BYTES = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    detail: str
    fix: str = ""
    needed_for: Literal["both", "embedded", "docker"] = "both"


def examine(home: Home) -> list[Finding]:
    """Look at everything. Takes a second or two."""
    checks: list[Callable[[], Finding]] = [_python, _platform, _mosquitto, _plugin, _redis, _clients, _engine, _compose]
    return [*(check() for check in checks), _ports(home), _disk(home), _memory(), _overcommit()]


def usable_modes(findings: list[Finding]) -> list[str]:
    """The modes in which nothing is in the way."""
    return [
        mode
        for mode in ("embedded", "docker")
        if not any(finding.level == "problem" and finding.needed_for in ("both", mode) for finding in findings)
    ]


def _python() -> Finding:
    # Older ones cannot even load this module (pyproject.toml says so to pip); what is of use is which one runs.
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _platform() -> Finding:
    if platform.system() == "Linux":
        return Finding(
            "system",
            "ok",
            f"Linux {os.uname().release} {os.uname().machine}, {os.cpu_count()} CPUs",
            needed_for="embedded",
        )
    return Finding(
        "system", "problem", f"{platform.system()}: embedded mode needs Linux", "Use Docker mode.", "embedded"
    )


def _program(requirement: programs.Requirement) -> Finding:
    wanted = ".".join(str(part) for part in requirement.minimum)
    version = programs.version_of(requirement)
    if version is not None and version >= requirement.minimum:
        detail = f"{'.'.join(str(part) for part in version)} at {programs.find_program(requirement.program)}"
        return Finding(requirement.program, "ok", detail, needed_for="embedded")
    have = "not installed" if version is None else ".".join(str(part) for part in version)
    fix = f"{_install(requirement.package)} If that is older than {wanted} (Ubuntu 22.04), use Docker mode."
    return Finding(requirement.program, "problem", f"{have}; {wanted} is needed", fix, "embedded")


def _mosquitto() -> Finding:
    return _program(programs.MOSQUITTO)


def _redis() -> Finding:
    return _program(programs.REDIS)


def _plugin() -> Finding:
    found = programs.find_plugin()
    if found is not None and found.exists():
        return Finding("dynamic-security plugin", "ok", str(found), needed_for="embedded")
    fix = f"It comes with Debian's mosquitto: {_install('mosquitto')} Elsewhere set EDGEFLOW_DYNSEC_PLUGIN to its path."
    return Finding("dynamic-security plugin", "problem", "not found", fix, "embedded")


def _clients() -> Finding:
    if shutil.which("mosquitto_pub") is not None:
        return Finding("mosquitto_pub, mosquitto_sub", "ok", "installed")
    return Finding(
        "mosquitto_pub, mosquitto_sub",
        "warning",
        "not installed; only the examples of `edgeflow env` use them",
        _install("mosquitto-clients"),
    )


def _engine() -> Finding:
    version = compose.engine_version()
    if version is not None:
        return Finding("docker engine", "ok", version, needed_for="docker")
    if shutil.which("docker") is None:
        return Finding(
            "docker engine",
            "problem",
            "not installed",
            "Debian: scripts/docker-engine (or apt-get install docker.io).",
            "docker",
        )
    fix = "Start it (systemctl start docker, or scripts/docker-engine), and be in its group (usermod -aG docker $USER, then log in again)."
    return Finding("docker engine", "problem", "does not answer", fix, "docker")


def _compose() -> Finding:
    command = compose.compose_command()
    file = compose.find_compose_file()
    if command is None:
        return Finding("docker compose", "problem", "not installed", "Debian: apt-get install docker-compose", "docker")
    if file is None:
        return Finding(
            "docker compose",
            "problem",
            "no docker-compose.yml of edgeflow here",
            "Run in a clone, or set EDGEFLOW_COMPOSE_FILE.",
            "docker",
        )
    return Finding("docker compose", "ok", f"{' '.join(command)}, {file}", needed_for="docker")


def _ports(home: Home) -> Finding:
    if HomeLock.is_held(home):
        return Finding("ports", "ok", "in use by this cluster")
    identity = Identity.load(home)
    if identity is not None:
        wanted = {port: f"{kind} of {owner}" for (kind, owner), port in identity.ports.items()}
    else:
        wanted = {
            FIRST[kind] + n: f"{kind} of {pop}"
            for kind in ("api", "mqtt", "link")
            for n, pop in enumerate(DEFAULT_POPS)
        }
    taken = [f"{port} ({what})" for port, what in sorted(wanted.items()) if not is_free(port)]
    if not taken:
        return Finding("ports", "ok", f"{', '.join(str(port) for port in sorted(wanted))} are free")
    fix = "Embedded mode moves to others and says so. Docker mode: set EDGEFLOW_API_PORT_<POP> and EDGEFLOW_MQTT_PORT_<POP>."
    return Finding("ports", "warning", f"taken by others: {', '.join(taken)}", fix)


def _disk(home: Home) -> Finding:
    folder = next(path for path in (home.root, *home.root.parents) if path.exists())
    usage = shutil.disk_usage(folder)
    detail = f"{usage.free / (1 << 30):.1f} GiB free at {folder}"
    if usage.free < FREE_BYTES:
        least = Limits().disk_free_bytes
        fix = f"Free some space, or set EDGEFLOW_HOME to another disk: below {least >> 20} MiB PoPs take no new data."
        return Finding("disk", "warning" if usage.free >= 2 * least else "problem", detail, fix)
    return Finding("disk", "ok", detail)


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"{total / (1 << 30):.1f} GiB"
    if total < MEMORY_BYTES:
        return Finding(
            "memory",
            "warning",
            detail,
            "Three PoPs with functions like to have 2 GiB; use fewer PoPs: edgeflow up --pops a",
        )
    return Finding("memory", "ok", detail)


def _overcommit() -> Finding:
    try:
        value = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    except OSError:
        return Finding("vm.overcommit_memory", "ok", "not known here")
    if value == "2":
        fix = "sysctl vm.overcommit_memory=1"
        return Finding(
            "vm.overcommit_memory", "warning", "2: Redis may fail to rewrite its log when memory is low", fix
        )
    return Finding("vm.overcommit_memory", "ok", value)


def _install(package: str) -> str:
    command = packages.install_command({package: ""})
    return f"{' '.join(command)}." if command else f"Install {package} with this system's package manager."
