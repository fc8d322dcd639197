from edgeflow import function


@function
def handle(ctx, readings):  # a list of events, in order of their arrival
    values = [reading.json() for reading in readings]
    return {"sensor": ctx.key, "mean": sum(values) / len(values)}
