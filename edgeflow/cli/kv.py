"""`edgeflow kv`: the edge key-value store. A key is its full name, <namespace>/<key>."""

import dataclasses
import json
import mimetypes
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeflow.cli import policy
from edgeflow.cli.reach import (
    AnyPopOption,
    Output,
    OutputOption,
    PopOption,
    TextArgument,
    client_of,
    clients_of,
    given_text,
    print_json,
    read_input,
    show,
    size_text,
)
from edgeflow.core.events import time_text
from edgeflow.core.typed import text_of
from edgeflow.errors import BadRequest, NotFound
from edgeflow.sdk.values import Change, Listed, Listing, Receipt, Value, ValueInfo

app = typer.Typer(help="The edge key-value store: values, counters, sets and maps.", no_args_is_help=True)
app.add_typer(policy.app, name="policy")

KeyArgument = Annotated[str, typer.Argument(help="<namespace>/<key>, as in vision/models/person", metavar="KEY")]
NamespaceArgument = Annotated[str, typer.Argument(help="The namespace", metavar="NAMESPACE")]
IfVersion = Annotated[str | None, typer.Option("--if-version", help="Only if the value has this version.")]
Strong = Annotated[bool, typer.Option("--strong", help="Decided at the key's home, or refused.")]
Wait = Annotated[
    float | None,
    typer.Option("--wait", help="Longest wait (s) for other PoPs, a version, or the home; 5 if not given."),
]
Durability = Annotated[
    str | None, typer.Option("--durability", help="`durable`, or `replicated:<k>`: also at k other PoPs.")
]
MaxStaleness = Annotated[
    float | None, typer.Option("--max-staleness", help="Fail rather than show what may be older than so many seconds.")
]

_RECEIPT = re.compile(r"([a-z0-9-]{1,32})/(\d{1,18})/(\d{1,18})")


# -- plain values ------------------------------------------------------------------------------------------------------


