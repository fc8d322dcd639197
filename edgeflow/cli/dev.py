"""`edgeflow dev`: one function folder, one PoP, and the code as it is being written.

What it is: starts a cluster of one PoP that belongs to the folder, hands it the manifest with its folders as they are, shows what the functions say, and
applies the manifest again when it changes. The code itself is watched where it runs (edgeflow.sdk.reload).
What it is not: a way to run anything for others: one PoP, one trust, no containers.
What must stay true: whatever ends this command, no process of its cluster stays; data stays until --fresh.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.markup import escape
from rich.text import Text

from edgeflow.cli import loglines
from edgeflow.cli.admin import Operator
from edgeflow.cli.apply import PopApi, Target, read
from edgeflow.cli.console import ask, err, out, say
from edgeflow.core import manifest as manifests
from edgeflow.core.manifest_models import Rollout, Scale
from edgeflow.errors import BadManifest, EdgeflowError
from edgeflow.host import lifecycle
from edgeflow.host.discover import Cluster
from edgeflow.host.errors import AlreadyRunning
from edgeflow.host.files import ensure_dir, write_json
from edgeflow.host.layout import Home, Identity
from edgeflow.host.supervisor import HomeLock
from edgeflow.runner import bundles
from edgeflow.sdk.watching import Folder

POP = "dev"
MANIFEST = "edgeflow.yaml"
LOOK_S = 0.05
"""Time between two looks at the logs and the manifest."""
ASK_S = 0.5
"""Time between two questions about the functions' states."""
NEVER_S = 86_400.0
"""Start deadline: code that cannot be loaded waits for its author, and is not started again and again."""
PATIENT = Rollout.model_validate({"deadline": "24h"})
"""Nor is it rolled back."""


def dev(
    folder: Annotated[Path, typer.Argument(help="The folder that holds edgeflow.yaml.")] = Path(),
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin with an empty PoP: values, state, logs, dead letters are dropped.")] = False,
) -> None:  # fmt: skip
    """Run the functions of a folder while you write them: save a file, and the new code answers.

    Starts a PoP of its own (data in <folder>/.edgeflow/dev) and shows what the functions log. Code that cannot be loaded is shown with its line, and the
    code of before goes on. The inputs of a failed invocation are saved in .edgeflow/failed, for `edgeflow invoke --event`. Ctrl-C ends all of it.
    """
    project = Project(folder.absolute())
    with project.alone(), _signals():
        try:
            cluster = project.start(fresh)
            Loop(project, cluster).run()
        except KeyboardInterrupt:
            err.print()
        finally:
            with _deaf():
                say("Ending the PoP. Its data stays (edgeflow dev --fresh drops it).")
                lifecycle.down(home=project.home.root)


