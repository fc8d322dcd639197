"""`edgeflow lab`: hurt the cluster on purpose: its links, its PoPs, their processes.

What it is: the verbs of `edgeflow.lab.hands` as a user types them.
What must stay true: each verb says what it has done, and how it ends; a cluster that is not on this machine is left alone unless --anyway.
"""

from typing import Annotated, Any

import typer

from edgeflow.cli.console import Output, OutputOption, err, out, print_json
from edgeflow.host.discover import find
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
