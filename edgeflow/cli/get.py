"""`edgeflow get`: what the cluster has: functions, channels, PoPs, what is applied, pending joins, invocations, replays."""

import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml

from edgeflow.cli.admin import Operator
from edgeflow.cli.reach import AnyPopOption, Output, OutputOption, PopOption, client_of, clients_of, print_json, show
from edgeflow.cli.replay import find_replay, progress_text
from edgeflow.core.events import time_text
from edgeflow.core.manifest_written import written
from edgeflow.core.quotas import written_quota
from edgeflow.errors import NotFound

app = typer.Typer(help="Show functions, channels, PoPs, pending joins, invocations and replays.", no_args_is_help=True)

UNDER_WAY = frozenset({"turn", "ready", "delayed", "claimed"})


class ManifestOutput(StrEnum):
    """How manifests are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="Only this namespace.")]


@app.command("functions")
def functions(namespace: NamespaceOption = None, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The functions with their state, instances, inbox and times, a row for each PoP that runs one. Each is described by that PoP, if it answers."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, client in clients_of(pop):
        for item in client.functions(namespace):
            key = (item["namespace"], item["function"], item["at"])
            if key not in found or item["at"] == name:
                found[key] = item
    columns = {
        "FUNCTION": lambda item: f"{item['namespace']}/{item['function']}",
        "AT": lambda item: item["at"],
        "STATE": lambda item: item["state"],
        "INSTANCES": lambda item: len(item["instances"]),
        "WAITING": lambda item: _waiting(item["inbox"]) if item["inbox"] else None,
        "CLAIMED": lambda item: item["inbox"]["claimed"] if item["inbox"] else None,
        "DONE": lambda item: _stat(item, "invocations"),
        "FAILED": lambda item: _stat(item, "failed"),
        "PLATFORM p50/p99 ms": lambda item: _times(item, "platform_ms"),
        "HANDLER p50/p99 ms": lambda item: _times(item, "handler_ms"),
        "REVISION": lambda item: item["revision"],
        "SERVES": lambda item: item.get("live") if item.get("live") != item["revision"] else None,
        "REASON": lambda item: item["reason"],
        "LAST FAILURE": lambda item: _failure(_stat(item, "last_failure")),
    }
    show(
        output,
        [found[key] for key in sorted(found)],
        columns,
        empty="no functions; apply a manifest with `edgeflow apply -f edgeflow.yaml`",
    )


@app.command("channels")
def channels(namespace: NamespaceOption = None, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The channels that have had an event, with how many each PoP has released."""
    counts: dict[str, dict[str, int]] = {}
    for name, client in clients_of(pop):
        try:
            for item in client.channels(namespace):
                counts.setdefault(item["channel"], {})[name] = item["events"]
        except NotFound:
            continue  # this PoP has nothing of that namespace
    items = [{"channel": channel, "events": events} for channel, events in sorted(counts.items())]
    pops = sorted({name for events in counts.values() for name in events})
    columns: dict[str, Any] = {"CHANNEL": lambda item: item["channel"]}
    for name in pops:
        columns[name.upper()] = lambda item, name=name: item["events"].get(name, 0)
    show(output, items, columns, empty="no channels have had an event yet")


