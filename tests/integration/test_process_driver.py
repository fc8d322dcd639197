"""Instances as real processes: environments, adoption, ends, logs. Needs no Redis: the agent's side of the socket is not there."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeflow.core.manifest import Artifact, check_resolved, parse, resolve
from edgeflow.errors import BadManifest
from edgeflow.runner import process
from edgeflow.runner.bundles import pack
from edgeflow.runner.driver import Observed, Prepared, StartSpec
from edgeflow.runner.process import ProcessDriver, log_files, stop_all
from edgeflow.runner.venvs import BuildFailed, Venvs
from edgeflow.settings import PopSettings

Wait = Callable[..., Any]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment without requirements."""
    return Venvs(tmp_path_factory.mktemp("venvs")).ensure(b"")


@pytest.fixture
def settings(tmp_path: Path) -> PopSettings:
    secret = tmp_path / "secret"
    return PopSettings.model_validate({
        "pop": "la", "cluster": "c", "mode": "embedded", "state_dir": tmp_path / "pop" / "state", "run_dir": tmp_path / "run",
        "store": {"redis_socket": secret}, "mqtt": {"password_file": secret}, "link": {"port": 1, "ca": secret, "cert": secret, "key": secret},
        "api": {"port": 1, "token_file": secret}, "runner": {"venvs_dir": tmp_path / "venvs"},
        "public": {"api_url": "", "api_token_file": secret, "mqtt_host": "", "mqtt_port": 1, "mqtt_ws_url": "", "mqtt_password_file": secret},
    })  # fmt: skip


@pytest.fixture
def driver(settings: PopSettings) -> Iterator[ProcessDriver]:
    one = ProcessDriver(settings)
    yield one
    stop_all(settings.state_dir, grace_s=2)
    for child in one._children.values():
        child.wait(5)


def spec_of(settings: PopSettings, python: Path, instance: str = "vision.f-1", **more: Any) -> StartSpec:
    """An instance of a function that is there; nobody listens on its socket."""
    folder = settings.state_dir / "code"
    folder.mkdir(exist_ok=True)
    (folder / "handler.py").write_text("from edgeflow import function\n\n@function\ndef handle(ctx, a):\n    pass\n")
    socket = settings.run_dir / "i" / instance / "s"
    return replace(StartSpec("vision", "f", "r1", instance, socket, Prepared(folder=folder, python=python)), **more)


def only(driver: ProcessDriver) -> Observed:
    (one,) = driver.observe()
    return one


def pid_of(settings: PopSettings, instance: str = "vision.f-1") -> int:
    return int(json.loads((settings.state_dir / "instances" / f"{instance}.json").read_text())["pid"])


def test_an_instance_runs_as_it_should(
    settings: PopSettings, driver: ProcessDriver, python: Path, wait_until: Wait
) -> None:
    driver.start(spec_of(settings, python, env={"COLOUR": "red", "OMP_NUM_THREADS": "2"}))
    assert only(driver).running and only(driver).revision == "r1"
    pid = pid_of(settings)
    # Empty for a moment while the kernel sets the new program up.
    text = wait_until(Path(f"/proc/{pid}/environ").read_text, "its environment is there")
    environment = dict(item.split("=", 1) for item in text.split("\0") if "=" in item)
    assert environment["EDGEFLOW_SOCKET"].endswith("/i/vision.f-1/s") and environment["EDGEFLOW_HANDLER"].endswith(
        "/code"
    )
    assert (
        environment["COLOUR"] == "red"
        and environment["OPENBLAS_NUM_THREADS"] == "1"
        and environment["OMP_NUM_THREADS"] == "2"
    )
    assert os.getpriority(os.PRIO_PROCESS, pid) >= min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert os.getsid(pid) == pid and os.readlink(f"/proc/{pid}/cwd").endswith("/code")


def test_stop_lets_it_leave_and_remove_forgets_it(
    settings: PopSettings, driver: ProcessDriver, python: Path, wait_until: Wait
) -> None:
    driver.start(spec_of(settings, python))
    # A signal before the runtime has its handlers ends it as well, with another status.
    wait_until(lambda: signal_is_caught(pid_of(settings)), "the runtime handles SIGTERM")
    driver.stop("vision.f-1")
    wait_until(lambda: not only(driver).running, "it leaves")
    assert only(driver).ended == "exited with status 0"
    driver.remove("vision.f-1")
    assert driver.observe() == []


def signal_is_caught(pid: int) -> bool:
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1)))


