"""The adapter of the contract `stdio`: its program as a child process, and by the launcher of the program's container."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapter_programs import Adapted, alive, ask, session_of
from needs import missing
from sdk_agent import item, stored_event, welcome

from edgeflow.sdk.adapters.ports import free_port

Wait = Callable[..., Any]
SOURCE = Path(__file__).parents[2] / "deploy" / "launcher" / "launcher.c"
BIG = b"x" * 3_000_000


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        missing("a C compiler", "apt-get install gcc")
    program = tmp_path_factory.mktemp("launcher") / "launch"
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(SOURCE)], check=True)
    return program


class Stdio(Adapted):
    """With the launcher, if there is one: it stands for the program's container."""

    launcher: Path | None = None

    def run(self, script: str, **more: Any) -> Any:
        """The instance's end of its socket, ready, with a program that is this line of shell."""
        command = ["sh", "-c", script]
        if self.launcher is None:
            self.setting = {"contract": "stdio", "command": command, **more}
        else:
            port = free_port()
            self.setting = {"contract": "stdio", "command": [], "launcher_port": port, **more}
            with (self.folder / "log").open("a") as log:
                self.processes.append(
                    subprocess.Popen([str(self.launcher), str(port), *command], stderr=log, cwd=self.folder, text=True)
                )
        return self.ready()


@pytest.fixture(params=["child", "launched"])
def adapted(request: pytest.FixtureRequest) -> Iterator[Stdio]:
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:
        one = Stdio(Path(folder), {})
        if request.param == "launched":
            one.launcher = request.getfixturevalue("launcher")
        yield one
        one.close()


def test_input_environment_and_output(adapted: Stdio) -> None:
    peer, process = adapted.run(
        'tr a-z A-Z; printf " %s %s %s" "$CE_SUBJECT" "$EDGEFLOW_INVOCATION" "$EDGEFLOW_ATTEMPT"'
    )
    for number in range(3):
        message = ask(peer, b"hello", f"i{number}", attempt=number + 1)
        assert message["t"] == "commit", message
        assert message["outputs"][0]["data"] == f"HELLO clip/1 i{number} {number + 1}".encode()
        peer.send(peer.committed(message))
    process.terminate()
    peer.expect("claim")
    peer.expect("leave")
    assert process.wait(10) == 0


def test_no_output_is_no_event_and_the_media_type_is_that_of_the_manifest(adapted: Stdio) -> None:
    peer, _ = adapted.run("cat", stdio_content_type="image/png")
    assert ask(peer, b"")["outputs"] == []
    assert ask(peer, b"x", "i2")["outputs"][0]["datacontenttype"] == "image/png"


@pytest.mark.parametrize(
    ("script", "retry", "words"),
    [
        ("echo one >&2; echo two >&2; exit 3", True, "the program ended with status 3: one / two"),
        ("kill -9 $$", True, "the program ended by SIGKILL"),
        ("exit 127", True, "with status 127"),
    ],
)
def test_how_an_attempt_fails(adapted: Stdio, script: str, retry: bool, words: str) -> None:
    peer, _ = adapted.run(script)
    message = ask(peer, b"x")
    assert message["t"] == "fail" and message["retry"] is retry and words in message["error"]


def test_what_it_writes_to_its_errors_is_in_the_log(adapted: Stdio) -> None:
    peer, _ = adapted.run("echo looking at $CE_ID >&2; cat")
    assert ask(peer, b"x")["t"] == "commit"
    assert "looking at e1" in adapted.log()


def test_status_75_is_later(adapted: Stdio) -> None:
    peer, _ = adapted.run("[ -e there ] && exec cat; touch there; exit 75")
    assert ask(peer, b"x") == {"t": "release", "invocations": [["i1", 1]]}
    began_s = time.monotonic()
    assert ask(peer, b"x", "i1", attempt=2)["t"] == "commit"
    assert 0.9 < time.monotonic() - began_s < 5


