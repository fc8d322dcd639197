"""`edgeflow dev` on a terminal, as somebody uses it: docs/first-function.md as it is written, how long an edit takes, and that nothing stays behind."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeflow.cli.new import write
from edgeflow.host.discover import find
from edgeflow.host.layout import Home
from edgeflow.sdk.client import Client

pytestmark = [pytest.mark.usefixtures("programs"), pytest.mark.timeout(180)]
DOC = Path(__file__).parents[2] / "docs" / "first-function.md"
BIN = Path(sys.executable).parent
EDITS = 10
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "EDGEFLOW_HOME"},
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "TERM": "xterm", "COLUMNS": "200",
}  # fmt: skip


class Terminal:
    """A program on a terminal of its own, whose screen is read all the time."""

    def __init__(self, *command: str, folder: Path) -> None:
        self._text = ""
        master, slave = pty.openpty()
        # A session with the terminal as its own, so that Ctrl-C is what it is for a user: a byte that becomes a signal for the whole group.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *command], stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=ENVIRONMENT
        )  # fmt: skip
        os.close(slave)
        self._master = master
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                select.select([self._master], [], [])
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            self._text += data.decode(errors="replace")

    @property
    def screen(self) -> str:
        """What was written so far, without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._text).replace("\r", "")

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def close(self) -> None:
        if self.process.poll() is None:
            self.press(b"\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._master)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts `edgeflow dev` in a folder; it is ended with the test."""
    begun: list[tuple[Terminal, Path]] = []

    def start(folder: Path, *options: str) -> Terminal:
        terminal = Terminal(str(BIN / "edgeflow"), "dev", *options, folder=folder)
        begun.append((terminal, folder))
        return terminal

    yield start
    for terminal, folder in begun:
        terminal.close()
        with contextlib.suppress(OSError):
            subprocess.run([BIN / "edgeflow", "down"], env={**ENVIRONMENT, "EDGEFLOW_HOME": str(folder / ".edgeflow/dev")}, capture_output=True, check=False)  # fmt: skip


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that have to do with a folder."""
    found = []
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            with contextlib.suppress(OSError):
                about = (
                    (one / "cmdline").read_bytes() + (one / "environ").read_bytes() + os.readlink(one / "cwd").encode()
                )
                if str(folder).encode() in about and int(one.name) != os.getpid():
                    found.append((one / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if "edgeflow" in line or "redis" in line or "mosquitto" in line]


def snippets() -> list[tuple[str, str]]:
    """(shell lines, what they print) up to the part about clusters; empty when the page does not say."""
    page = DOC.read_text().partition("## On a cluster")[0]
    return re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)


def test_the_page_of_the_first_function_works_as_written(
    tmp_path: Path, dev: Callable[..., Terminal], wait_until: Callable[..., Any]
) -> None:
    (begin, _), (run, _), *others = snippets()
    subprocess.run(["bash", "-ec", begin], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    folder = tmp_path / "hello"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    assert run.strip() == "edgeflow dev"
    terminal = dev(folder)
    wait_until(lambda: "hello ready" in terminal.screen, "the function is ready", 60)
    assert len(others) == 5
    for lines, printed in others:
        loaded = terminal.screen.count("loaded in") + terminal.screen.count("the code of before goes on")
        edits = [line for line in lines.splitlines() if line.startswith("sed ")]
        rest = "\n".join(line for line in lines.splitlines() if not line.startswith("sed "))
        for line in edits:
            subprocess.run(["bash", "-ec", line], cwd=folder, env=ENVIRONMENT, check=True)
            # A user looks at the other terminal, and types more slowly than this.
            wait_until(
                lambda before=loaded: (
                    terminal.screen.count("loaded in") + terminal.screen.count("the code of before goes on") > before
                ),
                line,
            )
        done = subprocess.run(
            ["bash", "-ec", rest], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if printed:
            assert done.stdout.strip() == printed.strip()
        if "status" in rest:
            assert "status 3" in done.stdout and "ZeroDivisionError" in done.stderr
            assert re.search(r"hello-[0-9a-f]{12}\.json", done.stdout)
    assert re.search(r"handler.py:7: SyntaxError: .*never closed\n.*\n +return words", terminal.screen)
    assert "the code of before goes on" in terminal.screen
    assert re.search(r"hello [0-9a-f]{8} shouting letters=12", terminal.screen)
    ask(folder, "kv", "put", "hello/note", "--data", "kept")
    terminal.press(b"\x03")
    assert terminal.process.wait(30) == 0
    wait_until(lambda: not processes_of(folder), f"nothing of it runs any more: {processes_of(folder)}")
    # What was there is there the next time, unless it is started afresh.
    kept = []
    for options in ((), ("--fresh",)):
        again = dev(folder, *options)
        wait_until(lambda again=again: "hello ready" in again.screen, "the function is ready again", 60)
        kept.append(ask(folder, "kv", "get", "hello/note"))
        again.close()
    assert kept == ["kept", ""]


def ask(folder: Path, *command: str) -> str:
    """What the command line says in that folder."""
    done = subprocess.run([BIN / "edgeflow", *command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)  # fmt: skip
    return done.stdout.strip()


@pytest.mark.alone
def test_an_edit_answers_within_a_second_whatever_the_old_code_does(
    tmp_path: Path, dev: Callable[..., Terminal], wait_until: Callable[..., Any]
) -> None:
    folder = tmp_path / "hello"
    write(folder, "hello")
    handler = folder / "handler.py"
    code = "from edgeflow import function\n\n@function\ndef handle(ctx, words):\n    {}\n"
    handler.write_text(code.format("return 'edit 0'"))
    terminal = dev(folder)
    wait_until(lambda: "hello ready" in terminal.screen, "the function is ready", 60)
    access = find(Home(folder / ".edgeflow" / "dev").root).pop("dev")
    with Client(access.api_url, access.token) as client:
        took = [
            edit(client, handler, code.format(f"return 'edit {number}'"), f"edit {number}")
            for number in range(1, EDITS + 1)
        ]
        print(
            f"edit to run, s: p50 {statistics.median(took):.2f}, longest {max(took):.2f}, all {[round(one, 2) for one in took]}"
        )
        # Loaded machines are slow; a quiet one needs a quarter of a second.
        assert statistics.median(took) < 1.0

        (row,) = json.loads(ask(folder, "top", "hello/hello", "--every", "0.2", "-o", "json"))
        assert (row["state"], row["pop"], row["failed"], row["in_flight"], row["backlog"]) == ("ready", "dev", 0, 0, 0)
        # Who watches, who serves, and who waits.
        assert row["instances"][0]["processes"] == 3 and 10e6 < row["memory_bytes"] < 300e6

        handler.write_text(code.format("while True: pass"))
        wait_until(lambda: terminal.screen.count("loaded in") == EDITS + 2, "the loop is loaded")
        client.publish("hello/words", b"x")
        wait_until(lambda: client.functions("hello")[0]["inbox"]["claimed"] == 1, "it hangs")
        handler.write_text(code.format("return 'mended'"))
        wait_until(lambda: "✓" in terminal.screen.rpartition("loaded in")[2], "what hung is done by the new code", 20)

        handler.write_text("import os\nos._exit(7)\n")
        wait_until(
            lambda: "exited with status 7 while it was loaded" in terminal.screen, "code that ends itself is refused"
        )
        assert client.invoke("hello/hello", b"x")[0].data == b"mended"
        handler.write_text(code.format("import os; os._exit(9)"))
        wait_until(lambda: terminal.screen.count("loaded in") >= EDITS + 4, "loaded")
        client.publish("hello/words", b"x")
        wait_until(lambda: "code_ended" in terminal.screen, "its end is shown")
        (folder / "edgeflow.yaml").write_text(
            "namespace: hello\nfunctions:\n  hello: {build: ., subscribe: words, publsh: loud}\n"
        )
        wait_until(
            lambda: "publsh" in terminal.screen.rpartition("code_ended")[2], "what is wrong with the manifest is shown"
        )
        (folder / "edgeflow.yaml").write_text(
            "namespace: hello\nfunctions:\n  other: {build: ., subscribe: words, publish: loud}\n"
        )
        edit(client, handler, code.format("return 'by the other'"), "by the other", "hello/other")
    second = dev(folder)
    wait_until(lambda: "runs for" in second.screen, "one for a folder")
    assert second.process.wait(10) == 1
    # The window of the terminal is closed.
    terminal.process.send_signal(signal.SIGHUP)
    terminal.process.wait(30)
    wait_until(lambda: not processes_of(folder), f"nothing of it runs any more: {processes_of(folder)}")


def edit(client: Client, file: Path, code: str, answer: str, function: str = "hello/hello") -> float:
    """Seconds from the end of the write to the first answer of the new code."""
    file.write_text(code)
    written_s = time.monotonic()
    while time.monotonic() < written_s + 20:
        with contextlib.suppress(Exception):
            if [one.text() for one in client.invoke(function, b"x", timeout_s=5)] == [answer]:
                return time.monotonic() - written_s
    raise AssertionError(f"no answer of the code that says {answer!r}")
