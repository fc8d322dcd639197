"""A Docker engine of a test's own, so that it can be killed: another folder, socket and network namespace than the machine's."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException
from needs import missing

START_S = 120.0
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


CONTAINERD = """version = 2
root = "{0}/c/root"
state = "{0}/c/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/c.sock"
[ttrpc]
address = "{0}/t.sock"
"""


class OwnEngine:
    """`dockerd` beside a containerd of its own, as Debian runs the two, with everything of them in `folder` (a short path: sockets are in it)."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._program = program
        (folder / "c.toml").write_text(CONTAINERD.format(folder))
        self._below = self._run("containerd", "--config", f"{folder}/c.toml")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/d.sock"
        self.client: Any = None

    def start(self) -> None:
        """Returns when it answers."""
        with suppress(FileNotFoundError):
            (self._folder / "pid").unlink()  # a killed one leaves it, and its number may be another program's by now
        # In a network of its own: one that has no bridge removes the machine's docker0.
        self._process = self._run(
            "unshare", "--net", self._program, f"--containerd={self._folder}/c.sock", f"--host={self.url}", f"--data-root={self._folder}/data",
            f"--exec-root={self._folder}/exec", f"--pidfile={self._folder}/pid", "--bridge=none", "--iptables=false", "--ip-forward=false",
        )  # fmt: skip
        end_s = time.monotonic() + START_S
        # Not by asking with docker-py, which leaves a socket open each time that nobody listens.
        while not self._listens():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-3000:]
            assert time.monotonic() < end_s, "the engine does not answer"
            time.sleep(0.1)
        if self.client is None:
            self.client = docker.DockerClient(base_url=self.url, timeout=60, version="1.41")
        self.client.ping()

    def _run(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PATH": _PATH}
            )  # fmt: skip

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
            sock.connect(f"{self._folder}/d.sock")
            return True
        return False

    def kill(self) -> None:
        """SIGKILL; its containers are not told."""
        assert self._process is not None
        self.client.close()  # its connections; it makes new ones
        self._process.kill()
        self._process.wait(30)

    def close(self) -> None:
        """End its containers and it."""
        if self.client is not None:
            with suppress(DockerException, OSError):
                for one in self.client.containers.list(all=True):
                    one.remove(force=True)
            self.client.close()
        for process in (self._process, self._below):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(60)
        for pid in _of(str(self._folder)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            point = line.split()[1]
            if point.startswith(f"{self._folder}/"):
                subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def _of(folder: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and folder.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


@contextmanager
def own_engine(folder: Path) -> Iterator[OwnEngine]:
    """A running one. Ends the test with a word where the program is not there, or this is not root."""
    program = shutil.which("dockerd", path=_PATH)
    if program is None or shutil.which("containerd", path=_PATH) is None or os.geteuid() != 0:
        missing("a Docker engine that may be killed", "it takes root, dockerd and containerd (scripts/docker-engine)")
        return
    engine = OwnEngine(folder, program)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()
