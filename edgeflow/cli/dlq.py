"""`edgeflow dlq`: dead letters, the invocations that were given up. They lie at the PoP of their function."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from edgeflow.cli.admin import Operator
from edgeflow.cli.progress import Progress
from edgeflow.cli.reach import (
    AnyPopOption,
    Output,
    OutputOption,
    clients_of,
    confirm,
    errors,
    print_json,
    show,
)
from edgeflow.core.events import time_text
from edgeflow.errors import AtAnotherPop, EdgeflowError, NotFound, QueueFull

app = typer.Typer(
    help="Invocations that were given up: look at them, try them again, forget them.", no_args_is_help=True
)

DETAIL_CHARS = 100
SHOWN_FAILURES = 20
STUCK_S = 60.0
"""How long redriving waits for a full inbox that takes nothing."""

Filters = dict[str, str | None]
Target = tuple[str, Operator, str]
"""(PoP, its client, namespace)."""

IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Ids, or their beginnings; else all that match the options", metavar="ID"),
]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Only of this namespace; all if not given.")
]
FunctionOption = Annotated[
    str | None, typer.Option("--function", help="Only of this function: <name> or <namespace>/<name>.")
]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only with this reason, as in handler-failed.")]
OlderOption = Annotated[
    str | None, typer.Option("--older-than", help="Only given up longer ago than this: 30m, 24h, 7d.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All of them, without a filter.")]


@app.command("list")
def list_dead_letters(
    namespace: Annotated[str | None, typer.Argument(help="Only this namespace")] = None,
    function: FunctionOption = None,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option("--limit", help="Most letters per namespace and PoP.", min=1)] = 100,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List dead letters, oldest first."""
    namespace, filters = _filters(namespace, function, reason, None)
    items: list[dict[str, Any]] = []
    for name, client, one in _targets(namespace, filters, pop):
        items += [
            {"pop": name, **letter} for letter, _ in zip(client.letters(one, **filters), range(limit), strict=False)
        ]
    columns = {
        "TIME": lambda item: time_text(item["at_ms"]),
        "POP": lambda item: item["pop"],
        "FUNCTION": lambda item: f"{item['namespace']}/{item['function']}",
        "REASON": lambda item: item["reason"],
        "ATTEMPTS": lambda item: item["attempts"],
        "DETAIL": lambda item: " ".join(item["detail"].split())[:DETAIL_CHARS],
        "ID": lambda item: item["id"],
    }
    show(output, sorted(items, key=lambda item: item["at_ms"]), columns, empty="no dead letters")


