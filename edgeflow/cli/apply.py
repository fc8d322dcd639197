"""`edgeflow apply` and `edgeflow build`: from a manifest and its folders to functions that run.

What it is: read the manifest, build what it names (archives for process clusters, images for container clusters), hand everything to one PoP, and wait
until every function is ready where it is placed.
What it is not: tied to the PoPs where functions run: all goes through the API of one PoP, which the others follow.
What must stay true: nothing is changed in the cluster before the whole manifest is valid and built; applying the same again changes nothing.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import httpx
import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edgeflow.cli.admin import header_value
from edgeflow.cli.console import err, out
from edgeflow.cli.reach import Output, OutputOption, print_json, said_by
from edgeflow.core import manifest as manifests
from edgeflow.errors import BadManifest, EdgeflowError, Unavailable
from edgeflow.host import discover
from edgeflow.host.layout import Home, default_home
from edgeflow.runner import bundles
from edgeflow.runner.venvs import BuildFailed, Venvs
from edgeflow.sdk.trust import trusted

POLL_S = 0.25
FAILING_S = 6.0
"""How long a function may say that it fails or was rolled back before it is believed: the first start after a change may race with what it needs, and a
revision that was rolled back is tried again."""
RETRY_S = 20.0
"""How long a PoP that does not answer is asked again."""

Mode = Literal["embedded", "docker"]
Say = Callable[[str], None]


class NotApplied(EdgeflowError):
    """A function did not become ready."""

    code = "not-applied"
    status = 500
    hint = "Correct it and apply again; `edgeflow logs <function>` shows more."


@dataclass(frozen=True, slots=True)
class Target:
    """The PoP that a manifest is handed to."""

    url: str
    token: str


@dataclass(slots=True)
class FunctionProgress:
    """How one function stands at one PoP."""

    pop: str
    revision: str
    function: str = ""
    state: str = "waiting"
    reason: str = ""
    last_log_lines: list[str] = field(default_factory=list)
    live: str = ""
    """The revision that serves there."""


@dataclass(slots=True)
class Applied:
    """What `apply` did."""

    namespace: str
    status: str
    """created, updated or unchanged."""
    version: str
    functions: dict[str, FunctionProgress]
    """By name; those at several PoPs by `name@pop`."""


class PopApi:
    """The few calls of a PoP's API that applying needs, repeated while the PoP does not answer. All of them may be repeated."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # Clusters are on this machine or an inner network: proxy settings of the environment do not apply.
        self._http = httpx.Client(
            base_url=target.url, headers={"Authorization": f"Bearer {target.token}"}, timeout=httpx.Timeout(60, connect=5), trust_env=False,
            verify=trusted(target.url),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def pops(self) -> list[dict[str, Any]]:
        """The PoPs, the one that answers first."""
        return list(self._json("GET", "/v1/pops")["items"])

    def namespaces(self) -> list[str]:
        """Names of all namespaces."""
        return [item["namespace"] for item in self._json("GET", "/v1/namespaces")["items"]]

    def put_bundle(self, digest: str, data: bytes) -> None:
        """Store an archive."""
        self._json("PUT", f"/v1/bundles/{digest}", content=data, headers={"Content-Type": "application/gzip"})

    def put_manifest(self, resolved: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Apply a resolved manifest, or ask what that would change: {namespace, status, version, revisions, changes}."""
        body = json.dumps(resolved).encode()
        return self._json(
            "PUT", f"/v1/functions/{resolved['namespace']}", content=body, params={"dry_run": "true"} if dry_run else None,
            headers={"Content-Type": "application/json", "Edgeflow-By": header_value(said_by())},
        )  # fmt: skip

    def gateway_is_open(self, namespace: str) -> bool:
        """Whether what plain MQTT clients publish at this PoP is taken up: its gateway has a session for the namespace."""
        found = [
            item["gateway"] for item in self._json("GET", "/v1/namespaces")["items"] if item["namespace"] == namespace
        ]
        return bool(found and found[0] and found[0].get("connected"))

    def state(self, namespace: str, function: str, pop: str) -> dict[str, Any] | None:
        """What the PoP `pop` last said about a function; None when it has not said anything yet."""
        answer = self._ask("GET", f"/v1/ekv/system/states/{namespace}/{function}/{pop}")
        if answer.status_code == 404:
            return None
        return dict(self._checked(answer).json())

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        return dict(self._checked(self._ask(method, path, **more)).json())

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        deadline_s = time.monotonic() + RETRY_S
        while True:
            try:
                answer = self._http.request(method, path, **more)
                if answer.status_code not in (502, 503, 504) or time.monotonic() > deadline_s:
                    return answer
            except httpx.HTTPError as error:
                if time.monotonic() > deadline_s:
                    hint = "See `edgeflow status`; start a cluster with `edgeflow up`."
                    raise Unavailable(f"the PoP at {self._target.url} does not answer: {error}", hint=hint) from error
            time.sleep(0.5)

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        try:
            problem = answer.json()
        except ValueError:
            problem = {}
        text = problem.get("detail") or problem.get("title") or answer.text[:200] or f"status {answer.status_code}"
        raise EdgeflowError(
            f"the PoP at {self._target.url} answered: {text}",
            hint=problem.get("hint") or "See the agent's log (`edgeflow logs`).",
        )


def apply_file(
    file: Path,
    target: Target,
    *,
    wait: bool = True,
    timeout_s: float = 900.0,
    say: Say = lambda line: None,
    show: Callable[[Mapping[str, FunctionProgress]], None] = lambda functions: None,
) -> Applied:
    """Apply a manifest and wait until its functions are ready. `say` gets lines of progress, `show` the functions as they stand.

    Raises BadManifest, BuildFailed, NotApplied (a function fails, or is not ready after `timeout_s` seconds) and Unavailable.
    """
    with PopApi(target) as api:
        site = Site.of(api)
        prepared = prepare(read(file, **site.known), file.parent, site, say)
        applied = hand_over(api, target, prepared, site, say)
        if wait:
            wait_ready(api, applied, timeout_s, show)
    return applied


@dataclass(frozen=True, slots=True)
class Site:
    """Where a manifest is handed to, and what there is to check it against."""

    here: str
    mode: Mode
    pops: tuple[str, ...]
    namespaces: tuple[str, ...]

    @classmethod
    def of(cls, api: PopApi) -> Self:
        """As the PoP says."""
        pops = api.pops()
        return cls(pops[0]["id"], pops[0]["mode"], tuple(pop["id"] for pop in pops), tuple(api.namespaces()))

    @property
    def known(self) -> dict[str, Any]:
        """Arguments of `read`."""
        return {"known_pops": list(self.pops), "known_namespaces": list(self.namespaces), "default_pop": self.here}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A manifest that is valid and built, and not applied yet."""

    resolved: dict[str, Any]
    archives: dict[str, bytes]
    image_ids: frozenset[str]
    """Images that were built here."""


def prepare(manifest: manifests.Manifest, folder: Path, site: Site, say: Say) -> Prepared:
    """Build what a manifest names. Raises BadManifest and BuildFailed; nothing has changed anywhere then."""
    with _last_lines_shown():
        artifacts, archives = make(manifest, folder, site.mode, say)
    resolved = manifests.resolve(manifest, artifacts, applied_ms=int(time.time() * 1000), default_pop=site.here)
    return Prepared(resolved, archives, frozenset(one.image_id for one in artifacts.values() if one.image_id))


def hand_over(api: PopApi, target: Target, prepared: Prepared, site: Site, say: Say) -> Applied:
    """Hand a prepared manifest to the PoP."""
    for digest, data in prepared.archives.items():
        api.put_bundle(digest, data)
    resolved = prepared.resolved
    answer = api.put_manifest(resolved)
    for id in sorted(prepared.image_ids & set(answer["missing_images"])):
        push_built(target, id, say)
    functions = {
        f"{name}@{pop}" if len(function["place"]["pops"]) > 1 else name: FunctionProgress(
            pop=pop, revision=answer["revisions"][name], function=name
        )
        for name, function in resolved["functions"].items()
        for pop in function["place"]["pops"]
    }
    say(f"{resolved['namespace']}: {answer['status']} at {site.here}")
    return Applied(resolved["namespace"], answer["status"], answer["version"], functions)


def read(
    file: Path,
    *,
    known_pops: list[str] | None = None,
    known_namespaces: list[str] | None = None,
    default_pop: str | None = None,
) -> manifests.Manifest:
    """Read and check a manifest file and that its folders are there. Raises BadManifest."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        raise BadManifest(
            f"there is no file {file}", hint="Name the manifest: edgeflow apply -f <path>/edgeflow.yaml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadManifest(f"{file} cannot be read: {error}", hint="The manifest is a UTF-8 text file.") from None
    return read_text(text, file, known_pops=known_pops, known_namespaces=known_namespaces, default_pop=default_pop)


def read_text(
    text: str, file: Path, *, known_pops: list[str] | None = None, known_namespaces: list[str] | None = None, default_pop: str | None = None
) -> manifests.Manifest:  # fmt: skip
    """Check the text of a manifest that stands in `file`, and that its folders are there. Raises BadManifest."""
    return manifests.parse(
        text, name=str(file), known_pops=known_pops, known_namespaces=known_namespaces or (), default_pop=default_pop,
        look=lambda folder, needs_handler: bundles.look(file.parent / folder, needs_handler),
    )  # fmt: skip


def make(
    manifest: manifests.Manifest, folder: Path, mode: Mode, say: Say
) -> tuple[dict[str, manifests.Artifact], dict[str, bytes]]:
    """Build the folders of a manifest: what each function became, and the archives to hand over by their digests.

    A container cluster gets images from this machine's engine; without one here it gets the archives and builds the images itself.
    """
    artifacts: dict[str, manifests.Artifact] = {}
    archives: dict[str, bytes] = {}
    engine = _engine(say) if mode == "docker" and any(one.build for one in manifest.functions.values()) else None
    for name, function in manifest.functions.items():
        if function.build is None:
            if mode == "embedded" and function.image is not None:
                raise BadManifest(
                    f"functions.{name}.image: this cluster runs functions as processes, not as containers",
                    hint="Give `build: <folder>` instead, or start the cluster with `edgeflow up --mode docker`.",
                )
            continue
        path = folder / function.build
        if (
            function.contract != "sdk"
            and function.command is None
            and (mode == "embedded" or not (path / "Dockerfile").is_file())
        ):
            raise BadManifest(
                f"functions.{name}.command: is missing; nothing else says which program of {path} is to run",
                hint="Write the program and its arguments: `command: [python, server.py]`.",
            )
        if engine is not None:
            from edgeflow.runner import images

            tag = images.build_image(engine, path, f"{manifest.namespace}/{name}", progress=_about(name, say))
            artifacts[name] = manifests.Artifact(image=tag, image_id=images.find_image(engine, tag))
            say(f"{name}: image {tag}")
        else:
            if mode == "embedded" and function.contract == "sdk" and not (path / "handler.py").is_file():
                raise BadManifest(
                    f"functions.{name}.build: {path} has no handler.py, and this cluster runs functions as processes",
                    hint="Add a handler.py, or start the cluster with `edgeflow up --mode docker` to use the Dockerfile.",
                )
            digest, data = bundles.pack(path)
            artifacts[name] = manifests.Artifact(bundle=digest)
            archives[digest] = data
            say(f"{name}: archive {digest[:12]} ({len(data)} bytes)")
    return artifacts, archives


@contextmanager
def _last_lines_shown() -> Iterator[None]:
    """Adds the last lines of a failed build to its message."""
    try:
        yield
    except BuildFailed as error:
        error.message = "\n    ".join([error.message, *error.last_lines])
        raise


def _about(name: str, say: Say) -> Say:
    return lambda line: say(f"{name}: {line}")


def push_built(target: Target, id: str, say: Say) -> None:
    """Push an image of this machine's engine that the cluster lacks. Its functions wait for it. Raises NotApplied when it is another one there."""
    from edgeflow.cli.admin import Operator
    from edgeflow.cli.images import LOAD_S, saved

    say(f"pushing image {id[7:19]}, which the cluster does not have")
    with Operator(target.url, target.token, timeout_s=LOAD_S) as client:
        pushed = client.push_image(saved(id), [], None)
    if pushed["id"] != id:
        raise NotApplied(
            f"image {id[7:19]} of this machine's engine is {pushed['id'][7:19]} in the cluster: the engine names images in another way",
            hint="Push the image by name (`edgeflow images push`), and apply with `image:` in place of `build:`.",
        )


def _engine(say: Say) -> Any:
    from edgeflow.runner import images

    try:
        return images.engine()
    except EdgeflowError as error:
        say(f"{error.message}; the PoPs build the images")
        return None


def wait_ready(
    api: PopApi, applied: Applied, timeout_s: float, show: Callable[[Mapping[str, FunctionProgress]], None]
) -> None:
    """Until all functions are ready. Raises NotApplied."""
    deadline_s = time.monotonic() + timeout_s
    failing_since_s: dict[str, float] = {}
    while True:
        now_s = time.monotonic()
        for name, progress in applied.functions.items():
            state = api.state(applied.namespace, progress.function, progress.pop)
            if state is None or state.get("revision") != progress.revision:
                progress.state, progress.reason = "waiting", f"for {progress.pop} to take it up"
            else:
                progress.state, progress.reason = state["state"], state["reason"]
                progress.last_log_lines, progress.live = state["last_log_lines"], state.get("live") or ""
                if progress.state == "ready" and not state["gateway"]:
                    progress.state, progress.reason = "waiting", f"for the broker at {progress.pop}"
            if progress.state not in ("failing", "rolled-back"):
                failing_since_s.pop(name, None)
            else:
                failing_since_s.setdefault(name, now_s)
        show(applied.functions)
        if all(progress.state == "ready" for progress in applied.functions.values()) and api.gateway_is_open(
            applied.namespace
        ):
            return
        failed = [name for name, since_s in failing_since_s.items() if now_s - since_s > FAILING_S]
        if failed:
            raise _not_applied(applied, failed, "is failing")
        if now_s > deadline_s:
            left = [name for name, progress in applied.functions.items() if progress.state != "ready"]
            if not left:
                raise NotApplied(
                    f"the gateway has no session for {applied.namespace!r} at the broker after {timeout_s:g} s",
                    hint="See `edgeflow status`.",
                )
            raise _not_applied(applied, left, f"is not ready after {timeout_s:g} s")
        time.sleep(POLL_S)


def _not_applied(applied: Applied, names: list[str], how: str) -> NotApplied:
    texts = []
    for name in names:
        progress = applied.functions[name]
        serves = f" (revision {progress.live} serves)" if progress.live not in ("", progress.revision) else ""
        texts.append(
            f"{applied.namespace}/{progress.function} at {progress.pop} {how}: {progress.reason or progress.state}{serves}"
        )
        texts += [f"    {line}" for line in progress.last_log_lines]
    return NotApplied("\n".join(texts))


# ------------------------------------------------------------------ commands

File = Annotated[Path, typer.Option("--file", "-f", help="The manifest.")]
Declared = Annotated[
    Path,
    typer.Option(
        "--file", "-f", help="The manifest, or a folder of manifests, policies and quotas (docs/operations.md)."
    ),
]
SetOption = Annotated[
    str | None,
    typer.Option("--set", help="Name of the set that a folder is; the folder's own if not given.", metavar="NAME"),
]


def apply(
    file: Declared = Path("edgeflow.yaml"),
    pop: Annotated[
        str | None, typer.Option(help="Hand it to this PoP (default: the first); functions without `place:` run there.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every function is ready.")] = True,
    timeout: Annotated[float, typer.Option(help="Longest wait in seconds.")] = 900.0,
    url: Annotated[str | None, typer.Option(help="The API of a PoP, instead of the cluster of this folder.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token for --url.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove what was applied from this folder before and is not there any more.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change, as `diff` does.")] = False,
    set_: SetOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before removing.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Build and start the functions of a manifest, or apply all that a folder holds."""
    from edgeflow.cli import folders

    target = find_target(pop, url, token_file)
    if dry_run or set_ is not None or prune or folders.is_set(file):
        with _Progress(err) as progress:
            options = folders.Options(prune=prune, set_=set_, yes=yes, wait=wait, timeout_s=timeout)
            if dry_run:
                folders.show_plan(folders.compare(file, target, options, progress.say), output)
            else:
                folders.show_applied(folders.apply_set(file, target, options, progress.say, progress.show), output)
        return
    with _Progress(err) as progress:
        applied = apply_file(file, target, wait=wait, timeout_s=timeout, say=progress.say, show=progress.show)
    if output is Output.JSON:
        print_json(asdict(applied))
    else:
        count = len({one.function for one in applied.functions.values()})
        ready = "ready" if wait else "handed over"
        out.print(
            f"[green]✓[/] {applied.namespace}: {count} function{'s' if count != 1 else ''} {ready} ({applied.status})"
        )


def build(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Instead of what a manifest names: the folder of one function, as an image", metavar="FOLDER"
        ),
    ] = None,
    file: File = Path("edgeflow.yaml"),
    mode: Annotated[
        Literal["auto", "embedded", "docker"], typer.Option(help="What to build: environments or images.")
    ] = "auto",
    tag: Annotated[
        str | None,
        typer.Option("--tag", "-t", help="Name of the image of FOLDER, as in vision/augment:3.", metavar="NAME"),
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Push the image of FOLDER to the cluster.")] = False,
    pop: Annotated[str | None, typer.Option(help="PoP to push to; the first one if not given.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Build what a manifest needs without applying it: images, or archives and virtual environments; or the image of one folder.

    The image of a folder is made by this machine's engine: of its Dockerfile, or of handler.py and requirements.txt on the base image. Its tag is
    its content, so that what was built is not built again.
    """
    if folder is not None:
        from edgeflow.cli.images import build_folder

        with _Progress(err) as progress, _last_lines_shown():
            image = build_folder(folder, tag, progress.say, push=push, pop=pop)
        if output is Output.JSON:
            print_json(image)
        else:
            where = f", pushed to {image['pushed']}" if image["pushed"] else ""
            out.print(f"[green]✓[/] {image['image']} ({image['id'][7:19]}){where}")
        return
    if tag is not None or push or pop is not None:
        raise typer.BadParameter("--tag, --push and --pop are about one folder: edgeflow build FOLDER --tag NAME")
    chosen = _mode() if mode == "auto" else mode
    manifest = read(file, default_pop="local")
    with _Progress(err) as progress, _last_lines_shown():
        artifacts, _ = make(manifest, file.parent, chosen, progress.say)
        if chosen == "embedded":
            venvs = Venvs(Home(default_home()).venvs_dir)
            for name, function in manifest.functions.items():
                requirements = file.parent / (function.build or "") / "requirements.txt"
                content = requirements.read_bytes() if requirements.is_file() else b""
                venvs.ensure(content, _about(name, progress.say))
    if output is Output.JSON:
        print_json({name: asdict(artifact) for name, artifact in artifacts.items()})
    else:
        out.print(f"[green]✓[/] {manifest.namespace}: {len(artifacts)} built")


def find_target(pop: str | None, url: str | None = None, token_file: Path | None = None) -> Target:
    """The PoP to talk to: the one named, or the first of the cluster that runs here. Raises EdgeflowError."""
    if url is not None:
        if token_file is None:
            raise EdgeflowError("--url needs --token-file", hint="Give the file with the operator's token of that PoP.")
        return Target(url, _token(token_file))
    access = discover.find().pop(pop)
    return Target(access.api_url, _token(access.api_token_file))


def _token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise EdgeflowError(
            f"the token file {file} cannot be read: {error.strerror}",
            hint="Run it as the user who started the cluster.",
        ) from error


def _mode() -> Mode:
    try:
        return "docker" if discover.find().mode == "docker" else "embedded"
    except EdgeflowError:
        return "embedded"


class _Progress:
    """Progress on a terminal as a table that changes in place, elsewhere as lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._last: dict[str, tuple[str, str]] = {}
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """One line."""
        self._console.print(f"  {line}", markup=False, overflow="ellipsis", no_wrap=True)

    def show(self, functions: Mapping[str, FunctionProgress]) -> None:
        """The functions as they stand."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=8, transient=False)
                self._live.start()
            self._live.update(self._table(functions))
            return
        for name, one in functions.items():
            now = (one.state, one.reason if one.state in ("failing", "building") else "")
            if self._last.get(name) != now:
                self._last[name] = now
                self.say(f"{one.function} at {one.pop}: {one.state}" + (f" - {now[1]}" if now[1] else ""))

    def _table(self, functions: Mapping[str, FunctionProgress]) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2))
        styles = {"ready": "green", "failing": "red"}
        for one in functions.values():
            style = styles.get(one.state, "yellow")
            table.add_row(
                f"  {one.function}",
                one.pop,
                f"[{style}]{one.state}[/]",
                escape(one.reason[: max(20, self._console.width - 50)]),
            )
        table.add_row("", "", f"{time.monotonic() - self._started_s:.0f} s", "")
        return table
