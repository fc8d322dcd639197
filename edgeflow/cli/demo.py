"""`edgeflow demo`: a video through functions at three PoPs, with the proof that every frame came out once.

What it is: starts or finds the cluster, applies `functions/edgeflow.yaml`, shows the run, prints the table; edgeflow.demo does the work.
What must stay true: exit status 0 only if nothing failed; a cluster that ran before goes on running, one that was started here ends, unless
something failed (then one may look) or `--keep` is given.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from edgeflow.cli.apply import Target, _Progress, apply_file
from edgeflow.cli.console import ask, err, out, say
from edgeflow.cli.reach import Output, OutputOption, print_json
from edgeflow.cli.up import Mode
from edgeflow.demo import run as demo_run
from edgeflow.demo.functions import application_folder
from edgeflow.demo.watch import STAGES
from edgeflow.errors import BadRequest
from edgeflow.host import discover, lifecycle
from edgeflow.host.errors import NoCluster

LINE_S = 2.0
"""How often a line of progress is written where there is no terminal."""


def demo(
    input: Annotated[
        str,
        typer.Option(
            "--input", envvar="INPUT", help="A video of your own; the default one if not given.", metavar="FILE"
        ),
    ] = "",
    reference: Annotated[
        str, typer.Option(envvar="REFERENCE", help="A picture of the person whose face is replaced.", metavar="FILE")
    ] = "",
    replacement: Annotated[
        str, typer.Option(envvar="REPLACEMENT", help="A picture of the face to show instead.", metavar="FILE")
    ] = "",
    output_dir: Annotated[Path, typer.Option(help="Folder for augmented.mp4 and contact-sheet.png.")] = Path(
        "demo-output"
    ),
    mode: Annotated[Mode, typer.Option(help="How to start a cluster if none runs.")] = Mode.AUTO,
    keep: Annotated[bool, typer.Option("--keep", help="Leave a cluster that was started for this running.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Install missing programs without a question.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Stream a video through functions at three PoPs: find, recognise and replace a face."""
    request = demo_run.Request(_path(input), _path(reference), _path(replacement), output_dir)
    for file in (request.input, request.reference, request.replacement):
        if file is not None and not file.is_file():
            raise BadRequest(f"there is no file {file}", hint="Give the path of a file that can be read.")
    began_s = time.monotonic()
    material = demo_run.prepare(request, _Steps())
    cluster, started = _cluster(mode, yes)
    ended_well = False
    try:
        outcome = _run(request, material, cluster)
        ended_well = not outcome.failures
        if output is Output.JSON:
            print_json({**asdict(outcome), "everything_s": round(time.monotonic() - began_s, 1)})
        else:
            _report(outcome)
    except KeyboardInterrupt:
        ended_well = True
        raise
    finally:
        if started and not keep and ended_well:
            lifecycle.down(home=cluster.home.root, say=say)
        elif started:
            say("The cluster goes on; `edgeflow down` ends it.")
    if not ended_well:
        raise typer.Exit(1)


def _path(text: str) -> Path | None:
    """An option that make passes on empty when it was not given."""
    return Path(text) if text else None


def _cluster(mode: Mode, yes: bool) -> tuple[discover.Cluster, bool]:
    """The running cluster, or one started now: (cluster, whether it was started). Raises BadRequest when a PoP of the demo is missing."""
    try:
        cluster, started = discover.find(), False
    except NoCluster:
        say("starting three PoPs: chicago, la, ny")
        cluster, started = lifecycle.up(mode=mode.value, pops=None, say=say, yes=yes, ask=ask), True
    missing = sorted(set(demo_run.FUNCTIONS.values()) - set(cluster.pops))
    if missing:
        raise BadRequest(
            f"the running cluster has no PoP {', '.join(missing)}",
            hint="`edgeflow down --purge`, then `edgeflow demo` starts one with chicago, la and ny; or set EDGEFLOW_HOME to another folder.",
        )
    return cluster, started


def _run(request: demo_run.Request, material: demo_run.Material, cluster: discover.Cluster) -> demo_run.Outcome:
    entry, exit_pop = cluster.pop(demo_run.ENTRY_POP), cluster.pop(demo_run.EXIT_POP)
    manifest = application_folder() / "edgeflow.yaml"
    say(f"applying {manifest}: one environment per distinct requirements file, the first time only")
    with _Progress(err) as progress:
        apply_file(manifest, Target(entry.api_url, entry.token), say=progress.say, show=progress.show)
    say("the newest picture, live (any channel: change the address):")
    err.print(f"    {demo_run.live_address(exit_pop)}", markup=False, style="bold")
    with _Watching() as watching:
        return demo_run.run(request, material, cluster, watching)