@app.command("show")
def show_dead_letter(
    id_: Annotated[str, typer.Argument(help="Id of the invocation, or its beginning", metavar="ID")],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace; searched if not given.")
    ] = None,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one dead letter with its inputs."""
    for name, client, one in _targets(namespace, {}, pop):
        letter = _find(client, one, id_)
        if letter is not None:
            _print(output, {"pop": name, **letter})
            return
    raise _unknown([id_])


@app.command("redrive")
def redrive(
    ids: IdsArgument = None,
    namespace: NamespaceOption = None,
    function: FunctionOption = None,
    reason: ReasonOption = None,
    older: OlderOption = None,
    everything: AllOption = False,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Try dead letters again, with the revision that their function has now. Those given up while this runs are not touched.

    What cannot be tried again (its data is not kept any more, the function is gone) is listed and stays; the exit status is 1 then.
    While the inbox of a function is full it waits, up to a minute without one that was taken; then it stops and says how many were.
    """
    namespace, filters = _filters(namespace, function, reason, older)
    if ids:
        done, failed = _redrive_ids(ids, namespace, pop)
    else:
        _check_wish(filters, everything)
        done, failed = _redrive_matching(namespace, filters, pop)
    if output is Output.JSON:
        print_json({"redriven": done, "failed": failed})
    else:
        print(f"{done} redriven" + (f", {len(failed)} failed" if failed else ""))
        for item in failed[:SHOWN_FAILURES]:
            errors.print(f"{item['id']}: {item['detail']} ({item['code']})", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command("purge")
def purge(
    ids: IdsArgument = None,
    namespace: NamespaceOption = None,
    function: FunctionOption = None,
    reason: ReasonOption = None,
    older: OlderOption = None,
    everything: AllOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before many are removed.")] = False,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Forget dead letters for good. More than one only after a question, or with --yes."""
    namespace, filters = _filters(namespace, function, reason, older)
    if ids:
        purged = _purge_ids(ids, namespace, pop, yes=yes)
    else:
        _check_wish(filters, everything)
        purged = _purge_matching(namespace, filters, pop, yes=yes)
    if output is Output.JSON:
        print_json({"purged": purged})
    else:
        print(f"{purged} removed")


# -- which ones --------------------------------------------------------------------------------------------------------


def _filters(
    namespace: str | None, function: str | None, reason: str | None, older: str | None
) -> tuple[str | None, Filters]:
    """(namespace, filters as the API takes them)."""
    if function is not None and "/" in function:
        owner, _, function = function.partition("/")
        if namespace not in (None, owner):
            raise typer.BadParameter(f"--function names the namespace {owner!r}, --namespace {namespace!r}")
        namespace = owner
    before = None if older is None else str(int(time.time() * 1000) - _milliseconds(older))
    return namespace, {"function": function, "reason": reason, "before_ms": before}


def _milliseconds(text: str) -> int:
    factors = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    number, unit = text[:-1], text[-1:]
    if unit not in factors or not number.replace(".", "", 1).isdigit():
        raise typer.BadParameter(
            f"--older-than {text!r} is not a duration; write a number with s, m, h or d, as in 24h"
        )
    return round(float(number) * factors[unit])


def _check_wish(filters: Filters, everything: bool) -> None:
    if not everything and not any(filters.values()):
        raise typer.BadParameter("say which: ids, --function, --reason, --older-than, or --all")


def _targets(namespace: str | None, filters: Filters, pop: str | None) -> Iterator[Target]:
    """Where to look. A PoP that has nothing of that namespace, or that says the function is elsewhere, is passed over unless it was named."""
    found = False
    trouble: EdgeflowError | None = None
    for name, client in clients_of(pop):
        for one in [namespace] if namespace else [item["namespace"] for item in client.namespaces()]:
            try:
                next(client.letters(one, **filters), None)
            except (NotFound, AtAnotherPop) as error:
                trouble = error if namespace else trouble
                continue
            found = True
            yield name, client, one
    if not found and trouble is not None and (pop is not None or filters.get("function") is not None):
        raise trouble


def _find(client: Operator, namespace: str, id: str) -> dict[str, Any] | None:
    try:
        letter = client.dead_letter(namespace, id)
        if letter is not None:
            return letter
        whole = next((item["id"] for item in client.letters(namespace) if item["id"].startswith(id)), None)
        return client.dead_letter(namespace, whole) if whole is not None else None
    except NotFound:
        return None


def _located(ids: list[str], namespace: str | None, pop: str | None) -> Iterator[tuple[Target, dict[str, Any]]]:
    """The dead letters that `ids` name, each where it is. Raises NotFound at the end for those that are nowhere."""
    missing = dict.fromkeys(ids)
    for target in _targets(namespace, {}, pop):
        for id in list(missing):
            letter = _find(target[1], target[2], id)
            if letter is not None:
                del missing[id]
                yield target, letter
    if missing:
        raise _unknown(list(missing))


def _unknown(ids: list[str]) -> NotFound:
    return NotFound(f"there is no dead letter {', '.join(map(repr, ids))}", hint="`edgeflow dlq list` lists them.")


# -- again -------------------------------------------------------------------------------------------------------------


def _redrive_ids(ids: list[str], namespace: str | None, pop: str | None) -> tuple[int, list[dict[str, Any]]]:
    done, failed = 0, []
    for (name, client, one), letter in _located(ids, namespace, pop):
        try:
            client.redrive(one, letter["id"])
            done += 1
        except EdgeflowError as error:
            failed.append({"pop": name, "id": letter["id"], "code": error.code, "detail": error.message})
    return done, failed


def _redrive_matching(namespace: str | None, filters: Filters, pop: str | None) -> tuple[int, list[dict[str, Any]]]:
    done, failed, total = 0, [], 0
    moved_s = time.monotonic()
    try:
        with Progress() as progress:
            for name, client, one in _targets(namespace, filters, pop):
                total += sum(1 for _ in client.letters(one, **filters))
                after: str | None = ""
                while after is not None:
                    answer = client.redrive_some(one, after, **filters)
                    done += answer["redriven"]
                    failed += [{"pop": name, **item} for item in answer["failed"]]
                    wait_s = answer["retry_after_s"]
                    if answer["redriven"] or answer["failed"]:
                        moved_s = time.monotonic()
                    elif wait_s and time.monotonic() - moved_s > STUCK_S:
                        raise QueueFull(
                            f"{done} redriven, the others stay where they are: {answer['detail']}, and took nothing for {STUCK_S:g} s",
                            hint="`edgeflow get functions` shows whether the function runs; redrive again when it has caught up.",
                        )
                    note = f"; waiting: {answer['detail']}" if wait_s else ""
                    progress.say(f"{done} of {total} redriven, {len(failed)} failed{note}")
                    after = answer["next"]
                    if wait_s:
                        time.sleep(wait_s)
    except KeyboardInterrupt:
        errors.print(f"{done} redriven so far; the others stay where they are", highlight=False)
        raise
    return done, failed


# -- no more -----------------------------------------------------------------------------------------------------------


def _purge_ids(ids: list[str], namespace: str | None, pop: str | None, *, yes: bool) -> int:
    found = [(target, letter["id"]) for target, letter in _located(ids, namespace, pop)]
    if len(found) > 1:
        confirm(f"Remove {len(found)} dead letters for good?", yes=yes)
    purged = 0
    for (name, _, one), id in found:
        for _, client in clients_of(name):
            purged += client.purge(one, id)
    return purged


def _purge_matching(namespace: str | None, filters: Filters, pop: str | None, *, yes: bool) -> int:
    counts: dict[tuple[str, str], int] = {}
    for name, client, one in _targets(namespace, filters, pop):
        number = sum(1 for _ in client.letters(one, **filters))
        if number:
            counts[name, one] = number
    total = sum(counts.values())
    if total > 1:
        places = ", ".join(f"{number} of {one} at {name}" for (name, one), number in counts.items())
        confirm(f"Remove {total} dead letters for good ({places})?", yes=yes)
    purged = 0
    with Progress() as progress:
        for name, one in counts:
            for _, client in clients_of(name):
                after: str | None = ""
                while after is not None:
                    answer = client.purge_some(one, after, **filters)
                    purged += answer["purged"]
                    after = answer["next"]
                    progress.say(f"{purged} of {total} removed")
    return purged


def _print(output: Output, letter: dict[str, Any]) -> None:
    if output is Output.JSON:
        print_json(letter)
        return
    print(f"{letter['namespace']}/{letter['function']} (revision {letter['revision']}) at {letter['pop']}")
    print(f"id        {letter['id']}")
    print(f"time      {time_text(letter['at_ms'])}")
    print(f"reason    {letter['reason']}, after {letter['attempts']} attempts")
    print("detail")
    for line in letter["detail"].splitlines():
        print(f"  {line}")
    print("inputs")
    for item in letter["inputs"]:
        event = item["event"]
        print(f"  {item['name']}: {event['channel']}  subject {event.get('subject') or '-'}  id {event['id']}")
        if "dataref" in event:
            print(f"    {event['dataref']}  ({event['size']} bytes)")
