from edgeflow import function


@function
def handle(ctx, readings):  # in order of event time
    start_ms, _ = ctx.window
    return {"sensor": ctx.key, "start_ms": start_ms, "sum": sum(reading.json() for reading in readings)}
