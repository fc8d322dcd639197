"""Rules of contracts: which fields go with which, and what a program of its own MQTT session cannot have.

What it is: generators of (place, problem), the same for what was written and for a resolved manifest from elsewhere.
What it is not: what a contract does (edgeflow/sdk/adapters, docs/functions.md).
What must stay true: what a contract cannot do is refused by name, never ignored.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edgeflow.core.manifest_scalars import is_of_dead_letters
from edgeflow.core.manifest_wiring import Wiring

Place = tuple[str | int, ...]
Finding = tuple[Place, str]

_OF = {"http": "http", "stdio": "stdio"}
"""Fields and the contract that each belongs to."""


def contract_rules(function: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the contract of a function, from the data of either form."""
    contract = function.get("contract") or "sdk"
    for name, owner in _OF.items():
        if function.get(name) is not None and contract != owner:
            yield (name,), f"belongs to `contract: {owner}`; remove it, or change the contract"
    if contract == "sdk" and function.get("command") is not None:
        yield (
            ("command",),
            "with `contract: sdk` the SDK runs the handler; remove it, or write another contract",
        )


def wired_rules(contract: object, wiring: Wiring) -> Iterator[Finding]:
    """What is wrong with how a function is wired, given its contract."""
    if contract in ("http", "stdio") and any(item.get("qos") == 0 for item in wiring.inputs):
        yield (
            ("subscribe", "qos"),
            f"with `contract: {contract}` the adapter commits what the program answers, so its input is durable; remove the field",
        )
    if contract == "mqtt":
        yield from _mqtt_rules(wiring)


def mqtt_rules(function: Mapping[str, Any]) -> Iterator[Finding]:
    """What a function of the contract `mqtt` cannot have, from the data of the YAML form."""
    scale, retry, limits = function.get("scale"), function.get("retry"), function.get("limits")
    for name, value in scale.items() if isinstance(scale, Mapping) else ():
        if name == "instances" and isinstance(value, int) and value != 1:
            yield ("scale", name), f"{value} programs would each hear every event; write 1"
        elif name in ("min", "max", "pool"):
            yield (
                ("scale", name),
                "the one program hears the broker itself, so it does not follow the work; remove the field",
            )
    for name in ("outputs", "output_bytes"):
        if isinstance(limits, Mapping) and limits.get(name) is not None:
            yield ("limits", name), "nothing is committed with `contract: mqtt`; remove the field"
    if retry is not None:
        yield (
            ("retry",),
            "nothing is tried again with `contract: mqtt`: the program does its own subscribing; remove it",
        )
    if function.get("context"):
        yield ("context",), "a program of `contract: mqtt` is handed nothing but messages; remove it"


def _mqtt_rules(wiring: Wiring) -> Iterator[Finding]:
    why = "a program of `contract: mqtt` does its own subscribing, and nothing stands between it and the broker"
    if wiring.join:
        yield ("subscribe", "join"), f"{why}; name the channels: subscribe: [<channel>, <channel>]"
    for item in wiring.inputs:
        if "where" in item:
            yield ("subscribe", "where"), f"{why}; remove the field"
        if is_of_dead_letters(item["channel"]):
            yield ("subscribe",), f"dead letters are kept, so what handles them is durable: not {item['channel']!r}"
    if wiring.latest:
        yield ("latest",), f"{why}; remove the field"
    if wiring.keyed:
        yield ("state" if wiring.keyed["state"] else "ordered",), f"{why}; remove the field"