class Project:
    """A folder with a manifest, and what `edgeflow dev` keeps below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / MANIFEST
        self.dev_dir = folder / ".edgeflow"
        self.home = Home(self.dev_dir / "dev")
        self.archives: dict[str, bytes] = {}
        """Folders of programs, packed, by digest."""
        self._programs: dict[Path, Folder] = {}
        self._changes = 0
        if not self.manifest.is_file():
            raise BadManifest(
                f"there is no {MANIFEST} in {folder}", hint="`edgeflow new hello` makes a folder to begin with."
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One `edgeflow dev` for a folder. Raises AlreadyRunning."""
        ensure_dir(self.dev_dir)
        with (self.dev_dir / "dev.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise AlreadyRunning(
                    f"`edgeflow dev` runs for {self.folder} already.", hint="It shows the logs; other commands work in this folder meanwhile."
                ) from None  # fmt: skip
            yield

    def start(self, fresh: bool) -> Cluster:
        """The cluster of this folder, started, or as one that was killed has left it."""
        if fresh:
            lifecycle.down(home=self.home.root)
            # Environments are no state: to build them again takes minutes and changes nothing.
            shutil.rmtree(self.home.root / "pops", ignore_errors=True)
            identity = Identity.load(self.home)
            if identity is not None:
                shutil.rmtree(identity.run_root, ignore_errors=True)
        ensure_dir(self.home.root)
        runner = {"dev_dir": str(self.dev_dir), "start_deadline_s": NEVER_S}
        write_json(self.home.settings_file, {"runner": runner})
        return lifecycle.up(mode="embedded", pops=(POP,), home=self.home.root, say=say, ask=ask)

    def resolved(self) -> dict[str, Any]:
        """The manifest as it is now, all of it at the one PoP, functions as folders. Raises BadManifest."""
        manifest = read(self.manifest, default_pop=POP)
        functions = {}
        for name, function in manifest.functions.items():
            if function.build is None:
                err.print(f"[yellow]{escape(name)} is left out:[/] it is an image, and functions run as processes here")
                continue
            # An instance that sleeps would not see that its code has changed.
            awake = (
                Scale(instances=max(1, function.scale.min or 0))
                if (function.scale.min, function.scale.max) != (None, None)
                else function.scale
            )
            functions[name] = function.model_copy(update={"place": None, "rollout": PATIENT, "scale": awake})
        if not functions:
            raise BadManifest(f"{self.manifest} has no function with `build:`", hint="`edgeflow dev` runs folders.")
        self.archives.clear()
        artifacts = {name: self._artifact(one) for name, one in functions.items()}
        manifest = manifest.model_copy(update={"functions": functions})
        return manifests.resolve(manifest, artifacts, applied_ms=int(time.time() * 1000), default_pop=POP)

    def _artifact(self, function: manifests.Function) -> manifests.Artifact:
        """A handler runs from its folder and follows its changes; any other program is applied again when its folder changes."""
        folder = (self.folder / (function.build or "")).resolve()
        if function.contract == "sdk":
            return manifests.Artifact(source=self._source(folder))
        self._programs.setdefault(folder, Folder(folder))
        digest, data = bundles.pack(folder)
        self.archives[digest] = data
        return manifests.Artifact(bundle=digest)

    def _source(self, folder: Path) -> dict[str, str]:
        if not (folder / "handler.py").is_file():
            raise BadManifest(f"{folder} has no handler.py", hint="`edgeflow dev` runs handlers, not Dockerfiles.")
        requirements = folder / "requirements.txt"
        text = requirements.read_bytes() if requirements.is_file() else b""
        return {"folder": str(folder), "requirements": hashlib.sha256(text).hexdigest()}

    def written(self) -> tuple[object, ...]:
        """Changes when the manifest, a requirements file, or the folder of a program was written."""
        self._changes += sum(1 for folder in self._programs.values() if folder.changed())
        files = [self.manifest, *self.folder.glob("requirements.txt"), *self.folder.glob("*/requirements.txt")]
        return (self._changes, *((file, _stamp(file)) for file in files))


class Loop:
    """What happens until Ctrl-C."""

    def __init__(self, project: Project, cluster: Cluster) -> None:
        self._project = project
        self._access = cluster.pop(POP)
        self._client = Operator(self._access.api_url, self._access.token, retry_s=1.0)
        self._follower = loglines.Follower()
        self._logs = cluster.home.instance_logs_dir(POP)
        self._written: tuple[object, ...] = ()
        self._settling: tuple[object, ...] = ()
        self._namespace = ""
        self._states: dict[str, tuple[str, str]] = {}
        self._asked_s = 0.0

    def run(self) -> None:
        """Show, watch, apply; ends by KeyboardInterrupt, or by an error when the cluster has gone."""
        self._follower.skip(self._logs.glob("*.log"))
        self._apply()
        self._introduce()
        while True:
            for file, line in self._follower.lines(sorted(self._logs.glob("*.log"))):
                self._show(file, line)
            self._look()
            if time.monotonic() - self._asked_s > ASK_S:
                self._asked_s = time.monotonic()
                if not HomeLock.is_held(self._project.home):
                    raise EdgeflowError("The PoP has been ended by somebody else.", hint="Start `edgeflow dev` again.")
                self._ask()
            time.sleep(LOOK_S)

    # -- the manifest --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Apply what was written, once it has come to rest."""
        now = self._project.written()
        if now != self._written and now == self._settling:
            err.print("[green]↻[/] applying")
            self._apply()
        self._settling = now

    def _apply(self) -> None:
        self._written = self._settling = self._project.written()
        try:
            resolved = self._project.resolved()
            with PopApi(Target(self._access.api_url, self._access.token)) as api:
                for other in api.namespaces():
                    if other not in ("system", resolved["namespace"]):
                        self._client.remove_functions(other)
                for digest, data in self._project.archives.items():
                    api.put_bundle(digest, data)
                api.put_manifest(resolved)
            self._namespace = resolved["namespace"]
        except EdgeflowError as error:
            err.print(f"[red]✗ {escape(error.message)}[/]\n  {escape(error.hint)}")

    # -- what is shown -------------------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        access = self._access
        out.print(f"[bold]{escape(self._namespace or self._project.folder.name)}[/]  api {access.api_url}  mqtt {access.mqtt_host}:{access.mqtt_port}")  # fmt: skip
        out.print("Save a file and the new code answers. In another terminal, in this folder: edgeflow invoke, publish, tail, kv, dlq, top. Ctrl-C ends it.", markup=False)  # fmt: skip
        if "EDGEFLOW_HOME" in os.environ or HomeLock.is_held(Home(self._project.dev_dir)):
            # Those commands would find another cluster.
            out.print(f"There, first: export EDGEFLOW_HOME={self._project.home.root}", markup=False)

    def _ask(self) -> None:
        """Print states that have changed."""
        if not self._namespace:
            return
        try:
            functions = self._client.functions(self._namespace)
        except (EdgeflowError, httpx.HTTPError):
            return
        for one in functions:
            name, state, reason = one["function"], one["state"], one["reason"] or ""
            # How far a start is, and the moment between two versions of the code, are not worth a line.
            now = (state, reason if state in ("failing", "building") else "")
            if state in ("unknown", "starting") or self._states.get(name) == now:
                continue
            self._states[name] = now
            colour = {"ready": "green", "failing": "red"}.get(state, "yellow")
            out.print(f"[{colour}]{escape(name)} {state}[/] {escape(now[1])}")
            if state == "failing":
                for line in one["last_log_lines"]:
                    out.print(f"    {line}", markup=False)

    def _show(self, file: Path, line: str) -> None:
        if not line.strip():
            return
        record = loglines.read(line)
        label = str(record.get("function") or file.stem.rpartition("-")[0].partition(".")[2])
        special = _SHOWN.get(record["event"])
        if special is None:
            out.print(loglines.render(record, label))
        elif (text := special(self._project, record)) is not None:
            head = {name: record.get(name) for name in ("timestamp", "invocation")}
            out.print(loglines.render({**head, "event": "printed", "text": ""}, label).append_text(text))