class _Steps:
    """Steps only."""

    def say(self, line: str) -> None:
        say(line)

    def update(self, now: demo_run.Now) -> None:
        """Nothing runs yet."""


class _Watching:
    """The run on the terminal: bars that grow; elsewhere a line every two seconds."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._line_at_s = 0.0

    def __enter__(self) -> "_Watching":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        say(line)

    def update(self, now: demo_run.Now) -> None:
        if err.is_terminal:
            if self._live is None:
                self._live = Live(console=err, refresh_per_second=8)
                self._live.start()
            self._live.update(_picture(now))
        elif now.elapsed_s >= self._line_at_s:
            self._line_at_s = now.elapsed_s + LINE_S
            done = "  ".join(f"{name} {now.done[name]}" for name in STAGES)
            say(
                f"{now.elapsed_s:5.1f} s  chunks {now.sent}/{now.chunks}  {done} of {now.wanted}  films {now.films}  newest {_age(now.age_ms)}"
            )


def _age(age_ms: float | None) -> str:
    return (
        "-" if age_ms is None else f"{max(0.0, age_ms):.0f} ms old" if age_ms < 10_000 else f"{age_ms / 1000:.0f} s old"
    )


def _picture(now: demo_run.Now) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    wanted = max(1, now.wanted)
    for name in STAGES:
        count = now.done[name]
        filled = min(30, 30 * count // wanted)
        bar = f"[green]{'━' * filled}[/][dim]{'━' * (30 - filled)}[/]"
        table.add_row(
            f"  {name}", bar, f"{count}/{now.wanted}", f"newest {_age(now.age_ms)}" if name == STAGES[-1] else ""
        )
    table.add_row("  video", "", f"{now.films}/{now.chunks}", f"{now.elapsed_s:.1f} s")
    return table


def _report(outcome: demo_run.Outcome) -> None:
    table = Table(
        title="p50 / p99 in ms; platform = all but waiting for a free instance and the handler",
        title_justify="left",
        title_style="dim",
    )
    table.add_column("function", no_wrap=True)
    table.add_column("PoP", no_wrap=True)
    for column in ("done", "platform", "waiting", "handler"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, stage in outcome.stages.items():
        times = [_times(stage.get(part) or {}) for part in ("platform_ms", "waiting_ms", "handler_ms")]
        failed = f" (+{stage['failed']} failed)" if stage.get("failed") else ""
        table.add_row(name, stage["pop"], f"{stage['invocations']}{failed}", *times)
    out.print(table)
    if any(stage["earlier"] for stage in outcome.stages.values()):
        out.print(
            "(the times include earlier runs on this cluster; `edgeflow down`, then `edgeflow demo` measures one run alone)",
            style="dim",
        )
    faster = "faster than the video plays" if outcome.total_s < outcome.length_s else "slower than the video plays"
    first = f", the first frame after {outcome.first_frame_s:.1f} s" if outcome.first_frame_s is not None else ""
    out.print(
        f"{outcome.frames} frames, {outcome.length_s:.1f} s of video in {outcome.total_s:.1f} s ({faster}){first}"
    )
    _report_quality(outcome)
    out.print(f"film   {escape(outcome.film)}")
    if outcome.sheet:
        out.print(f"sheet  {escape(outcome.sheet)}")
    if not outcome.failures:
        out.print(
            f"[green]✓[/] every one of the {outcome.frames} frames came out exactly once, on each of {len(STAGES)} channels"
        )
    for failure in outcome.failures:
        out.print(f"[red]✗[/] {escape(failure)}")
    sys.stdout.flush()


def _report_quality(outcome: demo_run.Outcome) -> None:
    quality = outcome.quality
    if quality is None:
        return
    measured: list[tuple[str, Any, str]] = [
        ("detection recall (IoU 0.5)", quality.recall, ">= 0.95"),
        ("identification accuracy", quality.accuracy, ">= 0.95"),
        ("person's faces replaced", quality.replaced, ">= 0.95"),
    ]
    for what, share, asked in measured:
        if share is not None:
            out.print(f"{what:<44} {share:.3f}   asked for {asked}")
    out.print(f"{'change outside the face (grey levels)':<44} {quality.change:.3f}   asked for <= 2")
    if quality.recall is None:
        out.print(
            f"(recall and accuracy need a known truth; measured on {outcome.measured_frames} frames, {quality.frames_changed} of them changed)",
            style="dim",
        )


def _times(times: Mapping[str, float | None]) -> str:
    p50, p99 = (times.get(which) for which in ("p50", "p99"))
    return "-" if p50 is None or p99 is None else f"{_short(p50)} / {_short(p99)}"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:.0f}"
