from edgeflow import function


@function
def handle(ctx, readings):
    start_ms, _ = ctx.window
    return {"start_ms": start_ms, "peak": max(reading.json() for reading in readings)}
