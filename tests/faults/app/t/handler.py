"""A tally: keyed state and a counter, both of which would show a second effect, and an order per key that a kill must not break."""

import time

from edgeflow import function


@function
def handle(ctx, done):
    time.sleep(0.003)
    seen = ctx.state.get("seen", [])
    ctx.state["seen"] = [*seen, done.json()["n"]]
    ctx.ekv.increment("tally")
