"""`edgeflow kv policy`: where bodies under a prefix are kept, and which PoP decides its writes."""

from typing import Annotated, Any

import typer

from edgeflow.cli.reach import Output, OutputOption, PopOption, client_of, confirm, errors, print_json, show
from edgeflow.errors import BadRequest

app = typer.Typer(help="Where bodies under a prefix are kept, and which PoP decides its writes.", no_args_is_help=True)

PrefixArgument = Annotated[
    str, typer.Argument(help="<namespace>/ and the beginning of keys, as in vision/models/", metavar="PREFIX")
]


@app.command("show")
def show_policies(
    namespace: Annotated[str, typer.Argument(help="The namespace, or one <namespace>/<key>", metavar="NAMESPACE|KEY")],
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the rules of a namespace, or what holds for one key."""
    name, slash, key = namespace.partition("/")
    with client_of(pop) as client:
        found = client.policies(name, key=key if slash else None)
    if output is Output.JSON:
        print_json(found)
        return
    columns = {
        "PREFIX": lambda item: f"{name}/{item['prefix']}",
        "PLACE": lambda item: _place_text(item.get("place")),
        "HOME": lambda item: ("none" if item["home"] is None else item["home"]) if "home" in item else None,
        "TERM": lambda item: item.get("term"),
    }
    show(
        output,
        found["rules"],
        columns,
        empty=f"{name} has no policies: bodies are kept everywhere, writes are taken everywhere",
    )


@app.command("set")
def set_policy(
    prefix: PrefixArgument,
    place: Annotated[
        str | None, typer.Option("--place", help="`eager`, `lazy`, or `pin:<pop>,<pop>`.", metavar="PLACE")
    ] = None,
    home: Annotated[
        str | None, typer.Option("--home", help="The PoP that decides its writes; `none` for none.")
    ] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Set the rule of a prefix; what is not given stays as it is. A home that is there already is moved with `policy move`."""
    if place is None and home is None:
        raise typer.BadParameter("give --place, --home, or both")
    namespace, inner = _split(prefix)
    wish: dict[str, Any] = {}
    if place is not None:
        kind, colon, pops = place.partition(":")
        wish["place"] = {"pin": [name for name in pops.split(",") if name]} if kind == "pin" and colon else place
    if home is not None:
        wish["home"] = None if home == "none" else home
    with client_of(pop) as client:
        found = client.policies(namespace)
        rules = [rule for rule in found["rules"] if rule["prefix"] != inner]
        before: dict[str, Any] = next((rule for rule in found["rules"] if rule["prefix"] == inner), {})
        rule = {**before, **wish, "prefix": inner}
        answer = client.set_policies(namespace, [*rules, rule], found["version"])
    _print(answer, prefix, output)


@app.command("clear")
def clear_policy(prefix: PrefixArgument, pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """Remove the rule of a prefix: the next shorter one holds then."""
    namespace, inner = _split(prefix)
    with client_of(pop) as client:
        found = client.policies(namespace)
        rules = [rule for rule in found["rules"] if rule["prefix"] != inner]
        if len(rules) == len(found["rules"]):
            raise BadRequest(f"{prefix!r} has no rule", hint="`edgeflow kv policy show` lists them.")
        answer = client.set_policies(namespace, rules, found["version"])
    _print(answer, prefix, output)


@app.command("move")
def move_home(
    prefix: PrefixArgument,
    to: Annotated[str, typer.Option("--to", help="The PoP that is to be the home.", metavar="POP")],
    force: Annotated[
        bool, typer.Option("--force", help="Also when the home that is cannot be reached: says what may be lost.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a forced move.")] = False,
    wait: Annotated[float | None, typer.Option("--wait", help="Longest it may take (s); 30 if not given.")] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Hand the home of a prefix over to another PoP: the old one stops, the new one begins when it has everything. Nothing is lost."""
    namespace, inner = _split(prefix)
    if force:
        confirm(
            f"If the home of {prefix} cannot be reached, what it alone has is decided against by {to}. Go on?", yes=yes
        )
    with client_of(pop) as client:
        answer = client.move_home(namespace, inner, to, force=force, wait_s=wait)
    if output is Output.JSON:
        print_json(answer)
        return
    print(f"{prefix}: {answer['before']} -> {answer['home']}, term {answer['term']}")
    if answer["lost"]:
        errors.print(f"[yellow]may be lost:[/yellow] {answer['lost']}")


def _split(prefix: str) -> tuple[str, str]:
    namespace, slash, inner = prefix.partition("/")
    if not slash:
        raise BadRequest(
            f"{prefix!r} names no prefix", hint="Write <namespace>/<beginning of keys>; <namespace>/ is all of them."
        )
    return namespace, inner


def _print(answer: dict[str, Any], prefix: str, output: Output) -> None:
    if output is Output.JSON:
        print_json(answer)
    else:
        print(f"{prefix}: {len(answer['rules'])} rules, version {answer['version']}")


def _place_text(place: Any) -> str | None:
    return f"pin:{','.join(place['pin'])}" if isinstance(place, dict) else place