def test_a_run_that_takes_too_long_ends_and_its_instance_goes_on(adapted: Stdio, wait_until: Wait) -> None:
    command = "if [ -e there ]; then exec cat; fi; touch there; sleep 3600 & echo $! > child; echo waiting >&2; wait"
    if adapted.launcher is None:
        process = adapted.start(contract="stdio", command=["sh", "-c", command])
        peer = adapted.agent.accept()
        peer.welcome(timeout_ms=1500)
    else:
        port = free_port()
        with (adapted.folder / "log").open("a") as log:
            one = subprocess.Popen(
                [str(adapted.launcher), str(port), "sh", "-c", command], stderr=log, cwd=adapted.folder, text=True
            )
        adapted.processes.append(one)
        process = adapted.start(contract="stdio", launcher_port=port)
        peer = adapted.agent.accept()
        peer.welcome(timeout_ms=1500)
    message = ask(peer, b"x")
    assert (
        message["t"] == "fail"
        and message["retry"]
        and "did not end within" in message["error"]
        and "waiting" in message["error"]
    )
    child = int((adapted.folder / "child").read_text())
    wait_until(lambda: not alive(child), "what it started ends too")
    assert ask(peer, b"again", "i2")["outputs"][0]["data"] == b"again"
    assert process.poll() is None


def test_large_data_in_and_out(adapted: Stdio) -> None:
    peer, _ = adapted.run("cat; echo done >&2")
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("i1", stored_event(BIG))]})
    blob = peer.next()
    assert blob["t"] == "blob" and blob["data"] == BIG
    assert peer.next()["outputs"][0]["size"] == len(BIG)


def test_a_program_that_reads_nothing_of_much(adapted: Stdio) -> None:
    peer, _ = adapted.run("echo ok")
    message = ask(peer, BIG)
    assert message["t"] == "commit" and message["outputs"][0]["data"] == b"ok\n"


def test_what_stays_in_the_background_holds_nothing_up(adapted: Stdio) -> None:
    peer, _ = adapted.run("sleep 3600 & cat")
    began_s = time.monotonic()
    assert ask(peer, b"x")["outputs"][0]["data"] == b"x"
    assert time.monotonic() - began_s < 5


def test_nothing_outlives_a_killed_adapter(adapted: Stdio, wait_until: Wait) -> None:
    peer, process = adapted.run("echo $$ > child; exec sleep 3600")
    peer.expect("claim")
    peer.send({"t": "work", "items": [item("i1", stored_event(b"x"))]})
    child = int(
        wait_until(lambda: (adapted.folder / "child").is_file() and (adapted.folder / "child").read_text(), "it runs")
    )
    process.kill()
    process.wait()
    wait_until(lambda: not alive(child), "the program ends with its adapter")
    assert session_of(process.pid) == -1


def test_an_adapter_whose_launcher_is_gone_ends(launcher: Path, wait_until: Wait) -> None:
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:
        one = Stdio(Path(folder), {})
        one.launcher = launcher
        try:
            peer, process = one.run("sleep 3600")
            peer.expect("claim")
            peer.send({"t": "work", "items": [item("i1", stored_event(b"x"))]})
            wait_until(lambda: b"sleep" in Path(f"/proc/{one.processes[0].pid}/cmdline").read_bytes(), "it runs")
            one.processes[0].kill()
            message = peer.next()
            assert message["t"] == "fail" and message["retry"] and "launcher" in message["error"]
            assert process.wait(10) == 1
        finally:
            one.close()


def test_a_program_that_is_not_there_is_named() -> None:
    with tempfile.TemporaryDirectory(prefix="ef-") as folder:
        one = Adapted(Path(folder), {"contract": "stdio", "command": ["no-such-program"]})
        try:
            process = one.start()
            peer = one.agent.accept()
            peer.expect("hello")

            peer.send(welcome())
            assert process.wait(10) == 78 and "there is no program 'no-such-program'" in one.log()
        finally:
            one.close()
