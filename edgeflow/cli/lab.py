"""`edgeflow lab`: hurt the cluster on purpose: its links, its PoPs, their processes.

What it is: the verbs of `edgeflow.lab.hands` as a user types them, and the scenarios.
What must stay true: each verb says what it has done, and how it ends; a cluster that is not on this machine is left alone unless --anyway.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeflow.cli.apply import Target, apply_file
from edgeflow.cli.console import Output, OutputOption, err, out, print_json, say
from edgeflow.cli.reach import confirm, show
from edgeflow.errors import EdgeflowError, Unavailable
from edgeflow.host.discover import PopAccess, find
from edgeflow.host.errors import MissingProgram
from edgeflow.lab import units
from edgeflow.lab.errors import BadTrouble
from edgeflow.lab.hands import Hands, hands_on, overall

app = typer.Typer(no_args_is_help=True, help="The fault lab: long, narrow and cut links, PoPs that die and stand.")

TargetArgument = Annotated[
    str,
    typer.Argument(
        help="A PoP, or a part of one: la, la/data (control, data, broker, redis, instances)", metavar="POP[/PART]"
    ),
]
FRESH_POPS = ("la", "ny", "sf")
ALL = "all"


class FormName(StrEnum):
    """How much is published."""

    SHORT = "short"
    LONG = "long"


OneWayOption = Annotated[
    bool, typer.Option("--one-way", help="Only what goes from the first PoP to the second (or to all others).")
]
AnywayOption = Annotated[bool, typer.Option("--anyway", help="Also a cluster whose PoPs are not on this machine.")]


@app.command()
def wan(
    between: Annotated[
        str | None, typer.Option(help="Two PoPs, comma-separated: la,ny; every link if not given.", metavar="A,B")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="One-way delay: 20ms; 0 is none.", metavar="DELAY")] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="What each direction carries: 50Mbit, 800kbit; 0 is no bound.", metavar="RATE")
    ] = None,
    one_way: OneWayOption = False,
    anyway: AnywayOption = False,
) -> None:
    """Make links long or narrow, until changed or the next start."""
    if delay is None and bandwidth is None:
        raise BadTrouble("There is nothing to change.", hint="Give --delay, --bandwidth, or both.")
    delay_ms = None if delay is None else units.delay_ms(delay)
    kbit_s = None if bandwidth is None else units.kbit_s(bandwidth)
    hands = hands_on(find(), anyway=anyway)
    if between is None and one_way:
        raise BadTrouble("--one-way needs two PoPs.", hint="Give --between la,ny: from la to ny only.")
    pairs = hands.pairs() if between is None else [hands.pair(between)]
    hands.wan(pairs, delay_ms=delay_ms, kbit_s=kbit_s, one_way=one_way)
    said = [] if delay is None else [f"delay {delay}"]
    said += [] if bandwidth is None else [f"bandwidth {bandwidth}"]
    for a, b in pairs:
        err.print(f"{a} {'->' if one_way else '<->'} {b}: {', '.join(said)}")


@app.command()
def partition(
    who: Annotated[str, typer.Argument(help="A PoP (from all others), or two: la,ny", metavar="POP[,POP]")],
    one_way: OneWayOption = False,
    anyway: AnywayOption = False,
) -> None:
    """Cut a PoP off, or one link: nothing arrives, as on a dead line, until `lab heal`."""
    hands = hands_on(find(), anyway=anyway)
    split = hands.split(who, one_way=one_way)
    hands.partition(split)
    err.print(f"{split.pop} {'-/->' if one_way else '</>'} {', '.join(split.others)}: cut until `edgeflow lab heal`")


@app.command()
def heal(
    everything: Annotated[bool, typer.Option("--all", help="End delays and bounds of bandwidth too.")] = False,
    anyway: AnywayOption = False,
) -> None:
    """End every cut between PoPs."""
    hands_on(find(), anyway=anyway).heal(all=everything)
    err.print("all links are whole" + (", without delay or bound" if everything else ""))


@app.command()
def kill(
    target: TargetArgument,
    stay_down: Annotated[
        bool, typer.Option("--stay-down", help="As a machine that is off, until `lab resume` or the next start.")
    ] = False,
    anyway: AnywayOption = False,
) -> None:
    """`kill -9` of a PoP or a part of it. What runs it starts it again, unless --stay-down."""
    hands = hands_on(find(), anyway=anyway)
    struck = hands.target(target)
    hands.kill(struck, stay_down=stay_down)
    err.print(f"{struck}: killed" + (f"; down until `edgeflow lab resume {struck.pop}`" if stay_down else ""))


@app.command()
def restart(pop: Annotated[str, typer.Argument(help="A PoP", metavar="POP")], anyway: AnywayOption = False) -> None:
    """End all of a PoP in good order and start it again, as when its machine is updated."""
    hands = hands_on(find(), anyway=anyway)
    hands.cluster.pop(pop)
    hands.restart(pop)
    err.print(f"{pop}: ended in order, and starting")


@app.command()
def pause(target: TargetArgument, anyway: AnywayOption = False) -> None:
    """Stop a PoP, or a part of it, where it is: it hears and says nothing, and its connections stay open."""
    hands = hands_on(find(), anyway=anyway)
    struck = hands.target(target)
    hands.pause(struck)
    err.print(f"{struck}: stands until `edgeflow lab resume {struck.pop}`")


@app.command()
def resume(
    pop: Annotated[str | None, typer.Argument(help="A PoP; all if not given", metavar="POP")] = None,
    anyway: AnywayOption = False,
) -> None:
    """Let go on what is paused, and start what is down."""
    hands = hands_on(find(), anyway=anyway)
    for one in [hands.cluster.pop(pop).id] if pop is not None else hands.cluster.pops:
        hands.resume(one)
    err.print(f"{pop or 'all PoPs'}: on")


@app.command()
def status(output: OutputOption = Output.TABLE) -> None:
    """What is cut, long, narrow, down or paused, and what the links have carried."""
    document = lab_document(hands_on(find(), anyway=True))
    if output is Output.JSON:
        print_json(document)
        return
    for pop in document["pops"]:
        odd = [
            f"{part} {state}" for part, state in pop["parts"].items() if state != pop["state"] and part != "instances"
        ]
        out.print(f"{pop['id']}: {pop['state']}" + (f" ({', '.join(odd)})" if odd else ""))
    for line in document["links"]:
        said = "cut" if line["cut"] else f"{line['delay_ms']:g} ms" if line["delay_ms"] else "whole"
        width = f", {line['kbit_s']:g} kbit/s" if line["kbit_s"] else ""
        out.print(f"{line['from']} -> {line['to']}: {said}{width}, {line['bytes'] / 1e6:.1f} MB carried")


def lab_document(hands: Hands) -> dict[str, Any]:
    """The machine-readable status."""
    pops = []
    for pop in hands.cluster.pops:
        parts = hands.parts(pop)
        pops.append({"id": pop, "state": overall(parts), "parts": parts})
    links, carried = hands.links()
    lines = []
    for link in links:
        for origin, to in ((link.a, link.b), (link.b, link.a)):
            line = link.line(origin)
            lines.append(
                {"from": origin, "to": to, "cut": line.cut, "delay_ms": line.delay_ms, "kbit_s": line.kbit_s,
                 "bytes": carried.get((origin, to), 0)}
            )  # fmt: skip
    return {"cluster": hands.cluster.id, "pops": pops, "links": lines}


@app.command()
def scenarios(output: OutputOption = Output.TABLE) -> None:
    """The scenarios that come along."""
    from edgeflow.lab import scenario as known

    found = [known.find(name) for name in known.names()]
    items = [
        {"name": one.name, "pops": one.document.pops, "what": one.document.what, "needs_fresh": one.needs_clock}
        for one in found
    ]
    columns = {"scenario": lambda one: one["name"], "PoPs": lambda one: one["pops"], "what": lambda one: one["what"]}
    show(output, items, columns, empty="there are none")


@app.command()
def run(
    scenario: Annotated[
        str, typer.Argument(help="A scenario (`lab scenarios`), a YAML file of your own, or `all`", metavar="SCENARIO")
    ],
    seed: Annotated[
        int | None, typer.Option(help="Who plays which role, and when faults strike; a new one if not given.")
    ] = None,
    form: Annotated[FormName, typer.Option(help="How much is published.")] = FormName.SHORT,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="On an embedded cluster of three PoPs that is started for it, and ended.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option(help="Also write the table into this page, between its markers.", metavar="FILE")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Hurt a cluster that others use without a question.")
    ] = False,
    anyway: AnywayOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Hurt the cluster in the middle of work and say whether it kept what it promises; exit status 1 if not."""
    from edgeflow.lab import report as reports
    from edgeflow.lab import scenario as known
    from edgeflow.lab.run import Run

    chosen = [known.find(name) for name in (known.names() if scenario == ALL else [scenario])]
    number = time.time_ns() % 1_000_000 if seed is None else seed
    done: list[reports.Report] = []
    with _cluster(fresh, anyway, yes, clocks=any(one.needs_clock for one in chosen)) as (hands, clocks):
        for one in chosen:
            if one.needs_clock and not clocks and len(chosen) > 1:
                err.print(f"{one.name}: left out, it needs --fresh and a C compiler")
                continue
            err.print(f"{one.name}: {one.document.what}")
            try:
                made = Run(one, hands, _apply, seed=number, form=form.value, clocks=clocks, say=say).run()
            except EdgeflowError as error:
                if len(chosen) == 1:
                    raise
                # The others are run all the same.
                made = reports.Report(
                    one.name, one.document.what, number, form.value, {}, [], problems={"run": [error.message]}
                )
            done.append(made)
            if output is Output.TABLE:
                for line in made.lines():
                    out.print(line, markup=False)
    if output is Output.JSON:
        print_json([made.document() for made in done])
    if table is not None:
        held = sum(made.ok for made in done)
        about = f"{held} of {len(done)} scenarios held ({form.value} form, seed {number})."
        reports.write_table(table, done, about)
    if not all(made.ok for made in done):
        raise typer.Exit(1)


