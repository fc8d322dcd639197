from edgeflow import function


@function
def handle(ctx, doors, readings):
    return ctx.key
