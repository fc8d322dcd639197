"""The application that is measured: chains, joins, a fan-out, a function that keeps a value, a slow one, one with a `qos: 0` input.

What must stay true: a handler does no more than its shape needs; what it gets is what it gives.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.stage import NAMESPACE

CHAIN = 5
FAN_OUT = 10
VALUES = 100
"""How many keys the kept values are spread over."""
SLOW_S = 0.005
"""What the slow handler waits."""
SLOW = "slow"
WINDOW = 300
"""Messages under way while a rate is measured."""

ECHO_HANDLER = """from edgeflow import function


@function
def handle(ctx, event):
    return event.data
"""
KEEP_HANDLER = f"""from edgeflow import function


@function
def handle(ctx, event):
    ctx.ekv.put(f"last/{{event.data[-1] % {VALUES}}}", event.data)
    return event.data
"""
SLOW_HANDLER = f"""import time

from edgeflow import function


@function
def handle(ctx, event):
    time.sleep({SLOW_S})
    return event.data
"""


def join_handler(size: int) -> str:
    """Takes `size` inputs, gives the first."""
    names = ", ".join(f"in{index}" for index in range(size))
    return f"from edgeflow import function\n\n\n@function\ndef handle(ctx, {names}):\n    return in0.data\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """A part of the application as its client sees it."""

    name: str
    requests: Sequence[str]
    """A message is one publish on each."""
    answers: str
    count: int = 1
    """How many answers a message has."""
    window: int = WINDOW
    """Messages under way while its rate is measured."""
    qos: int = 1
    subjects: int | None = 1
    """How many subjects its messages have; None = each one of its own."""


def _channel(path: str) -> str:
    return f"{NAMESPACE}/{path}"


def chain(length: int) -> Shape:
    """The last `length` functions of the chain: a shorter chain is entered later."""
    return Shape(f"chain of {length}", [_channel(f"chain/{CHAIN - length}")], _channel(f"chain/{CHAIN}"))


def join(size: int) -> Shape:
    """A join of `size` channels by subject."""
    requests = [_channel(f"join{size}/in{index}") for index in range(size)]
    return Shape(f"join of {size}", requests, _channel(f"join{size}/out"), subjects=None)


FAN = Shape(f"fan-out {FAN_OUT}", [_channel("fan/in")], _channel("fan/out/+"), count=FAN_OUT, window=WINDOW // FAN_OUT)
KEEP = Shape("keeps a value", [_channel("keep/in")], _channel("keep/out"))
FAST = Shape("qos 0", [_channel("fast/in")], _channel("fast/out"), qos=0)

OTHERS = (KEEP, join(2), join(3), FAN, FAST)
"""What is measured beside the chains."""
RELAXED = "chain of 1, fsync each second"
THREE_POPS = Shape("chain of 1, three PoPs", chain(1).requests, chain(1).answers)


def slow(instances: int) -> Shape:
    """The slow function while it has so many instances."""
    return Shape(f"{instances} of a slow function", [_channel("slow/in")], _channel("slow/out"), window=40)


POLICIES = ("refuse", "drop-oldest", "keep-latest")
"""What a channel may do when an inbox behind it is full."""
OVERLOADED = (SLOW, "echo")
"""Handlers of the overloaded functions: where the function is too slow, and where the PoP is."""
MAX_PENDING = 200
SUBJECTS = 50
"""Of the messages under overload: what `keep-latest` keeps the latest of."""


def overloaded(handler: str, policy: str) -> Shape:
    """A function with that handler behind a channel with that policy."""
    return Shape(
        f"{handler}, on_full: {policy}",
        [_channel(f"{handler}-{policy}/in")],
        _channel(f"{handler}-{policy}/out"),
        subjects=SUBJECTS,
    )


def write_overloaded(folder: Path, pop: str) -> Path:
    """A function of each handler behind a channel of each policy."""
    names = [(handler, policy, f"{handler}-{policy}") for handler in OVERLOADED for policy in POLICIES]
    return _write(
        folder,
        {
            "channels": {f"{name}/in": {"max_pending": MAX_PENDING, "on_full": policy} for _, policy, name in names},
            "functions": {
                name: _function(f"./{handler}", _event(f"{name}/in"), f"{name}/out", pop) for handler, _, name in names
            },
        },
    )


def write_all(folder: Path, pop: str, *, instances: int = 1) -> Path:
    """The whole application."""
    functions = _chain_functions(CHAIN, pop)
    for size in (2, 3):
        inputs = [f"join{size}/in{index}" for index in range(size)]
        functions[f"join{size}"] = _function(
            f"./join{size}", {"join": inputs, "by": "subject", "within": "60s"}, f"join{size}/out", pop
        )
    for index in range(FAN_OUT):
        functions[f"fan{index}"] = _function("./echo", _event("fan/in"), f"fan/out/{index}", pop)
    functions["keep"] = _function("./keep", _event("keep/in"), "keep/out", pop)
    functions[SLOW] = {
        **_function("./slow", _event("slow/in"), "slow/out", pop),
        "scale": {"instances": instances},
    }
    functions["fast"] = _function("./echo", {**_event("fast/in"), "qos": 0}, "fast/out", pop)
    return _write(folder, {"functions": functions})


def write_chain_of_one(folder: Path, pop: str) -> Path:
    """Its last function only."""
    functions = _chain_functions(CHAIN, pop)
    last = f"chain{CHAIN}"
    return _write(folder, {"functions": {last: functions[last]}})


def _chain_functions(length: int, pop: str) -> dict[str, Any]:
    return {
        f"chain{step}": _function("./echo", _event(f"chain/{step - 1}"), f"chain/{step}", pop)
        for step in range(1, length + 1)
    }


def _event(channel: str) -> dict[str, Any]:
    return {"channel": channel, "as": "event"}


def _function(build: str, subscribe: Any, publish: str, pop: str) -> dict[str, Any]:
    return {"build": build, "subscribe": subscribe, "publish": publish, "place": {"pops": [pop]}}


def _write(folder: Path, application: dict[str, Any]) -> Path:
    handlers = {"echo": ECHO_HANDLER, "keep": KEEP_HANDLER, "slow": SLOW_HANDLER}
    handlers |= {f"join{size}": join_handler(size) for size in (2, 3)}
    for name, handler in handlers.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "handler.py").write_text(handler)
    file = folder / "edgeflow.yaml"
    file.write_text(json.dumps({"namespace": NAMESPACE, **application}, indent=2))  # JSON is YAML
    return file
