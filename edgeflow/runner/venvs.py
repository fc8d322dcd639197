"""Virtual environments of functions in embedded mode: one per distinct requirements file.

What it is: `Venvs.ensure(requirements)` gives the interpreter of an environment with those requirements and the edgeflow SDK.
What it is not: isolation. Functions of embedded mode run under the agent's account; only containers are isolated.
What must stay true: an environment without its mark is never used (it is built again); two builders of the same one do not meet; what the agent
depends on cannot be imported in it, so a function that forgets a requirement fails here as it would in a container.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from edgeflow.errors import EdgeflowError
from edgeflow.settings import PopSettings

log = structlog.get_logger()

Progress = Callable[[str], None]

_MARK = "edgeflow.json"
"""File in a finished environment, written last."""
_LAST_LINES = 20
_INSTALL_DEADLINE_S = 1800.0


class BuildFailed(EdgeflowError):
    """The environment or image of a function cannot be built."""

    code = "build-failed"
    status = 422
    hint = "The last lines of the build say why; correct requirements.txt or the Dockerfile and apply again."

    def __init__(self, message: str, last_lines: list[str] | None = None) -> None:
        super().__init__(message)
        self.last_lines = last_lines or []


class Venvs:
    """Environments below one folder, shared by all functions (and PoPs) of a machine."""

    def __init__(self, folder: Path, python: Path | None = None) -> None:
        self.folder = folder
        self.python = Path(python or sys.executable)
        self._version = ""

    @classmethod
    def of(cls, settings: PopSettings) -> "Venvs":
        """Those that the functions of a PoP run in."""
        return cls(settings.runner.venvs_dir or settings.state_dir / "venvs", settings.runner.python)

    def ensure(self, requirements: bytes, progress: Progress = lambda line: None, *, mqtt: bool = False) -> Path:
        """Path of the interpreter of the environment for this requirements file; builds it when it is not there.

        `mqtt`: with paho-mqtt, which the SDK needs for a `qos: 0` input. `progress` gets the lines of the build. Raises BuildFailed with the last of them. May take minutes.
        """
        text = _significant(requirements)
        name = self._name(text, mqtt)
        target = self.folder / name
        interpreter = target / "bin" / "python"
        if self._finished(target):
            self.touch(requirements)
            return interpreter
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / f"{name}.lock"):
            if self._finished(target):
                return interpreter
            started_s = time.monotonic()
            # Built in place and marked last instead of built elsewhere and renamed: scripts in bin/ hold the path.
            shutil.rmtree(target, ignore_errors=True)
            try:
                self._build(target, text, progress, mqtt)
            except BaseException:
                shutil.rmtree(target, ignore_errors=True)
                raise
            log.info("environment_built", path=str(target), seconds=round(time.monotonic() - started_s, 1))
        return interpreter

    def touch(self, requirements: bytes) -> None:
        """The environments for this requirements file are in use."""
        for mqtt in (False, True):
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.folder / self._name(_significant(requirements), mqtt) / _MARK)

    def remove_unused(self, before_s: float) -> int:
        """Remove environments that nobody has touched since `before_s` (wall clock), and that no process runs from; how many."""
        removed = 0
        for mark in self.folder.glob(f"*/{_MARK}"):
            with _locked(self.folder / f"{mark.parent.name}.lock"), contextlib.suppress(FileNotFoundError):
                if mark.stat().st_mtime < before_s and not _runs(mark.parent):
                    mark.unlink()  # first: without it nobody takes what is left for an environment
                    shutil.rmtree(mark.parent, ignore_errors=True)
                    removed += 1
        return removed

    def _build(self, target: Path, text: str, progress: Progress, mqtt: bool) -> None:
        progress("creating a virtual environment")
        has_pip = self._pip_can_install_elsewhere()
        plain = has_pip or not text
        self._run(
            [str(self.python), "-m", "venv", *(["--without-pip"] if plain else []), str(target)],
            progress,
            "create the environment",
        )
        interpreter = target / "bin" / "python"
        pip = (
            [str(self.python), "-m", "pip", "--python", str(interpreter)]
            if has_pip
            else [str(interpreter), "-m", "pip"]
        )
        install = [*pip, "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        if text:
            file = target / "requirements.txt"
            file.write_text(text)
            self._run([*install, "-r", str(file)], progress, "install the requirements")
        packages = _site_packages(target)
        if not _provides(packages, "msgpack") and not self._copy_msgpack(packages):
            self._run([*install, "msgpack>=1.0"], progress, "install msgpack for the SDK")
        if mqtt and not _provides(packages, "paho"):
            _copy_paho(packages)
        # A link to the package alone: a path entry would make everything beside it importable too.
        link = packages / "edgeflow"
        if not link.exists():
            link.symlink_to(_package(), target_is_directory=True)
        mark = {
            "requirements": text,
            "python": self._python_version(),
            "edgeflow": str(_package()),
            "made_ms": int(time.time() * 1000),
        }
        with (target / _MARK).open("w") as file_out:
            json.dump(mark, file_out)
            file_out.flush()
            os.fsync(file_out.fileno())

    @staticmethod
    def _finished(target: Path) -> bool:
        return (target / _MARK).is_file() and (target / "bin" / "python").exists()

    def _name(self, text: str, mqtt: bool) -> str:
        parts = [self._python_version(), str(self.python), str(_package()), text, *(["mqtt"] if mqtt else [])]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def _python_version(self) -> str:
        if not self._version:
            code = "import sys; print(sys.implementation.cache_tag, sys.version.split()[0])"
            try:
                done = subprocess.run(
                    [str(self.python), "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise BuildFailed(f"the interpreter {self.python} does not run: {error}") from error
            self._version = done.stdout.strip()
        return self._version

    def _pip_can_install_elsewhere(self) -> bool:
        """Whether our own pip knows --python (22.3 and newer): saves each environment a pip of its own."""
        code = "import pip; print(pip.__version__)"
        done = subprocess.run(
            [str(self.python), "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        version = done.stdout.strip().split(".")
        return done.returncode == 0 and len(version) > 1 and (int(version[0]), int(version[1])) >= (22, 3)

    def _copy_msgpack(self, packages: Path) -> bool:
        """Copy our msgpack when the interpreter is of our kind: then a function without requirements needs no network."""
        if self._python_version().split()[0] != sys.implementation.cache_tag:
            return False
        import msgpack

        shutil.copytree(
            Path(msgpack.__file__).parent, packages / "msgpack", ignore=shutil.ignore_patterns("__pycache__")
        )
        return True

    def _run(self, command: list[str], progress: Progress, what: str) -> None:
        """Run one step of a build. Its output goes to `progress`; a failure raises BuildFailed with the last lines."""
        last: deque[str] = deque(maxlen=_LAST_LINES)
        environment = {
            key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        }
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace",
                env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise BuildFailed(f"cannot {what}: {error}") from error
        # Ends a build that hangs; reading its output alone would wait forever.
        watchdog = threading.Timer(_INSTALL_DEADLINE_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    last.append(line.rstrip())
                    progress(line.rstrip())
            status = process.wait()
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if status != 0:
            errors = [line for line in last if line.lower().startswith("error")]
            reason = (errors or list(last) or [f"status {status}"])[-1 if not errors else 0]
            raise BuildFailed(f"cannot {what}: {reason}", list(last))


def _copy_paho(packages: Path) -> None:
    """Copy our paho-mqtt, which is plain Python and fits any interpreter: so it needs no network."""
    spec = importlib.util.find_spec("paho")
    if spec is None or not spec.submodule_search_locations:
        raise BuildFailed("paho-mqtt, which a `qos: 0` input needs, is not installed beside the agent")
    source = Path(next(iter(spec.submodule_search_locations)))
    shutil.copytree(source, packages / "paho", ignore=shutil.ignore_patterns("__pycache__"))


def _significant(requirements: bytes) -> str:
    """The requirements without comments and blank lines, so that those do not make another environment."""
    lines = []
    for line in requirements.decode("utf-8", "replace").splitlines():
        text = line.split(" #")[0].strip()
        if text and not text.startswith("#"):
            lines.append(text)
    return "".join(f"{line}\n" for line in lines)


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _site_packages(target: Path) -> Path:
    return next(target.glob("lib/python*/site-packages"))


def _provides(packages: Path, module: str) -> bool:
    return (packages / module).is_dir() or (packages / f"{module}.py").is_file()


def _runs(folder: Path) -> bool:
    """Whether a process was started from below `folder`."""
    start = f"{folder}/".encode()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if start in command.read_bytes():
                return True
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the lock ends with the process, so a crash leaves none behind."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
