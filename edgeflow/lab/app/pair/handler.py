"""The join, and the visible effect: one event, one value whose key names the invocation, and one count, so that a second effect would show beside the first.

In a control it loses or doubles the result of one input in twenty.
"""

import os
import time
from typing import Any

from edgeflow import function

SABOTAGE = os.environ.get("LAB_SABOTAGE", "")


@function
def handle(ctx: Any, start: Any, stepped: Any) -> None:
    time.sleep(0.002)
    n = start.json()["n"]
    if stepped.json()["n"] != n:
        raise ValueError("two different events were joined")
    sabotage = SABOTAGE if n % 20 == 0 else ""
    effect = f"effects/{start.subject}/{ctx.invocation_id}"
    ctx.ekv.put(effect, start.subject)
    ctx.ekv.increment("tally")
    for _ in range({"": 1, "lose": 0, "double": 2}[sabotage]):
        ctx.emit("done", {"n": n, "effect": effect, "pad": "x" * 6000 if n % 4 == 0 else ""})