@contextlib.contextmanager
def _cluster(fresh: bool, anyway: bool, yes: bool, *, clocks: bool) -> Iterator[tuple[Hands, bool]]:
    """The cluster that is hurt, and whether its clocks can be set wrong."""
    if not fresh:
        cluster = find()
        hands = hands_on(cluster, anyway=anyway)
        used = _used(next(iter(cluster.pops.values())))
        if used:
            confirm(f"The scenario kills and cuts off PoPs that {', '.join(used)} use. Go on?", yes=yes)
        yield hands, False
        return
    from edgeflow.host.local import LocalCluster
    from edgeflow.lab import clock
    from edgeflow.lab.errors import NotPossibleHere

    with tempfile.TemporaryDirectory(prefix="edgeflow-lab-") as folder:
        commands = None
        if clocks:
            with contextlib.suppress(NotPossibleHere, MissingProgram):
                commands = clock.commands(Path(folder))
        err.print(f"starting a cluster of {', '.join(FRESH_POPS)}")
        with LocalCluster(FRESH_POPS, commands=commands) as started:
            yield hands_on(started.find()), commands is not None


def _used(access: PopAccess) -> list[str]:
    """Namespaces with functions. Raises Unavailable."""
    from edgeflow.sdk.client import Client

    with Client(access.api_url, access.token, retry_s=5.0) as client:
        try:
            return sorted({one["namespace"] for one in client.functions()})
        except Unavailable:
            return []


def _apply(file: Path, access: PopAccess) -> None:
    apply_file(file, Target(access.api_url, access.token), timeout_s=300)