def test_a_killed_instance_says_so_and_takes_its_children_along(
    settings: PopSettings, driver: ProcessDriver, python: Path, wait_until: Wait
) -> None:
    spec = spec_of(settings, python)
    assert spec.prepared.folder is not None
    fake = spec.prepared.folder / "python"
    fake.write_text("#!/bin/sh\nsleep 1000 &\necho $! > child\nexec sleep 1000\n")
    fake.chmod(0o755)
    driver.start(replace(spec, prepared=Prepared(folder=spec.prepared.folder, python=fake)))
    child = int(wait_until(lambda: _text(spec.prepared.folder / "child"), "the child runs"))  # type: ignore[operator]
    os.kill(pid_of(settings), signal.SIGKILL)
    wait_until(lambda: not only(driver).running, "it ends")
    assert only(driver).ended == "was ended by SIGKILL"
    wait_until(lambda: process.start_ticks(child) is None, "the child ends too")


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def test_another_control_process_adopts_what_runs(
    settings: PopSettings, driver: ProcessDriver, python: Path, wait_until: Wait
) -> None:
    driver.start(spec_of(settings, python))
    pid = pid_of(settings)
    later = ProcessDriver(settings)
    assert only(later).running
    later.kill("vision.f-1")
    wait_until(lambda: process.start_ticks(pid) is None, "it is killed")
    assert only(later).ended == "ended while the control process was away"


def test_a_start_that_was_cut_short_is_found_by_its_socket(
    settings: PopSettings, driver: ProcessDriver, python: Path
) -> None:
    driver.start(spec_of(settings, python))
    path = settings.state_dir / "instances" / "vision.f-1.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "pid": None, "start_ticks": None}))
    assert only(ProcessDriver(settings)).running
    assert pid_of(settings) == run["pid"]
    path.write_text(json.dumps({**run, "pid": None, "start_ticks": None, "socket": "/nowhere"}))
    assert only(ProcessDriver(settings)).ended == "did not start"
    path.write_text(json.dumps(run))


def test_a_pid_that_belongs_to_another_process_now_is_left_alone(
    settings: PopSettings, driver: ProcessDriver, python: Path
) -> None:
    other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        driver.start(spec_of(settings, python))
        path = settings.state_dir / "instances" / "vision.f-1.json"
        run = json.loads(path.read_text())
        path.write_text(json.dumps({**run, "pid": other.pid, "start_ticks": run["start_ticks"] - 100}))
        later = ProcessDriver(settings)
        assert not only(later).running
        later.kill("vision.f-1")
        stop_all(settings.state_dir, grace_s=0)
        assert other.poll() is None
        os.killpg(run["pid"], signal.SIGKILL)
    finally:
        other.kill()
        other.wait()


def test_stop_all_ends_everything(settings: PopSettings, driver: ProcessDriver, python: Path) -> None:
    for number in range(3):
        driver.start(spec_of(settings, python, f"vision.f-{number}"))
    pids = [pid_of(settings, f"vision.f-{number}") for number in range(3)]
    assert stop_all(settings.state_dir, grace_s=5) == 3
    assert all(process.start_ticks(pid) is None for pid in pids)
    assert list((settings.state_dir / "instances").iterdir()) == []


def test_secrets_are_files_for_the_instance_alone(
    settings: PopSettings, driver: ProcessDriver, python: Path, wait_until: Wait
) -> None:
    value = b"hunter2-as-it-is\n"
    driver.start(spec_of(settings, python, secrets={"token": value}, content="c1"))
    assert only(driver).content == "c1"
    text = wait_until(Path(f"/proc/{pid_of(settings)}/environ").read_text, "its environment is there")
    assert "hunter2" not in text
    folder = Path(dict(item.split("=", 1) for item in text.split("\0") if "=" in item)["EDGEFLOW_SECRETS"])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "token").read_bytes() == value and (folder / "token").stat().st_mode & 0o777 == 0o400
    assert "hunter2" not in "".join(path.read_text() for path in (settings.state_dir / "instances").iterdir())


def test_gpus_are_refused_by_name(settings: PopSettings, driver: ProcessDriver) -> None:
    document = resolve(
        parse("namespace: v\nfunctions: {f: {build: ./f, subscribe: a, gpus: 1}}", default_pop="la"),
        {"f": Artifact(bundle="a" * 64)}, applied_ms=1, default_pop="la",
    )  # fmt: skip
    function = check_resolved(document).functions["f"]
    with pytest.raises(BadManifest, match="gpus"):
        driver.prepare("v", "f", function, b"", lambda line: None)


