"""The join, and the visible effect: one event, and one value whose key names the invocation, so that a second effect would show beside the first."""

import time

from edgeflow import function


@function
def handle(ctx, b, c):
    time.sleep(0.003)
    if b.json()["n"] != c.json()["n"]:
        raise ValueError("two different events were joined")
    ctx.ekv.put(f"effects/{b.subject}/{ctx.invocation_id}.{ctx.attempt}", b.subject)
    n = b.json()["n"]
    ctx.emit("done", {"n": n}, attributes={"lane": n // 100})