@app.command("pops")
def pops(pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The PoPs that answer, with their links."""
    items = []
    for _, client in clients_of(pop):
        views = client.pops()
        links = {view["id"]: {"state": view["state"], **(view["link"] or {})} for view in views[1:]}
        items.append({**views[0], "links": links})
    columns = {
        "POP": lambda item: item["id"],
        "STATE": lambda item: item["state"],
        "NAMESPACES": lambda item: ", ".join(
            view["namespace"] for view in item["namespaces"] if view["namespace"] != "system"
        ),
        "LINKS": lambda item: ", ".join(_link(name, link) for name, link in item["links"].items()),
        "API": lambda item: item["api_url"],
    }
    show(output, items, columns, empty="no PoP answers")


@app.command("joins")
def joins(namespace: NamespaceOption = None, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """Joins that wait for their other inputs, and windows that are open, the first to end first. They wait at the PoP of their function."""
    items: list[dict[str, Any]] = []
    for name, client in clients_of(pop):
        try:
            items += [{"pop": name, **item} for item in client.joins(namespace)]
        except NotFound:
            continue  # this PoP has nothing of that namespace
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    columns = {
        "POP": lambda item: item["pop"],
        "FUNCTION": lambda item: f"{item['namespace']}/{item['function']}",
        "KEY": lambda item: item["key"],
        "KIND": lambda item: item["kind"],
        "HAVE": lambda item: ", ".join(item["have"]),
        "MISSING": lambda item: ", ".join(item["missing"]),
        "NEEDED": lambda item: item["needed"] or None,
        "SINCE": lambda item: time_text(item["since_ms"]),
        "DUE IN": lambda item: f"{max(0, item['due_ms'] - now_ms) / 1000:.1f} s",
        "WINDOW": lambda item: _window(item["window"]),
    }
    show(output, sorted(items, key=lambda item: item["due_ms"]), columns, empty="no joins wait")


@app.command("manifests")
def manifests(
    namespace: NamespaceOption = None,
    pop: PopOption = None,
    output: Annotated[
        ManifestOutput,
        typer.Option("--output", "-o", help="`yaml` can be applied again; `json` is what the PoPs read."),
    ] = ManifestOutput.TABLE,
) -> None:
    """What is applied: manifests, policies and quotas. With -o yaml as files that can be applied again, one document after the other."""
    with client_of(pop) as client:
        names = (
            [namespace]
            if namespace
            else [one["namespace"] for one in client.namespaces() if one["namespace"] != "system"]
        )
        items = [item for name in names if (item := _declared(client, name)) is not None]
    if output is ManifestOutput.YAML:
        documents = [document for item in items for document in _as_written(item)]
        sys.stdout.write(
            "---\n".join(yaml.safe_dump(one, sort_keys=False, allow_unicode=True, width=120) for one in documents)
        )
        return
    columns = {
        "NAMESPACE": lambda item: item["namespace"],
        "FUNCTIONS": lambda item: ", ".join(sorted(item["manifest"]["functions"])) if item["manifest"] else None,
        "APPLIED": lambda item: time_text(item["manifest"]["applied_ms"]) if item["manifest"] else None,
        "POLICIES": lambda item: len(item["policies"]) or None,
        "QUOTA": lambda item: ", ".join(f"{name} {value:g}" for name, value in item["quota"].items()) or None,
    }
    show(Output(output.value), items, columns, empty="nothing is applied; `edgeflow apply -f edgeflow.yaml` does so")


@app.command("sets")
def sets(pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The sets: what was applied together from one folder, by whom and from where."""
    with client_of(pop) as client:
        items = client.sets()
    columns = {
        "SET": lambda item: item["name"],
        "PARTS": lambda item: ", ".join(f"{part['kind']} of {part['namespace']}" for part in item["parts"]),
        "APPLIED": lambda item: time_text(item["at_ms"]),
        "BY": lambda item: item["by"],
        "FROM": lambda item: item["source"],
    }
    show(output, items, columns, empty="there are no sets; `edgeflow apply -f <folder>/` makes one")


@app.command("invocation")
def invocation(
    id_: Annotated[str, typer.Argument(help="Id of the invocation", metavar="ID")],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace; searched if not given.")
    ] = None,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """How one invocation is: its state at the PoP of its function, and its result if it was an invoke."""
    found: dict[str, Any] | None = None
    for _, client in clients_of(pop):
        for one in [namespace] if namespace else [item["namespace"] for item in client.namespaces()]:
            view = client.invocation(one, id_)
            if view is None:
                continue
            known = found or view
            # The PoP that runs the function knows most; any that was asked for the result has that.
            better = view if view["function"] and not known["function"] else known
            found = {**better, "result": known["result"] or view["result"]}
        if found is not None and found["function"] and (found["result"] or found["state"] in UNDER_WAY):
            break
    if found is None:
        raise NotFound(
            f"there is no invocation {id_!r}",
            hint="What has ended is known for as long as the log is kept (`limits.retention_ms`).",
        )
    if output is Output.JSON:
        print_json(found)
        return
    print(f"{found['namespace']}/{found['function'] or '?'} (revision {found['revision'] or '?'}) at {found['pop']}")
    print(f"state     {found['state']}" + (f" by {found['by']}" if found["by"] else ""))
    if found["attempt"] is not None:
        print(f"attempts  {found['attempt']}, {found['failures']} failed")
    if found["accepted_ms"]:
        print(f"accepted  {time_text(found['accepted_ms'])}")
    if found["reason"]:
        print(f"reason    {found['reason']}")
    for event in (found["result"] or {}).get("outputs", []):
        print(f"output    {event['channel']}  subject {event.get('subject') or '-'}  id {event['id']}")


@app.command("replays")
def replays(namespace: NamespaceOption = None, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """The replays that are known, the newest first."""
    items: list[dict[str, Any]] = []
    for name, client in clients_of(pop):
        for one in [namespace] if namespace else [item["namespace"] for item in client.namespaces()]:
            try:
                items += [{"pop": name, **item} for item in client.replays(one)]
            except NotFound:
                continue  # this PoP has nothing of that namespace
    columns = {
        "ID": lambda item: item["id"],
        "STARTED": lambda item: time_text(item["started_ms"]),
        "POP": lambda item: item["pop"],
        "CHANNEL": lambda item: item["channel"],
        "INTO": lambda item: f"{item['function']}@{item['revision']}",
        "SHADOW": lambda item: "yes" if item["shadow"] else None,
        "STATE": lambda item: item["state"],
        "READ": lambda item: item["read"],
        "INVOKED": lambda item: item["invoked"],
        "COMMITTED": lambda item: item["committed"],
        "GIVEN UP": lambda item: item["dead"],
    }
    show(output, sorted(items, key=lambda item: -item["started_ms"]), columns, empty="no replays")


@app.command("replay")
def replay(
    id_: Annotated[str, typer.Argument(help="Id of the replay", metavar="ID")],
    diff: Annotated[
        bool, typer.Option("--diff", help="Of a shadow: the invocations that gave something else than was recorded.")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Its namespace; searched if not given.")
    ] = None,
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """One replay and how far it is; with --diff what its shadow gave beside what was recorded."""
    at, owner, info = find_replay(id_, namespace, pop)
    if not diff:
        if output is Output.JSON:
            print_json({"pop": at, **info})
        else:
            print(f"{info['id']}  {info['state']}  {progress_text(info)}")
            print(f"{info['channel']} into {info['namespace']}/{info['function']}@{info['revision']} at {at}")
        return
    with client_of(at) as client:
        items = list(client.replay_diff(owner, id_))
    columns = {
        "INVOCATION": lambda item: item["invocation"],
        "RECORDED": lambda item: "not kept" if item["recorded"] is None else _outputs(item["recorded"]),
        "SHADOW": lambda item: _outputs(item["shadow"]),
    }
    shown = items if output is Output.JSON else [item for item in items if not item["same"]]
    show(output, shown, columns, empty=f"all {len(items)} are the same" if items else "nothing to compare yet")


def _declared(client: Operator, namespace: str) -> dict[str, Any] | None:
    """What is declared for a namespace, None when nothing is."""
    quota = client.quota(namespace)
    try:
        rules = client.policies(namespace)["rules"]
    except NotFound:
        rules = []
    found = {
        "namespace": namespace, "manifest": client.manifest(namespace), "policies": rules, "quota": written_quota(quota or {}),
    }  # fmt: skip
    return found if found["manifest"] or rules or quota else None


def _as_written(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The documents that declare it."""
    found = [written(item["manifest"])] if item["manifest"] else []
    rules = [{name: value for name, value in rule.items() if name != "term"} for rule in item["policies"]]
    settings = {name: value for name, value in (("policies", rules), ("quota", item["quota"])) if value}
    return [*found, {"namespace": item["namespace"], **settings}] if settings else found


def _waiting(inbox: dict[str, int]) -> int:
    return inbox["ready"] + inbox["delayed"] + inbox.get("turn", 0)


def _window(window: list[int] | None) -> str | None:
    return None if window is None else f"{time_text(window[0])[11:-1]} - {time_text(window[1])[11:-1]}"


def _outputs(events: list[dict[str, Any]]) -> str:
    texts = []
    for event in events:
        value = event.get("data", event.get("data_base64", event.get("dataref", "")))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        texts.append(f"{event['channel']} {text[:60]}")
    return "; ".join(texts) or "nothing"


def _stat(item: dict[str, Any], name: str) -> Any:
    return (item["stats"] or {}).get(name)


def _failure(failure: dict[str, Any] | None) -> str | None:
    if failure is None:
        return None
    age_s = max(0.0, datetime.now(UTC).timestamp() - failure["at_ms"] / 1000)
    age = f"{age_s:.0f} s" if age_s < 120 else f"{age_s / 60:.0f} min" if age_s < 7200 else f"{age_s / 3600:.0f} h"
    return f"{failure['reason']} {age} ago: {failure['detail'][:100]}"


def _times(item: dict[str, Any], name: str) -> str | None:
    times = (item["stats"] or {}).get(name) or {}
    return (
        f"{times['p50']:.1f} / {times['p99']:.1f}"
        if times.get("p50") is not None and times.get("p99") is not None
        else None
    )


def _link(name: str, link: dict[str, Any]) -> str:
    rtt_ms = link.get("rtt_ms")
    return f"{name} {link['state']}" + (
        f" {rtt_ms:.1f} ms" if isinstance(rtt_ms, int | float) and link["state"] == "up" else ""
    )