@app.command("get")
def get(
    key: KeyArgument,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Write the value to this file.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Exactly this version.")] = None,
    strong: Strong = False,
    max_staleness: MaxStaleness = None,
    wait: Wait = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Write a value to standard output or to a file, as it was put; a counter, a set or a map as JSON.

    `-o json` prints what is known of it, with the body as `data` (text) or `data_base64`.
    """
    with client_of(pop) as client:
        value = client.ekv.get(key, version=version, strong=strong, max_staleness_s=max_staleness, wait_s=wait)
    if value is None:
        raise _absent(key)
    if file is not None:
        file.write_bytes(value.data)
        return
    if output is Output.JSON:
        print_json(_with_body(value))
        return
    sys.stdout.buffer.write(value.data)
    sys.stdout.buffer.flush()


@app.command("put")
def put(
    key: KeyArgument,
    text: TextArgument = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="The value as text.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A file with the value; - for standard input.")
    ] = None,
    content_type: Annotated[
        str | None, typer.Option("--content-type", help="Media type; guessed from the file's name.")
    ] = None,
    ttl: Annotated[float | None, typer.Option("--ttl", help="It is gone after so many seconds.", min=0.001)] = None,
    if_version: IfVersion = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if there is no value yet.")] = False,
    durability: Durability = None,
    strong: Strong = False,
    wait: Wait = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put a value and print its version: it is on disk at that PoP then."""
    body = read_input(given_text(text, data), file)
    if content_type is None:
        content_type = mimetypes.guess_type(file)[0] if file is not None else "text/plain; charset=utf-8"
    with client_of(pop) as client:
        receipt = client.ekv.put(
            key, body, content_type=content_type, ttl_s=ttl, if_version=if_version, if_absent=if_absent, durability=durability,
            strong=strong, wait_s=wait,
        )  # fmt: skip
    _show_receipt(key, receipt, output)


@app.command("head")
def head(
    key: KeyArgument,
    strong: Strong = False,
    max_staleness: MaxStaleness = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what is under a key, without its body."""
    with client_of(pop) as client:
        info = client.ekv.head(key, strong=strong, max_staleness_s=max_staleness)
    if info is None:
        raise _absent(key)
    _show_infos([info], output, "")


@app.command("list")
def list_values(
    prefix: Annotated[str, typer.Argument(help="<namespace>/ or the beginning of a key", metavar="PREFIX")],
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List keys with kind, version, size and type."""
    with client_of(pop) as client:
        infos = list(client.ekv.list(prefix))
    _show_infos(infos, output, f"no keys below {prefix!r}")


@app.command("versions")
def versions(key: KeyArgument, pop: PopOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the current version of a value, and those that lost to a write that had not seen them."""
    with client_of(pop) as client:
        items = [dataclasses.asdict(version) for version in client.ekv.versions(key)]
    if not items:
        raise _absent(key)
    columns = {
        "VERSION": lambda item: item["version"],
        "": lambda item: "current" if item["current"] else "lost",
        "ORIGIN": lambda item: item["origin"],
        "WRITTEN": lambda item: time_text(int(item["version"][:13])),
        "SIZE": lambda item: size_text(item["size"]),
        "TYPE": lambda item: item["content_type"],
    }
    show(output, items, columns, empty="")


@app.command("delete")
def delete(
    key: KeyArgument,
    if_version: IfVersion = None,
    durability: Durability = None,
    strong: Strong = False,
    wait: Wait = None,
    pop: PopOption = None,
) -> None:
    """Delete what is under a key, of any type, everywhere."""
    with client_of(pop) as client:
        found = client.ekv.delete(key, if_version=if_version, durability=durability, strong=strong, wait_s=wait)
    if not found:
        raise NotFound(f"there is no value {key!r} at this PoP")


@app.command("watch")
def watch(
    prefix: Annotated[str, typer.Argument(help="<namespace>/ or the beginning of a key", metavar="PREFIX")],
    from_version: Annotated[
        str | None,
        typer.Option("--from-version", help="Leave out what is there and not newer; `now`: all that is there."),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", help="End after so many lines.", min=1)] = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what is under a prefix, then every change, until it is interrupted. `-o json` prints one document a line."""
    with client_of(pop) as client:
        for number, told in enumerate(client.ekv.watch(prefix, from_version=from_version), 1):
            print(json.dumps(_told(told)) if output is Output.JSON else _told_text(told), flush=True)
            if number == count:
                return


# -- counters, sets, maps ----------------------------------------------------------------------------------------------


@app.command("incr")
def increment(
    key: KeyArgument,
    by: Annotated[int, typer.Option("--by", help="How much to add; may be negative.")] = 1,
    durability: Durability = None,
    strong: Strong = False,
    wait: Wait = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add to a counter, and print what it is at that PoP then."""
    with client_of(pop) as client:
        counter = client.ekv.session().counter(key)
        receipt = counter.add(by, durability=durability, strong=strong, wait_s=wait)
        value = counter.value()
    if output is Output.JSON:
        print_json({"key": key, "value": value, "receipt": _receipt(receipt)})
    else:
        print(f"{key}  {value}")


@app.command("set")
def change_set(
    key: KeyArgument,
    add: Annotated[list[str] | None, typer.Option("--add", help="Add this element; may be given again.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Remove this element; may be given again.")
    ] = None,
    durability: Durability = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a set, if anything is given, and print its elements."""
    with client_of(pop) as client:
        session = client.ekv.session()
        if add or remove:
            namespace, inner = _split(key)
            with session.batch(namespace, durability=durability) as batch:
                if add:
                    batch.add(inner, *add)
                if remove:
                    batch.remove(inner, *remove)
        members = sorted(session.set(key).members())
    if output is Output.JSON:
        print_json(members)
    else:
        for member in members:
            print(member)


@app.command("map")
def change_map(
    key: KeyArgument,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", help="Write a field, as in name=value; may be given again.", metavar="FIELD=VALUE"),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Remove this field; may be given again.")] = None,
    durability: Durability = None,
    pop: PopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change a map, if anything is given, and print its fields."""
    wanted: dict[str, bytes | str] = {}
    for text in fields or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise BadRequest(f"--set {text!r} is not FIELD=VALUE")
        wanted[name] = value
    with client_of(pop) as client:
        session = client.ekv.session()
        if wanted or remove:
            namespace, inner = _split(key)
            with session.batch(namespace, durability=durability) as batch:
                if wanted:
                    batch.set(inner, wanted)
                if remove:
                    batch.unset(inner, *remove)
        found = session.map(key).fields()
    if output is Output.JSON:
        print_json({name: text_of(data) for name, data in found.items()})
    else:
        for name, data in found.items():
            print(f"{name}={data.decode(errors='replace')}")


# -- where PoPs stand --------------------------------------------------------------------------------------------------


@app.command("has")
def has(
    namespace: NamespaceArgument,
    receipt: Annotated[str, typer.Argument(help="<origin>/<epoch>/<seq>, as `kv put` prints it", metavar="RECEIPT")],
    pop: AnyPopOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Ask which PoPs have a write: merged there and readable, bodies included."""
    found = _RECEIPT.fullmatch(receipt)
    if found is None:
        raise BadRequest(f"{receipt!r} is not a receipt", hint="It is <origin>/<epoch>/<seq>, as `kv put` prints it.")
    written = Receipt("durable", found[1], int(found[2]), int(found[3]), "")
    items = [{"pop": name, "applied": client.ekv.has(namespace, written)} for name, client in clients_of(pop)]
    columns = {"POP": lambda item: item["pop"], "HAS IT": lambda item: "yes" if item["applied"] else "no"}
    show(output, items, columns, empty="no PoP answers")


@app.command("hash")
def content_hash(namespace: NamespaceArgument, pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """Compare what PoPs have: the same hash means the same keys with the same content."""
    items = [client.ekv.standing(namespace, hash=True) for _, client in clients_of(pop)]
    columns = {
        "POP": lambda item: item["pop"],
        "HASH": lambda item: item["hash"],
        "STALENESS ms": lambda item: item["staleness_ms"],
        "LOGS": lambda item: len(item["heads"]),
    }
    show(output, items, columns, empty="no PoP answers")


@app.command("lag")
def lag(pop: AnyPopOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show how far each PoP's peers are behind it, and why; and by namespace how old what a PoP has may be, and what waits there.

    `-o json` has both: the namespaces of the PoP are in each item, with what the peer lacks of them.
    """
    links: list[dict[str, Any]] = []
    stands: list[dict[str, Any]] = []
    for name, client in clients_of(pop):
        pops = client.pops()
        lags = {
            one["namespace"]: one["lag"]
            for one in next((one["namespaces"] for one in pops if one["self"]), None) or ()
            if one.get("lag")
        }
        for peer in pops:
            if not peer["self"]:
                links.append({
                    "pop": name, "peer": peer["id"], **(peer["link"] or {"state": peer["state"]}),
                    "namespaces": {ns: _lag_of(document, peer["id"]) for ns, document in lags.items()},
                })  # fmt: skip
        stands += [{"pop": name, "namespace": ns, **document} for ns, document in sorted(lags.items())]
    columns = {
        "POP": lambda item: item["pop"],
        "PEER": lambda item: item["peer"],
        "LINK": lambda item: item["state"],
        "ENTRIES BEHIND": lambda item: item.get("entries_behind"),
        "BYTES BEHIND": lambda item: item.get("bytes_behind"),
        "STALENESS ms": lambda item: item.get("staleness_ms"),
        "RTT ms": lambda item: item.get("rtt_ms"),
        "RELAYED": lambda item: item.get("relayed"),
        "SNAPSHOTS": lambda item: item.get("snapshots_sent"),
        "LAST ERROR": lambda item: item.get("last_error"),
    }
    show(output, links, columns, empty="there is one PoP only")
    if output is Output.JSON or not links or not stands:
        return
    print()
    columns = {
        "POP": lambda item: item["pop"],
        "NAMESPACE": lambda item: item["namespace"],
        "STALENESS ms": lambda item: item.get("staleness_ms"),
        "PARKED": lambda item: item.get("parked"),
        "LINK bytes/s": lambda item: _rate(item),
        "LOG ENTRIES": lambda item: item.get("log_entries"),
        "LOG": lambda item: size_text(item.get("log_bytes") or 0),
        "FORCED OUT": lambda item: item.get("forced_out"),
    }
    show(output, stands, columns, empty="")


def _rate(item: dict[str, Any]) -> str | None:
    """What may be sent of it, and to whom that holds it back."""
    if item.get("link_bytes_per_s") is None:
        return None
    held = sorted(peer for peer, one in (item.get("peers") or {}).items() if one.get("held_back"))
    return f"{item['link_bytes_per_s']:,.0f}" + (f" (holds back {', '.join(held)})" if held else "")


def _lag_of(document: dict[str, Any], peer: str) -> dict[str, Any]:
    """The `lag` of a namespace, with what one peer lacks of it."""
    return {
        **{name: value for name, value in document.items() if name != "peers"},
        **document.get("peers", {}).get(peer, {}),
    }


# -- printing ----------------------------------------------------------------------------------------------------------


def _absent(key: str) -> NotFound:
    return NotFound(
        f"there is no value {key!r} at this PoP", hint="`edgeflow kv list <namespace>/` lists what is there."
    )


def _split(key: str) -> tuple[str, str]:
    namespace, slash, inner = key.partition("/")
    if not slash or not inner:
        raise BadRequest(f"{key!r} is not a full key", hint="A key is <namespace>/<key>, as in vision/models/person.")
    return namespace, inner


def _show_infos(infos: list[ValueInfo], output: Output, empty: str) -> None:
    columns = {
        "KEY": lambda item: item["key"],
        "KIND": lambda item: item["kind"],
        "SIZE": lambda item: size_text(item["size"]) if item["kind"] == "register" else item["size"],
        "TYPE": lambda item: item["content_type"],
        "WRITTEN": lambda item: _written(item),
        "VERSION": lambda item: item["version"],
    }
    items = [_info(info) for info in infos]
    show(output, items[0] if output is Output.JSON and not empty else items, columns, empty=empty)  # type: ignore[arg-type]


def _info(info: ValueInfo) -> dict[str, Any]:
    names = ("key", "version", "size", "content_type", "kind", "expires_ms", "origin")
    return {name: getattr(info, name) for name in names}


def _written(item: dict[str, Any]) -> str | None:
    head = item["version"][:13]
    return time_text(int(head)) if item["kind"] in ("register", "map") and head.isdigit() else None


def _with_body(value: Value) -> dict[str, Any]:
    text = text_of(value.data)
    body = {"data": text} if isinstance(text, str) else text
    return {**_info(value), "age_s": value.age_s, **body}


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "class": receipt.class_,
        "origin": receipt.origin,
        "epoch": receipt.epoch,
        "seq": receipt.seq,
        "version": receipt.version,
    }


def _show_receipt(key: str, receipt: Receipt, output: Output) -> None:
    if output is Output.JSON:
        print_json({"key": key, **_receipt(receipt)})
    else:
        print(f"{key}  {receipt.version}  {receipt.class_} {receipt.origin}/{receipt.epoch}/{receipt.seq}")


def _told(told: Change | Listing | Listed) -> dict[str, Any]:
    if isinstance(told, Listing):
        return {"event": "listing", "reason": told.reason}
    if isinstance(told, Listed):
        return {"event": "listed", "keys": told.keys}
    if told.info is None:
        return {"event": "change", "key": told.key, "deleted": True}
    return {"event": "change", **_info(told.info), "deleted": False}


def _told_text(told: Change | Listing | Listed) -> str:
    if isinstance(told, Listing):
        return f"-- begins anew: {told.reason}"
    if isinstance(told, Listed):
        return f"-- {told.keys} keys; what follows are changes"
    if told.info is None:
        return f"{told.key}  deleted"
    return f"{told.key}  {told.info.kind}  {told.info.version}"