def _loaded(_project: Project, record: loglines.Record) -> Text:
    changed = ", ".join(record["changed"][:5])
    return Text(f"↻ {changed or 'code'}: loaded in {record['took_ms']} ms", "green")


def _refused(project: Project, record: loglines.Record) -> Text:
    place = f"{_relative(record['file'], project)}:{record['line']}: " if record["file"] else ""
    text = Text(f"✗ {place}{record['error']}", "bold red")
    shown = record["shown"] or record["hint"]
    text.append("\n" + "\n".join("    " + one for one in str(shown).rstrip().splitlines()), "red")
    text.append(
        "\n    the code of before goes on" if record["old_code"] else "\n    nothing runs until it is mended", "dim"
    )
    return text


def _done(_project: Project, record: loglines.Record) -> Text:
    to = f" → {', '.join(dict.fromkeys(record['outputs']))}" if record["outputs"] else ""
    return Text(f"✓ {record['took_ms']} ms{to}", "dim")


def _failed(_project: Project, record: loglines.Record) -> Text:
    text = Text(f"✗ {record['error']}", "bold red")
    if record.get("attempt", 1) > 1:
        text.append(f" (attempt {record['attempt']})")
    text.append("\n" + "\n".join("    " + one for one in str(record["traceback"]).rstrip().splitlines()), "red")
    return text


def _saved(project: Project, record: loglines.Record) -> Text | None:
    if record.get("attempt", 1) > 1:
        return None  # the first attempt has said so
    file = _relative(record["file"], project)
    return Text(f"saved; run it again: edgeflow invoke {record['function_name']} --event {file}", "yellow")


_SHOWN: dict[str, Callable[[Project, loglines.Record], Text | None]] = {
    "code_loaded": _loaded, "code_refused": _refused, "invocation_done": _done, "handler_failed": _failed, "failure_saved": _saved,
    "handler_loaded": lambda _project, _record: None,
}  # fmt: skip
"""Events that are shown in words; None is not shown."""


def _relative(file: str, project: Project) -> str:
    path = Path(file)
    return str(path.relative_to(project.folder)) if path.is_relative_to(project.folder) else file


def _stamp(file: Path) -> Mapping[str, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return {"ns": status.st_mtime_ns, "size": status.st_size}


@contextmanager
def _signals() -> Iterator[None]:
    """A closed terminal and SIGTERM end it like Ctrl-C."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deaf() -> Iterator[None]:
    """While the cluster is being ended nothing interrupts that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
