"""The control process killed at each step of a rollout, a rollback and a scale-out, while events come in: nothing is lost or doubled, nothing is left over."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from world import HERE, until

from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import Target, apply_file
from edgeflow.core import failpoints
from edgeflow.host.local import LocalCluster
from edgeflow.settings import PopSettings

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180), pytest.mark.usefixtures("programs")]

STEPS = (
    "runner-documented", "runner-started", "runner-rollout-noted", "runner-routes-installed", "runner-handed-over", "runner-parked", "runner-paused",
    "runner-resumed",
)  # fmt: skip
COUNT = 40
GOOD = "import time\n\n@function\ndef handle(ctx, words):\n    time.sleep(0.05)\n    return words.text() + ' {}'"
CRASHES = "import os\n\n@function\ndef handle(ctx, words):\n    os._exit(3)\n# {}"
FIELDS = (
    "build: ./f, subscribe: words, publish: out, scale: {min: 0, max: 3, idle: 300ms}, rollout: {deadline: 20s}, "
    "retry: {attempts: 50, backoff: 100ms}"
)


class App:
    """One function on one PoP whose control process is back at once."""

    def __init__(self, cluster: LocalCluster, client: Operator, folder: Path, points: Path) -> None:
        self.cluster, self.client, self._folder, self._points = cluster, client, folder, points
        self._applied = 0
        (folder / "f").mkdir()
        (folder / "edgeflow.yaml").write_text(f"namespace: app\nfunctions:\n  f: {{{FIELDS}}}\n")
        access = cluster.pop("la")
        self._target = Target(access.api_url, access.token)

    def apply(self, handler: str) -> str:
        """The revision of a new version of the handler."""
        self._applied += 1
        text = f"from edgeflow import function\n{handler.format(self._applied)}\n"
        (self._folder / "f" / "handler.py").write_text(text)
        applied = apply_file(self._folder / "edgeflow.yaml", self._target, wait=False)
        return applied.functions["f"].revision

    def kill_at(self, step: str) -> None:
        (self._points / f"{step}.fired").unlink(missing_ok=True)
        (self._points / "new").write_text("kill")
        (self._points / "new").rename(self._points / step)

    def was_killed(self, step: str) -> bool:
        return (self._points / f"{step}.fired").exists()

    def processes(self) -> list[str]:
        """States of all processes of this PoP's instances, whoever knows of them."""
        config = PopSettings.load(self.cluster.home.root / "pops" / "la" / "pop.json")
        mark, found = f"EDGEFLOW_SOCKET={config.run_dir}/".encode(), []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if mark in (folder / "environ").read_bytes() and state not in "ZX":
                        found.append(state)
        return found

    def state(self) -> tuple[str, str | None]:
        (one,) = self.client.functions("app")
        return str(one["state"]), one["live"]

    def sleeps(self) -> bool:
        return self.processes() == ["T"]


@pytest.fixture(scope="module")
def app(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    control = [sys.executable, "-m", "edgeflow.api", "--config", "{config}"]
    commands = {"control": [sys.executable, str(HERE / "respawn.py"), *control]}
    with tempfile.TemporaryDirectory(prefix="efpoints-") as points, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, failpoints.VARIABLE, points)
        with LocalCluster(["la"], commands=commands) as cluster:
            access = cluster.pop("la")
            with Operator(access.api_url, access.token, retry_s=30.0) as client:
                yield App(cluster, client, tmp_path_factory.mktemp("app"), Path(points))


@pytest.mark.parametrize("step", STEPS)
def test_control_is_killed_at(app: App, step: str, figure: Callable[[str], None]) -> None:
    before = app.apply(GOOD)
    until(lambda: app.state() == ("ready", before) and app.sleeps(), "a revision that serves, and sleeps", 60)
    app.kill_at(step)
    began_s = time.monotonic()
    goes_back = step == "runner-handed-over"
    subjects = [f"{step}-{number}" for number in range(COUNT)]
    for number, subject in enumerate(subjects):
        app.client.publish("app/words", subject, subject=subject)
        if number == COUNT // 2:
            after = app.apply(CRASHES if goes_back else GOOD)
            if goes_back:
                until(lambda tried=after: app.state()[1] == tried, "it to be tried", 60)
    until(lambda: app.was_killed(step), f"{step} to be passed", 60)
    found: dict[str, str] = {}
    for event in app.client.subscribe("app/out", from_="start", reconnect_s=60.0):
        subject = str(getattr(event, "subject", None))
        if subject in subjects:
            assert subject not in found, f"{subject} was answered twice"
            found[subject] = event.text()  # type: ignore[union-attr]
            if len(found) == COUNT:
                break
    figure(f"control killed at {step}: {COUNT} events answered once within {time.monotonic() - began_s:.1f} s")
    wanted = ("rolled-back", before) if goes_back else ("ready", after)
    until(lambda: app.state() == wanted, f"{wanted}", 60)
    until(app.sleeps, "one instance to be left, asleep", 60)
    assert list(app.client.letters("app")) == []