def test_logs_are_kept_bounded_and_found(
    settings: PopSettings, driver: ProcessDriver, python: Path, wait_until: Wait
) -> None:
    spec = spec_of(settings, python, log_bytes=10_000)
    assert spec.prepared.folder is not None
    talker = spec.prepared.folder / "python"
    talker.write_text(
        "#!/bin/sh\ni=0\nwhile [ $i -lt 1000 ]; do echo line $i 0123456789; i=$((i+1)); done\necho the end\nsleep 1000\n"
    )
    talker.chmod(0o755)
    driver.start(replace(spec, prepared=Prepared(folder=spec.prepared.folder, python=talker)))
    wait_until(lambda: driver.tail("vision.f-1", 1) == ["the end"], "it has said everything")
    (file,) = log_files(settings.state_dir, "vision", "f")
    assert file.stat().st_size > 10_000
    driver.upkeep()
    assert file.stat().st_size == 0 and file.with_suffix(".log.1").stat().st_size == 2_500
    for number in range(2, 12):
        (settings.state_dir.parent / "logs" / "instances" / f"vision.f-{number}.log").write_text("old")
    driver.kill("vision.f-1")
    wait_until(lambda: not only(driver).running, "it ends")
    driver.remove("vision.f-1")
    assert len(log_files(settings.state_dir, "vision", "f")) == process.KEPT_LOGS


def test_environments_are_shared_and_hold_nothing_of_the_agent(tmp_path: Path) -> None:
    venvs = Venvs(tmp_path)
    python = venvs.ensure(b"# nothing\n\n")
    assert venvs.ensure(b"") == python
    code = "import edgeflow, edgeflow.core.wire, msgpack\nfrom edgeflow import function\nimport redis"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env={}, check=False)
    assert done.stderr.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'redis'"


def test_an_unfinished_environment_is_built_again(tmp_path: Path) -> None:
    venvs = Venvs(tmp_path)
    python = venvs.ensure(b"")
    (python.parent.parent / "edgeflow.json").unlink()
    (python.parent.parent / "junk").write_text("")
    assert venvs.ensure(b"") == python and not (python.parent.parent / "junk").exists()


def test_unused_environments_go_but_never_one_that_runs(tmp_path: Path) -> None:
    venvs = Venvs(tmp_path)
    python = venvs.ensure(b"")
    mark = python.parent.parent / "edgeflow.json"
    later_s = time.time() + 3600
    child = subprocess.Popen(
        [python, "-c", "print('up', flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"up\n"
        assert venvs.remove_unused(later_s) == 0 and mark.exists()
    finally:
        child.communicate(b"\n")
    assert venvs.remove_unused(time.time() - 60) == 0, "its grace is not over"
    os.utime(mark, (1, 1))
    venvs.touch(b"# nothing\n")
    assert venvs.remove_unused(time.time() - 60) == 0, "a PoP uses it"
    os.utime(mark, (1, 1))
    assert venvs.remove_unused(time.time() - 60) == 1 and not mark.parent.exists()
    assert venvs.ensure(b"") == python and mark.exists()


def test_requirements_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(BuildFailed, match="cannot install the requirements: ERROR: Invalid requirement") as caught:
        Venvs(tmp_path).ensure(b"this is not a requirement\n", lines.append)
    assert caught.value.last_lines and lines[-1] == caught.value.last_lines[-1]
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_prepare_unpacks_and_builds(settings: PopSettings, driver: ProcessDriver, tmp_path: Path) -> None:
    from edgeflow.core.manifest import Artifact, check_resolved, parse, resolve
    from edgeflow.errors import BadManifest

    source = tmp_path / "source"
    source.mkdir()
    (source / "handler.py").write_text("x = 1\n")
    digest, data = pack(source)
    manifest = parse(
        "namespace: v\nfunctions: {f: {build: ./f, subscribe: a}, g: {image: i, subscribe: a}}", default_pop="la"
    )
    resolved = check_resolved(resolve(manifest, {"f": Artifact(bundle=digest)}, applied_ms=1, default_pop="la"))
    prepared = driver.prepare("v", "f", resolved.functions["f"], data, lambda line: None)
    assert prepared.folder is not None and (prepared.folder / "handler.py").read_text() == "x = 1\n"
    assert prepared.python is not None and prepared.python.exists()
    with pytest.raises(BadManifest, match="image 'i' cannot run here"):
        driver.prepare("v", "g", resolved.functions["g"], None, lambda line: None)
