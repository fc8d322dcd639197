"""Installs missing programs through apt, after asking.

What it is not: a package manager. It runs one `apt-get install` of named Debian packages.
What must stay true: without `--yes`, CI=true or being root already, nothing is changed before the user said yes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping

from edgeflow.host import programs
from edgeflow.host.errors import MissingProgram

Say = Callable[[str], None]
Ask = Callable[[str], bool]


def ensure_programs(*, yes: bool, say: Say, ask: Ask | None = None) -> None:
    """Make sure mosquitto and redis-server are there, installing them if the user agrees.

    `ask(question)` returns the user's answer; None = nobody can be asked. Raises MissingProgram with the command to type.
    """
    wrong = programs.problems()
    if not wrong:
        return
    command = install_command(wrong)
    reasons = "; ".join(wrong.values())
    if command is None:
        raise MissingProgram(
            f"{reasons}.",
            hint="Install Mosquitto >= 2.0 and Redis >= 7.0 with this system's package manager, or use Docker mode.",
        )
    by_hand = " ".join(command)
    if not may_install(yes=yes):
        say(f"Embedded mode needs more programs: {reasons}.")
        if ask is None or not ask(f"Run `{by_hand}` now?"):
            raise MissingProgram(f"{reasons}.", hint=f"Run: {by_hand}   (or `edgeflow up --mode docker`)")
    say(f"Installing: {by_hand}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    update = [*command[: command.index("apt-get")], "apt-get", "update", "-qq"]
    subprocess.run(update, env=environment, check=False)  # an old list is often good enough; install tells
    if subprocess.run(command, env=environment, check=False, stdout=sys.stderr).returncode != 0:
        raise MissingProgram(f"`{by_hand}` failed.", hint="Its output is above.")
    wrong = programs.problems()
    if wrong:
        raise MissingProgram(
            f"{'; '.join(wrong.values())}, although the packages are installed.",
            hint="This system's packages are too old for embedded mode (Debian 12 is new enough): use Docker mode.",
        )


def may_install(*, yes: bool) -> bool:
    """Whether no question is needed: said on the command line, in CI, or root already."""
    return yes or os.environ.get("CI", "").lower() in ("true", "1") or os.geteuid() == 0


def install_command(wrong: Mapping[str, str]) -> list[str] | None:
    """The apt command for these packages; None where there is no apt, or no way to become root."""
    if shutil.which("apt-get") is None:
        return None
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if sudo and shutil.which("sudo") is None:
        return None
    return [*sudo, "apt-get", "install", "-y", "-q", "--no-install-recommends", *sorted(wrong)]
