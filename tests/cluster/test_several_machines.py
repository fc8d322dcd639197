"""The commands of docs/several-machines.md as they stand there: network namespaces are the machines, one PoP on each."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from needs import missing

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "several-machines.md"
BLOCK = re.compile(r"^```sh\n# at (.+?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MACHINES = {"la": "192.0.2.1", "ny": "192.0.2.2", "chicago": "192.0.2.3"}
TOKENS = re.compile(r"> ~/(\w+)\.token$", re.MULTILINE)
BLOCK_S = 150.0

pytestmark = pytest.mark.timeout(900)


def blocks() -> list[tuple[str, str]]:
    """(machine, commands) in the order of the page."""
    return BLOCK.findall(PAGE.read_text())


class Machines:
    """Namespaces with a home folder each, at one switch, which is a namespace too: what the machine's own firewall does with bridges is none of its business."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = f"ef{os.getpid()}"
        self._exports = ""
        self._made: list[str] = []

    def make(self) -> None:
        switch = self._add("switch")
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for name, address in MACHINES.items():
            space = self._add(name)
            ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", switch)
            ip("-n", switch, "link", "set", name, "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")
            (self.home(name)).mkdir()

    def _add(self, name: str) -> str:
        space = f"{self._mark}-{name}"
        ip("netns", "add", space)
        self._made.append(space)
        return space

    def home(self, name: str) -> Path:
        return self._folder / name

    def export(self, commands: str) -> None:
        """What is said at each machine before anything else."""
        self._exports += commands

    def run(self, name: str, commands: str) -> str:
        """The output of the commands, each of which must succeed."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EDGEFLOW_")},
            "HOME": str(self.home(name)),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
        }
        script = f"set -euo pipefail\n{self._exports}\n{commands}"
        output = self.home(name) / "output"
        with output.open("w") as file:  # what goes on in the background must not keep a pipe open
            shell = subprocess.Popen(
                ["ip", "netns", "exec", f"{self._mark}-{name}", "bash", "-c", script],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                status = shell.wait(timeout=BLOCK_S)
            except subprocess.TimeoutExpired:
                os.killpg(shell.pid, signal.SIGKILL)
                status = shell.wait()
        text = output.read_text(errors="replace")
        assert status == 0, f"at {name} (status {status}):\n{commands}\n-- said:\n{text[-4000:]}"
        return text

    def pids(self) -> list[int]:
        return [int(pid) for space in self._made for pid in ip("netns", "pids", space).split()]

    def remove(self) -> None:
        """All that runs in the namespaces ends, then they go. Whatever an earlier step could not do, the next one is tried."""
        for name in MACHINES:
            if (self.home(name) / "edgeflow").exists():
                with suppress(AssertionError):
                    self.run(name, "edgeflow down --purge")
        deadline_s = time.monotonic() + 30
        while (left := self.pids()) and time.monotonic() < deadline_s:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for space in self._made:
            ip("netns", "del", space)


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {shlex.join(arguments)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def machines(programs: None, tmp_path: Path) -> Iterator[Machines]:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for program, package in (("ip", "iproute2"), ("haproxy", "haproxy"), ("openssl", "openssl"), ("curl", "curl")):
        if shutil.which(program, path=path) is None:
            missing(program, f"apt-get install {package}")
    if os.geteuid() != 0:
        missing("root", "network namespaces are made by root only")
    probe = f"ef{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode != 0:
        missing("ip netns", "this kernel or container does not let root make network namespaces")
    ip("netns", "del", probe)
    made = Machines(tmp_path)
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.mark.faults
def test_the_page_runs_as_it_stands(machines: Machines) -> None:
    said: list[tuple[str, str, str]] = []
    for where, commands in blocks():
        if where == "each machine":
            machines.export(commands)
            continue
        output = machines.run(where, commands)
        said.append((where, commands, output))
        for pop in TOKENS.findall(commands):  # "take each file to its machine"
            shutil.copy(machines.home(where) / f"{pop}.token", machines.home(pop) / "pop.token")

    def output_of(where: str, part: str) -> str:
        return next(output for at, commands, output in said if at == where and part in commands)

    members = output_of("chicago", "pops join")
    assert all(f"http://{address}:8101" in members for address in MACHINES.values()), "each knows where all are"
    assert "GOOD MORNING from la" in output_of("ny", "--count 1")
    alone = output_of("chicago", "without ny")
    assert "WITHOUT NY from la" in alone
    assert "ALL ALONE" not in alone, "ny was not cut off"
    back = output_of("ny", "eth0 up")
    for words in ("GOOD MORNING", "WITHOUT NY", "ALL ALONE"):
        assert back.count(f"{words} from la") == 1
    clients = output_of("la", "haproxy")
    assert '"status":"ok"' in clients
    assert "OVER HTTPS from la" in clients
    assert "OVER MQTT from la" in clients
    for name in MACHINES:
        once = machines.run(name, "edgeflow tail hello/loud --from start --count 5")
        assert once.count(" from la") == 5, f"at {name} each is there once"
        running = json.loads((machines.home(name) / "edgeflow" / "cluster.json").read_text())["pops"][name]["processes"]
        assert {process: entry["restarts"] for process, entry in running.items() if entry["restarts"]} == {}, name


def test_every_block_names_its_machine() -> None:
    shell = re.findall(r"^```sh\n(.*)$", PAGE.read_text(), re.MULTILINE)
    assert shell, "the page has commands"
    assert all(first == "# at each machine" or first.removeprefix("# at ") in MACHINES for first in shell)
    assert len(shell) == len(blocks())


def test_the_addresses_are_those_of_the_page() -> None:
    first = PAGE.read_text().split("\n\n")[1]
    assert all(f"`{name}` at {address}" in first for name, address in MACHINES.items())
