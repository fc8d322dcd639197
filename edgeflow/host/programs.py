"""The outside programs embedded mode needs: where they are and how old they are."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgeflow.host.errors import MissingProgram

# Debian keeps daemons in sbin, which is not on every user's PATH.
EXTRA_PATH = ("/usr/sbin", "/usr/local/sbin", "/sbin")
PLUGIN_NAME = "mosquitto_dynamic_security.so"
PLUGIN_PLACES = ("/usr/lib/*/", "/usr/lib/", "/usr/lib64/", "/usr/local/lib/", "/usr/lib/mosquitto/")

Version = tuple[int, ...]


@dataclass(frozen=True)
class Requirement:
    """A program, the oldest version that will do, and how to ask for the version."""

    program: str
    package: str
    minimum: Version
    version_args: tuple[str, ...]
    pattern: str


MOSQUITTO = Requirement("mosquitto", "mosquitto", (2, 0), ("-h",), r"version (\d+)\.(\d+)\.(\d+)")
REDIS = Requirement("redis-server", "redis-server", (7, 0), ("--version",), r"v=(\d+)\.(\d+)\.(\d+)")
EMBEDDED = (MOSQUITTO, REDIS)


def find_program(name: str) -> Path | None:
    """Full path of `name`, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *EXTRA_PATH])
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def version_of(requirement: Requirement) -> Version | None:
    """Version of the installed program; None when it is not installed or does not say."""
    path = find_program(requirement.program)
    if path is None:
        return None
    result = subprocess.run([path, *requirement.version_args], capture_output=True, text=True, timeout=10, check=False)
    match = re.search(requirement.pattern, result.stdout + result.stderr)
    return tuple(int(part) for part in match.groups()) if match else None


def find_plugin() -> Path | None:
    """The broker's dynamic-security plugin, or None."""
    override = os.environ.get("EDGEFLOW_DYNSEC_PLUGIN")
    if override:
        return Path(override)
    for place in PLUGIN_PLACES:
        base = Path("/")
        for found in sorted(base.glob(place.lstrip("/") + PLUGIN_NAME)):
            return found
    return None


def problems() -> dict[str, str]:
    """What embedded mode lacks here: Debian package -> what is wrong with it. Empty = nothing."""
    wrong: dict[str, str] = {}
    for requirement in EMBEDDED:
        version = version_of(requirement)
        wanted = ".".join(str(part) for part in requirement.minimum)
        if find_program(requirement.program) is None:
            wrong[requirement.package] = f"{requirement.program} is not installed (>= {wanted} is needed)"
        elif version is None:
            wrong[requirement.package] = f"{requirement.program} does not tell its version (>= {wanted} is needed)"
        elif version < requirement.minimum:
            have = ".".join(str(part) for part in version)
            wrong[requirement.package] = f"{requirement.program} {have} is too old (>= {wanted} is needed)"
    if "mosquitto" not in wrong and find_plugin() is None:
        wrong["mosquitto"] = f"{PLUGIN_NAME} was not found beside mosquitto (set EDGEFLOW_DYNSEC_PLUGIN to its path)"
    return wrong


def require(name: str) -> Path:
    """Full path of `name`. Raises MissingProgram."""
    path = find_program(name)
    if path is None:
        raise MissingProgram(f"{name} is not installed.", hint="`edgeflow doctor` says how to install it.")
    return path
